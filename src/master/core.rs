//! The decisions of the master. Events come in, and the actions to perform go out.
//!
//! Owns: the table of workers and every decision about them. Refuses: syscalls, the clock, logging, randomness. The
//! shell (`master`) brings events and the time, performs the actions and logs the notes.
//!
//! ```text
//!            Fork            Ready → Go, then Accepting            Drain
//!  (empty) ───────► Forking ─► Starting ─────────────► Serving ───────────► Draining ─► (reaped)
//!                      │          │ boot_timeout          │ silent            │ overdue
//!                      ▼          ▼                       ▼                   ▼
//!                   (failed)    Killed               Aborting ──── 2 s ───► Killed ───► (reaped)
//! ```
//!
//! The runtime may have a signal that makes a worker write where it hangs. In this case a hung worker is `Dumping` for at
//! most a second before it is `Aborting`, and a worker that boots or drains for too long is `Dumping` before it is
//! `Killed`.

mod backoff;
mod overlap;
mod recycle;
mod refused;
mod slots;
mod steer;
mod stop;
mod takeover;
mod trial;
mod vocabulary;

use serde::{Deserialize, Serialize};

use self::{
    backoff::Backoff,
    trial::{Change, Queued},
};
pub(crate) use self::{
    takeover::{CoreSnapshot, Takeover},
    vocabulary::{
        Action, Caller, Cause, CommandReply, Event, ExitReason, Failure, Generation, KillCause, Millis, Note, Phase,
        Pid, Policy, RecycleCause, RefusedChange, Scaling, SlotId, Stage, Tally,
    },
};

/// How long a hung worker has to end after SIGABRT, which leaves a core file. After this time the master sends SIGKILL,
/// which a process cannot block.
const ABORT_MS: u64 = 2_000;
/// A new generation passes its trial once its workers have served every slot for this long and none of them is late
/// with its heartbeat.
const TRIAL_MS: u64 = 500;
/// How long the master waits before it looks at a trial again, if a worker of the new generation was late with its
/// heartbeat.
const TRIAL_LOOK_MS: u64 = 100;
/// How long the listeners of removed addresses stay open after a trial. This time is long enough for the handshakes
/// that are under way, even if one SYN-ACK is lost.
const REMOVED_POLL_MS: u64 = 1_000;
/// The last part of [`REMOVED_POLL_MS`], in which the removed addresses refuse new connections.
const REMOVED_REFUSE_MS: u64 = 250;
/// If the master wakes this long after its deadline, the master itself stood still, for example because the machine was
/// suspended or the cgroup was frozen.
const STALLED_MS: u64 = 1_000;

/// One worker process, from the decision to fork it until it is reaped. `Master::workers` holds all workers in the
/// order of their forks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) slot: SlotId,
    pub(crate) generation: Generation,
    pub(crate) pid: Option<Pid>,
    pub(crate) phase: Phase,
    pub(crate) recycle: Option<RecycleCause>,
    old_at: Option<Millis>,
    /// The time since which workers of this generation have served the slot without a break. If a replacement serves
    /// before this worker drains, the replacement inherits this time.
    serving_since: Millis,
    /// True if the worker has answered a request. Its end then no longer counts as a young death (see `backoff`).
    #[serde(default)]
    answered: bool,
    /// True if the worker got its whole timeout again after a stall of the master, and has sent no heartbeat since
    /// then. A second stall then does not extend the worker's deadline.
    forgiven: bool,
    /// The time by which the worker has promised to send its next heartbeat.
    due: Millis,
    /// True if the worker has missed its promised heartbeat. Its slot gets no new connections until the worker sends a
    /// heartbeat.
    pub(crate) silent: bool,
    /// True if the worker has reached its limit of connections. Its slot gets no new connections until some of the
    /// worker's open connections have ended.
    full: bool,
    /// True if the worker was told that this is the final stop, after which no other worker will accept from the
    /// listeners.
    #[serde(default)]
    told_last: bool,
}

#[derive(Debug)]
pub(crate) struct Master {
    policy: Policy,
    target: u32,
    generation: Generation,
    stage: Stage,
    workers: Vec<Worker>,
    backoff: Vec<Backoff>,
    /// When the wait of some slot was last cut short (see `early_fork`).
    cut_short_at: Option<Millis>,
    /// True once any worker has been ready. From then on the master never exits because workers fail.
    proven: bool,
    reason: ExitReason,
    /// Clients of the control socket that asked for the current target and wait until it is reached.
    callers: Vec<Caller>,
    change: Change,
    /// Reloads and upgrades that were requested while another one was under way, in the order of the requests; the
    /// queue has at most one request of each kind.
    queue: Vec<Queued>,
    generation_last: Generation,
    /// The last generation that failed its trial. If a fork for this generation completes later, its worker is drained
    /// at once.
    generation_failed: Option<Generation>,
    /// The slot whose worker was stopped so that a new one can start, if no worker has served the slot since then.
    /// Always `None` if workers overlap.
    stopped: Option<SlotId>,
    /// The reload or upgrade that was refused, if none has succeeded since then.
    refused: Option<RefusedChange>,
    /// The target from before a request for more workers, if the added workers load code that was refused and do not
    /// all serve yet.
    target_before: Option<u32>,
    /// True if some addresses of the previous settings are missing from the new settings. The new settings are those on
    /// trial, or those that passed the last trial.
    removes: bool,
    close_removed_at: Option<Millis>,
    /// True if the removed addresses refuse new connections already, so that the next step is to close them.
    removed_refuse: bool,
    /// When the last stop was requested, and whether it was graceful.
    stop_asked: Option<(Millis, bool)>,
    /// True if a worker has accepted, at the final stop, every connection that waited in the listeners.
    all_accepted: bool,
    /// How many workers were forked during the final stop, only to accept the connections that wait in the listeners.
    last_forks: u32,
    steered: Vec<SlotId>,
    measure_at: Millis,
    look_at: Millis,
    waits_for_row: bool,
    broken: bool,
    tally: Tally,
}

impl Master {
    pub(crate) fn new(policy: Policy, now: Millis) -> (Self, Vec<Action>) {
        let mut master = Self::empty(policy, now);
        // Steers to all slots below the target at once, so that a client that connects before the first worker is ready
        // waits in a slot that will have a worker.
        master.steered = (0..master.target).map(SlotId).collect();
        let mut actions = vec![Action::Steer { live: master.steered.clone() }];
        master.reconcile(now, &mut actions);
        (master, actions)
    }

    fn empty(policy: Policy, now: Millis) -> Self {
        let mut master = Self {
            target: policy.workers.clamp(1, policy.slots),
            generation: Generation(1),
            stage: Stage::Running,
            workers: Vec::new(),
            backoff: Vec::new(),
            cut_short_at: None,
            proven: false,
            reason: ExitReason::Asked,
            callers: Vec::new(),
            change: Change::None,
            queue: Vec::new(),
            generation_last: Generation(1),
            generation_failed: None,
            stopped: None,
            refused: None,
            target_before: None,
            removes: false,
            close_removed_at: None,
            removed_refuse: false,
            stop_asked: None,
            all_accepted: false,
            last_forks: 0,
            steered: Vec::new(),
            measure_at: now,
            look_at: now,
            waits_for_row: false,
            broken: false,
            tally: Tally::default(),
            policy,
        };
        master.make_backoffs(now);
        master
    }

    /// Records the events, then decides which actions follow. Every event enters the core here. The shell passes all
    /// pending events in one step, and all of them are applied before any deadline is checked. So the master never
    /// kills a worker whose heartbeat or exit is already queued.
    pub(crate) fn step(&mut self, now: Millis, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        let mut actions = Vec::new();
        let due = self.deadline();
        for event in events {
            self.record(now, event, &mut actions);
        }
        self.forgive_stall(now, due, &mut actions);
        self.reconcile(now, &mut actions);
        self.assert_invariants(&mut actions);
        actions
    }

    /// Returns when `step` must be called if no event comes earlier. This function does not read the clock. For an
    /// overdue duty it returns a time in the past, so no duty is forgotten.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        let phases = self.workers.iter().filter_map(|w| self.phase_deadline(w));
        let forks = self.slots_wanting().map(|slot| self.backoff[slot.0 as usize].ends());
        let early = self.early_fork().map(|(_, at)| at);
        let ages = self.workers.iter().filter(|w| w.recycle.is_none()).filter_map(|w| match w.phase {
            Phase::Serving { .. } => w.old_at,
            Phase::Forking
            | Phase::Starting { .. }
            | Phase::Dumping { .. }
            | Phase::Aborting { .. }
            | Phase::Draining { .. }
            | Phase::Killed { .. } => None,
        });
        let measure = self.measures().then_some(self.measure_at);
        let look = self.watches_silent().then_some(self.look_at);
        let delay = match self.stage {
            Stage::Delaying { until } => Some(until),
            Stage::Stopping { until, .. } => self.must_accept_rest().then_some(until),
            Stage::Running | Stage::Done => None,
        };
        let changes =
            [self.trial_deadline(), self.next_stop_deadline(), self.close_removed_at, self.preflight_deadline()];
        let duties = [measure, look, delay].into_iter().chain(changes).flatten();
        phases.chain(forks).chain(early).chain(ages).chain(duties).min()
    }

    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    pub(crate) fn worker(&self, pid: Pid) -> Option<&Worker> {
        self.workers.iter().find(|w| w.pid == Some(pid))
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns true while a reload waits for its settings.
    pub(crate) fn loads(&self) -> bool {
        matches!(self.change, Change::Loading { .. })
    }

    /// Returns true if workers that hang or are late are asked to write where they hang.
    pub(crate) fn asks_where(&self) -> bool {
        self.policy.dump_ms > 0
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Returns true if any worker was ever ready.
    pub(crate) fn proven(&self) -> bool {
        self.proven
    }

    /// Counts the slots below the target that have a serving worker.
    pub(crate) fn served(&self) -> u32 {
        (0..self.target).map(SlotId).filter(|slot| self.in_slot(*slot).any(Worker::serving)).count() as u32
    }

    // ---- events ----------------------------------------------------------------------------------------------------

    /// Applies one event. An event that takes more than five lines has a function of its own, next to the state that it
    /// changes.
    fn record(&mut self, now: Millis, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::StopRequested { graceful } => self.begin_stop(now, graceful, actions),
            Event::ScaleRequested { scaling, caller } => self.on_scale_requested(scaling, caller, actions),
            Event::ReloadRequested { caller } => self.begin_reload(caller, actions),
            Event::SettingsLoaded { policy, count, removes } => {
                self.begin_trial(now, policy, count, actions);
                self.removes = removes;
            }
            Event::SettingsRefused => self.on_settings_refused(now, actions),
            Event::UpgradeRequested { program, force, caller } => {
                self.begin_upgrade(now, program, force, caller, actions);
            }
            Event::PreflightEnded { passed } => self.on_preflight_ended(now, passed, actions),
            Event::ExecFailed => self.on_exec_failed(now, actions),
            Event::Grown { slots, rows } => self.on_grown(now, slots, rows, actions),
            Event::Forked { slot, pid, max_age_ms } => self.on_forked(now, slot, pid, max_age_ms),
            Event::ForkFailed { slot } => self.on_fork_failed(now, slot, actions),
            Event::Ready { pid } => self.on_ready(pid, actions),
            Event::Accepting { pid } => self.on_accepting(now, pid),
            Event::Heartbeat { pid, due } => self.on_heartbeat(now, pid, due, actions),
            Event::Answered { pid } => {
                if let Some(w) = self.by_pid(pid) {
                    w.answered = true;
                }
            }
            Event::SlotSilent { slot } => self.on_slot_silent(now, slot),
            Event::RoomChanged { pid, full } => {
                if let Some(w) = self.by_pid(pid) {
                    w.full = full;
                }
            }
            Event::RecycleRequested { pid } => self.recycle(pid, RecycleCause::MaxRequests, actions),
            Event::Measured { pid, rss } => {
                if rss > self.policy.max_rss {
                    self.recycle(pid, RecycleCause::MaxRss, actions);
                }
            }
            Event::DrainBegun { pid } => self.on_drain_begun(now, pid, actions),
            Event::AllAccepted { pid } => self.all_accepted |= self.worker(pid).is_some(),
            Event::Exited { pid } => self.on_exited(now, pid, actions),
        }
    }

    fn on_scale_requested(&mut self, scaling: Scaling, caller: Option<Caller>, actions: &mut Vec<Action>) {
        let most = self.policy.workers_max;
        let asked = match scaling {
            Scaling::To(target) => i64::from(target),
            Scaling::By(by) => i64::from(self.target) + i64::from(by),
        };
        let target = asked.clamp(1, i64::from(most)) as u32;
        if let Some(caller) = caller {
            let refused = match self.stage {
                Stage::Delaying { .. } | Stage::Stopping { .. } | Stage::Done => Some(CommandReply::Stopping),
                Stage::Running => (i64::from(target) != asked).then_some(CommandReply::OutOfRange { asked, most }),
            };
            if let Some(reply) = refused {
                actions.push(Action::Reply { caller, reply });
                return;
            }
        }
        if target != self.target {
            self.reply_to_callers(CommandReply::Superseded { target }, actions);
        }
        self.note_scale(target);
        self.target = target;
        self.callers.extend(caller);
        if target > self.policy.slots {
            actions.push(Action::Grow { workers: target });
        }
        actions.push(Action::Note(Note::Scaled { target, asked }));
    }

    fn on_grown(&mut self, now: Millis, slots: u32, rows: u32, actions: &mut Vec<Action>) {
        (self.policy.slots, self.policy.rows) = (slots, rows);
        self.make_backoffs(now);
        if self.target > slots {
            self.reply_to_callers(CommandReply::NoListeners { target: slots }, actions);
            actions.push(Action::Note(Note::Scaled { target: slots, asked: i64::from(self.target) }));
            self.target = slots;
        }
    }

    fn on_forked(&mut self, now: Millis, slot: SlotId, pid: Pid, max_age_ms: u64) {
        let until = now.after(self.policy.boot_timeout_ms);
        let Some(w) = self.forking(slot) else { return };
        w.pid = Some(pid);
        w.phase = Phase::Starting { until };
        w.old_at = (max_age_ms > 0).then(|| now.after(max_age_ms));
    }

    fn on_fork_failed(&mut self, now: Millis, slot: SlotId, actions: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|w| w.slot == slot && w.phase == Phase::Forking) else {
            return;
        };
        let w = self.workers.remove(at);
        self.boot_failed(now, &w, Failure::NotForked, actions);
    }

    fn on_ready(&mut self, pid: Pid, actions: &mut Vec<Action>) {
        let stopping = matches!(self.stage, Stage::Delaying { .. } | Stage::Stopping { .. });
        let Some(Worker { phase: Phase::Starting { .. }, .. }) = self.by_pid(pid) else { return };
        self.proven = true;
        if stopping {
            actions.push(Action::AnnounceStop { pid });
        }
        actions.push(Action::Go { pid });
    }

    fn on_accepting(&mut self, now: Millis, pid: Pid) {
        let silent_until = now.after(self.policy.timeout_ms);
        let serving_since = self.slot_served_since(pid).unwrap_or(now);
        if let Some(w) = self.by_pid(pid)
            && matches!(w.phase, Phase::Starting { .. })
        {
            w.phase = Phase::Serving { silent_until };
            w.serving_since = serving_since;
            w.due = now;
            w.forgiven = false;
        }
    }

    fn on_drain_begun(&mut self, now: Millis, pid: Pid, actions: &mut Vec<Action>) {
        let until = now.after(self.policy.graceful_timeout_ms);
        if let Some(w) = self.by_pid(pid)
            && w.wanted()
        {
            w.phase = Phase::Draining { until };
            let slot = w.slot;
            self.note_refused_code(slot, actions);
        }
    }

    fn on_exited(&mut self, now: Millis, pid: Pid, actions: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|w| w.pid == Some(pid)) else { return };
        self.waits_for_row = false;
        let w = self.workers.remove(at);
        match w.phase {
            Phase::Serving { .. } => {
                self.tally.crashed += 1;
                self.failed(now, &w, Failure::Ended, actions);
                self.note_refused_code(w.slot, actions);
            }
            Phase::Starting { .. } => {
                self.tally.boot_failed += 1;
                self.boot_failed(now, &w, Failure::Ended, actions);
            }
            // The end of a worker in one of these phases is no new failure. The master told the worker to end, or it
            // counted the failure when it gave the worker up.
            Phase::Forking
            | Phase::Dumping { .. }
            | Phase::Aborting { .. }
            | Phase::Draining { .. }
            | Phase::Killed { .. } => {}
        }
    }

    fn reply_to_callers(&mut self, reply: CommandReply, actions: &mut Vec<Action>) {
        reply_to_all(std::mem::take(&mut self.callers), reply, actions);
    }

    /// Extends every deadline once if the master woke long after its own deadline. In this case the master and its
    /// workers were suspended, so the workers could not send heartbeats. A worker that still sends no heartbeat
    /// afterwards hangs, and its extended deadline holds.
    ///
    /// Only a duty that was due before these events and is still due after them shows a stall. A duty that only these
    /// events made due does not show a stall. For example, an event may make a slot want a worker although the slot's
    /// backoff ended hours ago.
    fn forgive_stall(&mut self, now: Millis, due: Option<Millis>, actions: &mut Vec<Action>) {
        let by_ms = due.zip(self.deadline()).map_or(0, |(before, after)| now.since(before.max(after)));
        if by_ms < STALLED_MS {
            return;
        }
        for w in self.workers.iter_mut().filter(|w| !w.forgiven) {
            let (until, whole_ms) = match &mut w.phase {
                Phase::Starting { until } => (until, self.policy.boot_timeout_ms),
                Phase::Serving { silent_until } => (silent_until, self.policy.timeout_ms),
                Phase::Forking
                | Phase::Dumping { .. }
                | Phase::Aborting { .. }
                | Phase::Draining { .. }
                | Phase::Killed { .. } => continue,
            };
            w.forgiven = *until < now.after(whole_ms);
            *until = (*until).max(now.after(whole_ms));
        }
        actions.push(Action::Note(Note::Stalled { by_ms }));
    }

    // ---- duties ----------------------------------------------------------------------------------------------------

    /// Makes the workers match what is wanted. The order of the duties is part of the specification:
    ///
    /// 1. End overdue workers, so that duty 8 can fill their empty slots in the same step.
    /// 2. Begin the stop once the shutdown delay is over, because during a stop none of the duties below may start
    ///    anything new.
    /// 3. Mark workers that reached their age, so that duties 6 to 8 replace them.
    /// 4. Pass the trial, so that workers of the old generation may leave in duty 6.
    /// 5. Close removed addresses, after the trial in duty 4 has set the time for this.
    /// 6. Retire workers that are replaced, so that a slot beyond the target loses its worker before slots are filled.
    /// 7. If workers do not overlap, stop the next worker that is to be replaced. This comes after the trial in duty 4,
    ///    because each slot whose worker was replaced is part of the trial.
    /// 8. Fill slots, after everything that empties a slot.
    /// 9. Ask for the memory of the workers. The answers come in a later step.
    /// 10. Steer new connections, after everything that changes which workers serve.
    /// 11. Reply to callers that wait for the target, after surplus workers have been told to drain.
    /// 12. Become another program. This duty is the last one, because it waits if this step has asked for a fork or for
    ///     another action whose result is still to come.
    fn reconcile(&mut self, now: Millis, actions: &mut Vec<Action>) {
        self.end_overdue(now, actions);
        self.end_delay(now);
        match self.stage {
            Stage::Running | Stage::Delaying { .. } => {
                self.recycle_old(now, actions);
                self.pass_trial(now, actions);
                self.close_removed(now, actions);
                self.retire_replaced(now, actions);
                self.stop_next(now, actions);
                self.fill_slots(now, actions);
                self.measure(now, actions);
                self.steer(now, actions);
                self.reply_when_served(actions);
                self.exec_when_settled(now, actions);
            }
            Stage::Stopping { until, .. } => self.reconcile_stop(now, until, actions),
            Stage::Done => {}
        }
    }

    fn end_overdue(&mut self, now: Millis, actions: &mut Vec<Action>) {
        for i in 0..self.workers.len() {
            let w = &self.workers[i];
            let (Some(pid), Some(deadline)) = (w.pid, self.phase_deadline(w)) else { continue };
            if deadline > now {
                continue;
            }
            let stops = matches!(self.stage, Stage::Stopping { .. });
            let w = &mut self.workers[i];
            let before = w.phase;
            let (cause, silent_ms) = match before {
                Phase::Serving { silent_until } => {
                    (KillCause::Hung, Some(self.policy.timeout_ms + now.since(silent_until)))
                }
                Phase::Dumping { cause, .. } => (cause, None),
                Phase::Starting { .. } => (KillCause::BootTimeout, None),
                Phase::Aborting { .. } => (KillCause::Hung, None),
                Phase::Draining { .. } => (KillCause::DrainTimeout, None),
                Phase::Forking | Phase::Killed { .. } => continue,
            };
            let asked = matches!(before, Phase::Dumping { .. } | Phase::Aborting { .. });
            // A stop does not wait until a worker has written where it hangs.
            if self.policy.dump_ms > 0 && !asked && !stops {
                w.phase = Phase::Dumping { until: now.after(self.policy.dump_ms), cause };
                actions.push(Action::Dump { pid, cause, silent_ms });
            } else if cause == KillCause::Hung && !matches!(before, Phase::Aborting { .. }) {
                w.phase = Phase::Aborting { until: now.after(ABORT_MS) };
                actions.push(Action::Abort { pid, silent_ms });
            } else {
                w.phase = Phase::Killed { cause };
                actions.push(Action::Kill { pid, cause });
            }
            let given_up = w.clone();
            match before {
                Phase::Serving { .. } => {
                    self.tally.hung += 1;
                    self.failed(now, &given_up, Failure::Hung, actions);
                    self.note_refused_code(given_up.slot, actions);
                }
                Phase::Starting { .. } => {
                    self.tally.boot_failed += 1;
                    self.boot_failed(now, &given_up, Failure::BootTimeout, actions);
                }
                Phase::Forking
                | Phase::Dumping { .. }
                | Phase::Aborting { .. }
                | Phase::Draining { .. }
                | Phase::Killed { .. } => {}
            }
        }
    }

    /// Drains each worker whose slot is served by a younger worker, or whose slot is above the target. During a trial
    /// the workers of the old generation stay. A worker of a generation that failed its trial also leaves if it does
    /// not serve. If it serves its slot alone, it stays until another worker serves the slot.
    fn retire_replaced(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let until = now.after(self.policy.graceful_timeout_ms);
        for i in 0..self.workers.len() {
            let w = &self.workers[i];
            let failed = Some(w.generation) == self.generation_failed;
            let old = w.generation != self.generation && !failed;
            // A stop ends a trial without a decision. Both generations then serve until the shutdown delay is over.
            let kept = old && (matches!(self.change, Change::OnTrial(_)) || self.stage != Stage::Running);
            if !w.wanted() || kept {
                continue;
            }
            let serves = |other: &Worker| other.slot == w.slot && other.serving();
            let replaced = self.workers[i + 1..].iter().any(serves);
            let alone = !self.workers[..i].iter().any(serves) && !replaced;
            let cause = match w.recycle {
                _ if failed && !(alone && w.serving() && w.slot.0 < self.slots()) => Cause::RollBack,
                _ if w.slot.0 >= self.target => Cause::ScaleDown,
                _ if replaced && w.generation != self.generation => Cause::Reload,
                Some(cause) if replaced => Cause::Recycle(cause),
                Some(_) | None => continue,
            };
            if matches!(cause, Cause::Recycle(_)) && w.serving() {
                self.tally.recycled += 1;
            }
            self.drain(i, now, until, false, cause, actions);
        }
    }

    /// Tells callers that the target is reached, once every slot below it is served. Surplus workers have been told to
    /// drain by now. During a trial the surplus workers stay, so the reply waits until the trial is over.
    fn reply_when_served(&mut self, actions: &mut Vec<Action>) {
        let undecided = matches!(self.change, Change::Loading { .. } | Change::OnTrial(_));
        if self.served() == self.target && !undecided {
            self.target_before = None;
            self.reply_to_callers(CommandReply::Serving { target: self.target }, actions);
        }
    }

    fn drain(&mut self, i: usize, now: Millis, until: Millis, last: bool, cause: Cause, actions: &mut Vec<Action>) {
        let w = &mut self.workers[i];
        let Some(pid) = w.pid else { return };
        w.phase = Phase::Draining { until };
        w.told_last |= last;
        actions.push(Action::Drain { pid, grace_ms: until.since(now), last, cause });
    }

    // ---- questions -------------------------------------------------------------------------------------------------

    /// Returns the number of slots that should have a worker. This number is the target, but at most the number of
    /// slots that have listeners.
    fn slots(&self) -> u32 {
        self.target.min(self.policy.slots)
    }

    fn rows_taken(&self) -> bool {
        self.workers.len() >= self.policy.rows as usize
    }

    fn in_slot(&self, slot: SlotId) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |w| w.slot == slot)
    }

    /// Returns since when workers of this worker's generation have served its slot without a break; `None` if no such
    /// worker serves the slot now.
    fn slot_served_since(&self, pid: Pid) -> Option<Millis> {
        let new = self.workers.iter().find(|w| w.pid == Some(pid))?;
        let same = self.in_slot(new.slot).filter(|w| w.generation == new.generation && w.serving());
        same.map(|w| w.serving_since).min()
    }

    /// Returns true if this worker is the one that its slot should keep. Such a worker is of the current generation and
    /// is not about to be replaced. A slot has at most one such worker.
    fn current(&self, w: &Worker) -> bool {
        w.wanted() && w.recycle.is_none() && w.generation == self.generation
    }

    /// Returns when the current phase of the worker is overdue. With `workers.timeout = 0` a serving worker is never
    /// overdue, and with `workers.boot_timeout = 0` a starting worker is never overdue.
    fn phase_deadline(&self, w: &Worker) -> Option<Millis> {
        match w.phase {
            Phase::Starting { until } => (self.policy.boot_timeout_ms > 0).then_some(until),
            Phase::Serving { silent_until } => (self.policy.timeout_ms > 0).then_some(silent_until),
            Phase::Dumping { until, .. } | Phase::Aborting { until } | Phase::Draining { until } => Some(until),
            Phase::Forking | Phase::Killed { .. } => None,
        }
    }

    fn by_pid(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|w| w.pid == Some(pid))
    }

    fn forking(&mut self, slot: SlotId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|w| w.slot == slot && w.phase == Phase::Forking)
    }

    fn assert_invariants(&mut self, actions: &mut Vec<Action>) {
        let Some(broken) = self.broken_invariant() else { return };
        debug_assert!(false, "{broken}: {self:?}");
        if !std::mem::replace(&mut self.broken, true) {
            actions.push(Action::Note(Note::InvariantBroken(broken)));
        }
    }

    fn broken_invariant(&self) -> Option<&'static str> {
        for (i, a) in self.workers.iter().enumerate() {
            if a.pid.is_none() != (a.phase == Phase::Forking) {
                return Some("a worker has no pid, or a fork has one");
            }
            for b in &self.workers[i + 1..] {
                if a.pid.is_some() && a.pid == b.pid {
                    return Some("one pid stands for two workers");
                }
                if a.slot == b.slot && self.current(a) && self.current(b) {
                    return Some("two current workers are in one slot");
                }
            }
        }
        (self.workers.len() > self.policy.rows as usize).then_some("more workers than rows")
    }
}

fn reply_to_all(callers: impl IntoIterator<Item = Caller>, reply: CommandReply, actions: &mut Vec<Action>) {
    actions.extend(callers.into_iter().map(|caller| Action::Reply { caller, reply }));
}

impl Worker {
    pub(crate) fn serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Returns true if the worker can still accept connections from the listeners at the final stop, because it does
    /// not hang and was not killed.
    fn can_accept(&self) -> bool {
        !matches!(self.phase, Phase::Dumping { .. } | Phase::Aborting { .. } | Phase::Killed { .. })
    }

    /// Returns true until the master tells the worker to drain or ends it.
    fn wanted(&self) -> bool {
        matches!(self.phase, Phase::Forking | Phase::Starting { .. } | Phase::Serving { .. })
    }
}
