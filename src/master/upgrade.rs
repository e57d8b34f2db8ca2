//! An upgrade, as far as the core leaves it to the shell: becoming a program, state in its place, going back.
//!
//! Owns: the program to go back to, and the exec. Refuses: to try a program (`preflight`).

mod preflight;

use std::{
    env,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use self::preflight::Preflight;
use super::{
    CERTIFICATE_EVERY_MS, CONTROL_EVERY_MS, Child, MasterError, ROWS_PER_SLOT, SettingsLoader, Shell,
    control::ControlServer,
    core::{Action, Event, Failure, Master, SlotId, Takeover},
    handover::{Handover, HandoverState, MARKER, PassedChild, Program, Purpose, VERSION},
    limits::Jitter,
    notify::Notify,
    now,
    oom::OomKills,
    perform::Performed,
    pidfile::Pidfile,
    policy,
    reload::{Reloads, say_made_again, timestamp, told_kept},
};
use crate::{
    error_chain,
    listener::Listeners,
    log,
    protocol::LastReload,
    scoreboard::Scoreboard,
    settings::{Resolved, is_same},
    sys::{
        exec::{self, FdTransfer},
        fd,
        signals::{self, Blocked, MasterSignals, Signal},
    },
};

/// What the shell remembers of upgrades.
#[derive(Debug)]
pub(super) struct Upgrades {
    /// By which the program is found the next time, links unresolved.
    path: PathBuf,
    /// Where the program was first started, links unresolved.
    cwd: PathBuf,
    /// The program that runs; `None` without `/proc`, and then there is no upgrade.
    executable: Option<OwnedFd>,
    preflight: Option<Preflight>,
    /// The program to go back to, while our workers are on trial.
    previous: Option<Previous>,
    /// What a caller is told of an upgrade that passed.
    told: String,
    pub(super) last: Option<LastReload>,
}

#[derive(Debug)]
struct Previous {
    program: Program,
    executable: OwnedFd,
    received: Map<String, Value>,
}

impl Upgrades {
    /// At a first start.
    pub(super) fn new(folder: &Path) -> Self {
        let cwd = folder.to_owned();
        let path = first_path(&cwd);
        let executable = exec::own_program().ok();
        Self { path, cwd, executable, preflight: None, previous: None, told: String::new(), last: None }
    }

    /// Where the service was first started, as the shell that started it calls the folder.
    pub(super) fn folder(&self) -> &Path {
        &self.cwd
    }

    /// What the master's poll should wait for.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.preflight.iter().flat_map(|preflight| {
            let channel = preflight.channel.as_ref().map(AsFd::as_fd);
            channel.into_iter().chain(preflight.words.as_ref().map(AsFd::as_fd))
        })
    }

    pub(super) fn told(&self) -> &str {
        &self.told
    }

    pub(super) fn reason(&self) -> &str {
        self.last.as_ref().and_then(|last| last.reason.as_deref()).unwrap_or_default()
    }
}

// ---- leaving ---------------------------------------------------------------------------------------------------------

impl Shell {
    pub(super) fn request_upgrade(&mut self, program: Option<PathBuf>, caller: Option<super::Caller>) {
        // `systemctl reload` waits for the same words.
        if let Some(notify) = &mut self.notify {
            notify.reloading(now());
        }
        self.inbox.push(Event::UpgradeRequested { program, caller });
    }

    fn refuse_upgrade(&mut self, reason: String) {
        tracing::error!(event = "upgrade_refused", reason, "the new program is refused; all goes on as before");
        self.upgrades.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
    }

    pub(super) fn become_new(&mut self) -> Performed {
        let Some(preflight) = self.upgrades.preflight.take() else {
            return Performed::Learned(Event::ExecFailed);
        };
        if let Some(deaf) = self.children.iter().find(|child| !child.unsaid.is_empty()) {
            // The next program would not know what this worker still has to be told.
            let pid = deaf.pid.0;
            self.refuse_upgrade(format!("the worker with pid {pid} does not read what the master tells it; try again"));
            return Performed::Learned(Event::ExecFailed);
        }
        tracing::info!(
            event = "upgrade_exec",
            program = %preflight.path.display(),
            "the new program has passed; the master becomes it, its workers serve on"
        );
        let error = self.become_program(preflight.program.as_fd(), "takeover", &preflight.path, None);
        self.refuse_upgrade(format!("{} could not take over: {error}", preflight.path.display()));
        Performed::Learned(Event::ExecFailed)
    }

    pub(super) fn become_old(&mut self, slot: SlotId, why: Failure) -> Performed {
        let mut reason = self.why_rolled_back(slot, why);
        self.listeners.close_added();
        if let Some(previous) = &self.upgrades.previous {
            let path = previous.program.path.clone();
            tracing::error!(
                event = "upgrade_failed",
                slot = slot.0,
                reason,
                program = %path.display(),
                "the new program failed its trial; the master becomes the old one again, whose workers serve"
            );
            let executable = previous.executable.try_clone();
            let error = match executable {
                Ok(executable) => self.become_program(executable.as_fd(), "return", &path, Some(reason.clone())),
                Err(error) => error.to_string(),
            };
            reason = format!("{reason}; and the old program could not take over again: {error}");
        }
        tracing::error!(
            event = "upgrade_failed",
            slot = slot.0,
            reason,
            "the new program goes on beside the old workers"
        );
        self.upgrades.previous = None;
        self.upgrades.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
        Performed::Learned(Event::ExecFailed)
    }

    /// Returns only if it fails; why.
    fn become_program(
        &mut self,
        program: BorrowedFd<'_>,
        purpose: &str,
        path: &Path,
        failed: Option<String>,
    ) -> String {
        let blocked = match signals::block_all() {
            Ok(blocked) => blocked,
            Err(error) => return format!("signals cannot be blocked: {error}"),
        };
        // From here on they wait in the kernel; what was heard before goes along.
        let heard = self.signals.take();
        let told = heard.iter().map(|(signal, times)| (signal.name().to_owned(), *times)).collect();
        let error = match self.write_state(path, told, failed) {
            Ok((memory, mut transfer)) => {
                let marker = format!("{purpose} {}", transfer.add(memory.as_fd()));
                exec::clear_cloexec(transfer.numbers());
                let error = exec::replace(program, MARKER, &marker);
                exec::set_cloexec(transfer.numbers());
                error.to_string()
            }
            Err(error) => error,
        };
        for (signal, times) in heard {
            self.obey(signal, times);
        }
        drop(blocked);
        error
    }

    /// All a program needs to go on for us. `failed`: it is the one before us.
    fn write_state(
        &self,
        path: &Path,
        signals: Vec<(String, u32)>,
        failed: Option<String>,
    ) -> Result<(File, FdTransfer), String> {
        let mut transfer = FdTransfer::default();
        let (of, mut received) = match (&self.upgrades.previous, &failed) {
            (Some(previous), Some(_)) => {
                let executable = transfer.add(previous.executable.as_fd());
                (Program { executable, ..previous.program.clone() }, previous.received.clone())
            }
            _ => {
                let own =
                    self.upgrades.executable.as_ref().ok_or("the running program cannot be held open: no /proc")?;
                let executable = transfer.add(own.as_fd());
                (Program::own(executable, self.upgrades.path.clone(), &self.resolved), Map::new())
            }
        };
        let children = self.children.iter().filter_map(|child| {
            Some(PassedChild {
                pid: child.pid,
                row: self.scoreboard.place_of(child.row)?,
                channel: child.channel.as_ref().map(|channel| transfer.add(channel.as_fd())),
                due: child.due,
                boot_failure: child.boot_failure.clone(),
                started: child.started,
            })
        });
        let children = children.collect();
        let (memory, rows_max) = self.scoreboard.memory();
        let mut state = HandoverState {
            version: VERSION,
            of,
            path: path.to_owned(),
            cwd: self.upgrades.cwd.clone(),
            failed,
            fds: Vec::new(),
            core: self.core.snapshot(),
            children,
            scoreboard: (transfer.add(memory), rows_max),
            listeners: self.listeners.hand_over(&mut transfer),
            control: self.control.as_ref().map(|control| control.hand_over(&mut transfer)),
            pidfile: self.pidfile.as_ref().map(|pidfile| pidfile.path().to_owned()),
            pidfile_lock: self.pidfile.as_ref().and_then(Pidfile::file).map(|file| transfer.add(file)),
            log: log::file().map(|log| transfer.add_owned(log)),
            access_log: log::access_file().map(|log| transfer.add_owned(log)),
            notify: self.notify.as_ref().map(Notify::told),
            history: self.history.clone(),
            deaths: self.deaths.clone(),
            boot_failure: self.boot_failure.clone(),
            started: self.started,
            signals,
            last_reload: self.reloads.last.clone(),
            last_upgrade: self.upgrades.last.clone(),
        };
        state.fds = transfer.numbers().to_vec();
        let unwritten = |error: &dyn std::error::Error| format!("the state cannot be written: {error}");
        let Ok(Value::Object(fields)) = serde_json::to_value(&state) else {
            return Err("the state cannot be written: a path is not UTF-8".to_owned());
        };
        let version = received.remove("version");
        received.extend(fields);
        received.extend(version.map(|version| ("version".to_owned(), version)));
        let content = serde_json::to_vec(&received).map_err(|error| unwritten(&error))?;
        let memory = exec::memory(&content).map_err(|error| unwritten(&error))?;
        for original in state.listeners.originals() {
            transfer.add_number(original);
        }
        Ok((memory, transfer))
    }
}

// ---- arriving --------------------------------------------------------------------------------------------------------

impl Shell {
    /// Stands in the place of the program before. What cannot be, hands it back.
    pub(super) fn adopt(
        resolved: Resolved,
        load: SettingsLoader,
        kept: &[&'static str],
        handover: Handover,
    ) -> Result<(Self, Vec<Action>), MasterError> {
        match Self::try_adopt(resolved, load, kept, &handover) {
            Ok(adopted) => Ok(adopted),
            Err(reason) => {
                handover.refuse(&reason);
                Err(MasterError::TakeOver(reason))
            }
        }
    }

    fn try_adopt(
        resolved: Resolved,
        load: SettingsLoader,
        kept: &[&'static str],
        handover: &Handover,
    ) -> Result<(Self, Vec<Action>), String> {
        let Handover { purpose, state, received } = handover;
        let lost = |what: &'static str| move |error: io::Error| format!("{what} was not passed: {error}");
        let limit = fd::raise_nofile();
        let settings = &resolved.settings;
        let mut listeners = Listeners::adopt(&state.listeners).map_err(lost("a listening socket"))?;
        let (memory, rows_max) = state.scoreboard;
        let memory = exec::received(memory).map_err(lost("the scoreboard"))?;
        let scoreboard = Scoreboard::adopt(memory, rows_max).map_err(|error| error_chain(&error))?;
        let control =
            state.control.as_ref().map(ControlServer::adopt).transpose().map_err(lost("the control socket"))?;
        let executable = exec::received(state.of.executable).map_err(lost("the program before"))?;
        let children = state.children.iter().map(|child| {
            let channel = child.channel.map(exec::received).transpose().map_err(lost("a worker's channel"))?;
            let row = scoreboard.rows().nth(child.row).ok_or("a worker's row is not on the scoreboard")?;
            let PassedChild { pid, due, ref boot_failure, started, .. } = *child;
            Ok(Child {
                pid,
                row,
                channel,
                unsaid: Vec::new(),
                due,
                answered: false,
                boot_failure: boot_failure.clone(),
                started,
            })
        });
        let children = children.collect::<Result<Vec<_>, String>>()?;
        let signals = MasterSignals::install().map_err(lost("a pipe for signals"))?;
        let returns = matches!(purpose, Purpose::Return);
        let takeover = if returns {
            listeners.own_again(&settings.server);
            Takeover::Back
        } else {
            let count = settings.workers.count;
            let count = (count != state.of.count).then_some(count);
            let workers = count.unwrap_or(0).max(state.core.target());
            // If it fails, the old program sees to what was before.
            let server = &settings.server;
            let made_again = listeners.rebind(server, server, workers).map_err(|error| error_chain(&error))?;
            say_made_again(&made_again);
            super::warn_of_few_files(limit, settings, &listeners);
            Takeover::New { count, removes: listeners.removes() }
        };
        let pidfile = state.pidfile.as_deref().map(|path| Pidfile::adopt(path, state.pidfile_lock));
        // Nothing can be refused any more: what came over is ours, under other numbers.
        exec::close(&state.fds);
        exec::set_cloexec(&state.listeners.originals());
        let rows = listeners.slots() * ROWS_PER_SLOT;
        scoreboard.grow(rows);
        let (core, mut todo) = Master::adopt(policy(settings, &listeners, rows), now(), state.core.clone(), takeover);
        let mut notify = Notify::open(now());
        if let (Some(notify), Some(told)) = (&mut notify, state.notify) {
            notify.resume(told);
        }
        let (path, cwd) = (state.path.clone(), state.cwd.clone());
        let previous =
            (!returns).then(|| Previous { program: state.of.clone(), executable, received: received.clone() });
        let told = told_upgraded(&path, &state.of.build, kept);
        let failed = state.failed.clone();
        let last_upgrade = failed.clone().map(|reason| LastReload { ok: false, reason: Some(reason), at: timestamp() });
        let mut shell = Self {
            core,
            load,
            resolved: Arc::new(resolved),
            reloads: Reloads::after(state.last_reload.clone()),
            upgrades: Upgrades {
                path,
                cwd,
                executable: exec::own_program().ok(),
                preflight: None,
                previous,
                told,
                last: last_upgrade.or_else(|| state.last_upgrade.clone()),
            },
            listeners,
            scoreboard,
            signals,
            pidfile,
            control,
            notify,
            started: state.started,
            certificate_due: now().after(CERTIFICATE_EVERY_MS),
            control_due: now().after(CONTROL_EVERY_MS),
            children,
            inbox: Vec::new(),
            jitter: Jitter::new(),
            history: state.history.clone(),
            deaths: state.deaths.clone(),
            oom_kills: OomKills::find(),
            boot_failure: state.boot_failure.clone(),
        };
        shell.say_adopted(&state.of.build, failed);
        shell.renew_pidfile();
        shell.show_title();
        for (signal, times) in &state.signals {
            if let Some(signal) = Signal::named(signal) {
                shell.obey(signal, *times);
            }
        }
        drop(Blocked::over_exec());
        shell.hear_all();
        // A death between the programs has left no signal that waits: it may have come before they were blocked.
        shell.reap_all();
        todo.extend(shell.core.step(now(), std::mem::take(&mut shell.inbox)));
        Ok((shell, todo))
    }

    fn say_adopted(&self, before: &str, failed: Option<String>) {
        let (version, pid, workers) = (env!("CARGO_PKG_VERSION"), std::process::id(), self.children.len());
        match failed {
            None => tracing::info!(
                event = "workers_adopted",
                version,
                before,
                pid,
                workers,
                "the new program has taken over {workers} workers, which serve on until its own do"
            ),
            Some(reason) => tracing::error!(
                event = "upgrade_rolled_back",
                version,
                pid,
                workers,
                reason,
                "the old program has taken over again, with its settings of before and its workers, which never stopped"
            ),
        }
    }

    /// The new program is proven.
    pub(super) fn keep_program(&mut self) {
        self.upgrades.previous = None;
        self.listeners.keep_added();
        self.upgrades.last = Some(LastReload { ok: true, reason: None, at: timestamp() });
        let generation = self.core.generation().0;
        self.show_title();
        tracing::info!(
            event = "upgraded",
            generation,
            program = %self.upgrades.path.display(),
            "generation {generation} serves, of the new program; the old workers drain"
        );
    }
}

fn told_upgraded(path: &Path, before: &str, kept: &[&str]) -> String {
    let version = match env!("CARGO_PKG_VERSION") {
        same if same == before => String::new(),
        version => format!(" (oxicorn {version}, before {before})"),
    };
    format!(" with {}{version}{}", path.display(), told_kept(kept))
}

/// The program as it was called, if that leads to it.
fn first_path(folder: &Path) -> PathBuf {
    let own = Path::new("/proc/self/exe");
    let called = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let searched = env::var_os("PATH").unwrap_or_default();
    let candidates = match called.components().count() {
        1 if !called.is_absolute() && !called.starts_with(".") => {
            env::split_paths(&searched).map(|place| folder.join(place).join(&called)).collect()
        }
        _ => vec![folder.join(&called)],
    };
    let found = candidates.into_iter().find(|path| is_same(path, own));
    found.or_else(|| fs::read_link(own).ok()).unwrap_or(called)
}
