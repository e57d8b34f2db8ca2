//! Which slots get a worker, and when.
//!
//! Owns: the filling of slots, the order in which they are filled, and the consequences of a worker's failure for its
//! slot. Refuses: to decide how long one slot waits (`backoff`).

use super::{
    Action, CommandReply, ExitReason, Failure, Master, Millis, Note, Phase, SlotId, Stage, Worker,
    backoff::{Backoff, EARLY_MS, FLOOR_MS},
    trial::Change,
};

/// The master gives up the first boot after this many failures in each slot, if no worker was ever ready.
const BOOT_FAILURES: u32 = 3;

impl Master {
    /// Returns when an empty slot gets its next worker, and how many of its workers in a row have died young; `None` if
    /// the slot does not wait.
    pub(crate) fn next_try(&self, slot: SlotId) -> Option<(Millis, u32)> {
        let backoff = self.slots_wanting().find(|wanting| *wanting == slot).map(|_| &self.backoff[slot.0 as usize])?;
        let early = self.early_fork().filter(|(early, _)| *early == slot).map(|(_, at)| at);
        self.backs_off(slot).then(|| (early.unwrap_or(backoff.ends()), backoff.failures()))
    }

    /// Gives a backoff to each slot that has none yet.
    pub(super) fn make_backoffs(&mut self, now: Millis) {
        self.backoff.resize(self.policy.slots as usize, Backoff::new(now));
    }

    /// Notes that a worker could not boot. Callers that wait for the target get a reply now, because the slot may never
    /// have a worker that boots.
    pub(super) fn boot_failed(&mut self, now: Millis, w: &Worker, why: Failure, actions: &mut Vec<Action>) {
        self.failed(now, w, why, actions);
        self.take_scale_back(w.slot, actions);
        if w.slot.0 < self.target {
            self.reply_to_callers(CommandReply::BootFailed { slot: w.slot, target: self.target }, actions);
        }
    }

    /// Notes that a worker ended unasked, or that the master gave it up. If this failure decides a trial, it counts for
    /// the generation and not for the slot, because the slot's older worker still serves.
    pub(super) fn failed(&mut self, now: Millis, w: &Worker, why: Failure, actions: &mut Vec<Action>) {
        let slot = w.slot;
        if self.fails_trial(now, slot, w.generation, why, actions) {
            return;
        }
        let proven = self.proven;
        let Some(backoff) = self.backoff.get_mut(slot.0 as usize) else { return };
        if w.answered {
            return backoff.recovers(now);
        }
        let wait_ms = backoff.fails(now, proven);
        let failures = backoff.failures();
        if self.stage != Stage::Running {
            return;
        }
        let each = &self.backoff[..self.slots() as usize];
        if !proven && each.iter().all(|b| b.failures() >= BOOT_FAILURES) {
            self.reason = ExitReason::NoWorkerReady;
            self.stage = Stage::Stopping { until: now, urgency: 2 };
            actions.push(Action::Note(Note::BootGivenUp { failures: each.iter().map(Backoff::failures).sum() }));
            self.abandon_changes(actions);
        } else if wait_ms > 0
            && why != Failure::NotForked
            && slot.0 < self.slots()
            && self.early_fork().is_none_or(|(early, _)| early != slot)
        {
            actions.push(Action::Note(Note::BackedOff { slot, failures, wait_ms }));
        }
    }

    pub(super) fn fill_slots(&mut self, now: Millis, actions: &mut Vec<Action>) {
        while let Some(slot) = self.slot_to_fill(now) {
            let backoff = &mut self.backoff[slot.0 as usize];
            if backoff.ends() > now {
                self.cut_short_at = Some(now);
            }
            backoff.forks(now);
            self.last_forks += u32::from(matches!(self.stage, Stage::Stopping { .. }));
            self.workers.push(Worker {
                slot,
                generation: self.generation,
                pid: None,
                phase: Phase::Forking,
                recycle: None,
                old_at: None,
                serving_since: now,
                answered: false,
                forgiven: false,
                due: now,
                silent: false,
                full: false,
                told_last: false,
            });
            actions.push(Action::Fork { slot, generation: self.generation });
        }
        let waits = self.slots_lacking().next().filter(|_| self.rows_taken());
        if let Some(slot) = waits
            && !std::mem::replace(&mut self.waits_for_row, true)
        {
            actions.push(Action::Note(Note::ScoreboardFull { slot }));
        }
    }

    fn slot_to_fill(&self, now: Millis) -> Option<SlotId> {
        let due = self.slots_wanting().find(|slot| self.backoff[slot.0 as usize].ends() <= now);
        due.or_else(|| self.early_fork().filter(|(_, at)| *at <= now).map(|(slot, _)| slot))
    }

    /// Returns the slot whose wait is cut short, and the time at which this slot gets its worker. At most half of the
    /// slots may wait, so that a service that can serve always has a worker that serves or starts. While some slot is
    /// served, waits are cut short less often. Before the first worker was ever ready, no wait is cut short.
    pub(super) fn early_fork(&self) -> Option<(SlotId, Millis)> {
        let waiting: Vec<SlotId> = self.slots_wanting().filter(|slot| self.backs_off(*slot)).collect();
        if !self.proven || waiting.len() <= self.slots() as usize / 2 {
            return None;
        }
        let soonest = waiting.into_iter().min_by_key(|slot| self.backoff[slot.0 as usize].ends())?;
        let some_serve = self.workers.iter().any(|w| w.slot.0 < self.slots() && w.serving() && !w.silent);
        let pace_ms = if some_serve { EARLY_MS } else { FLOOR_MS };
        let paced = self.cut_short_at.map(|cut| cut.after(pace_ms));
        Some((soonest, self.backoff[soonest.0 as usize].floor().max(paced.unwrap_or_default())))
    }

    pub(super) fn backs_off(&self, slot: SlotId) -> bool {
        self.backoff[slot.0 as usize].waits() && !self.in_slot(slot).any(Worker::serving)
    }

    /// Returns the slots that may get a worker as soon as their backoff allows it. Empty slots come first. Of the slots
    /// whose worker still serves, at most `max(1, N/4)` are replaced at the same time, and the oldest worker is
    /// replaced first. Otherwise a slot whose workers are recycled all the time would take the turns of the other
    /// slots, and a reload would never end.
    pub(super) fn slots_wanting(&self) -> impl Iterator<Item = SlotId> {
        let replacing = (0..self.target).map(SlotId).filter(|slot| {
            self.in_slot(*slot).any(Worker::serving) && self.in_slot(*slot).any(|w| w.wanted() && !w.serving())
        });
        let room = (self.target as usize / 4).max(1).saturating_sub(replacing.count());
        let (mut serving, empty): (Vec<_>, Vec<_>) =
            self.slots_lacking().partition(|slot| self.in_slot(*slot).any(Worker::serving));
        serving.sort_by_key(|slot| self.workers.iter().rposition(|w| w.slot == *slot && w.serving()));
        let wanting = empty.into_iter().chain(serving.into_iter().take(room));
        wanting.take(if self.rows_taken() { 0 } else { usize::MAX })
    }

    fn slots_lacking(&self) -> impl Iterator<Item = SlotId> {
        let slots = match self.stage {
            // The old program takes over again in a moment. Only its workers have the old code and the old settings.
            Stage::Running if matches!(self.change, Change::Returning { .. }) => 0..0,
            // A worker that crashes during the shutdown delay is still replaced.
            Stage::Running | Stage::Delaying { .. } => 0..self.slots(),
            // All other workers ended before they could accept the connections that wait in the listeners, so one more
            // worker is forked to accept them.
            Stage::Stopping { .. } if self.must_accept_rest() && !self.workers.iter().any(Worker::can_accept) => {
                0..self.slots()
            }
            Stage::Stopping { .. } | Stage::Done => 0..0,
        };
        slots.map(SlotId).filter(|slot| self.lacks_worker(*slot))
    }

    fn lacks_worker(&self, slot: SlotId) -> bool {
        let mut workers = self.in_slot(slot);
        if !self.overlaps() {
            workers.next().is_none()
        } else if self.holds() {
            !workers.any(|w| w.wanted() && w.generation == self.generation)
        } else {
            !workers.any(|w| self.current(w))
        }
    }
}
