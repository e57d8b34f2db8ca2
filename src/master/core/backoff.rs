//! How soon a slot gets its next worker.
//!
//! Owns: the least time between two forks of a slot, and the wait of a slot whose workers die young. A worker dies
//! young if it dies at boot, or before it has answered a request. Refuses: to choose the slots that want a worker, and
//! to limit how many slots may wait at the same time (`slots`).

use serde::{Deserialize, Serialize};

use super::Millis;

/// The least time between two forks of one slot. While no slot is served, it is also the least time between two forks
/// that cut the wait of a slot short. This limit keeps the master from forking in a busy loop.
pub(super) const FLOOR_MS: u64 = 100;
/// While some slot is served, at least this time lies between two forks that cut the wait of a slot short.
pub(super) const EARLY_MS: u64 = 1_000;
/// How long a slot waits after its second young death in a row. Each further young death doubles the wait, up to
/// [`MAX_MS`].
const MIN_MS: u64 = 500;
/// The longest wait of a slot whose workers die young.
const MAX_MS: u64 = 30_000;
/// If a worker dies young this long after the end of its slot's last wait, its death counts as the first in a row
/// again.
const CALM_MS: u64 = 30_000;

/// What the master remembers about the dead workers of one slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Backoff {
    /// How many workers of this slot have died young in a row.
    failures: u32,
    /// When the wait after the last young death ends.
    until: Millis,
    calm_at: Millis,
    /// The slot gets no fork before this time, even if its wait is cut short.
    #[serde(default)]
    floor: Millis,
}

impl Backoff {
    pub(super) fn new(now: Millis) -> Self {
        Self { failures: 0, until: now, calm_at: now, floor: now }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes that a worker is forked for this slot, so the wait of the slot is over.
    pub(super) fn forks(&mut self, now: Millis) {
        self.until = now;
        self.floor = now.after(FLOOR_MS);
        self.calm_at = self.calm_at.min(now.after(CALM_MS));
    }

    /// Notes that a worker died young, and returns how long its slot waits now, in milliseconds. After the first death
    /// in a row the slot does not wait.
    ///
    /// Only calm time resets the count. `Ready` alone does not reset it, because a worker that dies right after `Ready`
    /// would then be forked again in a loop without end. `forgives` is false during the first boot. Otherwise, if
    /// boot_timeout were longer than the calm time, each failed boot would reset the count.
    pub(super) fn fails(&mut self, now: Millis, forgives: bool) -> u64 {
        if forgives && now >= self.calm_at {
            self.failures = 0;
        }
        self.failures += 1;
        let wait_ms = match self.failures {
            1 => 0,
            n => (MIN_MS << (n - 2).min(16)).min(MAX_MS),
        };
        self.until = now.after(wait_ms);
        self.calm_at = self.until.after(CALM_MS);
        wait_ms
    }

    /// Notes the death of a worker that had answered requests. Its slot works, so the slot's next worker is forked at
    /// once.
    pub(super) fn recovers(&mut self, now: Millis) {
        *self = Self { floor: self.floor, ..Self::new(now) };
    }

    /// Replaces times in the past by `now`, after an upgrade. Otherwise a slot that wants a worker only now would seem
    /// to have wanted one since an earlier time. The master would take this for a stall of its own.
    pub(super) fn goes_on(&mut self, now: Millis) {
        self.until = self.until.max(now);
        self.floor = self.floor.max(now);
    }

    /// Returns true if the slot waits longer than [`FLOOR_MS`] asks for, because its workers died young.
    pub(super) fn waits(&self) -> bool {
        self.until > self.floor
    }

    /// Returns when the slot may have its next worker, if its wait is not cut short.
    pub(super) fn ends(&self) -> Millis {
        self.until.max(self.floor)
    }

    /// Returns when the slot may have its next worker at the earliest, if its wait is cut short.
    pub(super) fn floor(&self) -> Millis {
        self.floor
    }
}
