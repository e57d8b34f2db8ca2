//! The texts of the files from which settings are read, and a record of these texts.
//!
//! Owns: reading whole files, the meaning of a missing file, and the record. If a settings file never existed, that is
//! a choice of the operator. If a file is gone, has become empty or cannot be seen, that is an error. With recorded
//! texts the same settings can be made again, even if the files have changed. The previous program needs this to take
//! over again after a failed upgrade. Refuses: to interpret the texts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::foreign::ForeignSettings;
use crate::sys::fd;

/// The text of every file that was read, by its path, and how missing files are treated.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    texts: BTreeMap<PathBuf, String>,
    /// If true, only the recorded texts are used, and no file is read.
    recorded: bool,
    /// The files of the settings in effect, if a service runs already; `None` at a start.
    before: Option<FilesInEffect>,
    /// The settings that the runtime has read from sources of its own.
    foreign: ForeignSettings,
}

/// The files from which the settings in effect were read.
#[derive(Clone, Debug)]
struct FilesInEffect {
    /// True if there was a settings file.
    file: bool,
    /// The paths of the files that were not empty.
    filled: BTreeSet<PathBuf>,
}

impl fmt::Debug for Sources {
    /// Shows the paths without the texts, because the texts hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.texts.keys()).finish()
    }
}

impl Sources {
    /// Returns sources that have only these recorded texts and read no file.
    pub(crate) fn recorded(texts: BTreeMap<PathBuf, String>) -> Self {
        Self { texts, recorded: true, ..Self::default() }
    }

    /// Returns sources for a reload or an upgrade of a service that runs with these texts. If one of the service's
    /// files is missing or empty now, that is an error. `file` is true if one of the texts is the settings file.
    pub(crate) fn after(file: bool, texts: &BTreeMap<PathBuf, String>) -> Self {
        let filled = texts.iter().filter(|(_, text)| !is_blank(text)).map(|(path, _)| path.clone()).collect();
        Self { before: Some(FilesInEffect { file, filled }), ..Self::default() }
    }

    /// Adds the settings that the runtime has read from sources of its own.
    pub(crate) fn with_foreign(mut self, foreign: ForeignSettings) -> Self {
        self.foreign = foreign;
        self
    }

    pub(crate) fn foreign(&self) -> &ForeignSettings {
        &self.foreign
    }

    /// Takes the settings of the runtime out, and records the text of the runtime's file.
    pub(super) fn take_foreign(&mut self) -> ForeignSettings {
        let foreign = std::mem::take(&mut self.foreign);
        self.texts.extend(foreign.file.clone());
        foreign
    }

    pub(crate) fn texts(&self) -> &BTreeMap<PathBuf, String> {
        &self.texts
    }

    /// Returns the recorded texts, if no file is read.
    pub(crate) fn recorded_texts(&self) -> Option<&BTreeMap<PathBuf, String>> {
        self.recorded.then_some(&self.texts)
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Returns true if the settings are read for a reload or an upgrade of a service that runs already.
    pub(super) fn is_again(&self) -> bool {
        self.before.is_some()
    }

    /// Returns true if the running service has a settings file.
    pub(super) fn had_file(&self) -> bool {
        self.before.as_ref().is_some_and(|before| before.file)
    }

    /// Returns true if a file is at `path`. A symbolic link without a target counts too.
    ///
    /// # Errors
    /// This process cannot see the path, or a pipe is at the path. A start must not read a pipe here, because it would
    /// wait until another process writes to the pipe.
    pub(super) fn exists(&self, path: &Path) -> io::Result<bool> {
        if self.recorded {
            return Ok(self.texts.contains_key(path));
        }
        match fs::symlink_metadata(path) {
            Ok(_) if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) => {
                Err(io::Error::other("it is a pipe, not a file"))
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the text of a file that may be empty from the start, but may not become empty while the service runs.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read). For a running service, it is also an error if the file has become empty.
    pub(super) fn read_filled(&mut self, path: &Path) -> io::Result<String> {
        let text = self.read(path)?;
        if is_blank(&text) && self.before.as_ref().is_some_and(|before| before.filled.contains(path)) {
            return Err(io::Error::other(
                "it is empty now, and was not when it was read last; if that is meant, write a comment into it",
            ));
        }
        Ok(text)
    }

    /// Returns the text of a file, and records it. If only recorded texts are used, returns the recorded text.
    ///
    /// # Errors
    /// The errors of the file system. For a running service, it is also an error if the file is a pipe.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<String> {
        if self.recorded {
            return self.texts.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let text = self.read_now(path).map_err(|error| explained(path, error))?;
        self.texts.insert(path.to_owned(), text.clone());
        Ok(text)
    }

    fn read_now(&self, path: &Path) -> io::Result<String> {
        if self.before.is_none() {
            return fs::read_to_string(path);
        }
        // The master of a running service must not wait, so open the file without waiting for the writer of a pipe.
        let mut file = fd::open_at_once(path)?;
        if file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("it is a pipe, which can be read only once, at the start"));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Explains the error "not found" if `path` is a symbolic link without a target. The operator sees the link there, and
/// would not understand the kernel's message.
fn explained(path: &Path, error: io::Error) -> io::Error {
    match fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("it is a link to {}, and nothing is there", target.display()))
        }
        Ok(_) | Err(_) => error,
    }
}

/// Returns true if the text is empty, apart from blanks, line ends and a byte order mark. The command `echo > FILE`
/// writes a line end, and some editors write a byte order mark.
fn is_blank(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim().is_empty()
}
