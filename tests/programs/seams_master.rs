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
//! `/hang` blocks the worker. `/crash` makes it write its stack and end by SIGILL.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: this service has a thread, and hangs")]

use std::{
    convert::Infallible,
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use oxicorn::{App, Driver, Lifespan, Runtime, SetupContext, UpgradeCommand, WorkerContext};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

const INTERPRETED: &str = "--interpreted";

struct Interpreter;

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "seams"
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
    let Some(path) = env::var_os("SEAMS_NOTES") else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the notes can be opened");
    file.write_all(format!("{} {line}\n", std::process::id()).as_bytes()).expect("the notes can be written");
}

async fn factory(_: WorkerContext) -> Result<Lifespan<Router>, Infallible> {
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
        .runtime(Interpreter)
        .table::<Seams>("seams")
        .prepare(prepare)
        .check(check)
        .migrate(migrate)
        .exit_code_from(command_line.map(|(_, argument)| argument));
    ExitCode::from(code)
}
