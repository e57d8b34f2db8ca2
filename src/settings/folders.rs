//! The folders that relative paths are resolved against. The folder of a path depends on where the path was written,
//! and on what its file is for.
//!
//! Owns: the folders that a service manager makes for a unit, and the variables that name them. Refuses: to make a
//! folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The folders that the relative paths of one source are resolved against: one folder for each kind of file.
pub(super) struct Bases {
    /// Relative paths of sockets, and of files that are only read, are resolved against this folder. It does not depend
    /// on the variables of the service manager, because a command without these variables must find the socket too.
    pub(super) read: Base,
    /// Relative paths of log files are resolved against this folder.
    pub(super) logs: Base,
    /// Relative paths of run files are resolved against this folder. A run file exists only while the service runs,
    /// such as the pidfile.
    pub(super) run: Base,
}

impl Bases {
    /// Returns the folders for paths in the settings file. If a service manager made a folder for logs or for run
    /// files, these files go there. All other relative paths are resolved against `read`.
    pub(super) fn of_file(read: Base, env: &BTreeMap<String, String>) -> Self {
        let given = |variable| given_folder(env, variable).map(|folder| Base::of_file(&folder));
        let logs = given(LOGS_DIRECTORY).unwrap_or_else(|| read.clone());
        let run = given(RUNTIME_DIRECTORY).unwrap_or_else(|| read.clone());
        Self { read, logs, run }
    }

    /// Returns the folders for paths in the environment and on the command line. All of these paths are resolved
    /// against the start folder, because the operator typed them there.
    pub(super) fn of_text(start: &Base) -> Self {
        Self { read: start.clone(), logs: start.clone(), run: start.clone() }
    }
}

pub(super) const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
const LOGS_DIRECTORY: &str = "LOGS_DIRECTORY";
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Returns the folder that a service manager names in `variable`. If the variable names several folders, returns the
/// first. A relative path is ignored, because a service manager gives absolute paths.
pub(super) fn given_folder(env: &BTreeMap<String, String>, variable: &str) -> Option<PathBuf> {
    let first = env.get(variable)?.split(':').next().map(PathBuf::from)?;
    first.is_absolute().then_some(first)
}

/// A folder that relative paths are resolved against.
#[derive(Clone, Debug)]
pub(super) struct Base {
    path: PathBuf,
    gone: bool,
}

impl Base {
    /// Makes a base for the start folder. `gone` is true if the folder was removed, so that relative paths must be
    /// refused.
    pub(super) fn new(path: PathBuf, gone: bool) -> Self {
        Self { path, gone }
    }

    /// Makes a base for the folder of a file. The file was read, so its folder exists.
    pub(super) fn of_file(folder: &Path) -> Self {
        Self { path: folder.to_owned(), gone: false }
    }

    /// Appends a relative path to this folder; an absolute path stays as it is.
    ///
    /// # Errors
    /// A sentence for the operator: the path is relative and the folder is gone.
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
