//! The end of the service: how long it may take, and what the last workers have to do.
//!
//! Owns: the deadline of a stop, which can only become earlier, and the wait until the listeners are empty. Refuses: to
//! end one worker that is late (`core`).

use super::{ABORT_MS, Action, Cause, CommandReply, KillCause, Master, Millis, Note, Phase, Stage, Worker};

/// How long the workers may take to drain at a quick stop.
const QUICK_MS: u64 = 2_000;
/// If a request to stop comes this soon after the last one and is not more urgent, it counts as the same request,
/// delivered twice. This happens because the sender of the signal and the program that started the master may both
/// deliver it. A person waits longer before the next request.
const SAME_STOP_MS: u64 = 1_000;
/// A stop forks workers to accept the connections that wait in the listeners. Once this many of them have died, the
/// stop no longer waits for these connections.
const LAST_FORKS_MAX: u32 = 3;

impl Master {
    /// Begins a stop, or makes the present stop faster. TERM asks for a graceful stop, and INT and QUIT ask for a quick
    /// one. A further signal of either kind makes the stop faster. No signal makes it slower.
    pub(super) fn begin_stop(&mut self, now: Millis, graceful: bool, actions: &mut Vec<Action>) {
        let more_urgent = |before: bool| before && !graceful;
        if self.stop_asked.is_some_and(|(at, before)| now.since(at) < SAME_STOP_MS && !more_urgent(before)) {
            return;
        }
        self.stop_asked = Some((now, graceful));
        let (urgency, before) = match self.stage {
            Stage::Running => (u8::from(!graceful), None),
            Stage::Delaying { until } => (1, Some(until.after(self.policy.graceful_timeout_ms))),
            Stage::Stopping { until, urgency } => (urgency.saturating_add(1), Some(until)),
            Stage::Done => return,
        };
        self.reply_to_callers(CommandReply::Stopping, actions);
        self.abandon_changes(actions);
        self.close_removed_at = None;
        if before.is_none() {
            let told = self.workers.iter().filter_map(|w| w.pid);
            actions.extend(told.map(|pid| Action::AnnounceStop { pid }));
        }
        let delay_ms = if urgency == 0 { self.policy.shutdown_delay_ms } else { 0 };
        let grace_ms = match urgency {
            0 => self.policy.graceful_timeout_ms,
            1 => QUICK_MS,
            2.. => 0,
        };
        let until = before.map_or(now.after(grace_ms), |before| before.min(now.after(grace_ms)));
        self.stage = match delay_ms {
            0 => Stage::Stopping { until, urgency },
            1.. => Stage::Delaying { until: now.after(delay_ms) },
        };
        actions.push(Action::Note(Note::Stopping { graceful: urgency == 0, delay_ms, grace_ms: until.since(now) }));
    }

    pub(super) fn end_delay(&mut self, now: Millis) {
        if let Stage::Delaying { until } = self.stage
            && until <= now
        {
            let until = now.after(self.policy.graceful_timeout_ms);
            self.stage = Stage::Stopping { until, urgency: 0 };
        }
    }

    /// The duties of a stop, in this order:
    ///
    /// 1. After the deadline, no longer wait for the connections in the listeners.
    /// 2. Drain every worker.
    /// 3. End overdue workers once more, because a worker that has no time left to drain is overdue at once.
    /// 4. Fill a slot, if no worker is left that can accept what waits in the listeners.
    /// 5. Exit, once there is neither a worker nor a connection to accept.
    pub(super) fn reconcile_stop(&mut self, now: Millis, until: Millis, actions: &mut Vec<Action>) {
        self.all_accepted |= until <= now;
        self.drain_all(now, until, actions);
        self.end_overdue(now, actions);
        self.fill_slots(now, actions);
        if self.workers.is_empty() && !self.must_accept_rest() {
            self.stage = Stage::Done;
            actions.push(Action::Exit { reason: self.reason });
        }
    }

    /// Drains every worker. Workers that drain already are told that this is the final stop, so that they accept from
    /// the listeners once more. While no worker serves, starting workers continue. They are told to drain once they
    /// serve.
    fn drain_all(&mut self, now: Millis, until: Millis, actions: &mut Vec<Action>) {
        let starting_go_on = self.must_accept_rest() && !self.workers.iter().any(Worker::serving);
        for i in 0..self.workers.len() {
            let w = &mut self.workers[i];
            let until = match &mut w.phase {
                Phase::Draining { until: before } if *before <= until && w.told_last => continue,
                Phase::Forking | Phase::Starting { .. } if starting_go_on => continue,
                Phase::Aborting { until: before } => {
                    *before = until.min(*before);
                    continue;
                }
                // A stop does not wait until a worker has written where it hangs.
                Phase::Dumping { cause: KillCause::Hung, .. } => {
                    w.phase = Phase::Aborting { until: until.min(now.after(ABORT_MS)) };
                    actions.extend(w.pid.map(|pid| Action::Abort { pid, silent_ms: None }));
                    continue;
                }
                Phase::Dumping { until: before, .. } => {
                    *before = now;
                    continue;
                }
                Phase::Killed { .. } => continue,
                Phase::Draining { until: before } => until.min(*before),
                Phase::Forking | Phase::Starting { .. } | Phase::Serving { .. } => until,
            };
            self.drain(i, now, until, true, Cause::Stop, actions);
        }
    }

    /// Returns true if the stop must wait until a worker has accepted the connections in the listeners, because they
    /// would be reset otherwise. Returns false if the stop is a quick one, if no worker was ever ready, or if every
    /// worker that was forked to accept these connections has died.
    pub(super) fn must_accept_rest(&self) -> bool {
        let hopeless = self.last_forks >= LAST_FORKS_MAX && !self.workers.iter().any(Worker::can_accept);
        matches!(self.stage, Stage::Stopping { urgency: 0, .. }) && self.proven && !self.all_accepted && !hopeless
    }
}
