//! The shell's part of an upgrade. The shell executes the new program. If the new program fails, the old program is
//! executed again.
//!
//! Owns: the program to go back to, and the exec. Refuses: to test the new program (`preflight`), and to take over from
//! the old one (`arrival`).

mod arrival;
pub(super) mod preflight;

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

pub(super) use self::arrival::adopt;
use self::preflight::Preflight;
use super::{
    Shell,
    core::{Caller, Event, Failure, Pid, SlotId},
    handover::{HandoverState, MARKER, PassedChild, Program, VERSION},
    notify::Notify,
    now,
    performed::Performed,
    pidfile::Pidfile,
    reload::{self, timestamp},
};
use crate::{
    app::{SupervisorEvent, UpgradeCommand},
    hook::{self, HookPanicked},
    log,
    protocol::LastReload,
    settings::is_same,
    sys::{
        exec::{self, FdTransfer},
        signals,
    },
};

/// What the shell remembers about upgrades.
#[derive(Debug)]
pub(super) struct Upgrades {
    /// The path of the program that the next upgrade executes. Symbolic links in it are kept.
    path: PathBuf,
    /// The folder in which the service was first started. Symbolic links in its path are kept.
    cwd: PathBuf,
    /// The open file of the running program. If `/proc` is missing, this is `None`, and no upgrade is possible.
    executable: Option<OwnedFd>,
    preflight: Option<Preflight>,
    /// The program to go back to if the workers of this program fail their trial. It is set only during the trial.
    previous: Option<Previous>,
    /// Why there is no program to go back to, although this program is on trial.
    no_way_back: Option<String>,
    /// True if this program failed its trial and runs on, because the old program could not be executed again.
    pub(super) stays: bool,
    /// The last part of the reply to an upgrade that has passed its trial.
    summary: String,
    pub(super) last: Option<LastReload>,
}

/// A program to execute, and its arguments. The first argument is the program's own name.
struct Target {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Target {
    /// Chooses the program to execute. `asked` is the path that the operator gave. The runtime can name another program
    /// that runs the service, such as an interpreter with arguments of its own before those of the service.
    ///
    /// # Errors
    /// The runtime's hook panicked.
    fn of(shell: &Shell, asked: Option<PathBuf>) -> Result<Self, HookPanicked> {
        let Upgrades { cwd, path, .. } = &shell.upgrades;
        let app = &shell.loader.app;
        let command = hook::call("Runtime::upgrade_command", || app.runtime.upgrade_command(asked.as_deref()))?;
        Ok(match command {
            Some(UpgradeCommand { program, arguments, is_whole }) => {
                let path = cwd.join(program);
                let own = app.command_line.iter().skip(1).filter(|_| !is_whole).cloned();
                let arguments = std::iter::once(path.clone().into()).chain(arguments).chain(own).collect();
                Self { path, arguments }
            }
            None => Self { path: asked.unwrap_or_else(|| path.clone()), arguments: env::args_os().collect() },
        })
    }
}

#[derive(Debug)]
struct Previous {
    program: Program,
    executable: OwnedFd,
    received: Map<String, Value>,
}

impl Upgrades {
    /// Makes the record for a service that has had no upgrade yet.
    pub(super) fn new(folder: &Path) -> Self {
        let cwd = folder.to_owned();
        let path = first_path(&cwd);
        let executable = exec::own_program().ok();
        Self {
            path,
            cwd,
            executable,
            preflight: None,
            previous: None,
            no_way_back: None,
            stays: false,
            summary: String::new(),
            last: None,
        }
    }

    /// Returns the folder in which the service was first started, by the path that the operator's shell used.
    pub(super) fn folder(&self) -> &Path {
        &self.cwd
    }

    /// Returns the descriptors that the master's poll should watch.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.preflight.iter().flat_map(|preflight| {
            let channel = preflight.channel.as_ref().map(AsFd::as_fd);
            channel.into_iter().chain(preflight.words.as_ref().map(AsFd::as_fd))
        })
    }

    pub(super) fn summary(&self) -> &str {
        &self.summary
    }

    pub(super) fn is_preflight(&self, pid: Pid) -> bool {
        self.preflight.as_ref().is_some_and(|preflight| preflight.pid == pid)
    }

    pub(super) fn reason(&self) -> &str {
        self.last.as_ref().and_then(|last| last.reason.as_deref()).unwrap_or_default()
    }
}

pub(super) fn request(shell: &mut Shell, program: Option<PathBuf>, force: bool, caller: Option<Caller>) {
    // The master announces an upgrade like a reload, because `systemctl reload` waits for the same notification.
    if let Some(notify) = &mut shell.notify {
        notify.reloading(now());
    }
    shell.inbox.push(Event::UpgradeRequested { program, force, caller });
}

fn refuse(shell: &mut Shell, reason: String) {
    tracing::error!(event = "upgrade_refused", reason, "refused the new program; nothing was changed");
    shell.upgrades.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
}

pub(super) fn become_new(shell: &mut Shell) -> Performed {
    let Some(preflight) = shell.upgrades.preflight.take() else {
        return Performed::Learned(Event::ExecFailed);
    };
    if let Some(deaf) = shell.children.iter().find(|child| !child.unsent.is_empty()) {
        // If the program were replaced now, this worker would never get the messages that the master still keeps for
        // it.
        let pid = deaf.pid.0;
        refuse(shell, format!("the worker with pid {pid} does not read the messages of the master; try again"));
        return Performed::Learned(Event::ExecFailed);
    }
    tracing::info!(
        event = "upgrade_exec",
        program = %preflight.path.display(),
        "the new program has passed its preflight; the master executes it, and the workers serve on"
    );
    shell.loader.tell(&SupervisorEvent::Executing);
    let program = (preflight.program.as_fd(), &preflight.arguments[..]);
    shell.upgrades.no_way_back = preflight.no_way_back;
    let error = become_program(shell, program, "takeover", &preflight.path, None);
    shell.upgrades.no_way_back = None;
    refuse(shell, format!("{} could not take over: {error}", preflight.path.display()));
    Performed::Learned(Event::ExecFailed)
}

pub(super) fn become_old(shell: &mut Shell, slot: SlotId, why: Failure) -> Performed {
    let mut reason = reload::why_rolled_back(shell, slot, why);
    shell.listeners.close_added();
    if let Some(previous) = &shell.upgrades.previous {
        let path = previous.program.path.clone();
        tracing::error!(
            event = "upgrade_failed",
            slot = slot.0,
            reason,
            program = %path.display(),
            "the new program failed its trial; the master executes the old one again, whose workers are kept"
        );
        let executable = previous.executable.try_clone();
        let error = match executable {
            Ok(executable) => {
                let arguments = previous.program.arguments();
                become_program(shell, (executable.as_fd(), &arguments), "return", &path, Some(reason.clone()))
            }
            Err(error) => error.to_string(),
        };
        reason = format!("{reason}; and the old program could not be executed again: {error}");
    } else if let Some(lost) = &shell.upgrades.no_way_back {
        reason = format!("{reason}; and there is no way back: {lost}");
    }
    tracing::error!(
        event = "upgrade_failed",
        slot = slot.0,
        reason,
        "the new program continues, with the workers of the old one"
    );
    shell.upgrades.previous = None;
    (shell.upgrades.no_way_back, shell.upgrades.stays) = (None, true);
    shell.upgrades.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
    Performed::Learned(Event::ExecFailed)
}

/// Replaces this program with another one by an exec. Returns only if the exec fails, with the reason.
fn become_program(
    shell: &mut Shell,
    (program, arguments): (BorrowedFd<'_>, &[OsString]),
    purpose: &str,
    path: &Path,
    failed: Option<String>,
) -> String {
    let blocked = match signals::block_all() {
        Ok(blocked) => blocked,
        Err(error) => return format!("signals cannot be blocked: {error}"),
    };
    // From here on, new signals wait in the kernel for the next program. Signals that came before are passed in the
    // state.
    let heard = shell.signals.take();
    let told = heard.iter().map(|(signal, times)| (signal.name().to_owned(), *times)).collect();
    let error = match write_state(shell, path, told, failed) {
        Ok((memory, mut transfer)) => {
            let marker = format!("{purpose} {}", transfer.add(memory.as_fd()));
            exec::clear_cloexec(transfer.numbers());
            let error = exec::replace(program, arguments, MARKER, &marker);
            exec::set_cloexec(transfer.numbers());
            error.to_string()
        }
        Err(error) => error,
    };
    for (signal, times) in heard {
        shell.handle_signal(signal, times);
    }
    drop(blocked);
    error
}

/// Writes the state that another program needs to take over. If the other program is the old one, `failed` says why
/// this program failed.
fn write_state(
    shell: &Shell,
    path: &Path,
    signals: Vec<(String, u32)>,
    failed: Option<String>,
) -> Result<(File, FdTransfer), String> {
    let mut transfer = FdTransfer::default();
    let (of, mut received) = match (&shell.upgrades.previous, &failed) {
        (Some(previous), Some(_)) => {
            let executable = transfer.add(previous.executable.as_fd());
            (Program { executable, ..previous.program.clone() }, previous.received.clone())
        }
        _ => {
            let own = shell
                .upgrades
                .executable
                .as_ref()
                .ok_or("the running program cannot be kept open: /proc is not mounted")?;
            let executable = transfer.add(own.as_fd());
            (Program::own(executable, shell.upgrades.path.clone(), &shell.resolved), Map::new())
        }
    };
    let children = shell.children.iter().filter_map(|child| {
        Some(PassedChild {
            pid: child.pid,
            row: shell.scoreboard.place_of(child.row)?,
            channel: child.channel.as_ref().map(|channel| transfer.add(channel.as_fd())),
            due: child.due,
            boot_failure: child.boot_failure.clone(),
            report: child.report.as_ref().map(|report| transfer.add(report.as_fd())),
            started: child.started,
            age: child.age,
        })
    });
    let children = children.collect();
    let (memory, rows_max) = shell.scoreboard.memory();
    let mut state = HandoverState {
        version: VERSION,
        of,
        path: path.to_owned(),
        cwd: shell.upgrades.cwd.clone(),
        failed,
        no_way_back: shell.upgrades.no_way_back.clone(),
        fds: Vec::new(),
        core: shell.core.snapshot(),
        children,
        scoreboard: (transfer.add(memory), rows_max),
        listeners: shell.listeners.pass_on(&mut transfer),
        control: shell.control.as_ref().map(|control| control.pass_on(&mut transfer)),
        pidfile: shell.pidfile.as_ref().map(|pidfile| pidfile.path().to_owned()),
        pidfile_lock: shell.pidfile.as_ref().and_then(Pidfile::file).map(|file| transfer.add(file)),
        log: log::file().map(|log| transfer.add_owned(log)),
        access_log: log::access_file().map(|log| transfer.add_owned(log)),
        notify: shell.notify.as_ref().map(Notify::told),
        history: shell.history.clone(),
        deaths: shell.deaths.clone(),
        boot_failure: shell.boot_failure.clone(),
        started: shell.started,
        signals,
        last_reload: shell.reloads.last.clone(),
        last_upgrade: shell.upgrades.last.clone(),
        forks: shell.forks,
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

/// Keeps the new program, because its workers have passed their trial.
pub(super) fn keep(shell: &mut Shell) {
    (shell.upgrades.previous, shell.upgrades.no_way_back) = (None, None);
    shell.listeners.keep_added();
    shell.upgrades.last = Some(LastReload { ok: true, reason: None, at: timestamp() });
    let generation = shell.core.generation().0;
    shell.show_title();
    tracing::info!(
        event = "upgraded",
        generation,
        program = %shell.upgrades.path.display(),
        "generation {generation} serves with the new program; old workers that are left drain"
    );
}

/// Returns the path by which the program was started, if this path still leads to the program.
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
