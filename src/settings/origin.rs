//! A value that was given for a key, and the place where it was written.
//!
//! Owns: the kinds of places, and their names in messages. Refuses: to choose between two values (`resolve` does), and
//! to read a value (`value` does).

use std::{fmt, path::PathBuf};

use serde::Serialize;
use toml::Value;

/// The place where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The value is the built-in default.
    Default,
    /// The value is a default of the running program. The text names the code that set it: `App::default_setting`, or the
    /// name of the runtime.
    Program(String),
    /// The settings file. `path` is relative if the file is below the start folder, as an operator would type it. If
    /// `line` is `None`, the whole file is meant.
    File { path: PathBuf, line: Option<usize> },
    /// An environment variable, by its name.
    Env(String),
    /// The variable `name` in the file of `process.env_file`.
    EnvFile { path: PathBuf, line: usize, name: String },
    /// A flag of the command line, such as `--workers`.
    Flag(&'static str),
    /// A place in a source that the runtime has read, in the runtime's words.
    Foreign(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Program(label) => write!(f, "default ({label})"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::EnvFile { path, line, name } => write!(f, "{}:{line}: {name}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
            Self::Foreign(place) => f.write_str(place),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value as it was written, and the place where it was written.
#[derive(Clone)]
pub(crate) struct GivenValue {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl fmt::Debug for GivenValue {
    /// Shows only the origin, because the value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.origin)
    }
}
