//! A given value and where it was written.
//!
//! Owns: the kinds of places, and their text. Refuses: which of two values counts (`resolve`), and how a value is read
//! (`value`).

use std::{fmt, path::PathBuf};

use serde::Serialize;
use toml::Value;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The built-in default.
    Default,
    /// A default of the program that runs, by the name it goes by: `App::default_setting`, or the runtime's.
    Program(String),
    /// `path` as an operator would type it: relative to the start folder if it is below that. Without a line it is the
    /// whole file.
    File {
        path: PathBuf,
        line: Option<usize>,
    },
    Env(String),
    /// A variable from `process.env_file`.
    EnvFile {
        path: PathBuf,
        line: usize,
        name: String,
    },
    Flag(&'static str),
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
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value as it was written, and where.
#[derive(Clone)]
pub(crate) struct GivenValue {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl fmt::Debug for GivenValue {
    /// Without the value: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.origin)
    }
}
