//! Takes over the sockets, the workers and the commands under way of the old program.
//!
//! Owns: the order of the steps. All steps that may fail come first, and nothing is changed before all of them have
//! succeeded. Refuses: to return to the old program (`handover`).

use std::{io, path::Path};

use super::{
    super::{
        MasterError, Room, Shell,
        child::Child,
        children,
        control::ControlServer,
        core::{Action, Master, Takeover},
        handover::{Handover, HandoverKind, PassedChild},
        hang_report::HangReport,
        now,
        pidfile::Pidfile,
        policy,
        reload::{self, Reloads, SettingsLoader, kept_until_restart, log_recreated, timestamp},
        warn_of_few_files,
    },
    Previous, Upgrades,
};
use crate::{
    error_chain,
    listener::Listeners,
    protocol::LastReload,
    scoreboard::Scoreboard,
    settings::Resolved,
    sys::{
        exec, fd,
        signals::{Blocked, MasterSignals, Signal},
    },
};

/// Takes over from the old program, or hands everything back to it if the takeover is not possible.
pub(in super::super) fn adopt(
    resolved: Resolved,
    loader: SettingsLoader,
    kept: &[&'static str],
    handover: Handover,
) -> Result<(Shell, Vec<Action>), MasterError> {
    match try_adopt(resolved, loader, kept, &handover) {
        Ok(adopted) => Ok(adopted),
        Err(reason) => {
            handover.refuse(&reason);
            Err(MasterError::TakeOver(reason))
        }
    }
}

fn try_adopt(
    resolved: Resolved,
    loader: SettingsLoader,
    kept: &[&'static str],
    handover: &Handover,
) -> Result<(Shell, Vec<Action>), String> {
    let Handover { purpose, state, received } = handover;
    let limit = fd::raise_nofile();
    let settings = &resolved.settings;
    let mut listeners = Listeners::adopt(&state.listeners).map_err(lost("a listening socket"))?;
    let (memory, rows_max) = state.scoreboard;
    let memory = exec::received(memory).map_err(lost("the scoreboard"))?;
    let scoreboard = Scoreboard::adopt(memory, rows_max).map_err(|error| error_chain(&error))?;
    let control = state.control.as_ref().map(ControlServer::adopt).transpose().map_err(lost("the control socket"))?;
    let executable = exec::received(state.of.executable).map_err(lost("the previous program"))?;
    let children = adopt_children(&state.children, &scoreboard)?;
    let signals = MasterSignals::install().map_err(lost("a pipe for signals"))?;
    let returns = matches!(purpose, HandoverKind::Return);
    let takeover = if returns {
        listeners.own_again(&settings.server);
        Takeover::Back
    } else {
        let count = reload::changed_count(settings, state.of.count);
        let workers = count.unwrap_or(0).max(state.core.target());
        // If this fails, the old program can still serve from its own listeners.
        let server = &settings.server;
        let made_again = listeners.rebind(server, server, workers).map_err(|error| error_chain(&error))?;
        log_recreated(&made_again);
        warn_of_few_files(limit, settings, &listeners);
        Takeover::New { count, removes: listeners.removes() }
    };
    let pidfile = state.pidfile.as_deref().map(|path| Pidfile::adopt(path, state.pidfile_lock));
    // From here on, no step can fail. This program uses copies of the passed descriptors, so the passed ones are
    // closed.
    exec::close(&state.fds);
    exec::set_cloexec(&state.listeners.originals());
    let room = Room::make(&listeners, &scoreboard);
    let (core, mut todo) = Master::adopt(policy(settings, &loader, room), now(), state.core.clone(), takeover);
    let has_way_back = !returns && state.no_way_back.is_none();
    let previous = has_way_back.then(|| Previous { program: state.of.clone(), executable, received: received.clone() });
    let failed = state.failed.clone();
    let last_upgrade = failed.clone().map(|reason| LastReload { ok: false, reason: Some(reason), at: timestamp() });
    let upgrades = Upgrades {
        path: state.path.clone(),
        cwd: state.cwd.clone(),
        executable: exec::own_program().ok(),
        preflight: None,
        previous,
        no_way_back: state.no_way_back.clone().filter(|_| !returns),
        stays: false,
        summary: summary_of(&state.path, &state.of.build, kept),
        last: last_upgrade.or_else(|| state.last_upgrade.clone()),
    };
    let mut shell = Shell::assemble(core, loader, resolved, upgrades, listeners, scoreboard, signals);
    shell.reloads = Reloads::after(state.last_reload.clone());
    (shell.pidfile, shell.control, shell.children) = (pidfile, control, children);
    (shell.history, shell.deaths) = (state.history.clone(), state.deaths.clone());
    shell.boot_failure.clone_from(&state.boot_failure);
    (shell.started, shell.forks) = (state.started, state.forks);
    if let (Some(notify), Some(told)) = (&mut shell.notify, state.notify) {
        notify.resume(told);
    }
    log_adopted(&shell, &state.of.build, failed);
    reload::renew_pidfile(&mut shell);
    shell.show_title();
    shell.tell_start();
    for (signal, times) in &state.signals {
        if let Some(signal) = Signal::named(signal) {
            shell.handle_signal(signal, *times);
        }
    }
    drop(Blocked::over_exec());
    children::recv_all(&mut shell);
    // If a worker ended during the exec before signals were blocked, no SIGCHLD is pending for it, so it is reaped
    // here.
    children::reap_all(&mut shell);
    todo.extend(shell.core.step(now(), std::mem::take(&mut shell.inbox)));
    Ok((shell, todo))
}

fn adopt_children(passed: &[PassedChild], scoreboard: &Scoreboard) -> Result<Vec<Child>, String> {
    let children = passed.iter().map(|child| {
        let channel = child.channel.map(exec::received).transpose().map_err(lost("a worker's channel"))?;
        let row = scoreboard.rows().nth(child.row).ok_or("a worker's row is not on the scoreboard")?;
        let report = child.report.map(HangReport::adopt).transpose().map_err(lost("a worker's hang report"))?;
        let PassedChild { pid, due, ref boot_failure, started, age, .. } = *child;
        let (unsent, answered, boot_failure) = (Vec::new(), false, boot_failure.clone());
        Ok(Child { pid, row, channel, unsent, due, answered, boot_failure, report, started, age })
    });
    children.collect()
}

fn lost(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what} was not passed: {error}")
}

fn log_adopted(shell: &Shell, before: &str, failed: Option<String>) {
    let (version, pid, workers) = (env!("CARGO_PKG_VERSION"), std::process::id(), shell.children.len());
    match failed {
        None => tracing::info!(
            event = "workers_adopted",
            version,
            before,
            pid,
            workers,
            "the new program has taken over {workers} workers, which serve until its own workers do"
        ),
        Some(reason) => tracing::error!(
            event = "upgrade_rolled_back",
            version,
            pid,
            workers,
            reason,
            "the old program has taken over again, with its old settings and with its workers that are left; they \
             never stopped serving"
        ),
    }
}

fn summary_of(path: &Path, before: &str, kept: &[&str]) -> String {
    let version = match env!("CARGO_PKG_VERSION") {
        same if same == before => String::new(),
        version => format!(" (oxicorn {version}, before {before})"),
    };
    format!(" with {}{version}{}", path.display(), kept_until_restart(kept))
}
