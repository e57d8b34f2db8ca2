//! The command line and the configuration file of another server, such as Gunicorn, in this program's settings.
//!
//! Owns: what `__main__.py` has made of the command line, the answer of the process that executes the configuration
//! file, and which of these processes gets the events of the master. Refuses: to know the options of those servers, which
//! the package `_compat` does, to start that process (`helper`), and to know what its hooks are told (`hooks`).

use std::{
    cell::RefCell,
    ffi::OsString,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use oxicorn::{
    ForkedWorker, SupervisorEvent,
    settings::{ForeignContext, ForeignSettings, Strength},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    helper::{self, Helper, Launch, Overlay},
    hooks::{self, Hooks},
};

/// How long the configuration file may take.
const CONFIGURATION_TIME: Duration = Duration::from_secs(10);

/// What the command line, the variables and the configuration file of another server mean here.
#[derive(Debug)]
pub(crate) struct Compat {
    /// The text from `__main__.py`, which the process for the configuration file gets too.
    text: String,
    line: CommandLine,
    launch: Launch,
    state: RefCell<State>,
}

/// What has become of the configuration file.
#[derive(Debug, Default)]
struct State {
    /// The last answer of the process that has executed the file, or why there is none. It is `None` before the file
    /// was executed, and while it is executed again.
    answer: Option<Result<String, String>>,
    /// The process that executes the file again.
    reading: Option<Helper>,
    /// The hooks of the last answer, whose settings are not in effect yet.
    fresh: Option<Hooks>,
    /// The hooks of the settings in effect.
    current: Option<Hooks>,
    /// The hooks of the settings before, while the newer ones are on trial.
    before: Option<Hooks>,
    /// True if the settings in effect have hooks that no process runs.
    lacks_hooks: bool,
    /// In a worker: what the hooks had changed in the environment at the fork.
    inherited: Overlay,
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
    /// The names of the hooks in the file.
    hooks: Vec<String>,
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
        Self { text, line, launch: Launch { executable, options }, state: RefCell::default() }
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
            Some(recorded) => {
                self.state.borrow_mut().note_recorded(recorded);
                Ok(recorded.to_owned())
            }
            None => self.answer(context.folder()),
        };
        let read = answer.and_then(|text| match serde_json::from_str(&text) {
            Ok(answer) => Ok((text, answer)),
            Err(error) => Err(format!("the answer of its process cannot be read: {error}")),
        });
        match read {
            Ok((text, Answer { settings: given, notes, problems, .. })) => {
                if !problems.is_empty() {
                    add_name(&mut settings, &path, named);
                }
                add(&mut settings, &given, &notes, &problems);
                settings.file(path, text);
            }
            Err(reason) => {
                add_name(&mut settings, &path, named);
                settings.refuse(named, reason);
                settings.file(path, "{}");
            }
        }
        settings
    }

    /// Returns the answer of the process that executes the configuration file. Waits for it if the file was not executed
    /// yet, which is so in a command and at the start of a master.
    fn answer(&self, folder: &Path) -> Result<String, String> {
        let mut state = self.state.borrow_mut();
        if state.answer.is_none() {
            match Helper::begin(&self.launch, folder, &self.text, &Overlay::new()) {
                Ok(mut helper) => {
                    let line = helper.wait(helper::now() + CONFIGURATION_TIME);
                    state.take_answer(helper, line);
                }
                Err(reason) => state.answer = Some(Err(reason)),
            }
        }
        state.answer.clone().unwrap_or_else(|| Err("it was not executed".to_owned()))
    }

    /// Begins to execute the configuration file again, and returns how long this may take; `None` if there is nothing to
    /// wait for.
    pub(crate) fn refresh(&self, context: &ForeignContext<'_>) -> Option<Duration> {
        self.line.configuration.as_ref()?;
        let mut state = self.state.borrow_mut();
        state.drop_refresh();
        match Helper::begin(&self.launch, context.folder(), &self.text, &state.overlay()) {
            Ok(helper) => state.reading = Some(helper),
            Err(reason) => state.answer = Some(Err(reason)),
        }
        state.reading.as_ref().map(|_| CONFIGURATION_TIME)
    }

    /// Returns true if the configuration file was executed again, or if that has failed.
    pub(crate) fn refreshed(&self, overdue: bool) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(mut helper) = state.reading.take() else { return true };
        let line = helper.line();
        if line.is_none() && !helper.has_ended() && !overdue {
            state.reading = Some(helper);
            return false;
        }
        state.take_answer(helper, line);
        true
    }

    /// Returns the sockets to the processes.
    pub(crate) fn watched(&self) -> Vec<Rc<dyn AsFd>> {
        let state = self.state.borrow();
        let hooks = [&state.fresh, &state.current, &state.before].into_iter().flatten().map(Hooks::helper);
        hooks.chain(&state.reading).map(|helper| -> Rc<dyn AsFd> { helper.stream() }).collect()
    }

    /// Reads what the hooks have answered.
    pub(crate) fn attend(&self) {
        let mut state = self.state.borrow_mut();
        // A process whose settings are not in effect has nothing to answer. If it has ended, it is not needed.
        state.fresh.take_if(|hooks| !hooks.attend());
        state.before.take_if(|hooks| !hooks.attend());
        if state.current.take_if(|hooks| !hooks.attend()).is_some() {
            log_hooks_lost("its process has ended");
        }
    }

    /// Tells the hooks an event of the master.
    ///
    /// # Errors
    /// The service must not start.
    pub(crate) fn on_event(&self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        let mut state = self.state.borrow_mut();
        match event {
            SupervisorEvent::Starting { .. } => {
                state.current = state.fresh.take();
                if state.lacks_hooks {
                    log_hooks_lost("the program that took over again does not execute the file anew");
                }
            }
            SupervisorEvent::Reloading { .. } => {
                state.before = state.current.take();
                state.current = state.fresh.take();
            }
            SupervisorEvent::Reloaded => state.before = None,
            SupervisorEvent::RolledBack => state.current = state.before.take(),
            SupervisorEvent::RefreshUnused => state.drop_refresh(),
            SupervisorEvent::Stopping { quick: true, alive } if self.line.configuration.is_some() => interrupt(alive),
            _ => {}
        }
        state.current.as_mut().map_or(Ok(()), |hooks| hooks.tell(event))
    }

    /// Closes what the master has open for its processes, in a worker. Otherwise the processes would not see the end of
    /// the master.
    pub(crate) fn leave_master(&self) {
        let state = self.state.take();
        self.state.borrow_mut().inherited = state.overlay();
    }

    /// Returns what the hooks have changed in the environment of this worker.
    pub(crate) fn overlay(&self) -> Overlay {
        self.state.borrow().overlay()
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

impl State {
    /// Returns what the hooks have changed in the environment.
    fn overlay(&self) -> Overlay {
        self.current.as_ref().map_or(&self.inherited, Hooks::overlay).clone()
    }

    /// Notes that the settings in effect come from recorded text, so that nothing runs their hooks.
    fn note_recorded(&mut self, recorded: &str) {
        if self.answer.is_none() {
            let answer = serde_json::from_str::<Answer>(recorded).unwrap_or_default();
            self.lacks_hooks = hooks::any_of_the_master(&answer.hooks);
        }
    }

    /// Takes the answer of a process, and keeps the process if it runs hooks.
    fn take_answer(&mut self, mut helper: Helper, line: Option<String>) {
        self.answer = Some(match line {
            Some(line) => {
                let answer = serde_json::from_str::<Answer>(&line).unwrap_or_default();
                if answer.problems.is_empty() && hooks::any_of_the_master(&answer.hooks) {
                    self.fresh = Some(Hooks::new(helper, self.overlay()));
                }
                Ok(line)
            }
            None if helper.has_ended() => Err(helper.why_ended()),
            None => Err(helper.give_up(CONFIGURATION_TIME)),
        });
    }

    /// Forgets what was read again and is not used. The processes end.
    fn drop_refresh(&mut self) {
        if let Some(mut helper) = self.reading.take() {
            helper.give_up(CONFIGURATION_TIME);
        }
        self.fresh = None;
        self.answer = None;
    }
}

/// Sends the workers the signal at which Gunicorn's run the hook `worker_int`. Workers without this hook ignore it.
fn interrupt(workers: &[ForkedWorker]) {
    for pid in workers.iter().filter_map(|worker| i32::try_from(worker.pid).ok()) {
        // A worker that has ended meanwhile is not reaped yet, so this pid is no other process.
        let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
    }
}

fn log_hooks_lost(reason: &str) {
    tracing::warn!(
        event = "hooks_lost",
        reason,
        "the hooks of the configuration file that run beside the master are not called until the next reload"
    );
}

/// Returns the path of a configuration file. A module of Python has no path, so its name takes that place.
fn path_of(named: &str, folder: &Path) -> PathBuf {
    match named.strip_prefix("file:") {
        None if named.starts_with("python:") => PathBuf::from(named),
        path => folder.join(path.unwrap_or(named)),
    }
}

/// Adds the name of the service, as far as the text of a file tells it that cannot be executed. Commands find the running
/// service by its name, also while its file has a mistake.
fn add_name(settings: &mut ForeignSettings, path: &Path, named: &str) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let name = text.lines().enumerate().find_map(|(index, line)| {
        let value = line.strip_prefix("proc_name")?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        Some((index + 1, value[1..].split_once(quote)?.0))
    });
    if let Some((line, name)) = name {
        settings.set(Strength::File, "process.name", name, format!("{named}:{line}"));
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
        match level.as_str() {
            "warn" => settings.warn(origin, text),
            _ => settings.note(origin, text),
        }
    }
    for Problem { origin, text } in problems {
        settings.refuse(origin, text);
    }
}
