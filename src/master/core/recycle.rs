//! The planned replacement of one worker that has reached a limit.
//!
//! Owns: the mark on a worker that is to be replaced, the age of workers, and how often their memory is measured.
//! Refuses: to decide when the worker leaves (`core`, `overlap`), and when no worker may be replaced (`refused`).

use super::{Action, Master, Millis, Note, Phase, Pid, RecycleCause, Stage};

/// How often the master measures the resident size of the workers, if `workers.max_rss` is set.
const MEASURE_MS: u64 = 1_000;

impl Master {
    pub(super) fn recycle(&mut self, pid: Pid, cause: RecycleCause, actions: &mut Vec<Action>) {
        if let Some(w) = self.by_pid(pid)
            && w.wanted()
            && w.recycle.is_none()
        {
            w.recycle = Some(cause);
            let held = self.holds();
            actions.push(Action::Note(Note::RecycleAsked { pid, cause, held }));
        }
    }

    pub(super) fn recycle_old(&mut self, now: Millis, actions: &mut Vec<Action>) {
        for i in 0..self.workers.len() {
            let w = &self.workers[i];
            if let (Phase::Serving { .. }, Some(pid), Some(old_at)) = (w.phase, w.pid, w.old_at)
                && old_at <= now
            {
                self.recycle(pid, RecycleCause::MaxAge, actions);
            }
        }
    }

    pub(super) fn measure(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if !self.measures() || now < self.measure_at {
            return;
        }
        self.measure_at = now.after(MEASURE_MS);
        let serving = self.workers.iter().filter(|w| w.serving() && w.recycle.is_none());
        actions.extend(serving.filter_map(|w| w.pid).map(|pid| Action::Measure { pid }));
    }

    pub(super) fn measures(&self) -> bool {
        self.policy.max_rss > 0 && self.stage == Stage::Running
    }
}
