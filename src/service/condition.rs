//! Whether a dependency does as asked, and telling the log when that changes.
//!
//! Owns: one line when it begins to fail and one when it works again, however many requests meet it meanwhile. Refuses:
//! asking (`store`, `health`).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long a dependency may take to tell how it is, before it counts as unavailable.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Of one dependency, as one worker sees it.
#[derive(Debug)]
pub(super) struct Condition {
    name: String,
    /// Failures since it last worked.
    failures: AtomicU64,
}

impl Condition {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), failures: AtomicU64::new(0) }
    }

    pub(super) fn works(&self) {
        // Read first: most often there is nothing to write.
        if self.failures.load(Ordering::Relaxed) > 0 {
            let failures = self.failures.swap(0, Ordering::Relaxed);
            let name = &self.name;
            tracing::info!(event = "dependency_back", name, failures, "{name} works again");
        }
    }

    pub(super) fn failed(&self, reason: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            let name = &self.name;
            tracing::warn!(
                event = "dependency_failed",
                name,
                reason,
                "{name} fails; what needs it is answered 503 until it works again"
            );
        }
    }
}
