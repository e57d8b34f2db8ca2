//! A service that uses what the master offers to other runtimes. Only `tests/seams_master.rs` starts it.
//!
//! Owns: hooks around each fork, a signal for workers that hang, and a command for upgrades with an additional
//! argument. Refuses: the role of an example to start from (see `examples/`).
//!
//! `SEAMS_NOTES` names the file to which each hook adds a line. As long as the file that `SEAMS_FAIL` names exists, the
//! workers of a program that an upgrade started (`--interpreted`) die as soon as they serve.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: this service has a thread, and hangs")]

use std::{
    convert::Infallible, env, fs::OpenOptions, io::Write, path::Path, process::ExitCode, thread, time::Duration,
};

use axum::{Router, routing::get};
use nix::sys::signal::{SigSet, Signal};
use oxicorn::{Runtime, UpgradeCommand, WorkerContext};

const INTERPRETED: &str = "--interpreted";

struct Interpreter;

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "seams"
    }

    fn before_fork(&self) {
        note("before fork");
    }

    fn after_fork_in_master(&self) {
        note("after fork in master");
    }

    fn after_fork_in_worker(&self) {
        note("after fork in worker");
    }

    fn hang_signal(&self) -> Option<i32> {
        Some(Signal::SIGPROF as i32)
    }

    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        let own = env::current_exe().expect("/proc is mounted");
        Some(UpgradeCommand::new(asked.unwrap_or(&own)).arg(INTERPRETED))
    }
}

/// Adds a line to the file that `SEAMS_NOTES` names, with the pid of this process in front.
fn note(line: &str) {
    let Some(path) = env::var_os("SEAMS_NOTES") else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the notes can be opened");
    file.write_all(format!("{} {line}\n", std::process::id()).as_bytes()).expect("the notes can be written");
}

async fn factory(_: WorkerContext) -> Result<Router, Infallible> {
    // This thread waits for the signal, so it can still write a note when the worker's only other thread hangs.
    let signals = SigSet::from(Signal::SIGPROF);
    signals.thread_block().expect("a signal can be blocked");
    thread::spawn(move || {
        while signals.wait().is_ok() {
            note("dump");
        }
    });
    let fails = env::var_os("SEAMS_FAIL").is_some_and(|file| Path::new(&file).exists());
    if fails && env::args().any(|argument| argument == INTERPRETED) {
        tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::process::exit(7);
        });
    }
    let hang = get(async || thread::sleep(Duration::from_secs(60)));
    // A worker has no arguments of its own: it is a fork, so it reports the arguments with which the master was
    // executed.
    let arguments = get(async || env::args().collect::<Vec<_>>().join("\n"));
    Ok(Router::new().route("/arguments", arguments).route("/hang", hang))
}

fn main() -> ExitCode {
    // Skips the interpreter's own argument. The service's command line comes after it, as in `python -m program`.
    let command_line = env::args_os().enumerate().filter(|(at, argument)| *at != 1 || argument != INTERPRETED);
    oxicorn::App::new(factory).runtime(Interpreter).run_from(command_line.map(|(_, argument)| argument))
}
