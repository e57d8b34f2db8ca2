//! Settings that a runtime has read from sources of its own: the configuration file, the variables and the flags of
//! another server, for example.
//!
//! Owns: the form in which a runtime hands them over. Refuses: to read those sources (the runtime does), and to choose
//! between two values (`resolve` does).

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use toml::Value;

use super::{
    origin::{GivenValue, Origin},
    problem::Problem,
};

/// How strong a setting of another source is. Each kind of source has a place in the precedence of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// The setting overrides the settings file, `PORT` and the other well-known variables. It is for the configuration
    /// file of another server.
    File,
    /// The setting overrides those of [`File`](Self::File). The variables `OXICORN_*` override it. It is for the
    /// variables of another server.
    Environment,
    /// The setting overrides the variables `OXICORN_*`. The flags of this program override it. It is for the flags of
    /// another server.
    Flag,
}

/// What [`Runtime::settings`](crate::Runtime::settings) has read from sources of the runtime's own: settings, notes for
/// the operator, and problems.
#[derive(Clone, Default)]
pub struct ForeignSettings {
    given: Vec<(Strength, String, GivenValue)>,
    pub(super) notes: Vec<ForeignNote>,
    pub(super) problems: Vec<Problem>,
    pub(super) file: Option<(PathBuf, String)>,
}

/// A sentence for the operator about a source of the runtime's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ForeignNote {
    level: NoteLevel,
    /// The place that the sentence is about, such as `--preload`.
    origin: String,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum NoteLevel {
    Info,
    Warn,
}

/// The circumstances under which [`Runtime::settings`](crate::Runtime::settings) reads the sources of the runtime.
#[derive(Clone, Copy, Debug)]
pub struct ForeignContext<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) recorded: Option<&'a BTreeMap<PathBuf, String>>,
}

impl ForeignSettings {
    /// Makes an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a setting. `key` is `section.key`, and `value` has the form that it has in the environment: `"2m"`,
    /// `"true"`, `":9000"`. `origin` names the place where the value was written, such as `gunicorn.conf.py:12`; the
    /// command `config` shows it. A relative path in the value is resolved against the start folder. Of two settings
    /// of the same strength for one key, the later one counts.
    pub fn set(
        &mut self,
        strength: Strength,
        key: impl Into<String>,
        value: impl Into<String>,
        origin: impl Into<String>,
    ) {
        let origin = Origin::Foreign(origin.into());
        self.given.push((strength, key.into(), GivenValue { value: Value::String(value.into()), origin }));
    }

    /// Adds a sentence for the operator, for example about a setting that is not needed here. The log has it as the
    /// event `compat` at the start, and at a reload that brings it. The command `check` prints it.
    pub fn note(&mut self, origin: impl Into<String>, text: impl Into<String>) {
        self.notes.push(ForeignNote { level: NoteLevel::Info, origin: origin.into(), text: text.into() });
    }

    /// Adds a sentence as [`note`](Self::note) does, but as a warning: the operator may have meant something else.
    pub fn warn(&mut self, origin: impl Into<String>, text: impl Into<String>) {
        self.notes.push(ForeignNote { level: NoteLevel::Warn, origin: origin.into(), text: text.into() });
    }

    /// Adds a problem. It is reported with all other problems of the settings, and refuses them.
    pub fn refuse(&mut self, origin: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem::at(Origin::Foreign(origin.into()), "", text));
    }

    /// Declares that the file `path` stands in the place of the settings file, which is then not read. `text` is what
    /// the runtime needs to make the same settings again without the file: [`ForeignContext::recorded`] returns it, and
    /// so does [`WorkerContext::foreign`](crate::WorkerContext::foreign) in the workers of these settings.
    pub fn file(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.file = Some((path.into(), text.into()));
    }

    /// Returns the settings of this strength, in their order.
    pub(super) fn given(&self, strength: Strength) -> impl DoubleEndedIterator<Item = (&str, &GivenValue)> {
        self.given.iter().filter(move |(of, ..)| *of == strength).map(|(_, key, value)| (key.as_str(), value))
    }
}

impl<'a> ForeignContext<'a> {
    /// Returns the folder in which the service was started. Relative paths begin there.
    #[must_use]
    pub fn folder(&self) -> &'a Path {
        self.folder
    }

    /// Returns the text that was recorded for this file by [`ForeignSettings::file`]. It is `None` if the file has to be
    /// read. The program that takes over again after a failed upgrade makes its settings from recorded texts only.
    #[must_use]
    pub fn recorded(&self, file: &Path) -> Option<&'a str> {
        self.recorded?.get(file).map(String::as_str)
    }
}

impl fmt::Debug for ForeignSettings {
    /// Leaves out the values and the text of the file, because they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.given.iter().map(|(_, key, value)| (key, value)).collect::<Vec<_>>();
        let file = self.file.as_ref().map(|(path, _)| path);
        f.debug_struct("ForeignSettings").field("given", &keys).field("file", &file).finish_non_exhaustive()
    }
}

impl fmt::Display for ForeignNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

/// Logs the notes that are not in `known`.
pub(crate) fn say_notes(notes: &[ForeignNote], known: &[ForeignNote]) {
    for note in notes.iter().filter(|note| !known.contains(note)) {
        match note.level {
            NoteLevel::Warn => tracing::warn!(event = "compat", "{note}"),
            NoteLevel::Info => tracing::info!(event = "compat", "{note}"),
        }
    }
}
