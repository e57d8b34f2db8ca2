//! A reload, as far as the core leaves it to the shell: reading, refusing, applying, going back.
//!
//! Owns: the settings of the generation before while the new one is on trial, and how the last reload ended. Refuses:
//! deciding when a trial is passed or failed (`core`).

use std::{mem, rc::Rc, sync::Arc};

use super::{
    ROWS_PER_SLOT, Shell,
    core::{Caller, Event, Failure, Generation, SlotId},
    now, policy, slim,
};
use crate::{
    app::AppInfo,
    error_chain, log,
    protocol::LastReload,
    settings::{self, Changes, Resolved},
};

/// How the settings are had again.
pub(crate) struct SettingsLoader {
    pub(crate) app: Rc<AppInfo>,
    /// Reads and checks them, given the settings in effect.
    pub(crate) read: Box<ReadSettings>,
    /// Makes what their workers need, given the settings in effect as well.
    pub(crate) prepare: Box<PrepareWorkers>,
}

/// The error is a sentence.
type ReadSettings = dyn Fn(&Resolved) -> Result<Resolved, String>;
type PrepareWorkers = dyn Fn(&Resolved, &Resolved) -> Result<(), String>;

/// What the shell remembers of reloads.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    /// The settings to go back to, while the newer ones are on trial.
    before: Option<Arc<Resolved>>,
    /// What the newer ones changed, as a caller is told.
    changes: String,
    pub(super) last: Option<LastReload>,
}

impl Reloads {
    /// Of a program that goes on where another had reloaded.
    pub(super) fn after(last: Option<LastReload>) -> Self {
        Self { last, ..Self::default() }
    }
}

impl Shell {
    pub(super) fn request_reload(&mut self, caller: Option<Caller>) {
        // `systemctl reload` waits to be told of this one, also if it is refused or one more.
        if let Some(notify) = &mut self.notify {
            notify.reloading(now());
        }
        self.look_after_control();
        self.inbox.push(Event::ReloadRequested { caller });
    }

    /// What a reload would do now, without doing it.
    pub(super) fn would_change(&self) -> Result<String, String> {
        let new = (self.load.read)(&self.resolved);
        slim();
        let mut new = new?;
        let changes = self.changes(&new);
        new.keep_until_restart(&self.resolved.fixed());
        self.listeners.probe(&new.settings.server).map_err(|error| error_chain(&error))?;
        let file = new.file.as_ref().map_or_else(|| "no settings file".to_owned(), |file| file.display().to_string());
        Ok(format!("a reload of the running service (pid {}, {file}): {changes}", std::process::id()))
    }

    /// The settings as they are now: `workers.count` may be another since.
    pub(super) fn in_effect(&self) -> Resolved {
        self.resolved.with_count(self.core.target())
    }

    /// Nothing of the old is touched until all of the new is known to be possible.
    pub(super) fn load_settings(&mut self) -> Event {
        let loaded = self.try_load();
        slim();
        match loaded {
            Ok(event) => event,
            Err(reason) => {
                tracing::error!(event = "reload_refused", reason, "the settings are refused; all goes on as before");
                self.reloads.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
                Event::SettingsRefused
            }
        }
    }

    fn try_load(&mut self) -> Result<Event, String> {
        let mut new = (self.load.read)(&self.resolved)?;
        (self.load.prepare)(&new, &self.resolved)?;
        let changes = self.changes(&new);
        new.keep_until_restart(&self.resolved.fixed());
        let old_count = self.resolved.settings.workers.count;
        let count = (new.settings.workers.count != old_count).then_some(new.settings.workers.count);
        let workers = count.unwrap_or(0).max(self.core.target());
        let before = &self.resolved.settings.server;
        let made_again =
            self.listeners.rebind(&new.settings.server, before, workers).map_err(|error| error_chain(&error))?;
        if let Err(error) = log::configure(&new.settings.log) {
            self.listeners.unbind_added(before);
            return Err(error_chain(&error));
        }
        settings::say_warnings(&new.warnings);
        tracing::info!(event = "reload_started", changes, "settings read; the workers are replaced by new ones");
        say_made_again(&made_again);
        self.renew_pidfile();
        self.reloads.changes = changes;
        new.start.enter();
        let rows = self.listeners.slots() * ROWS_PER_SLOT;
        self.scoreboard.grow(rows);
        let policy = policy(&new.settings, &self.listeners, rows);
        self.reloads.before = Some(mem::replace(&mut self.resolved, Arc::new(new)));
        Ok(Event::SettingsLoaded { policy, count, removes: self.listeners.removes() })
    }

    /// What a reload to these settings changes, in words.
    fn changes(&self, new: &Resolved) -> String {
        let mut told = Changes::between(&self.resolved, new).to_string();
        if new.settings.folder != self.resolved.settings.folder {
            told += &format!("; relative paths begin in {} now", new.settings.folder.display());
        }
        for address in self.listeners.lost(&new.settings.server) {
            told += &format!("; {address} has lost its file and gets a new one");
        }
        told
    }

    /// The new generation is proven.
    pub(super) fn keep_settings(&mut self) {
        self.reloads.before = None;
        self.listeners.keep_added();
        self.reloads.last = Some(LastReload { ok: true, reason: None, at: timestamp() });
        let generation = self.core.generation().0;
        self.show_title();
        tracing::info!(event = "reloaded", generation, "generation {generation} serves; the old workers drain");
    }

    /// The workers of the old generation never stopped serving.
    pub(super) fn restore_settings(&mut self, slot: SlotId, failed: Generation, why: Failure) {
        let reason = self.why_rolled_back(slot, why);
        let generation = self.core.generation().0;
        tracing::error!(
            event = "reload_rolled_back",
            slot = slot.0,
            generation = failed.0,
            reason,
            "generation {} failed its trial; generation {generation} serves on with its settings",
            failed.0
        );
        self.reloads.last = Some(LastReload { ok: false, reason: Some(reason), at: timestamp() });
        let Some(before) = self.reloads.before.take() else { return };
        self.listeners.unbind_added(&before.settings.server);
        before.start.enter();
        if let Err(error) = log::configure(&before.settings.log) {
            tracing::error!(
                event = "logs_reopen_failed",
                reason = error_chain(&error),
                "the log of the old settings could not be opened again; the new one is written to"
            );
        }
        self.resolved = before;
    }

    /// Writes the pid file again if it is gone. A failure does not refuse the reload.
    pub(super) fn renew_pidfile(&mut self) {
        let Some(pidfile) = &mut self.pidfile else { return };
        match pidfile.renew() {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                event = "pidfile_recreated",
                path = %pidfile.path().display(),
                "the pid file was gone, or replaced by another; the master has written it again"
            ),
            Err(error) => tracing::warn!(
                event = "pidfile_lost",
                error = &error as &dyn std::error::Error,
                "the pid file is gone and cannot be written again; the service goes on without it"
            ),
        }
    }

    pub(super) fn why_rolled_back(&self, slot: SlotId, why: Failure) -> String {
        let slot_number = slot.0;
        match why {
            Failure::Ended => {
                let exit = self.history.get(slot_number as usize).and_then(|history| history.last_exit.as_deref());
                format!("the new worker of slot {slot_number} {}", exit.unwrap_or("ended"))
            }
            Failure::Hung => format!("the new worker of slot {slot_number} hung: no beat within workers.timeout"),
            Failure::BootTimeout => {
                format!("the new worker of slot {slot_number} was not ready within workers.boot_timeout")
            }
            Failure::NotForked => format!("the new worker of slot {slot_number} could not be forked"),
        }
    }

    /// What a caller is told of a reload that passed.
    pub(super) fn told_reloaded(&self, generation: Generation) -> String {
        format!("generation {} serves; {}", generation.0, self.reloads.changes)
    }

    pub(super) fn close_removed(&mut self) {
        let (addresses, reset) = self.listeners.close_removed();
        self.scoreboard.cut(reset);
        for address in addresses {
            tracing::info!(event = "address_closed", %address, "no longer listening on {address}");
        }
    }
}

pub(super) fn say_made_again(addresses: &[String]) {
    for address in addresses {
        tracing::warn!(
            event = "socket_recreated",
            %address,
            "the file of {address} was gone, or replaced by another; a new socket is bound, and clients that wait on the \
             old one are still served"
        );
    }
}

pub(super) fn told_kept(kept: &[&str]) -> String {
    match kept {
        [] => String::new(),
        kept => format!("; as before until a restart: {}", kept.join(", ")),
    }
}

/// RFC 3339, UTC.
pub(super) fn timestamp() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).map_or_else(|_| String::new(), |now| now.to_string())
}
