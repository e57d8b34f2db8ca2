//! The command line and the configuration file of another server, such as Gunicorn, in this program's settings.
//!
//! Owns: what `__main__.py` has made of the command line, and the answer of the process that executes the configuration
//! file. Refuses: to know the options of those servers, which the package `_compat` does, and to start that process
//! (`helper`).

use std::{
    cell::RefCell,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use oxicorn::settings::{ForeignContext, ForeignSettings, Level, Strength};
use serde::Deserialize;
use serde_json::Value;

use crate::helper::{self, Helper, Launch};

/// How long the configuration file may take.
const CONFIGURATION_TIME: Duration = Duration::from_secs(10);

/// What the command line, the variables and the configuration file of another server mean here.
#[derive(Debug)]
pub(crate) struct Compat {
    /// The text from `__main__.py`, which the process for the configuration file gets too.
    text: String,
    line: CommandLine,
    launch: Launch,
    /// The last answer of the process that has executed the configuration file. It is `None` if there is no such file,
    /// and before the file was executed.
    answer: RefCell<Option<String>>,
}

/// What `__main__.py` has made of the command line and the variables.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CommandLine {
    /// The words after the name of the program, as the operator wrote them.
    argv: Vec<String>,
    settings: Vec<Given>,
    notes: Vec<Note>,
    problems: Vec<Problem>,
    /// The configuration file, as the operator named it: a path, `file:` and a path, or `python:` and a module.
    configuration: Option<String>,
    /// What the workers need to know. Only Python code reads it.
    worker: Value,
}

/// What the process that has executed the configuration file says of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    settings: Vec<Given>,
    notes: Vec<Note>,
    problems: Vec<Problem>,
    worker: Value,
}

#[derive(Debug, Deserialize)]
struct Given {
    key: String,
    value: String,
    origin: String,
    #[serde(default)]
    strength: Kind,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    File,
    Env,
    Flag,
}

#[derive(Debug, Deserialize)]
struct Note {
    origin: String,
    level: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Problem {
    origin: String,
    text: String,
}

impl Compat {
    /// Reads what `__main__.py` has made of the command line. `text` is empty if only this program's own words are in
    /// it. `executable` is the interpreter, and `options` are its own options.
    pub(crate) fn new(text: String, executable: PathBuf, options: Vec<OsString>) -> Self {
        let line = match text.as_str() {
            "" => CommandLine::default(),
            text => serde_json::from_str(text).unwrap_or_else(|error| {
                let text = format!("the words for the master cannot be read: {error}");
                CommandLine { problems: vec![Problem { origin: "oxicorn".to_owned(), text }], ..CommandLine::default() }
            }),
        };
        Self { text, line, launch: Launch { executable, options }, answer: RefCell::default() }
    }

    /// Returns the words of the command line as the operator wrote them; `None` if they are the ones that the
    /// supervisor has read.
    pub(crate) fn original_words(&self) -> Option<&[String]> {
        (!self.text.is_empty()).then_some(&self.line.argv)
    }

    /// Returns the settings of the command line, the variables and the configuration file. Executes the file if there is
    /// no answer yet.
    pub(crate) fn settings(&self, context: &ForeignContext<'_>) -> ForeignSettings {
        let mut settings = ForeignSettings::new();
        let CommandLine { settings: given, notes, problems, configuration, .. } = &self.line;
        add(&mut settings, given, notes, problems);
        let Some(named) = configuration else { return settings };
        let path = path_of(named, context.folder());
        let answer = match context.recorded(&path) {
            Some(recorded) => Ok(recorded.to_owned()),
            None => self.answer(context.folder()),
        };
        let read = answer.and_then(|text| match serde_json::from_str(&text) {
            Ok(answer) => Ok((text, answer)),
            Err(error) => Err(format!("the answer of its process cannot be read: {error}")),
        });
        match read {
            Ok((text, Answer { settings: given, notes, problems, .. })) => {
                add(&mut settings, &given, &notes, &problems);
                settings.file(path, text);
            }
            Err(reason) => {
                settings.refuse(named, reason);
                settings.file(path, "{}");
            }
        }
        settings
    }

    /// Returns the answer of the process that executes the configuration file.
    fn answer(&self, folder: &Path) -> Result<String, String> {
        if let Some(answer) = &*self.answer.borrow() {
            return Ok(answer.clone());
        }
        let until = helper::now() + CONFIGURATION_TIME;
        let mut helper = Helper::begin(&self.launch, folder, &self.text)?;
        let answer = helper.wait(until)?.ok_or_else(|| {
            helper.kill();
            format!("it did not end within {} s", CONFIGURATION_TIME.as_secs())
        })?;
        self.answer.replace(Some(answer.clone()));
        Ok(answer)
    }

    /// Returns what the workers of a generation need to know, as JSON. `recorded` is the text that was recorded with the
    /// settings of the generation. The result is `None` if there is nothing.
    pub(crate) fn of_worker(&self, recorded: Option<&str>) -> Option<String> {
        let answer = recorded.and_then(|text| serde_json::from_str::<Answer>(text).ok());
        let told = answer.map(|answer| answer.worker).filter(|worker| !worker.is_null());
        let told = told.or_else(|| Some(self.line.worker.clone()).filter(|worker| !worker.is_null()));
        told.map(|worker| worker.to_string())
    }
}

/// Returns the path of a configuration file. A module of Python has no path, so its name takes that place.
fn path_of(named: &str, folder: &Path) -> PathBuf {
    match named.strip_prefix("file:") {
        None if named.starts_with("python:") => PathBuf::from(named),
        path => folder.join(path.unwrap_or(named)),
    }
}

fn add(settings: &mut ForeignSettings, given: &[Given], notes: &[Note], problems: &[Problem]) {
    for Given { key, value, origin, strength } in given {
        let strength = match strength {
            Kind::File => Strength::File,
            Kind::Env => Strength::Environment,
            Kind::Flag => Strength::Flag,
        };
        settings.set(strength, key, value, origin);
    }
    for Note { origin, level, text } in notes {
        settings.note(if level == "warn" { Level::Warn } else { Level::Info }, origin, text);
    }
    for Problem { origin, text } in problems {
        settings.refuse(origin, text);
    }
}
