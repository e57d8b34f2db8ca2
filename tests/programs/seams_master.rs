//! A service that uses what the master offers to runtimes for other languages than Rust. Only `tests/seams_master.rs`
//! starts it.
//!
//! Owns: hooks around each fork, a signal for workers that hang, and a command for upgrades with an additional
//! argument. Refuses: to be an example for users (see `examples/`).
//!
//! `SEAMS_NOTES` names the file to which each hook adds a line. As long as the file that `SEAMS_FAIL` names exists, the
//! workers of a program that an upgrade started (`--interpreted`) die as soon as they serve.
//!
//! `SEAMS_STACK` names a file with the text that a worker writes at the signal for workers that hang. In this text, each
//! `PID` becomes the pid of the worker.
//!
//! `SEAMS_FAULTS` names a file with a list of words. With the name of a hook in this file, the hook panics. With
//! `thread`, `App::prepare` starts a thread. With `slow_fork`, each fork takes three seconds. With `slow_boot`, the factory
//! takes a minute. With `slow_shutdown`, the shutdown hook blocks the worker for a minute.
//!
//! With `replaced`, the program says that it could not be executed again.
//!
//! `SEAMS_SOURCE` names a file with settings of the runtime's own, each as `key = value`. A line `refuse TEXT` is a
//! problem, and `note TEXT` a note. With `SEAMS_IN_PLACE` the file stands in the place of supervisor.toml. As long as a file with this name and `.hold` exists, reading the file again takes
//! time; after `SEAMS_LIMIT_MS` it is given up. `SEAMS_EVENTS` names the file to which each event of the master is added.
//! With `starting` among the faults, the program refuses to start.
//!
//! `/hang` blocks the worker. `/crash` makes it write its stack and end by SIGILL.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: this service has a thread, and hangs")]

use std::{
    cell::RefCell,
    convert::Infallible,
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    rc::Rc,
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use oxicorn::{
    App, Driver, Lifespan, Runtime, SetupContext, SupervisorEvent, UpgradeCommand, WorkerContext,
    settings::{ForeignContext, ForeignSettings, Strength},
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

const INTERPRETED: &str = "--interpreted";

#[derive(Default)]
struct Interpreter {
    /// What was read of the source the last time, or why it could not be read.
    source: RefCell<Option<Result<String, String>>>,
    /// The output of the process that reads the source again.
    reading: RefCell<Option<(Rc<File>, String)>>,
}

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "seams"
    }

    fn settings(&self, context: &ForeignContext<'_>) -> ForeignSettings {
        let mut settings = ForeignSettings::new();
        let Some(path) = env::var_os("SEAMS_SOURCE").map(PathBuf::from) else { return settings };
        let read = || fs::read_to_string(&path).map_err(|error| error.to_string());
        let text = match context.recorded(&path) {
            Some(text) => Ok(text.to_owned()),
            None => self.source.borrow_mut().get_or_insert_with(read).clone(),
        };
        for (index, line) in text.iter().flat_map(|text| text.lines()).enumerate() {
            let origin = format!("source:{}", index + 1);
            match line.split_once(' ') {
                Some(("refuse", text)) => settings.refuse(origin, text),
                Some(("note", text)) => settings.warn(origin, text),
                _ => {
                    let (key, value) = line.split_once(" = ").expect("key = value");
                    settings.set(Strength::File, key, value, origin);
                }
            }
        }
        if let Err(reason) = &text {
            settings.refuse("source", reason);
        }
        if env::var_os("SEAMS_IN_PLACE").is_some() {
            settings.file(path, text.unwrap_or_default());
        }
        settings
    }

    #[expect(clippy::zombie_processes, reason = "the master reaps every child")]
    fn refresh(&self, _: &ForeignContext<'_>) -> Option<Duration> {
        let path = env::var("SEAMS_SOURCE").ok()?;
        let script = format!("while [ -e '{path}.hold' ]; do sleep 0.02; done; cat '{path}'");
        let mut command = Command::new("sh");
        let child = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("there is a shell");
        let output = File::from(OwnedFd::from(child.stdout.expect("it is piped")));
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
        self.reading.replace(Some((Rc::new(output), String::new())));
        self.source.replace(None);
        let limit = env::var("SEAMS_LIMIT_MS").map_or(60_000, |limit| limit.parse().expect("a number"));
        Some(Duration::from_millis(limit))
    }

    fn refreshed(&self, overdue: bool) -> bool {
        let mut reading = self.reading.borrow_mut();
        let Some((output, text)) = reading.as_mut() else { return true };
        let done = match output.as_ref().read_to_string(text) {
            Ok(_) => Ok(std::mem::take(text)),
            Err(_) if overdue => Err("it took too long".to_owned()),
            Err(_) => return false,
        };
        self.source.replace(Some(done));
        *reading = None;
        true
    }

    fn watched(&self) -> Vec<Rc<dyn AsFd>> {
        self.reading.borrow().iter().map(|(output, _)| -> Rc<dyn AsFd> { Rc::clone(output) as _ }).collect()
    }

    fn on_event(&self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        let line = match event {
            SupervisorEvent::Starting { workers, alive } => format!("starting {workers} {}", alive.len()),
            SupervisorEvent::Listening { addresses } => format!("listening {}", addresses.len()),
            SupervisorEvent::Forking(worker) => format!("forking {} {}", worker.age, worker.slot),
            SupervisorEvent::Forked(worker) => format!("forked {} {}", worker.age, worker.pid),
            SupervisorEvent::Exited(worker) => format!("exited {} {}", worker.age, worker.pid),
            SupervisorEvent::Reloading { workers, before, alive, .. } => {
                format!("reloading {workers} {before} {}", alive.len())
            }
            SupervisorEvent::Reloaded => "reloaded".to_owned(),
            SupervisorEvent::RolledBack => "rolled back".to_owned(),
            SupervisorEvent::RefreshUnused => "refresh unused".to_owned(),
            SupervisorEvent::WorkersChanged { workers, before } => format!("workers changed {workers} {before}"),
            SupervisorEvent::Executing => "executing".to_owned(),
            SupervisorEvent::Stopped => "stopped".to_owned(),
            _ => "unknown".to_owned(),
        };
        add_line("SEAMS_EVENTS", &line);
        fail("on_event");
        match event {
            SupervisorEvent::Starting { .. } if has_fault("starting") => Err("not today".to_owned()),
            _ => Ok(()),
        }
    }

    fn before_fork(&self) {
        note("before fork");
        if has_fault("slow_fork") {
            thread::sleep(Duration::from_secs(3));
        }
        fail("before_fork");
    }

    fn after_fork_in_master(&self) {
        note("after fork in master");
        fail("after_fork_in_master");
    }

    fn after_fork_in_worker(&self) {
        note("after fork in worker");
        fail("after_fork_in_worker");
    }

    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        let report = driver.hang_report().map(|file| file.try_clone_to_owned()).transpose()?;
        // This thread waits for the signal, so it can still write when the worker's only other thread hangs.
        let signals = SigSet::from(Signal::SIGPROF);
        signals.thread_block()?;
        thread::spawn(move || {
            let mut report = report.map(File::from);
            while signals.wait().is_ok() {
                note("dump");
                if let Some(report) = &mut report {
                    report.write_all(stack().as_bytes()).expect("a file in memory takes all");
                }
            }
        });
        Ok(driver.run_to_end()?)
    }

    fn hang_signal(&self) -> Option<i32> {
        fail("hang_signal");
        Some(Signal::SIGPROF as i32)
    }

    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        fail("upgrade_command");
        let own = env::current_exe().expect("/proc is mounted");
        Some(UpgradeCommand::new(asked.unwrap_or(&own)).arg(INTERPRETED))
    }

    fn way_back(&self) -> Result<(), String> {
        fail("way_back");
        if has_fault("replaced") { Err("the wheel was replaced in place".to_owned()) } else { Ok(()) }
    }
}

fn has_fault(name: &str) -> bool {
    let faults = env::var_os("SEAMS_FAULTS").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    faults.split_whitespace().any(|fault| fault == name)
}

/// Returns the text that this worker writes when it hangs.
fn stack() -> String {
    let text = env::var_os("SEAMS_STACK").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.replace("PID", &std::process::id().to_string())
}

/// Panics if the file of the faults names this hook.
fn fail(hook: &str) {
    assert!(!has_fault(hook), "a fault in {hook}");
}

fn prepare(_: &SetupContext<'_>) -> io::Result<()> {
    if has_fault("thread") {
        thread::spawn(|| thread::sleep(Duration::from_secs(60)));
    }
    // A thread that was joined is no fault.
    thread::spawn(|| {}).join().expect("it does not panic");
    fail("prepare");
    Ok(())
}

fn check(_: &SetupContext<'_>) -> io::Result<Vec<String>> {
    fail("check");
    Ok(Vec::new())
}

async fn migrate(_: &SetupContext<'_>) -> io::Result<Vec<String>> {
    fail("migrate");
    Ok(Vec::new())
}

/// A table whose reading panics on request.
struct Seams;

impl<'de> Deserialize<'de> for Seams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fail("table");
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Adds a line to the file that `SEAMS_NOTES` names, with the pid of this process in front.
fn note(line: &str) {
    add_line("SEAMS_NOTES", &format!("{} {line}", std::process::id()));
}

/// Adds a line to the file that the variable names.
fn add_line(variable: &str, line: &str) {
    let Some(path) = env::var_os(variable) else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the file can be opened");
    file.write_all(format!("{line}\n").as_bytes()).expect("the file can be written");
}

async fn factory(worker: WorkerContext) -> Result<Lifespan<Router>, Infallible> {
    if has_fault("slow_boot") {
        thread::sleep(Duration::from_secs(60));
    }
    let fails = env::var_os("SEAMS_FAIL").is_some_and(|file| Path::new(&file).exists());
    if fails && env::args().any(|argument| argument == INTERPRETED) {
        tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::process::exit(7);
        });
    }
    let hang = get(async || thread::sleep(Duration::from_secs(60)));
    let crash = get(async || {
        // To the process: the thread that waits for the signal would not see one that is sent to this thread.
        kill(Pid::this(), Signal::SIGPROF).expect("it can be sent");
        thread::sleep(Duration::from_millis(200));
        kill(Pid::this(), Signal::SIGILL).expect("it can be sent");
    });
    // A worker is a fork and not a new program, so it reports the arguments with which the master was executed.
    let arguments = get(async || env::args().collect::<Vec<_>>().join("\n"));
    let pid = get(async || std::process::id().to_string());
    let router = Router::new().route("/arguments", arguments).route("/pid", pid);
    let router = router.route("/foreign", get(async move || worker.foreign().unwrap_or_default().to_owned()));
    let router = router.route("/hang", hang).route("/crash", crash);
    Ok(Lifespan::new(router).on_shutdown(async {
        if has_fault("slow_shutdown") {
            thread::sleep(Duration::from_secs(60));
        }
    }))
}

fn main() -> ExitCode {
    // Skips the interpreter's own argument. The service's command line comes after it, as in `python -m program`.
    let command_line = env::args_os().enumerate().filter(|(at, argument)| *at != 1 || argument != INTERPRETED);
    let code = App::new(factory)
        .runtime(Interpreter::default())
        .table::<Seams>("seams")
        .prepare(prepare)
        .check(check)
        .migrate(migrate)
        .exit_code_from(command_line.map(|(_, argument)| argument));
    ExitCode::from(code)
}
