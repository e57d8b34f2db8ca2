//! What the command line gave.
//!
//! Owns: the flags that set keys, as they were typed. Refuses: to interpret them (`resolve`); the command line (`cli`).

use std::path::PathBuf;

/// What the command line gave, not interpreted yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `-c`
    pub(crate) config: Option<PathBuf>,
    pub(crate) given: Vec<Given>,
    /// The words after `--`.
    pub(crate) program: Vec<String>,
}

/// One flag that sets a key.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// `section.key`
    pub(crate) key: &'static str,
    /// As typed: `--timeout`.
    pub(crate) flag: &'static str,
    pub(crate) text: String,
}
