//! Performs the actions that the core asks for. Each action has a function of its own.
//!
//! Owns: forks, messages to workers, signals, steering, and the sentences of the log. Refuses: decisions.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use super::{
    Room, Shell,
    child::Child,
    children::fork_worker,
    core::{Action, Caller, Cause, CommandReply, Event, Generation, KillCause, Note, Pid, RefusedChange, SlotId},
    free_memory,
    hang_report::HangReport,
    limits::Limits,
    now,
    performed::{ForkedChild, Performed},
    refresh::{self, Asked},
    reload, requests_in_flight, upgrade,
};
use crate::{
    app::{ForkedWorker, SupervisorEvent},
    channel::ToWorker,
    error_chain,
    listener::SteerError,
    protocol,
    scoreboard::RowState,
    sys::{
        fd::{self},
        fork::Forked,
        process,
        signals::{self, Number},
    },
    worker::WorkerSeed,
};

impl Shell {
    pub(super) fn perform(&mut self, action: Action) -> Performed {
        match action {
            Action::Fork { slot, generation } => return self.fork(slot, generation),
            Action::Go { pid } => self.send(pid, ToWorker::Go),
            Action::AnnounceStop { pid } => {
                if let Some(child) = self.child(pid) {
                    child.row.tell_stopping();
                }
                self.send(pid, ToWorker::AnnounceStop);
            }
            Action::Drain { pid, grace_ms, last, cause } => self.drain(pid, grace_ms, last, cause),
            Action::Dump { pid, cause, silent_ms } => self.dump(pid, cause, silent_ms),
            Action::Abort { pid, silent_ms } => self.abort(pid, silent_ms),
            Action::Kill { pid, cause } => self.kill(pid, cause),
            Action::Measure { pid } => return self.measure(pid),
            Action::LoadSettings => refresh::ask(self, Asked::Load),
            Action::KeepSettings => reload::keep(self),
            Action::RestoreSettings { slot, failed, why } => reload::restore(self, slot, failed, why),
            Action::BeginPreflight { program, force } => return upgrade::preflight::begin(self, program, force),
            Action::EndPreflight => upgrade::preflight::end(self),
            Action::BecomeNew => return upgrade::become_new(self),
            Action::KeepProgram => upgrade::keep(self),
            Action::BecomeOld { slot, why } => return upgrade::become_old(self, slot, why),
            Action::RefuseAtRemoved => self.listeners.refuse_new_on_removed(),
            Action::CloseRemoved => reload::close_removed(self),
            Action::Grow { workers } => return self.grow(workers),
            Action::Steer { live } => self.steer(&live),
            Action::Reply { caller, reply } => self.reply(caller, reply),
            Action::Note(note) => {
                self.note(&note);
                if let Note::Stopping { graceful, .. } = note {
                    let alive = self.alive();
                    self.loader.tell(&SupervisorEvent::Stopping { quick: !graceful, alive: &alive });
                }
            }
            Action::Exit { reason } => return Performed::Exit(reason),
        }
        Performed::Done
    }

    fn fork(&mut self, slot: SlotId, generation: Generation) -> Performed {
        let Limits { max_requests, max_age_ms } = Limits::draw(&self.resolved.settings.workers, &mut self.jitter);
        free_memory::look(self, slot, generation);
        let age = self.forks.saturating_add(1);
        let worker = |pid| ForkedWorker { slot: slot.0, generation: generation.0, age, pid };
        self.loader.tell(&SupervisorEvent::Forking(worker(0)));
        let started = now();
        let Some(row) = self.scoreboard.claim(slot.0, generation.0, max_requests, started.0) else {
            return self.fork_failed(slot, generation, "the scoreboard has no free row");
        };
        // Signals stay blocked in the master until the fork is done, and in the child until it has removed the master's
        // handlers.
        let forked = signals::block_all()
            .and_then(|blocked| Ok((blocked, fd::channel()?)))
            .and_then(|(blocked, ends)| Ok((blocked, ends, self.hang_report()?)))
            .and_then(|(blocked, ends, report)| Ok((blocked, ends, report, fork_worker(&*self.loader.app.runtime)?)));
        match forked {
            Ok((blocked, (_masters, channel), report, (Forked::Child, hook_panicked))) => {
                let (master, report) = (process::parent_pid(), report.map(|(_, workers)| workers));
                let child = ForkedChild { slot, generation, row, channel, report, blocked, master, hook_panicked };
                Performed::Child(Box::new(child))
            }
            Ok((blocked, (channel, _workers), report, (Forked::Parent { child }, _))) => {
                drop(blocked);
                let pid = Pid(child);
                self.forks = age;
                tracing::info!(
                    event = "worker_forked",
                    slot = slot.0,
                    pid = child,
                    generation = generation.0,
                    restarts = self.history.of(slot).restarts,
                    "started a worker"
                );
                let (channel, boot_failure) = (Some(channel), None);
                let (due, unsent, answered) = (started.0, Vec::new(), false);
                let report = report.map(|(report, _)| report);
                self.children.push(Child {
                    pid,
                    row,
                    channel,
                    unsent,
                    due,
                    answered,
                    boot_failure,
                    report,
                    started,
                    age,
                });
                self.loader.tell(&SupervisorEvent::Forked(worker(child.unsigned_abs())));
                Performed::Learned(Event::Forked { slot, pid, max_age_ms })
            }
            Err(error) => {
                self.scoreboard.release(row);
                self.fork_failed(slot, generation, &error.to_string())
            }
        }
    }

    /// Makes the file in which the next worker writes where it hangs, if the runtime has a signal for this.
    fn hang_report(&self) -> io::Result<Option<(HangReport, OwnedFd)>> {
        self.core.asks_where().then(HangReport::create).transpose()
    }

    fn fork_failed(&mut self, slot: SlotId, generation: Generation, reason: &str) -> Performed {
        if let Some(unlogged) = self.fork_failures.note(now(), reason) {
            tracing::error!(
                event = "fork_failed",
                slot = slot.0,
                generation = generation.0,
                reason,
                unlogged,
                "could not fork a worker; the master tries again after a pause"
            );
        }
        self.boot_failure = Some(format!("a worker could not be forked: {reason}"));
        Performed::Learned(Event::ForkFailed { slot })
    }

    fn send(&mut self, pid: Pid, message: ToWorker) {
        if let Some(child) = self.children.iter_mut().find(|child| child.pid == pid) {
            child.send(message);
        }
    }

    /// Tells the worker to drain. The row is written before the log, so that an operator who reads in the log that the
    /// worker drains also sees this in the status.
    fn drain(&mut self, pid: Pid, grace_ms: u64, last: bool, cause: Cause) {
        let (slot, generation) = self.place(pid);
        let grace = Duration::from_millis(grace_ms);
        if let Some(child) = self.child(pid) {
            child.row.tell_drain();
        }
        tracing::info!(
            event = "worker_draining", slot, pid = pid.0, generation, reason = %cause,
            "told the worker to finish its requests and to end within {grace:?}"
        );
        self.send(pid, ToWorker::Drain { grace_ms, last });
    }

    /// Sends a worker the runtime's signal that makes the worker write where it hangs. Does nothing if the runtime has
    /// no such signal.
    fn dump(&self, pid: Pid, cause: KillCause, silent_ms: Option<u64>) {
        let Some(signal) = self.loader.dump_signal() else { return };
        match silent_ms {
            Some(silent_ms) => {
                let first = format!("{signal} now so that it writes what it does, SIGABRT in a second");
                self.log_hung(pid, silent_ms, &first);
            }
            None => {
                let (slot, generation) = self.place(pid);
                tracing::error!(
                    event = "worker_late",
                    slot,
                    pid = pid.0,
                    generation,
                    reason = %cause,
                    "the worker is late; it gets {signal} now so that it writes what it does, SIGKILL in a second"
                );
            }
        }
        self.signal(pid, signal);
    }

    fn abort(&mut self, pid: Pid, silent_ms: Option<u64>) {
        if let Some(silent_ms) = silent_ms {
            self.log_hung(pid, silent_ms, "SIGABRT now");
        }
        if let Some(report) =
            self.children.iter_mut().filter(|child| child.pid == pid).find_map(|child| child.report.as_mut())
        {
            report.ends_if_written();
        }
        self.signal(pid, Number::SIGABRT);
    }

    fn log_hung(&self, pid: Pid, silent_ms: u64, first: &str) {
        let (slot, generation) = self.place(pid);
        let Some(row) = self.child(pid).map(|child| child.row) else { return };
        tracing::error!(
            event = "worker_hung",
            slot,
            pid = pid.0,
            generation,
            in_flight = row.in_flight(),
            connections = row.connections(),
            requests_in_flight = requests_in_flight(row),
            reason = "no heartbeat within workers.timeout",
            "worker hung: no heartbeat for {silent_ms} ms; it gets {first}, SIGKILL two seconds later; its slot gets a \
             new worker {}",
            if self.resolved.settings.workers.overlap { "now" } else { "once it has ended" }
        );
    }

    fn kill(&self, pid: Pid, cause: KillCause) {
        let (slot, generation) = self.place(pid);
        let Some(row) = self.child(pid).map(|child| child.row) else { return };
        tracing::error!(
            event = "worker_killed",
            slot,
            pid = pid.0,
            generation,
            in_flight = row.in_flight(),
            requests_in_flight = requests_in_flight(row),
            reason = %cause,
            "killed the worker with SIGKILL"
        );
        self.signal(pid, Number::SIGKILL);
    }

    fn signal(&self, pid: Pid, signal: Number) {
        // Once the worker is reaped, its pid may belong to another process, which must not get the signal.
        if self.child(pid).is_none() {
            return;
        }
        if let Err(error) = signals::send(pid.0, signal) {
            tracing::error!(
                event = "signal_failed",
                pid = pid.0,
                %error,
                "cannot signal the worker; waiting for it to exit"
            );
        }
    }

    fn measure(&self, pid: Pid) -> Performed {
        match process::rss_bytes(pid.0) {
            Some(rss) => Performed::Learned(Event::Measured { pid, rss }),
            None => Performed::Done,
        }
    }

    /// Makes listeners, and rows of the scoreboard, for more workers. Workers that run already do not get the new
    /// listeners, so only workers that are forked later can rescue connections that wait in the new listeners.
    fn grow(&mut self, workers: u32) -> Performed {
        if let Err(error) = self.listeners.grow(&self.resolved.settings.server, workers) {
            tracing::error!(
                event = "scale_failed",
                workers,
                reason = error_chain(&error),
                "could not make listeners for {workers} workers; there will be fewer"
            );
        }
        let Room { slots, rows } = Room::make(&self.listeners, &self.scoreboard);
        Performed::Learned(Event::Grown { slots, rows })
    }

    /// Steers new connections to these slots. If this fails, no connection is lost, because other workers rescue the
    /// connections that the kernel sends to an empty slot.
    fn steer(&mut self, live: &[SlotId]) {
        let live: Vec<u32> = live.iter().map(|slot| slot.0).collect();
        match self.listeners.steer(&live) {
            Ok(()) => tracing::debug!(event = "steering_changed", ?live, "new connections go to these slots"),
            Err(error) => log_steering_refused(&error),
        }
    }

    /// Sets the weights of the slots that the core has chosen, so that slots with fewer connections get more of the new
    /// ones. `stay` is false if connections soon end. Their numbers then say nothing, and all slots get the same
    /// weight.
    pub(super) fn balance(&mut self, stay: bool) {
        let mut connections = BTreeMap::new();
        for row in self.scoreboard.rows().filter(|row| stay && row.state() == RowState::Serving) {
            *connections.entry(row.slot()).or_insert(0) += row.connections();
        }
        if let Err(error) = self.listeners.balance(|slot| connections.get(&u64::from(slot)).copied().unwrap_or(0)) {
            log_steering_refused(&error);
        }
    }

    /// Steers the next connection to the slot `preferred`, by treating all other slots as crowded. This preference ends
    /// when the next connection has arrived.
    pub(super) fn prefer(&mut self, preferred: u32) {
        if let Err(error) = self.listeners.balance(|slot| if slot == preferred { 0 } else { 100 }) {
            log_steering_refused(&error);
        }
    }

    fn reply(&mut self, caller: Caller, reply: CommandReply) {
        use protocol::ControlResponse as Told;
        let told = match reply {
            CommandReply::Serving { target: 1 } => Told::done("1 worker serves"),
            CommandReply::Serving { target } => Told::done(format!("{target} workers serve")),
            CommandReply::OutOfRange { asked, most } => {
                Told::refused(format!("{asked} workers are not possible, only 1 to {most}; nothing was changed"))
            }
            CommandReply::NoListeners { target } => Told::refused(format!(
                "listeners for more workers could not be made; the target is now {target}, see the log"
            )),
            CommandReply::Superseded { target } => {
                Told::refused(format!("another request came before this one was done; the target is now {target}"))
            }
            CommandReply::BootFailed { slot: SlotId(slot), target } => {
                let reason = self.why_not_booted();
                Told::refused(format!(
                    "the worker of slot {slot} could not boot: {reason}; the target stays {target}, and the slot is \
                     tried again"
                ))
            }
            CommandReply::Reloaded { generation } => Told::done(reload::summary(self, generation)),
            CommandReply::Refused => {
                let reason = self.reloads.last.as_ref().and_then(|last| last.reason.clone()).unwrap_or_default();
                Told::refused(format!("refused, nothing was changed: {reason}"))
            }
            CommandReply::RolledBack { slot, why, overlap } => {
                let reason = reload::why_rolled_back(self, slot, why);
                let rest = match overlap {
                    true => "the old workers serve on with the old settings",
                    false => "slots that had got a new worker get one with the old settings, the others serve on",
                };
                Told::refused(format!("rolled back: {reason}; {rest}"))
            }
            CommandReply::Upgraded { generation: Generation(generation) } => {
                Told::done(format!("generation {generation} serves{}", self.upgrades.summary()))
            }
            CommandReply::UpgradeRefused => {
                Told::refused(format!("refused, nothing was changed: {}", self.upgrades.reason()))
            }
            CommandReply::UpgradeFailed if self.upgrades.stays => Told::refused(format!(
                "{}; the old workers serve on, and the new program stays",
                self.upgrades.reason()
            )),
            CommandReply::UpgradeFailed => {
                let rest = match self.resolved.settings.workers.overlap {
                    true => "the old workers serve on with the old program",
                    false => "slots that had got a new worker get one of the old program, the others serve on",
                };
                Told::refused(format!("rolled back: {}; {rest}", self.upgrades.reason()))
            }
            CommandReply::UpgradeUnderWay => {
                Told::refused("another upgrade is under way or waits for its turn; nothing was changed")
            }
            CommandReply::ScaleRefused { slot: SlotId(slot), target } => {
                let reason = self.why_not_booted();
                Told::refused(format!(
                    "refused: the worker of slot {slot} could not boot: {reason}; the target is {target} again"
                ))
            }
            CommandReply::Stopping => Told::refused("the service is stopping"),
        };
        self.answer(caller, told);
    }

    fn note(&self, note: &Note) {
        match *note {
            Note::RecycleAsked { pid, cause, held } => {
                let (slot, generation) = self.place(pid);
                let (requests, limit) =
                    self.child(pid).map_or((0, 0), |child| (child.row.requests(), child.row.recycle_at()));
                let what = match (held, self.resolved.settings.workers.overlap) {
                    (true, _) => {
                        "the worker has reached its limit and serves on, because the code on the disk was refused; a \
                         reload that succeeds replaces it"
                    }
                    (false, true) => "the worker is to be replaced; it serves until its replacement does",
                    (false, false) => {
                        "the worker is to be replaced; it serves until every other slot is served, and ends before its \
                         replacement starts"
                    }
                };
                tracing::info!(
                    event = "recycle_requested", slot, pid = pid.0, generation, requests, limit, reason = %cause,
                    "{what}"
                );
            }
            Note::LoadsRefusedCode { slot, refused } => {
                let (change, reason) = self.refusal(refused);
                tracing::warn!(
                    event = "refused_code",
                    slot = slot.0,
                    reason,
                    "the next worker of this slot loads the code from the disk, and the last {change} was refused; the \
                     slot is tried until a worker serves; mend the code and reload"
                );
            }
            Note::ScaleRefused { slot, target, refused } => {
                let (change, refusal) = self.refusal(refused);
                tracing::error!(
                    event = "scale_refused",
                    slot = slot.0,
                    target,
                    reason = self.why_not_booted(),
                    refusal,
                    "a worker of an added slot could not boot, and the last {change} was refused; there will be \
                     {target} workers, as before"
                );
            }
            Note::BackedOff { slot, failures, wait_ms } => tracing::warn!(
                event = "backoff",
                slot = slot.0,
                failures,
                wait_ms,
                "{failures} workers of this slot in a row died before they answered a request, or could not be forked; \
                 the master starts the next one in {wait_ms} ms at the latest"
            ),
            Note::ScoreboardFull { slot } => tracing::warn!(
                event = "scoreboard_full",
                slot = slot.0,
                "too many workers still drain; the slot gets its next worker when one of them ends"
            ),
            Note::BootGivenUp { failures } => {
                tracing::error!(
                    event = "boot_failing",
                    failures,
                    "no worker became ready in {failures} tries; the master ends the workers that are left and exits"
                );
            }
            Note::ReloadQueued => {
                tracing::info!(
                    event = "reload_queued",
                    "another reload or upgrade is under way; this reload follows it"
                );
            }
            Note::UpgradeQueued => {
                tracing::info!(
                    event = "upgrade_queued",
                    "another reload or upgrade is under way; this upgrade follows it"
                );
            }
            Note::TrialBegun { generation, target, overlap } => {
                let how = match overlap {
                    true => "the workers of the generation before serve on until it has passed",
                    false => "one slot after the other gets its worker, each after the old one has ended",
                };
                let generation = generation.0;
                tracing::info!(
                    event = "trial_started",
                    generation,
                    target,
                    "generation {generation} is on trial; {how}"
                );
            }
            Note::Scaled { target, asked } if i64::from(target) == asked => {
                tracing::info!(event = "scaled", target, "scaled to {target} workers");
            }
            Note::Scaled { target, asked } => {
                tracing::warn!(
                    event = "scaled",
                    target,
                    asked,
                    "{asked} workers were requested and are not possible; there will be {target}"
                )
            }
            Note::Stopping { graceful, delay_ms, grace_ms } => tracing::info!(
                event = "stopping",
                graceful,
                delay_ms,
                grace_ms,
                "stopping: the workers serve as before for {delay_ms} ms, then have {grace_ms} ms to finish"
            ),
            Note::Stalled { by_ms } => tracing::warn!(
                event = "master_stalled",
                by_ms,
                "the master itself was suspended for {by_ms} ms; missed heartbeats of workers are forgiven once"
            ),
            Note::HeartbeatResumed { pid, silent_ms } => {
                let (slot, generation) = self.place(pid);
                tracing::warn!(
                    event = "heartbeat_resumed",
                    slot,
                    pid = pid.0,
                    generation,
                    silent_ms,
                    "the worker sent no heartbeat for {silent_ms} ms and sends them again; it gets new connections \
                     again"
                );
            }
            Note::InvariantBroken(broken) => {
                tracing::error!(
                    event = "invariant_broken",
                    broken,
                    "found a bug in oxicorn, please report it; the master continues"
                );
            }
        }
    }

    /// Returns why the last worker that could not boot failed, without the words "could not boot".
    fn why_not_booted(&self) -> &str {
        let reason = self.boot_failure.as_deref().unwrap_or("it ended or hung before it was ready");
        reason.strip_prefix("could not boot: ").unwrap_or(reason)
    }

    /// Returns which change was refused, and why.
    fn refusal(&self, refused: RefusedChange) -> (&'static str, &str) {
        let (change, last) = match refused {
            RefusedChange::Reload => ("reload", &self.reloads.last),
            RefusedChange::Upgrade => ("upgrade", &self.upgrades.last),
        };
        (change, last.as_ref().and_then(|last| last.reason.as_deref()).unwrap_or_default())
    }

    fn child(&self, pid: Pid) -> Option<&Child> {
        self.children.iter().find(|child| child.pid == pid)
    }

    pub(super) fn place(&self, pid: Pid) -> (u32, u32) {
        self.core.worker(pid).map_or((0, 0), |worker| (worker.slot.0, worker.generation.0))
    }

    /// Decides for each field of the shell what happens to it in the child. The pattern has no `..`, so that a new
    /// field needs a decision.
    pub(super) fn into_worker_seed(self, child: ForkedChild) -> WorkerSeed {
        let Shell {
            core: _,
            loader,
            resolved,
            reloads: _,
            // The worker does not end the process of a preflight, because the master does this.
            upgrades: _,
            // The listeners of all slots are kept, because the worker rescues connections that wait for other workers.
            listeners,
            scoreboard,
            signals,
            // The pid file stays, because only the master may remove it.
            pidfile: _,
            // The socket is closed here, but its file stays, because the master still listens on it.
            control: _,
            // Only the master reports to the service manager.
            notify: _,
            started: _,
            certificate_due: _,
            control_due: _,
            // The children are dropped below, because they hold the master's ends of the channels to the other workers.
            // If this process kept copies, those workers would not notice that the master is gone.
            children,
            inbox: _,
            jitter: _,
            history: _,
            deaths: _,
            oom_kills: _,
            boot_failure: _,
            fork_failures: _,
            memory_watch: _,
            // The runtime closes what it has open for the master in its hook `after_fork_in_worker`.
            refreshes: _,
            forks: _,
            told_target: _,
        } = self;
        drop(children);
        signals.forget_in_child();
        let ForkedChild { slot, generation, row, channel, report, blocked, master, hook_panicked } = child;
        WorkerSeed {
            slot: slot.0,
            generation: generation.0,
            row,
            scoreboard,
            channel,
            report,
            blocked,
            master,
            resolved,
            app: loader.app,
            listeners,
            hook_panicked,
        }
    }
}

fn log_steering_refused(error: &SteerError) {
    tracing::warn!(
        event = "steering_refused",
        error = error as &dyn std::error::Error,
        "steering failed; a connection to a slot without a worker waits until another worker accepts it"
    );
}
