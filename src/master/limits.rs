//! The limits after which one worker is replaced (recycled): `workers.max_requests`, `max_age` and `max_rss`.
//!
//! The three limits have the same effect, but each of them is measured in another place:
//!
//! - `max_requests` goes from [`Limits::draw`] into the worker's row of the scoreboard. The worker counts its requests
//!   and asks for its own replacement. The core gets this request as `Event::RecycleRequested`.
//! - `max_age` goes from [`Limits::draw`] to the core in `Event::Forked`. The core compares it with the time since the
//!   fork.
//! - `max_rss` is a part of `Policy`, and the same for all workers. Once a second, the core asks for the resident sizes
//!   (`Action::Measure`), and compares the answers (`Event::Measured`) with the limit.
//!
//! When any of these limits is reached, the core marks the worker with the `RecycleCause`, and replaces it.
//!
//! Owns: the draw of one worker's limits, with jitter, so that workers of the same age are not replaced at the same
//! time. Refuses: to decide that a limit is reached. The worker decides this for `max_requests`, and `core` decides it
//! for the other two limits.

use crate::{settings, sys::clock};

/// The limits of one worker, jitter included; 0 means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    pub(super) max_requests: u64,
    pub(super) max_age_ms: u64,
}

impl Limits {
    /// Draws the limits of the next worker. `max_age` gets the same relative jitter as `max_requests`.
    pub(super) fn draw(workers: &settings::Workers, jitter: &mut Jitter) -> Self {
        let age_ms = workers.max_age.as_millis() as u64;
        if workers.max_requests == 0 {
            return Self { max_requests: 0, max_age_ms: age_ms };
        }
        let max_requests = workers.max_requests + jitter.up_to(workers.max_requests_jitter);
        let spread = u128::from(age_ms) * u128::from(workers.max_requests_jitter) / u128::from(workers.max_requests);
        let max_age_ms = age_ms + jitter.up_to(u64::try_from(spread).unwrap_or(age_ms));
        Self { max_requests, max_age_ms }
    }
}

/// A random number generator for jitter (splitmix64, seeded from pid and clock). No security depends on it.
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new() -> Self {
        Self(u64::from(std::process::id()) << 32 ^ clock::now())
    }

    /// Draws a number from `0..=max`, each with the same probability.
    fn up_to(&mut self, max: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        ((u128::from(z) * (u128::from(max) + 1)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn drawn(max_requests: u64, max_requests_jitter: u64, max_age_s: u64) -> Vec<Limits> {
        let mut jitter = Jitter(1);
        let mut workers = crate::settings::Settings::default().workers;
        (workers.max_requests, workers.max_requests_jitter) = (max_requests, max_requests_jitter);
        workers.max_age = Duration::from_secs(max_age_s);
        (0..1_000).map(|_| Limits::draw(&workers, &mut jitter)).collect()
    }

    #[test]
    fn both_limits_get_the_same_relative_jitter() {
        let limits = drawn(1_000, 100, 60);
        assert!(limits.iter().all(|one| (1_000..=1_100).contains(&one.max_requests)), "{limits:?}");
        assert!(limits.iter().all(|one| (60_000..=66_000).contains(&one.max_age_ms)), "{limits:?}");
        for least in [1_000, 1_090] {
            assert!(limits.iter().any(|one| (least..least + 10).contains(&one.max_requests)), "{least}: {limits:?}");
        }
    }

    #[test]
    fn a_limit_of_zero_is_no_limit_and_an_age_alone_has_no_jitter() {
        assert_eq!(drawn(0, 100, 0)[0], Limits { max_requests: 0, max_age_ms: 0 });
        assert_eq!(drawn(0, 100, 60)[0], Limits { max_requests: 0, max_age_ms: 60_000 });
    }
}
