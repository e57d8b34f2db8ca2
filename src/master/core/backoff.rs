//! How soon a slot gets its next worker.
//!
//! Owns: the least time between two forks of a slot, and the wait of a slot whose workers die young: at boot, or before
//! they answered a request. Refuses: which slots want a worker, and how many may wait at the same time (`slots`).

use serde::{Deserialize, Serialize};

use super::Millis;

/// The least time between two forks of a slot, and between two forks that end a wait early while no slot serves. It
/// keeps the master from spinning.
pub(super) const FLOOR_MS: u64 = 100;
/// The least time between two forks that end a wait early while some slot serves.
pub(super) const EARLY_MS: u64 = 1_000;
/// The wait after the second young death in a row. Each further one doubles it …
const MIN_MS: u64 = 500;
/// … up to this.
const MAX_MS: u64 = 30_000;
/// A young death this long after the end of the last wait counts as the first in a row again.
const CALM_MS: u64 = 30_000;

/// What a slot remembers of its workers that died.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Backoff {
    /// Young deaths in a row.
    failures: u32,
    /// The wait after the last of them.
    until: Millis,
    calm_at: Millis,
    /// The slot gets no fork before this time, whatever happens.
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

    /// Notes a fork: the wait is over.
    pub(super) fn forks(&mut self, now: Millis) {
        self.until = now;
        self.floor = now.after(FLOOR_MS);
        self.calm_at = self.calm_at.min(now.after(CALM_MS));
    }

    /// Notes that a worker died young, and returns how long the slot waits, in milliseconds. The first death in a row
    /// costs nothing.
    ///
    /// Only calm time resets the count, never `Ready` alone: a worker that dies right after `Ready` would be forked in
    /// a loop without end. `forgives` is false during the first boot: a boot_timeout longer than the calm time would
    /// otherwise reset the count of its own failures.
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

    /// Notes the death of a worker that had answered requests: the slot works, and its next worker is forked at once.
    pub(super) fn recovers(&mut self, now: Millis) {
        *self = Self { floor: self.floor, ..Self::new(now) };
    }

    /// Moves times that are past to `now`, after an upgrade: a slot that wants a worker only now did not want one
    /// before.
    pub(super) fn goes_on(&mut self, now: Millis) {
        self.until = self.until.max(now);
        self.floor = self.floor.max(now);
    }

    /// Whether the slot waits longer than the floor.
    pub(super) fn waits(&self) -> bool {
        self.until > self.floor
    }

    /// When the slot may have its next worker.
    pub(super) fn ends(&self) -> Millis {
        self.until.max(self.floor)
    }

    /// When the slot may have a worker although it waits.
    pub(super) fn floor(&self) -> Millis {
        self.floor
    }
}
