//! The report of an app that runs beside the serving loop: that all of it stands still.
//!
//! Owns: the moment since which the app has stood still. Refuses: to find that out (the app's runtime does), and to end
//! the worker (the master does).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::sys::clock;

const NEVER: u64 = u64::MAX;

/// The moment since which the app of a worker has stood still, in milliseconds of the monotonic clock; `NEVER` while it
/// works.
#[derive(Clone, Debug)]
pub(crate) struct Standstill(Arc<AtomicU64>);

impl Default for Standstill {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(NEVER)))
    }
}

impl Standstill {
    pub(crate) fn set(&self, age: Option<Duration>) {
        let since =
            age.map_or(NEVER, |age| clock::now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
        self.0.store(since, Relaxed);
    }

    pub(super) fn since(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|since| *since != NEVER)
    }
}
