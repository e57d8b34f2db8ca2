//! Limits each kind of log line that any client can cause to one line a second.
//!
//! Owns: the time from which the next line may be written, and the number of suppressed lines. Refuses: the lines
//! themselves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::sys::clock;

const EVERY_MS: u64 = 1_000;

/// The limit of one kind of log line in one worker.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    /// Returns `None` if the line must be suppressed now. If the line may be written, returns how many lines were
    /// suppressed since the last written line.
    pub(super) fn pass(&self) -> Option<u64> {
        self.pass_at(clock::coarse())
    }

    fn pass_at(&self, now: u64) -> Option<u64> {
        if now < self.next.load(Relaxed) {
            self.suppressed.fetch_add(1, Relaxed);
            return None;
        }
        self.next.store(now + EVERY_MS, Relaxed);
        Some(self.suppressed.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_written_and_the_next_counts_the_suppressed_ones() {
        let throttle = Throttle::default();
        let passed = [5_000, 5_001, 5_999, 6_000, 6_001, 9_000].map(|now| throttle.pass_at(now));
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
