//! The part of the command line that concerns the settings.
//!
//! Owns: the flags that set keys, as they were typed. Refuses: to interpret them (`resolve` does), and to parse the
//! command line (`cli` does).

use std::path::PathBuf;

/// The part of the command line that concerns the settings: flags and words that are not interpreted yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// The settings file that `-c` names.
    pub(crate) config: Option<PathBuf>,
    /// The flags that set keys, in the order of the command line.
    pub(crate) given: Vec<Given>,
    /// The words after `--`. They are reserved for running another program.
    pub(crate) program: Vec<String>,
}

/// A flag of the command line that sets a key.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// The key that the flag sets, as `section.key`.
    pub(crate) key: &'static str,
    /// The name of the flag, such as `--timeout`.
    pub(crate) flag: &'static str,
    /// The value, as it was typed.
    pub(crate) text: String,
}
