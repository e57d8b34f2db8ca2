//! The folders in which relative paths begin, by where the path was written and what its file is for.
//!
//! Owns: the folders that a service manager makes for a unit, and their variables. Refuses: to make a folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The folders in which the relative paths of one source begin, by what the file is for.
pub(super) struct Bases {
    /// Files that are read; and sockets, which commands must find by the same settings.
    pub(super) read: Base,
    pub(super) logs: Base,
    pub(super) run: Base,
}

impl Bases {
    /// For paths in the settings file. A service manager names the folders that it made for the service.
    pub(super) fn of_file(read: Base, env: &BTreeMap<String, String>) -> Self {
        let given = |variable| given_folder(env, variable).map(|folder| Base::of_file(&folder));
        let logs = given(LOGS_DIRECTORY).unwrap_or_else(|| read.clone());
        let run = given(RUNTIME_DIRECTORY).unwrap_or_else(|| read.clone());
        Self { read, logs, run }
    }

    /// For paths in the environment and on the command line: they begin where they are typed, in the start folder.
    pub(super) fn of_text(start: &Base) -> Self {
        Self { read: start.clone(), logs: start.clone(), run: start.clone() }
    }
}

pub(super) const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
const LOGS_DIRECTORY: &str = "LOGS_DIRECTORY";
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Returns the folder that a service manager made, the first of several. A service manager gives absolute paths; others
/// are ignored.
pub(super) fn given_folder(env: &BTreeMap<String, String>, variable: &str) -> Option<PathBuf> {
    let first = env.get(variable)?.split(':').next().map(PathBuf::from)?;
    first.is_absolute().then_some(first)
}

/// The folder in which a relative path begins.
#[derive(Clone, Debug)]
pub(super) struct Base {
    path: PathBuf,
    gone: bool,
}

impl Base {
    /// `gone`: the folder was removed, so nothing can be below it.
    pub(super) fn new(path: PathBuf, gone: bool) -> Self {
        Self { path, gone }
    }

    /// The folder of a file that was read.
    pub(super) fn of_file(folder: &Path) -> Self {
        Self { path: folder.to_owned(), gone: false }
    }

    /// # Errors
    /// As for [`StartFolder::join`].
    pub(super) fn join(&self, path: impl AsRef<Path>) -> Result<PathBuf, String> {
        let path = path.as_ref();
        if self.gone && path.is_relative() {
            return Err(format!(
                "{} is a relative path, and the folder it begins in is gone: {}; give an absolute path",
                path.display(),
                self.path.display()
            ));
        }
        Ok(self.path.join(path))
    }
}
