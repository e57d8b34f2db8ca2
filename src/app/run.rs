//! Runs the one command that the command line of a supervised program names, and returns the exit code.
//!
//! Owns: the steps of each command, their order, and the exit code. Refuses: to ask a running service (`ctl`), to
//! rehearse a start (`check`), and to supervise workers (`master`).

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
};

use super::{App, Prepare, ProgramExit, SUCCESS, SetupContext};
use crate::{
    cli::{Command, Parsed, ServiceArgs, StatusFormat},
    ctl, error_chain, hook,
    log::{self, terminal},
    master::{self, Handover, Origins, Outcome, SettingsLoader},
    protocol,
    settings::{self, Flags, Purpose, Resolved, Sources, StartFolder},
    sys::{fork, inherited, title},
    worker,
};

impl App {
    /// Runs the command that the command line of this process names: see [`run_from`](Self::run_from).
    pub fn run(self) -> ExitCode {
        self.run_from(std::env::args_os())
    }

    /// Runs the command that `command_line` names. The first item of `command_line` is the name by which the program
    /// was called. This method returns in the master when the service has stopped, and in each worker when that worker
    /// has ended. Return its exit code from `main`. Start no thread before this call, so use no `#[tokio::main]` and no
    /// logger with a thread.
    ///
    /// An upgrade executes the new program with the arguments of this process, not with `command_line`, and the `main`
    /// of the new program calls this method again. An [`UpgradeCommand`](crate::UpgradeCommand) is the exception: it
    /// gets its own arguments first, and then those of `command_line`.
    pub fn run_from(self, command_line: impl IntoIterator<Item: Into<OsString>>) -> ExitCode {
        self.exit_code_from(command_line).into()
    }

    /// Runs the command that `command_line` names, as [`run_from`](Self::run_from) does, and returns the exit code as a
    /// number. This method is for a program whose `main` is not written in Rust, such as an interpreter: it must pass
    /// the number on, and the number of an [`ExitCode`] cannot be read.
    pub fn exit_code_from(mut self, command_line: impl IntoIterator<Item: Into<OsString>>) -> u8 {
        title::prepare();
        terminal::set_name(&self.info.program.name);
        let command_line: Vec<OsString> = command_line.into_iter().map(Into::into).collect();
        match fork::thread_count() {
            Ok(0 | 1) | Err(_) => {}
            Ok(threads) => {
                return refuse(&format!(
                    "the process already has {threads} threads, and a worker that is forked from it could wait for their \
                     locks for ever; call App::run from a plain main, not from #[tokio::main]"
                ));
            }
        }
        let handover = match Handover::receive() {
            Some(Ok(handover)) => Some(handover),
            Some(Err(exit)) => return exit,
            None => None,
        };
        // In an upgrade the old program has blocked signals on purpose, so the state of the signals must not be reset.
        let inherited = if handover.is_none() { inherited::reset() } else { Vec::new() };
        let parsed = match self.info.program.parse(&command_line) {
            Ok(parsed) => parsed,
            Err(wrong) if handover.is_some() => {
                let wrong = wrong.to_string();
                let sentence = wrong.lines().next().unwrap_or_default();
                return handover.map_or(SUCCESS, |handover| handover.refuse(sentence));
            }
            Err(help) => {
                // If this fails, the terminal is gone, but the exit code still tells the result.
                let _ = help.print();
                return u8::try_from(help.exit_code()).unwrap_or(ProgramExit::Usage as u8);
            }
        };
        let Parsed { command, flags, arguments } = parsed;
        self.info.arguments = arguments.into();
        self.info.command_line = command_line;
        self.declare_defaults();
        if let Some(handover) = handover {
            return self.succeed(handover, flags);
        }
        self.obey(command, flags, &inherited)
    }

    /// Declares the program's own defaults, the weakest first: the defaults of its runtime, its name, and the defaults
    /// that its code sets.
    fn declare_defaults(&mut self) {
        let (name, runtime) = (&self.info.program.name, &self.info.runtime);
        for (key, text) in runtime.defaults() {
            self.declared.add_default(runtime.name(), key, text);
        }
        if name != terminal::DEFAULT_NAME {
            self.declared.add_default(name, "process.name", name);
        }
        for (key, text) in std::mem::take(&mut self.default_settings) {
            self.declared.add_default(name, key, text);
        }
    }

    /// Runs one command of the command line.
    fn obey(self, command: Command, flags: Flags, inherited: &[String]) -> u8 {
        if let Some(page) = command.page(&self.info.program) {
            // If this fails, the program that reads the page, such as `head`, has closed the pipe. Then there is
            // nothing more to do.
            let _ = page.and_then(|page| io::stdout().write_all(&page));
            return SUCCESS;
        }
        let start = StartFolder::here();
        let environment = settings::environment();
        let declared = self.declared.clone();
        let sources = || self.info.with_foreign(Sources::default(), &start);
        let resolve = |purpose| settings::resolve(sources(), &flags, &environment, &start, &declared, purpose);
        let find = |socket: Option<PathBuf>| {
            // The settings need not be read to find a socket that is named.
            let sources = if socket.is_some() { Sources::default() } else { sources() };
            let foreign = sources.foreign();
            ctl::ControlEndpoint::find(socket.as_deref(), &flags, &environment, &start, &declared, foreign)
        };
        let control = |socket, act: &dyn Fn(&ctl::ControlEndpoint) -> Result<(), ctl::Failed>| match find(socket) {
            Ok(place) => end(act(&place)),
            Err(problems) => refuse(&problems.to_string()),
        };
        let ask = |at: ServiceArgs, command: &protocol::ControlCommand, json| {
            control(at.socket, &|place| ctl::ask(place, command.clone(), json))
        };
        match command {
            Command::Run(_) => match resolve(Purpose::Serve) {
                Ok(resolved) => self.supervise(resolved, flags, inherited),
                Err(problems) => refuse(&problems.to_string()),
            },
            Command::Check { deep, json, .. } => {
                let resolved = resolve(Purpose::Serve);
                let place = resolved.is_ok().then(|| find(None).ok()).flatten();
                self.check_settings(resolved, place.as_ref(), deep, json)
            }
            Command::Config { running: true, socket, json, .. } => {
                control(socket, &|place| ctl::print_running(place, json))
            }
            Command::Config { socket, json, .. } => {
                let is_named = socket.is_some();
                let place = find(socket);
                match (resolve(Purpose::Ask), place) {
                    (Ok(_), Err(problems)) if is_named => refuse(&problems.to_string()),
                    (Ok(resolved), place) => {
                        let differs = place.ok().and_then(|place| ctl::differs(&place, &resolved.to_map()));
                        print_settings(&resolved, differs, json)
                    }
                    (Err(problems), _) => refuse(&problems.to_string()),
                }
            }
            Command::Status { service, json, format, watch } => {
                let format = if json { StatusFormat::Json } else { format };
                control(service.socket, &|place| ctl::status(place, format, watch))
            }
            Command::Scale { service, workers, json } => ask(service, &protocol::ControlCommand::Scale(workers), json),
            Command::Reload { service, json } => ask(service, &protocol::ControlCommand::Reload, json),
            Command::Upgrade { service, program, force, json } => {
                match program.map(|program| start.join(Path::new(&program))).transpose() {
                    Ok(program) => {
                        let program = program.map(|program| program.to_string_lossy().into_owned());
                        ask(service, &protocol::ControlCommand::Upgrade { program, force }, json)
                    }
                    Err(sentence) => refuse(&sentence),
                }
            }
            Command::Stop { service, now, json } => ask(service, &protocol::ControlCommand::Stop { now }, json),
            Command::Migrate { json, .. } => match resolve(Purpose::Ask) {
                Ok(resolved) => self.migrate_once(&resolved, json),
                Err(problems) => refuse(&problems.to_string()),
            },
            Command::Health { service, url } => {
                let read = || resolve(Purpose::Ask).ok().map(|resolved| resolved.settings);
                let any_answer = self.info.runtime.any_answer_is_alive();
                control(service.socket, &|place| ctl::health(url.as_deref(), place, &read, any_answer))
            }
            // The page of these two commands was printed above, before the settings were read.
            Command::Completions { .. } | Command::Man => SUCCESS,
        }
    }

    fn migrate_once(self, resolved: &Resolved, json: bool) -> u8 {
        let Some(migrate) = self.migrate else {
            return refuse("there is nothing to migrate: this program has no App::migrate hook");
        };
        if let Err(error) = log::configure(&resolved.settings.log) {
            return refuse(&error_chain(&error));
        }
        let setup = self.info.setup(resolved, None);
        let done = call_prepare(&*self.prepare, &setup)
            .and_then(|()| worker::take_rights(&resolved.settings.process).map_err(|error| error_chain(&error)))
            .and_then(|()| hook::flat("App::migrate", || migrate(&setup)));
        match done {
            Ok(lines) if json => println!("{}", serde_json::json!({ "ok": true, "done": lines })),
            Ok(lines) if lines.is_empty() => println!("nothing to do"),
            Ok(lines) => lines.iter().for_each(|line| terminal::result(line)),
            Err(reason) => {
                if json {
                    println!("{}", serde_json::json!({ "ok": false, "reason": reason }));
                }
                refuse(&reason);
                return ProgramExit::Refused.into();
            }
        }
        SUCCESS
    }

    fn supervise(self, resolved: Resolved, flags: Flags, inherited: &[String]) -> u8 {
        if let Err(error) = log::configure(&resolved.settings.log) {
            return refuse(&error_chain(&error));
        }
        for found in inherited {
            tracing::warn!(event = "inherited_state", "inherited from the program that started this one: {found}");
        }
        log::take_panics(MASTER_PANICS);
        settings::say_warnings(&resolved.warnings);
        settings::say_notes(&resolved.notes, &[]);
        let prepared = call_prepare(&*self.prepare, &self.info.setup(&resolved, None));
        if let Err(reason) = prepared.and_then(|()| one_thread()) {
            tracing::error!(
                event = "boot_failed",
                reason,
                "what the workers need could not be prepared; the master ends"
            );
            return ProgramExit::NoWorkerReady.into();
        }
        self.master(resolved, flags, Origins::Nothing)
    }

    /// Takes over the service of the old program in an upgrade. In a preflight, which is the old program's test of this
    /// program, this function only shows that a takeover would succeed.
    fn succeed(self, handover: Handover, flags: Flags) -> u8 {
        let start = handover.start_folder();
        start.enter();
        // A preflight keeps the default panic handler, which writes to stderr, because the master reads the stderr of a
        // preflight. Every other program replaces the handler: perhaps nothing reads its stderr, and a write to it could
        // block for ever.
        if !handover.is_preflight() {
            log::take_panics(MASTER_PANICS);
        }
        let (resolved, kept) = match self.resolve_as(&handover, &flags, &start) {
            Ok(resolved) => resolved,
            Err(reason) => return handover.refuse(&reason),
        };
        if handover.is_preflight() {
            let boots = resolved.settings.workers.overlap && handover.overlaps();
            return match handover.try_on(resolved, Rc::new(self.info)) {
                Ok(seed) if boots => (self.work)(seed),
                Ok(seed) => seed.pass_without_boot(),
                Err(reason) => handover.refuse(&reason),
            };
        }
        if let Err(error) = log::go_on(&resolved.settings.log, handover.log(), handover.access_log()) {
            return handover.refuse(&error_chain(&error));
        }
        // When a failed upgrade returns to the old program, that program does not log its warnings again.
        if !handover.is_return() {
            settings::say_warnings(&resolved.warnings);
            settings::say_notes(&resolved.notes, &[]);
        }
        self.master(resolved, flags, Origins::Handover { handover: Box::new(handover), kept })
    }

    fn resolve_as(
        &self,
        handover: &Handover,
        flags: &Flags,
        start: &StartFolder,
    ) -> Result<(Resolved, Vec<&'static str>), String> {
        let environment = handover.environment();
        let sources = self.info.with_foreign(handover.sources(), start);
        let mut resolved = settings::resolve(sources, flags, &environment, start, &self.declared, Purpose::Serve)
            .map_err(|problems| problems.to_string().replace('\n', "; "))?;
        let kept = handover.fix(&mut resolved);
        if handover.is_return() {
            // The old program called the hook `prepare` when it started. So the hook is not called again when a failed
            // upgrade returns to that program.
            resolved = handover.pinned(resolved);
        } else {
            let (sources, before) = handover.running();
            let sources = self.info.with_foreign(sources, &before);
            let running = settings::resolve(sources, flags, &environment, &before, &self.declared, Purpose::Serve);
            // This program may not be able to read the old settings. Then the hook gets `None` as the running settings.
            let running = running.ok().map(|running| handover.pinned(running));
            let setup = self.info.setup(&resolved, running.as_ref());
            call_prepare(&*self.prepare, &setup)?;
            one_thread()?;
        }
        Ok((resolved, kept))
    }

    fn master(self, resolved: Resolved, flags: Flags, origins: Origins) -> u8 {
        let Self { work, prepare, declared, info, migrate: _, check: _, default_settings: _ } = self;
        let info = Rc::new(info);
        let (app, reads) = (Rc::clone(&info), Rc::clone(&info));
        let load = SettingsLoader {
            app: info,
            read: Box::new(move |running| {
                let sources = Sources::after(running.file.is_some(), running.sources.texts());
                let start = StartFolder::at(running.start.path());
                let sources = reads.with_foreign(sources, &start);
                settings::resolve(sources, &flags, &settings::environment(), &start, &declared, Purpose::Serve)
                    .map_err(|problems| problems.to_string().replace('\n', "; "))
            }),
            prepare: Box::new(move |resolved, running| {
                call_prepare(&*prepare, &app.setup(resolved, Some(running)))?;
                one_thread().map_err(|reason| {
                    format!(
                        "{reason}. This master can fork no worker while that thread lives; `{} upgrade` executes the \
                         program anew, without the thread",
                        terminal::name()
                    )
                })
            }),
        };
        match master::run(resolved, load, origins) {
            Ok(Outcome::Stopped) => SUCCESS,
            Ok(Outcome::NoWorkerReady) => ProgramExit::NoWorkerReady.into(),
            Ok(Outcome::Worker(seed)) => work(*seed),
            Err(error) => {
                tracing::error!(event = "master_failed", reason = error_chain(&error), "the master cannot continue");
                match error {
                    master::MasterError::Bind(_) => ProgramExit::Bind.into(),
                    master::MasterError::Start(_) => ProgramExit::NoWorkerReady.into(),
                    _ => ProgramExit::Failure.into(),
                }
            }
        }
    }
}

/// The message of a panic in the master outside of the app's hooks.
const MASTER_PANICS: &str = "a panic in the master: a bug in oxicorn; the master ends";

/// Calls the app's hook `prepare`.
///
/// # Errors
/// The hook returned an error or panicked.
pub(super) fn call_prepare(prepare: &Prepare, setup: &SetupContext<'_>) -> Result<(), String> {
    hook::flat("App::prepare", || prepare(setup))
}

/// Checks, after a call of the hook `prepare`, that this process can still fork a worker.
///
/// # Errors
/// The process has more than one thread.
pub(super) fn one_thread() -> Result<(), String> {
    match fork::lasting_threads() {
        // If /proc cannot be read, the fork of the first worker reports that.
        Ok(0 | 1) | Err(_) => Ok(()),
        Ok(threads) => Err(format!(
            "after App::prepare the process has {threads} threads, and a worker can be forked from one only: \
             App::prepare must start no thread that outlives it"
        )),
    }
}

/// Prints the error of a command that asked a running service, if there is an error. Returns the exit code of the
/// command.
fn end(done: Result<(), ctl::Failed>) -> u8 {
    match done {
        Ok(()) => SUCCESS,
        // The printed status already shows that not all workers serve, so no error is printed.
        Err(ctl::Failed::NotAllServe) => ProgramExit::Failure.into(),
        Err(failed) => {
            let exit = match failed {
                ctl::Failed::Refused(_) | ctl::Failed::NotAllServe => ProgramExit::Failure,
                ctl::Failed::Ambiguous(_) => ProgramExit::Usage,
            };
            refuse(&failed.to_string());
            exit.into()
        }
    }
}

fn print_settings(resolved: &Resolved, differs: Option<ctl::Differs>, json: bool) -> u8 {
    match (differs, json) {
        // A line that does not end would be lost where another runtime ends the process.
        (None, true) => println!("{}", resolved.to_json()),
        (None, false) => print!("{}", resolved.to_toml()),
        (Some(ctl::Differs { service, keys }), true) => {
            let mut map = resolved.to_object();
            map.insert("running".to_owned(), serde_json::json!({ "service": service, "differs": keys }));
            println!("{:#}", serde_json::Value::Object(map));
        }
        (Some(ctl::Differs { service, keys }), false) => {
            let keys = keys.join(", ");
            let program = terminal::name();
            terminal::result(&format!(
                "# {service} runs with other values of {keys}: see {program} config --running\n\n"
            ));
            print!("{}", resolved.to_toml());
        }
    }
    SUCCESS
}

pub(super) fn refuse(sentence: &str) -> u8 {
    terminal::error(sentence);
    ProgramExit::Usage.into()
}
