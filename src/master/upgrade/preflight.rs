//! The preflight, which starts a new program beside this one to test whether it can take over.
//!
//! Owns: the process of the preflight, and its output. Refuses: to wait for this process. The master's poll watches it
//! instead.

use std::{
    ffi::OsString,
    io::{self, PipeReader, Read},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use super::{
    super::{
        Shell,
        core::{Event, Pid},
        handover::MARKER,
        performed::Performed,
    },
    Target, refuse, write_state,
};
use crate::{
    channel::{Received, ToMaster, ToWorker},
    hook,
    sys::{
        exec, fd,
        fork::{Forked, fork_to_execute},
        signals,
        wait::Exit,
    },
};

/// How many bytes at the end of the preflight's output are kept.
const SAID_MAX: usize = 4096;
/// How many bytes of the last line of the preflight's output go to the log and to the caller, if the preflight fails.
const WORDS_MAX: usize = 500;

/// A program that is being tested, or has passed the test.
#[derive(Debug)]
pub(super) struct Preflight {
    pub(super) pid: Pid,
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) program: OwnedFd,
    pub(super) channel: Option<OwnedFd>,
    /// The stdout and stderr of the program; `None` once the master has read all of it.
    pub(super) words: Option<PipeReader>,
    said: Vec<u8>,
    passed: bool,
    overdue: bool,
    failure: Option<String>,
    /// Why the running program could not be executed again.
    pub(super) no_way_back: Option<String>,
}

pub(in super::super) fn begin(shell: &mut Shell, program: Option<PathBuf>, force: bool) -> Performed {
    let no_way_back = why_no_way_back(shell);
    let begun = match &no_way_back {
        Some(lost) if !force => {
            let command = &shell.loader.app.program.name;
            Err(format!("no way back: {lost}; `{command} upgrade --force` upgrades without one"))
        }
        Some(_) | None => Target::of(shell, program)
            .map_err(|panicked| panicked.to_string())
            .and_then(|target| try_program(shell, target)),
    };
    match begun {
        Ok(preflight) => {
            let preflight = Preflight { no_way_back, ..preflight };
            if let Some(reason) = &preflight.no_way_back {
                tracing::warn!(
                    event = "upgrade_forced",
                    reason,
                    "the operator upgrades without a way back: if the new program fails its trial, it stays, with the \
                     workers of the old one"
                );
            }
            let boots = match shell.resolved.settings.workers.overlap {
                true => "boots a worker",
                false => "boots no worker, because of workers.overlap",
            };
            tracing::info!(
                event = "upgrade_started",
                pid = preflight.pid.0,
                program = %preflight.path.display(),
                "testing the new program beside this one: it reads the state and the settings, and {boots}"
            );
            shell.upgrades.preflight = Some(preflight);
            Performed::Done
        }
        Err(reason) => {
            refuse(shell, reason);
            Performed::Learned(Event::PreflightEnded { passed: false })
        }
    }
}

/// Returns why the running program could not be executed again, or `None` if it could.
fn why_no_way_back(shell: &Shell) -> Option<String> {
    let runtime = &shell.loader.app.runtime;
    match hook::call("Runtime::way_back", || runtime.way_back()) {
        Ok(checked) => checked.err(),
        Err(panicked) => Some(panicked.to_string()),
    }
}

fn try_program(shell: &mut Shell, target: Target) -> Result<Preflight, String> {
    let Target { path, arguments } = target;
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let program = exec::open(&path).map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
    let (channel, theirs) = fd::channel().map_err(failed("no channel to the new program"))?;
    let (words, speaks) = exec::words().map_err(failed("no pipe for its output"))?;
    let (memory, mut transfer) = write_state(shell, &path, Vec::new(), None)?;
    let marker = format!("preflight {} {}", transfer.add(memory.as_fd()), transfer.add(theirs.as_fd()));
    let image = exec::Image::new(&arguments, MARKER, &marker);
    let blocked = signals::block_all().map_err(failed("signals cannot be blocked"))?;
    // `fork` is not used here, because it fails if a hook of the app has started a thread. That thread would then
    // prevent every upgrade, although only an upgrade can end it.
    match fork_to_execute().map_err(failed("it could not be forked"))? {
        Forked::Child => {
            exec::clear_cloexec(transfer.numbers());
            let error = match exec::stand_apart(speaks.as_fd()) {
                Ok(()) => image.replace(program.as_fd()),
                Err(error) => error,
            };
            let reason = format!("{} cannot be executed: {error}", path.display());
            let _ = ToMaster::BootFailed(reason).send(theirs.as_fd());
            exec::end_child()
        }
        Forked::Parent { child } => {
            drop(blocked);
            // If this fails, the child has already made itself the leader of its own process group.
            let _ = exec::lead_group(child);
            let (pid, channel) = (Pid(child), Some(channel));
            let (words, said) = (Some(words), Vec::new());
            let (passed, overdue, failure) = (false, false, None);
            let no_way_back = None;
            Ok(Preflight { pid, path, arguments, program, channel, words, said, passed, overdue, failure, no_way_back })
        }
    }
}

pub(in super::super) fn recv(shell: &mut Shell) {
    let Some(preflight) = &mut shell.upgrades.preflight else { return };
    preflight.read_words();
    while let Some(channel) = &preflight.channel {
        match ToMaster::recv(channel.as_fd()) {
            Ok(Received::Message(ToMaster::Ready)) => {
                preflight.passed = true;
                // The worker of a preflight has nothing to drain, so it ends as soon as its shutdown hooks have run. If
                // it does not read this message, the action `EndPreflight` ends it.
                let grace_ms = shell.resolved.settings.workers.graceful_timeout.as_millis() as u64;
                let _ = ToWorker::Drain { grace_ms, last: false }.send(channel.as_fd());
            }
            Ok(Received::Message(ToMaster::BootFailed(reason))) => preflight.failure = Some(reason),
            Ok(Received::Message(_)) => {}
            Ok(Received::Nothing) => return,
            Ok(Received::Closed) | Err(_) => preflight.channel = None,
        }
    }
}

pub(in super::super) fn end(shell: &mut Shell) {
    if let Some(preflight) = &mut shell.upgrades.preflight {
        preflight.overdue = true;
        signals::kill_group(preflight.pid.0);
    }
}

/// Notes that the process of the preflight has ended.
pub(in super::super) fn reap(shell: &mut Shell, exit: Exit) {
    recv(shell);
    let Some(preflight) = &mut shell.upgrades.preflight else { return };
    // The preflight may have started other processes of its group. They must end with the preflight.
    signals::kill_group(preflight.pid.0);
    let passed = preflight.passed;
    if !passed {
        let (reason, said) = (preflight.why_refused(exit), std::mem::take(&mut preflight.said));
        shell.upgrades.preflight = None;
        if shell.core.in_preflight() {
            refuse(shell, reason);
            // The reason is one sentence. The output of the program may say more, such as a traceback, so it is logged
            // as well.
            for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.trim().is_empty()) {
                tracing::error!(event = "preflight_output", "{line}");
            }
        }
    }
    shell.inbox.push(Event::PreflightEnded { passed });
}

impl Preflight {
    /// Reads at most as much as a pipe holds, so that a program with endless output does not keep the master here. The
    /// rest has to wait for the next turn.
    fn read_words(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..16 {
            let Some(words) = &mut self.words else { return };
            match words.read(&mut chunk) {
                Ok(len @ 1..) => {
                    self.said.extend(&chunk[..len]);
                    self.said.drain(..self.said.len().saturating_sub(SAID_MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => self.words = None,
            }
        }
    }

    fn why_refused(&self, exit: Exit) -> String {
        let program = self.path.display();
        if let Some(reason) = &self.failure {
            return reason.clone();
        }
        let how = match self.overdue {
            true => format!("{program} was not ready within workers.boot_timeout"),
            false => format!("{program} {exit} before it was ready"),
        };
        let words = String::from_utf8_lossy(&self.said);
        match words.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
            Some(last) => format!("{how}; its last line: {}", &last[..last.floor_char_boundary(WORDS_MAX)]),
            None => how,
        }
    }
}
