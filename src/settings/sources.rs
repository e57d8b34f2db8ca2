//! The texts that settings are made of: read, and remembered.
//!
//! Owns: reading whole files. Remembered texts give the same settings again, whatever became of the files: what a
//! failed upgrade goes back to. Refuses: what they mean.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Every file that was read, by its path.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    texts: BTreeMap<PathBuf, String>,
    /// Nothing is read any more.
    recorded: bool,
}

impl fmt::Debug for Sources {
    /// Without the texts: they hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.texts.keys()).finish()
    }
}

impl Sources {
    /// These texts, and no others.
    pub(crate) fn recorded(texts: BTreeMap<PathBuf, String>) -> Self {
        Self { texts, recorded: true }
    }

    pub(crate) fn texts(&self) -> &BTreeMap<PathBuf, String> {
        &self.texts
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.recorded
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        if self.recorded { self.texts.contains_key(path) } else { path.exists() }
    }

    pub(super) fn read(&mut self, path: &Path) -> io::Result<String> {
        if self.recorded {
            return self.texts.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let text = fs::read_to_string(path)?;
        self.texts.insert(path.to_owned(), text.clone());
        Ok(text)
    }
}
