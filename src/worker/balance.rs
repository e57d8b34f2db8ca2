//! Compares the recent requests of this worker with those of its siblings, for `http.http2_rebalance`.
//!
//! Owns: the counts of recent requests of all workers, and the decision that this worker has clearly more than the
//! others. Refuses: the choice of a connection and its transfer (`connection`).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The older a request is, the less it counts. At this age, in milliseconds, it counts only about a third.
const MEMORY: u64 = 60_000;

/// A worker has clearly more requests than the others only if it has more than this share of the mean, in percent.
const AHEAD: u64 = 120;
/// In addition, such a worker must have more requests than the mean plus this number.
const AHEAD_MIN: u64 = 20;

/// The least time, in milliseconds, between two connections that this worker sends to a sibling. Before this time is
/// over, the counts do not show yet how the first of the two connections changed the load.
const PAUSE: u64 = 200;

/// Each request counts as this many parts. If whole requests were counted, the decrease of a small count would be
/// rounded to 0, and this count would never fade.
const PARTS: u64 = 1_024;

#[derive(Debug, Default)]
pub(super) struct Balance(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// When the counts were last updated, in milliseconds.
    at: u64,
    sent: u64,
    slots: BTreeMap<u64, SlotLoad>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotLoad {
    requests: u64,
    lately: u64,
}

impl Balance {
    /// Returns the slot to which the worker of slot `own` should send a connection now. If this returns a slot, the
    /// caller must send a connection there, because the pause before the next connection has already begun. `serving`
    /// holds, for each slot that serves, the number of its requests so far.
    pub(super) fn sends_to(&self, own: u64, serving: &BTreeMap<u64, u64>, now: u64) -> Option<u64> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.learn(serving, now);
        let sends = memory.is_ahead(own) && now >= memory.sent + PAUSE;
        let least = memory.slots.iter().min_by_key(|(_, load)| load.lately).filter(|_| sends).map(|(slot, _)| *slot);
        if least.is_some() {
            memory.sent = now;
        }
        least
    }
}

impl Memory {
    fn learn(&mut self, serving: &BTreeMap<u64, u64>, now: u64) {
        let passed = now.saturating_sub(self.at).min(MEMORY);
        let known = std::mem::take(&mut self.slots);
        self.at = now;
        self.slots = serving
            .iter()
            .map(|(slot, &requests)| {
                let before = known.get(slot).copied().unwrap_or_default();
                let faded = before.lately - before.lately * passed / MEMORY;
                // A new worker counts from 0, which is less than the last count of the worker that it replaced. This is
                // no error, and counts as no new requests of the slot.
                let new = requests.saturating_sub(before.requests);
                (*slot, SlotLoad { requests, lately: faded + new * PARTS })
            })
            .collect();
    }

    fn is_ahead(&self, own: u64) -> bool {
        let sum: u64 = self.slots.values().map(|load| load.lately).sum();
        let mean = sum / (self.slots.len() as u64).max(1);
        let own = self.slots.get(&own).map_or(0, |load| load.lately);
        own > mean * AHEAD / 100 && own > mean + AHEAD_MIN * PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sends_to(balance: &Balance, requests: &[u64], now: u64) -> Option<u64> {
        balance.sends_to(1, &(1..).zip(requests.iter().copied()).collect(), now)
    }

    #[test]
    fn a_worker_with_clearly_more_than_the_mean_sends_to_the_slot_with_least() {
        let balance = Balance::default();
        assert_eq!(sends_to(&balance, &[400, 20, 10, 30], 1_000), Some(3));
        assert_eq!(sends_to(&balance, &[400, 500, 400, 400], 2_000), None);
        assert_eq!(sends_to(&balance, &[510, 500, 500, 500], 3_000), None);
        assert_eq!(sends_to(&balance, &[900, 550, 550, 500], 4_000), Some(4));
        assert_eq!(sends_to(&Balance::default(), &[1_000], 1_000), None, "it is alone");
        assert_eq!(sends_to(&Balance::default(), &[20, 0, 0, 0], 1_000), None, "too few to tell");
    }

    #[test]
    fn one_connection_is_sent_at_a_time() {
        let balance = Balance::default();
        assert!(sends_to(&balance, &[400, 0, 0, 0], 1_000).is_some());
        assert!(sends_to(&balance, &[500, 0, 0, 0], 1_100).is_none());
        assert!(sends_to(&balance, &[600, 0, 0, 0], 1_200).is_some());
    }

    #[test]
    fn old_requests_do_not_count() {
        let balance = Balance::default();
        assert!(sends_to(&balance, &[9_000, 0, 0, 0], 1_000).is_some());
        assert!(sends_to(&balance, &[9_000, 100, 100, 100], 61_000).is_none());
        // The count of the last slot falls from 100 to 0, because a new worker has taken the slot over.
        assert!(sends_to(&balance, &[9_100, 200, 200, 0], 62_000).is_none());
    }
}
