//! The health of a dependency, and the log lines about its changes.
//!
//! Owns: the choice of the lines, which are few even if many requests fail. The first line is logged when the
//! dependency begins to fail. A further line is logged when a later error says more about the cause. The last line is
//! logged when the dependency works again. Refuses: to send requests to the dependency (`store`, `health`).

use std::{
    error::Error,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a dependency may take to answer. A dependency that takes longer counts as unavailable.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// A dependency counts as working again if no request has failed for this long. One success is not enough, because a
/// nearly full disk takes some writes and refuses others.
const CALM: Duration = Duration::from_secs(1);

/// How much an error says about the cause of an outage, ordered from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Telling {
    /// There was no answer in time.
    Nothing,
    /// The dependency could not be reached.
    Unreached,
    /// The dependency gave, or showed, the cause.
    Cause,
}

/// The health of one dependency, or of one of its functions, as one worker sees it.
#[derive(Debug)]
pub(crate) struct DependencyHealth {
    name: String,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug)]
struct Outage {
    failures: u64,
    failed_at: Instant,
    /// How much the log says about the cause of this outage so far.
    told: Telling,
}

impl DependencyHealth {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), outage: Mutex::default() }
    }

    pub(crate) fn fails(&self) -> bool {
        self.lock().is_some()
    }

    pub(crate) fn works(&self) {
        let mut outage = self.lock();
        if let Some(Outage { failures, .. }) = outage.take_if(|outage| outage.failed_at.elapsed() >= CALM) {
            let name = &self.name;
            tracing::info!(event = "dependency_recovered", name, failures, "{name} works again");
        }
    }

    pub(crate) fn failed(&self, telling: Telling, error: &dyn Error) {
        let (name, now) = (&self.name, Instant::now());
        let reason = || error_chain(error);
        let mut outage = self.lock();
        match &mut *outage {
            None => {
                *outage = Some(Outage { failures: 1, failed_at: now, told: telling });
                tracing::warn!(
                    event = "dependency_failed",
                    name,
                    reason = reason(),
                    "{name} fails; requests that need it are answered 503 until it works again"
                );
            }
            Some(known) => {
                known.failures += 1;
                known.failed_at = now;
                if known.told < telling {
                    known.told = telling;
                    tracing::warn!(
                        event = "dependency_failed",
                        name,
                        reason = reason(),
                        "{name} still fails, and now the reason is known"
                    );
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an error and its causes as one line.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
