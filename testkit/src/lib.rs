//! The clients that the tests and the benchmark share.
//!
//! Owns: two HTTP clients that never retry, so that a request that is lost shows as lost (`client` is small and blocks,
//! `load` is many connections at a pace), the generator of random choices, and the record that keeps a benchmark's
//! figures. Refuses: starting or knowing the program under test; that is `tests/common`.
#![allow(missing_debug_implementations, reason = "nothing outside the tests uses it")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

pub mod client;
pub mod load;
pub mod random;
pub mod record;

use std::time::{Duration, Instant};

/// How long a condition may take that should hold "soon". Far above any honest value, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// The clock of the tests.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
