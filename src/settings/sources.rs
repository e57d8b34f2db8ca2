//! The texts that settings are read from, and their record.
//!
//! Owns: reading whole files, and the meaning of a missing one. A file that never existed is a choice; a file that is
//! gone or empty now, or that cannot be seen, is an error. Recorded texts give the same settings again, whatever has
//! happened to the files: a failed upgrade returns to them. Refuses: to interpret the texts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use crate::sys::fd;

/// Every file that was read, by its path.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    texts: BTreeMap<PathBuf, String>,
    /// Only the recorded texts count; no file is read.
    recorded: bool,
    before: Option<FilesInEffect>,
}

/// The files that the settings in effect were read from.
#[derive(Clone, Debug)]
struct FilesInEffect {
    /// There was a settings file.
    file: bool,
    /// The files that were not empty.
    filled: BTreeSet<PathBuf>,
}

impl fmt::Debug for Sources {
    /// Without the texts: they hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.texts.keys()).finish()
    }
}

impl Sources {
    /// Returns sources with these texts and no others.
    pub(crate) fn recorded(texts: BTreeMap<PathBuf, String>) -> Self {
        Self { texts, recorded: true, before: None }
    }

    /// Returns sources for a service that runs with these texts: a file that is lost now is an error. `file`: one of
    /// them is the settings file.
    pub(crate) fn after(file: bool, texts: &BTreeMap<PathBuf, String>) -> Self {
        let filled = texts.iter().filter(|(_, text)| !is_blank(text)).map(|(path, _)| path.clone()).collect();
        Self { before: Some(FilesInEffect { file, filled }), ..Self::default() }
    }

    pub(crate) fn texts(&self) -> &BTreeMap<PathBuf, String> {
        &self.texts
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Whether a service runs already.
    pub(super) fn is_again(&self) -> bool {
        self.before.is_some()
    }

    /// Whether the service that runs has a settings file.
    pub(super) fn had_file(&self) -> bool {
        self.before.as_ref().is_some_and(|before| before.file)
    }

    /// Whether a file is at a path, also a link that leads nowhere.
    ///
    /// # Errors
    /// The path cannot be seen, or it is a pipe, for whose writer a start would wait.
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

    /// As [`read`](Self::read), for a file that may be empty and then sets nothing.
    ///
    /// # Errors
    /// As for [`read`](Self::read). For a running service, also a file that was emptied.
    pub(super) fn read_filled(&mut self, path: &Path) -> io::Result<String> {
        let text = self.read(path)?;
        if is_blank(&text) && self.before.as_ref().is_some_and(|before| before.filled.contains(path)) {
            return Err(io::Error::other(
                "it is empty now, and was not when it was read last; if that is meant, write a comment into it",
            ));
        }
        Ok(text)
    }

    /// # Errors
    /// Those of the file system. For a running service, also a pipe.
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
        // A master of a running service must not wait for a writer.
        let mut file = fd::open_at_once(path)?;
        if file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("it is a pipe, which can be read only once, at the start"));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Explains the kernel's "not found" for a link that leads nowhere: the operator sees the link.
fn explained(path: &Path, error: io::Error) -> io::Error {
    match fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("it is a link to {}, and nothing is there", target.display()))
        }
        Ok(_) | Err(_) => error,
    }
}

/// Whether the text is empty but for blanks: `echo > FILE` leaves a line end, an editor a byte order mark.
fn is_blank(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim().is_empty()
}
