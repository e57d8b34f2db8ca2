//! The replacement of workers that must not exist twice (`workers.overlap = false`): the old worker of a slot ends
//! before the new one is forked.
//!
//! Owns: the choice of the worker that is stopped next, and the moment at which this may happen. At most one slot at a
//! time is without a worker because of this choice. Refuses: to fill the slot (`slots`), and to judge a trial
//! (`trial`).

use super::{Action, Cause, Master, Millis, SlotId, Stage, TRIAL_MS, Worker, trial::Change};

impl Master {
    /// Returns true if a new worker may start while the old worker of its slot still lives. During a trial, the old
    /// and the new settings must both allow this, because both kinds of workers exist.
    pub(super) fn overlaps(&self) -> bool {
        self.policy.overlap && !matches!(&self.change, Change::OnTrial(trial) if !trial.overlap)
    }

    /// Stops the worker that is replaced next, if a slot may do without a worker now.
    pub(super) fn stop_next(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.stopped.is_some_and(|slot| slot.0 >= self.slots() || self.in_slot(slot).any(Worker::serving)) {
            self.stopped = None;
        }
        let Some(slot) = self.next_to_stop() else { return };
        if self.tried_until().is_some_and(|at| now < at || self.looks_later(now)) {
            return;
        }
        self.stopped = Some(slot);
        let until = now.after(self.policy.graceful_timeout_ms);
        for i in 0..self.workers.len() {
            let w = &self.workers[i];
            if w.slot != slot || !self.is_to_be_replaced(w) {
                continue;
            }
            let cause = match w.recycle {
                _ if Some(w.generation) == self.generation_failed => Cause::RollBack,
                _ if w.generation != self.generation => Cause::Reload,
                Some(cause) => Cause::Recycle(cause),
                None => continue,
            };
            if matches!(cause, Cause::Recycle(_)) && w.serving() {
                self.tally.recycled += 1;
            }
            self.drain(i, now, until, false, cause, actions);
        }
    }

    /// Returns when the next worker is stopped, if this waits for a time and not for an event.
    pub(super) fn next_stop_deadline(&self) -> Option<Millis> {
        self.next_to_stop().and_then(|_| self.tried_until())
    }

    /// Returns the slot whose worker is stopped next. Slots that nobody serves come first, because their stop costs
    /// nothing. After them comes the slot with the oldest worker. So during a trial the workers of the old generation
    /// come before those of the new one that have reached a limit, and the trial ends.
    fn next_to_stop(&self) -> Option<SlotId> {
        let returns = matches!(self.change, Change::Returning { .. });
        if self.overlaps() || self.stage != Stage::Running || returns || self.stopped.is_some() {
            return None;
        }
        let old = self.workers.iter().filter(|w| w.slot.0 < self.slots() && self.is_to_be_replaced(w));
        let is_served = |slot: SlotId| self.in_slot(slot).any(Worker::serving);
        let next = old.map(|w| w.slot).min_by_key(|slot| is_served(*slot))?;
        (!is_served(next) || self.one_may_stop()).then_some(next)
    }

    /// Returns true if one more slot may be without a worker. This is the case if every other slot is served. A slot
    /// whose workers keep dying does not count as long as a slot is left that serves; during a trial it does count,
    /// because the new generation must fill that slot first.
    fn one_may_stop(&self) -> bool {
        let (served, others): (Vec<_>, Vec<_>) =
            (0..self.slots()).map(SlotId).partition(|slot| self.in_slot(*slot).any(Worker::serving));
        let on_trial = matches!(self.change, Change::OnTrial(_));
        let hopeless = |slot: &SlotId| !on_trial && self.backs_off(*slot);
        others.iter().all(hopeless) && (served.len() > 1 || self.slots() == 1)
    }

    /// Returns true if another worker must take the place of this one.
    fn is_to_be_replaced(&self, w: &Worker) -> bool {
        let recycles = w.recycle.is_some() && !self.holds();
        w.wanted() && w.pid.is_some() && (w.generation != self.generation || recycles)
    }

    /// Returns the time until which the workers on trial must still serve before the next slot is touched; `None` if no
    /// worker on trial serves.
    fn tried_until(&self) -> Option<Millis> {
        let Change::OnTrial(trial) = &self.change else { return None };
        let new = self.workers.iter().filter(|w| w.generation == self.generation && w.serving());
        let proven = new.map(|w| w.serving_since.after(TRIAL_MS)).max()?;
        Some(proven.max(trial.look_at))
    }
}
