//! Decides which of the failed forks get a line in the log.
//!
//! Owns: the least time between two lines with the same reason. Refuses: to decide when the next fork is tried
//! (`core`).

use super::core::Millis;

/// A slot whose forks fail may be tried ten times a second, so the same reason is logged only once in this time.
const SAME_REASON_EVERY_MS: u64 = 10_000;

/// What the shell remembers of forks that failed.
#[derive(Debug, Default)]
pub(super) struct ForkFailures {
    /// When a failure was logged last, and its reason.
    logged: Option<(Millis, String)>,
    unlogged: u64,
}

impl ForkFailures {
    /// Notes a failure. If this failure is to be logged, returns how many failures since the last log line were not
    /// logged.
    pub(super) fn note(&mut self, now: Millis, reason: &str) -> Option<u64> {
        let repeats =
            self.logged.as_ref().is_some_and(|(at, last)| last == reason && now.since(*at) < SAME_REASON_EVERY_MS);
        if repeats {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some((now, reason.to_owned()));
        Some(std::mem::take(&mut self.unlogged))
    }

    /// Returns the reason of the most recent failure.
    pub(super) fn reason(&self) -> Option<&str> {
        self.logged.as_ref().map(|(_, reason)| reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_logged_once_in_ten_seconds_and_another_at_once() {
        let mut failures = ForkFailures::default();
        assert_eq!(failures.note(Millis(1_000), "two threads"), Some(0));
        for at in (1_100..11_000).step_by(100) {
            assert_eq!(failures.note(Millis(at), "two threads"), None);
        }
        assert_eq!(failures.note(Millis(11_000), "two threads"), Some(99));
        assert_eq!(failures.note(Millis(11_100), "two threads"), None);
        assert_eq!(failures.note(Millis(11_200), "no memory"), Some(1));
        assert_eq!(failures.reason(), Some("no memory"));
    }
}
