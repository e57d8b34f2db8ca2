//! The shell's part of a reload. The shell reads the new settings, and refuses or applies them. If their trial fails,
//! it goes back to the old settings.
//!
//! Owns: the old settings while the new ones are on trial, and the result of the last reload. Refuses: to decide
//! whether a trial is passed or failed (`core`).

use std::{mem, os::fd::AsFd, rc::Rc, sync::Arc};

use super::{
    Room, Shell,
    core::{Caller, Event, Failure, Generation, SlotId},
    now, policy, release_boot_code,
};
use crate::{
    app::{AppInfo, SupervisorEvent},
    error_chain, hook, log,
    protocol::LastReload,
    settings::{self, Changes, Resolved, Settings},
    sys::signals::Number,
};

/// How a reload reads the settings.
pub(crate) struct SettingsLoader {
    pub(crate) app: Rc<AppInfo>,
    /// Reads and checks the new settings. Its argument is the settings in effect.
    pub(crate) read: Box<ReadSettings>,
    /// Prepares what workers with the new settings need. Its first argument is the new settings, and its second
    /// argument is the settings in effect.
    pub(crate) prepare: Box<PrepareWorkers>,
}

impl SettingsLoader {
    /// Returns the signal that makes a hung worker write where it hangs, if the runtime has such a signal.
    pub(super) fn dump_signal(&self) -> Option<Number> {
        let asked = hook::call("Runtime::hang_signal", || self.app.runtime.hang_signal());
        let number = asked.unwrap_or_else(|panicked| {
            tracing::error!(
                event = "hang_signal_failed",
                reason = panicked.to_string(),
                "the app gave no signal for workers that hang; they are ended without one"
            );
            None
        });
        number.and_then(|number| Number::try_from(number).ok())
    }

    /// Returns the runtime's descriptors for the poll of the master.
    pub(super) fn watched(&self) -> Vec<Rc<dyn AsFd>> {
        hook::call("Runtime::watched", || self.app.runtime.watched()).unwrap_or_default()
    }

    /// Lets the runtime read what has come on its descriptors.
    pub(super) fn attend(&self) {
        if let Err(panicked) = hook::call("Runtime::attend", || self.app.runtime.attend()) {
            log_hook_failed(&panicked.to_string());
        }
    }

    /// Tells the runtime an event.
    pub(super) fn tell(&self, event: &SupervisorEvent<'_>) {
        if let Err(reason) = self.ask(event) {
            log_hook_failed(&reason);
        }
    }

    /// Tells the runtime an event, and returns what it has against it.
    pub(super) fn ask(&self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        hook::call("Runtime::on_event", || self.app.runtime.on_event(event)).map_err(|p| p.to_string()).flatten()
    }

    /// Returns true if workers load the app's code from the disk. A runtime that cannot say so is treated like one
    /// whose workers do.
    pub(super) fn code_on_disk(&self) -> bool {
        let asked = hook::call("Runtime::code_on_disk", || self.app.runtime.code_on_disk());
        asked.unwrap_or_else(|panicked| {
            tracing::error!(
                event = "code_on_disk_failed",
                reason = panicked.to_string(),
                "the app did not say where the code of its workers is; it counts as code on the disk"
            );
            true
        })
    }
}

fn log_hook_failed(reason: &str) {
    tracing::error!(event = "runtime_hook_failed", reason, "the runtime could not act on an event; the master goes on");
}

/// Gets the settings in effect, and returns the new settings, or one sentence that says why the new settings are
/// refused.
type ReadSettings = dyn Fn(&Resolved) -> Result<Resolved, String>;
type PrepareWorkers = dyn Fn(&Resolved, &Resolved) -> Result<(), String>;

/// What the shell remembers about reloads.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    /// The settings to go back to if the newer settings fail their trial. They are kept only during the trial.
    before: Option<Arc<Resolved>>,
    /// A text for the reply that says what the newer settings changed.
    changes: String,
    pub(super) last: Option<LastReload>,
}

impl Reloads {
    /// Makes the record of a program that took over. `last` is the result of the old program's last reload.
    pub(super) fn after(last: Option<LastReload>) -> Self {
        Self { last, ..Self::default() }
    }
}

pub(super) fn request(shell: &mut Shell, caller: Option<Caller>) {
    // The master announces each request to systemd, even a request that it will refuse or queue. The reason is that
    // `systemctl reload` waits for the announcement.
    if let Some(notify) = &mut shell.notify {
        notify.reloading(now());
    }
    shell.look_after_control();
    shell.inbox.push(Event::ReloadRequested { caller });
}

/// Describes what a reload would do now, without doing it.
pub(super) fn preview(shell: &Shell) -> Result<String, String> {
    let new = (shell.loader.read)(&shell.resolved);
    release_boot_code();
    let mut new = new?;
    let changes = changes(shell, &new);
    new.keep_until_restart(&shell.resolved.fixed());
    shell.listeners.probe(&new.settings.server).map_err(|error| error_chain(&error))?;
    let file = new.file.as_ref().map_or_else(|| "no settings file".to_owned(), |file| file.display().to_string());
    Ok(format!("a reload of the running service (pid {}, {file}): {changes}", std::process::id()))
}

/// Returns the settings in effect. `workers.count` has its present value, which a command to scale may have changed.
pub(super) fn in_effect(shell: &Shell) -> Resolved {
    shell.resolved.with_count(shell.core.target())
}

/// Loads the new settings. The old settings stay untouched until it is certain that all of the new settings can be
/// used.
pub(super) fn load(shell: &mut Shell) -> Event {
    let loaded = try_load(shell);
    release_boot_code();
    match loaded {
        Ok(event) => event,
        Err(reason) => {
            tracing::error!(event = "reload_refused", reason, "refused the new settings; nothing was changed");
            shell.reloads.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
            shell.loader.tell(&SupervisorEvent::RefreshUnused);
            Event::SettingsRefused
        }
    }
}

fn try_load(shell: &mut Shell) -> Result<Event, String> {
    let mut new = (shell.loader.read)(&shell.resolved)?;
    (shell.loader.prepare)(&new, &shell.resolved)?;
    let changes = changes(shell, &new);
    new.keep_until_restart(&shell.resolved.fixed());
    let count = changed_count(&new.settings, shell.resolved.settings.workers.count);
    let workers = count.unwrap_or(0).max(shell.core.target());
    let before = &shell.resolved.settings.server;
    let made_again =
        shell.listeners.rebind(&new.settings.server, before, workers).map_err(|error| error_chain(&error))?;
    if let Err(error) = log::configure(&new.settings.log) {
        shell.listeners.unbind_added(before);
        return Err(error_chain(&error));
    }
    settings::say_warnings(&new.warnings);
    settings::say_notes(&new.notes, &shell.resolved.notes);
    tracing::info!(event = "reload_started", changes, "read the settings; new workers will replace the old ones");
    log_recreated(&made_again);
    renew_pidfile(shell);
    shell.reloads.changes = changes;
    new.start.enter();
    let policy = policy(&new.settings, &shell.loader, Room::make(&shell.listeners, &shell.scoreboard));
    shell.reloads.before = Some(mem::replace(&mut shell.resolved, Arc::new(new)));
    let before = shell.core.target();
    shell.told_target = count.unwrap_or(before);
    shell.loader.tell(&SupervisorEvent::Reloading {
        workers: shell.told_target,
        before,
        addresses: &shell.listeners.addresses(),
        alive: &shell.alive(),
    });
    Ok(Event::SettingsLoaded { policy, count, removes: shell.listeners.removes() })
}

/// Describes what a reload to these settings changes.
fn changes(shell: &Shell, new: &Resolved) -> String {
    let mut told = Changes::between(&shell.resolved, new).to_string();
    if new.settings.folder != shell.resolved.settings.folder {
        told += &format!("; relative paths begin in {} now", new.settings.folder.display());
    }
    for address in shell.listeners.lost(&new.settings.server) {
        told += &format!("; {address} has lost its file and gets a new one");
    }
    told
}

/// Keeps the new settings, because their generation has passed its trial.
pub(super) fn keep(shell: &mut Shell) {
    shell.reloads.before = None;
    shell.loader.tell(&SupervisorEvent::Reloaded);
    shell.listeners.keep_added();
    shell.reloads.last = Some(LastReload { ok: true, reason: None, at: timestamp() });
    let generation = shell.core.generation().0;
    shell.show_title();
    tracing::info!(event = "reloaded", generation, "generation {generation} serves; old workers that are left drain");
}

/// Goes back to the old settings. The workers of the old generation that are left have never stopped serving.
pub(super) fn restore(shell: &mut Shell, slot: SlotId, failed: Generation, why: Failure) {
    let reason = why_rolled_back(shell, slot, why);
    let generation = shell.core.generation().0;
    tracing::error!(
        event = "reload_rolled_back",
        slot = slot.0,
        generation = failed.0,
        reason,
        "generation {} failed its trial; generation {generation} and its settings are in effect again",
        failed.0
    );
    shell.reloads.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
    let Some(before) = shell.reloads.before.take() else { return };
    shell.loader.tell(&SupervisorEvent::RolledBack);
    shell.listeners.unbind_added(&before.settings.server);
    before.start.enter();
    if let Err(error) = log::configure(&before.settings.log) {
        tracing::error!(
            event = "logs_reopen_failed",
            reason = error_chain(&error),
            "could not open the log of the old settings again; the log of the new ones is written to"
        );
    }
    shell.resolved = before;
}

/// Writes the pid file again if it is gone. If that fails, the reload goes on.
pub(super) fn renew_pidfile(shell: &mut Shell) {
    let Some(pidfile) = &mut shell.pidfile else { return };
    match pidfile.renew() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            event = "pidfile_recreated",
            path = %pidfile.path().display(),
            "the pid file was gone or replaced; the master has written it again"
        ),
        Err(error) => tracing::warn!(
            event = "pidfile_lost",
            error = &error as &dyn std::error::Error,
            "the pid file is gone and cannot be written again; the service continues without it"
        ),
    }
}

pub(super) fn why_rolled_back(shell: &Shell, slot: SlotId, why: Failure) -> String {
    let slot_number = slot.0;
    match why {
        Failure::Ended => {
            let exit = shell.history.of(slot).last_exit;
            format!("the new worker of slot {slot_number} {}", exit.as_deref().unwrap_or("ended"))
        }
        Failure::Hung => format!("the new worker of slot {slot_number} hung: no heartbeat within workers.timeout"),
        Failure::BootTimeout => {
            format!("the new worker of slot {slot_number} was not ready within workers.boot_timeout")
        }
        Failure::NotForked => {
            let reason = shell.fork_failures.reason().unwrap_or("for an unknown reason");
            format!("the new worker of slot {slot_number} could not be forked: {reason}")
        }
    }
}

/// Returns the reply to a reload that has passed its trial.
pub(super) fn summary(shell: &Shell, generation: Generation) -> String {
    format!("generation {} serves; {}", generation.0, shell.reloads.changes)
}

pub(super) fn close_removed(shell: &mut Shell) {
    let (addresses, reset) = shell.listeners.close_removed();
    shell.scoreboard.cut(reset);
    for address in addresses {
        tracing::info!(event = "address_closed", %address, "no longer listening on {address}");
    }
}

/// Returns the number of workers that these settings ask for, if it differs from `before`.
pub(super) fn changed_count(settings: &Settings, before: u32) -> Option<u32> {
    let count = settings.workers.count;
    (count != before).then_some(count)
}

pub(super) fn log_recreated(addresses: &[String]) {
    for address in addresses {
        tracing::warn!(
            event = "socket_recreated",
            %address,
            "the file of {address} was gone or replaced; a new socket is bound, and clients that wait on the old one \
             are still served"
        );
    }
}

pub(super) fn kept_until_restart(kept: &[&str]) -> String {
    match kept {
        [] => String::new(),
        kept => format!("; as before until a restart: {}", kept.join(", ")),
    }
}

/// Returns the time now, in RFC 3339 and UTC.
pub(super) fn timestamp() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).map_or_else(|_| String::new(), |now| now.to_string())
}
