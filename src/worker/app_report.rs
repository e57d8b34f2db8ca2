//! What an app that runs beside the serving loop reports of itself: that all of it stands still, or is busy.
//!
//! Owns: these two facts. Refuses: to find them out (the app's runtime does), to end the worker (the master does), and
//! to send new connections elsewhere (`shared`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::sys::clock;

const NEVER: u64 = u64::MAX;

/// What the app of a worker reports of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct AppReport(Arc<Reported>);

#[derive(Debug)]
struct Reported {
    /// The moment since which the app has stood still, in milliseconds of the monotonic clock; `NEVER` while it works.
    still_since: AtomicU64,
    is_busy: AtomicBool,
    changed: Notify,
}

impl Default for Reported {
    fn default() -> Self {
        Self { still_since: AtomicU64::new(NEVER), is_busy: AtomicBool::new(false), changed: Notify::new() }
    }
}

impl AppReport {
    pub(crate) fn stands_still(&self, age: Option<Duration>) {
        let since =
            age.map_or(NEVER, |age| clock::now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
        self.0.still_since.store(since, Relaxed);
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        if self.0.is_busy.swap(busy, Relaxed) != busy {
            self.0.changed.notify_one();
        }
    }

    pub(super) fn still_since(&self) -> Option<u64> {
        Some(self.0.still_since.load(Relaxed)).filter(|since| *since != NEVER)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.0.is_busy.load(Relaxed)
    }

    /// Completes when the app has become busy, or is busy no more.
    pub(super) async fn busy_changed(&self) {
        self.0.changed.notified().await;
    }
}
