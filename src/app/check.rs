//! The command `check`. It checks the settings. With `--deep` it also rehearses a start, up to the first worker that is
//! ready.
//!
//! Owns: the steps of the rehearsal, their order and their exit codes, and the one worker of the rehearsal, which never
//! accepts a connection. Refuses: to keep an address bound, and to write to the service's own logs.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use serde_json::json;

use super::{
    App, AppInfo, ProgramExit, SUCCESS,
    run::{call_prepare, one_thread, refuse},
};
use crate::{
    channel::{Received, ToMaster, ToWorker},
    ctl::{self, Running},
    error_chain, hook,
    listener::Listeners,
    log::{self, terminal},
    master,
    scoreboard::Scoreboard,
    settings::{self, LogTarget, Problems, Resolved, Settings, duration},
    sys::{
        clock, exec, fd,
        fork::Forked,
        host,
        poll::{Interest, wait},
        signals,
        wait::{Exit as Ended, reap},
    },
    worker::WorkerSeed,
};

/// How long to wait between two checks whether the worker has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long the worker of the rehearsal may take to end after its grace, in milliseconds. The worker has served no
/// request, so it has only its shutdown hooks to run.
const END_WITHIN_MS: u64 = 2_000;

/// The result of a rehearsed start.
#[derive(Debug, Default)]
struct Rehearsal {
    /// Sentences about the addresses that were not tried, because the running service holds them.
    held: Vec<String>,
    /// The failures in the order of the steps. A real start would end at the first failure, with its exit code.
    failures: Vec<(ProgramExit, String)>,
}

/// Says in which process a function that forks has returned, because a `fork` returns in the parent and in the child.
enum Side {
    Parent(Result<(), String>),
    /// This process is the forked worker, and must end with this exit code.
    Worker(u8),
}

impl App {
    /// Runs the command `check`. `place` is the control socket of the service that may run with the same settings.
    pub(super) fn check_settings(
        mut self,
        resolved: Result<Resolved, Problems>,
        place: Option<&ctl::ControlEndpoint>,
        deep: bool,
        json: bool,
    ) -> u8 {
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(Problems(problems)) if json => {
                println!(
                    "{}",
                    json!({ "ok": false, "problems": problems, "warnings": [], "notes": [], "running": null })
                );
                return ProgramExit::Usage.into();
            }
            Err(problems) => return refuse(&problems.to_string()),
        };
        let (warnings, notes) = (resolved.warnings.clone(), resolved.notes.clone());
        let change = place.and_then(ctl::would_change);
        let hook = self.check.take();
        let info = Rc::new(std::mem::take(&mut self.info));
        let resolved = Arc::new(resolved);
        let rehearsal = match deep.then(|| self.rehearse(&resolved, &info, place.and_then(ctl::running))) {
            None => None,
            Some(Ok(rehearsal)) => Some(rehearsal),
            Some(Err(end_of_worker)) => return end_of_worker,
        };
        // Call the hook only after the rehearsal has forked its worker. The hook may start threads, and a process with
        // threads must not fork.
        let app = hook.map(|check| hook::flat("App::check", || check(&info.setup(&resolved, None))));
        let refused = app.as_ref().is_some_and(Result::is_err).then_some(ProgramExit::Usage);
        let exit = rehearsal.as_ref().and_then(Rehearsal::exit).or(refused);
        if json {
            let start = rehearsal.as_ref().map(Rehearsal::to_json);
            let mut told = json!({
                "ok": exit.is_none(), "problems": [], "warnings": warnings, "notes": notes, "running": change, "start": start
            });
            match &app {
                Some(Ok(lines)) => told["app"] = json!({ "ok": true, "lines": lines }),
                Some(Err(reason)) => told["app"] = json!({ "ok": false, "reason": reason }),
                None => {}
            }
            println!("{told}");
        } else {
            for warning in &warnings {
                terminal::warning(warning);
            }
            for note in &notes {
                terminal::note(&note.to_string());
            }
            println!("settings are valid");
            for line in change.into_iter().chain(rehearsal.iter().flat_map(Rehearsal::lines)) {
                terminal::result(&line);
            }
            match app {
                Some(Ok(lines)) => lines.iter().for_each(|line| terminal::result(line)),
                // The rehearsal has failed for the same reason, and tells it below.
                Some(Err(reason)) if rehearsal.as_ref().is_some_and(|rehearsal| rehearsal.tells(&reason)) => {}
                Some(Err(reason)) => drop(refuse(&reason)),
                None => {}
            }
            for (exit, reason) in rehearsal.iter().flat_map(|rehearsal| &rehearsal.failures) {
                refuse(&format!("a start would end with exit code {}: {reason}", *exit as u8));
            }
        }
        exit.map_or(SUCCESS, u8::from)
    }

    /// Rehearses a start. This function also returns in the worker that it forks; there the error is the worker's exit
    /// code.
    fn rehearse(self, resolved: &Arc<Resolved>, info: &Rc<AppInfo>, running: Option<Running>) -> Result<Rehearsal, u8> {
        let settings = &resolved.settings;
        let mut rehearsal = Rehearsal::default();
        rehearsal.note(ProgramExit::Usage, logs(&settings.log));
        // Send what the app logs to stderr, so that the service's own log gets no lines of the rehearsal.
        let apart = settings::Log { file: LogTarget::Standard, access: LogTarget::Off, ..settings.log.clone() };
        rehearsal.note(ProgramExit::Usage, log::configure(&apart).map_err(|error| error_chain(&error)));
        let prepared = call_prepare(&*self.prepare, &info.setup(resolved, None)).and_then(|()| one_thread());
        let is_prepared = prepared.is_ok();
        rehearsal.note(ProgramExit::NoWorkerReady, prepared);
        rehearsal.probe(settings, running);
        rehearsal.note(ProgramExit::Failure, settings.process.pidfile.as_deref().map_or(Ok(()), pidfile));
        if is_prepared {
            match boot(self.work, Arc::clone(resolved), Rc::clone(info)) {
                Side::Parent(booted) => rehearsal.note(ProgramExit::NoWorkerReady, booted),
                Side::Worker(end) => return Err(end),
            }
        }
        Ok(rehearsal)
    }
}

impl Rehearsal {
    fn note(&mut self, exit: ProgramExit, result: Result<(), String>) {
        self.failures.extend(result.err().map(|reason| (exit, reason)));
    }

    /// Tries to bind the addresses, except those that the running service holds. A start can bind these addresses once
    /// that service has ended.
    fn probe(&mut self, settings: &Settings, running: Option<Running>) {
        let Running { pid, addresses } = running.unwrap_or_default();
        let (held, refused) = Listeners::try_addresses(&settings.server, &addresses);
        self.held.extend(held.into_iter().map(|address| {
            format!("{address} is held by the running service (pid {pid}), as it should be; it was not tried")
        }));
        self.failures.extend(refused.iter().map(|error| (ProgramExit::Bind, error_chain(error))));
    }

    fn exit(&self) -> Option<ProgramExit> {
        self.failures.first().map(|(exit, _)| *exit)
    }

    fn tells(&self, reason: &str) -> bool {
        self.failures.iter().any(|(_, other)| other == reason)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = self.held.clone();
        if self.failures.is_empty() {
            let (uid, gid) = host::effective_ids();
            lines.push(format!("a start as this user (uid {uid}, gid {gid}) would succeed: a worker became ready"));
        }
        lines
    }

    fn to_json(&self) -> serde_json::Value {
        let failures: Vec<_> =
            self.failures.iter().map(|(exit, reason)| json!({ "exit": *exit as u8, "reason": reason })).collect();
        json!({ "ok": failures.is_empty(), "failures": failures, "held": self.held })
    }
}

/// Checks whether a start could open the log files. It does not open them, because a running service may write to them.
fn logs(settings: &settings::Log) -> Result<(), String> {
    for (key, target) in [("log.file", &settings.file), ("log.access", &settings.access)] {
        if let LogTarget::File(path) = target {
            host::writable(path).map_err(|error| format!("{key}: cannot open {}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Checks whether a start could make the pid file. A start writes the file under another name and then renames it, so
/// the folder of the file must be writable.
fn pidfile(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    host::writable_folder(folder).map_err(|error| format!("process.pidfile {} cannot be made: {error}", path.display()))
}

/// Forks one worker, which drops its privileges as every worker does. The parent asks the worker to drain as soon as it
/// is ready. This function returns in both processes.
fn boot(work: Box<dyn FnOnce(WorkerSeed) -> u8>, resolved: Arc<Resolved>, app: Rc<AppInfo>) -> Side {
    let workers = &resolved.settings.workers;
    let (patience, grace) = (workers.boot_timeout, workers.graceful_timeout);
    match fork_worker(resolved, app) {
        Ok((Forked::Child, seed, _)) => {
            // What the app prints must not mix with the output of the command, which may be JSON. If this fails, it
            // mixes.
            let _ = fd::stdout_to_stderr();
            Side::Worker(work(seed))
        }
        Ok((Forked::Parent { child }, seed, channel)) => {
            // The seed holds the worker's end of the channel and keeps the signals blocked. Dropping the seed in the
            // parent closes that end and unblocks the signals.
            drop(seed);
            Side::Parent(watch(child, &channel, patience, grace))
        }
        Err(error) => Side::Parent(Err(format!("a worker could not be forked: {error}"))),
    }
}

fn fork_worker(resolved: Arc<Resolved>, app: Rc<AppInfo>) -> io::Result<(Forked, WorkerSeed, OwnedFd)> {
    let (ours, theirs) = fd::channel()?;
    // The worker gets a scoreboard of its own, so that it does not change the counts of the running service.
    let scoreboard = Scoreboard::create(1, 1)?;
    let row = scoreboard.claim(0, 1, 0, clock::now()).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut seed = WorkerSeed {
        slot: 0,
        generation: 1,
        row,
        scoreboard,
        channel: theirs,
        report: None,
        master: std::process::id().cast_signed(),
        resolved,
        app,
        listeners: Listeners::none(),
        blocked: signals::block_all()?,
        hook_panicked: None,
    };
    let (forked, hook_panicked) = master::fork_worker(&*seed.app.runtime)?;
    seed.hook_panicked = hook_panicked;
    match forked {
        // The worker becomes the leader of a process group. So one signal to the group also kills the processes that
        // the worker has started.
        Forked::Child => exec::lead_group(0)?,
        Forked::Parent { child } => drop(exec::lead_group(child)),
    }
    Ok((forked, seed, ours))
}

/// Waits until the worker is ready or has failed, makes the worker end, and waits for its end. The error says why the
/// worker was not ready.
fn watch(pid: i32, channel: &OwnedFd, patience: Duration, grace: Duration) -> Result<(), String> {
    let grace_ms = grace.as_millis() as u64;
    let deadline = (!patience.is_zero()).then(|| clock::now() + patience.as_millis() as u64);
    let word = loop {
        match ToMaster::recv(channel.as_fd()) {
            Ok(Received::Message(ToMaster::Ready)) => break Some(Ok(())),
            Ok(Received::Message(ToMaster::BootFailed(reason))) => break Some(Err(reason)),
            Ok(Received::Message(_)) => {}
            Ok(Received::Closed) | Err(_) => break None,
            Ok(Received::Nothing) => {
                let left = deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(clock::now())));
                if left.is_some_and(|left| left.is_zero()) {
                    let after = duration::display(patience);
                    break Some(Err(format!("the worker was not ready within workers.boot_timeout ({after})")));
                }
                // If this fails, the kernel has no memory, and the next turn of the loop waits again.
                let _ = wait(&[(channel.as_fd(), Interest::Read)], left);
            }
        }
    };
    match word {
        Some(Ok(())) => drop(ToWorker::Drain { grace_ms, last: false }.send(channel.as_fd())),
        Some(Err(_)) => signals::kill_group(pid),
        None => {}
    }
    let ended = end_of(pid, grace_ms + END_WITHIN_MS);
    word.unwrap_or_else(|| Err(format!("the worker {ended} before it was ready")))
}

/// Waits for the end of the worker, and kills the worker if it takes longer than `patience_ms`. After that, it kills
/// the processes that the worker has started.
fn end_of(pid: i32, patience_ms: u64) -> Ended {
    let deadline = clock::now() + patience_ms;
    loop {
        match reap() {
            Ok(Some((ended, exit))) if ended == pid => {
                signals::kill_group(pid);
                return exit;
            }
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => {}
        }
        if clock::now() >= deadline {
            signals::kill_group(pid);
        }
        let _ = wait(&[], Some(LOOK_EVERY));
    }
}
