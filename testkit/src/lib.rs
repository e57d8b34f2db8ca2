//! The clients that the tests and the benchmark share.
//!
//! Owns: two HTTP clients, the generator of random choices, and the record of a benchmark's figures. `client` is small
//! and blocks, and `load` uses many connections at a pace. Neither client retries, so every lost request is seen.
//! Refuses: to start the program under test, and to know anything about that program (`tests/common` does both).
#![allow(missing_debug_implementations, reason = "nothing outside the tests uses it")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

pub mod client;
pub mod load;
pub mod random;
pub mod record;

use std::time::{Duration, Instant};

/// How long a test waits for a condition that should hold soon. The limit is far above the usual time, because the
/// machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Returns the time on the clock of the tests.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
