//! Events that the package's own Python code tells the log.
//!
//! Owns: their names and sentences. Refuses: to decide when they happen.

use pyo3::prelude::*;

/// The app has no lifespan. An operator wants to read this once, and not from each worker.
#[pyfunction]
pub(crate) fn lifespan_unsupported(slot: u32, reason: String) {
    if slot == 0 {
        tracing::info!(event = "lifespan_unsupported", reason, "the app has no lifespan; it is served without");
    } else {
        tracing::debug!(event = "lifespan_unsupported", slot, reason, "the app has no lifespan; it is served without");
    }
}

/// The lifespan of the app has failed after the start.
#[pyfunction]
#[pyo3(signature = (slot, reason, traceback=None))]
pub(crate) fn lifespan_failed(slot: u32, reason: String, traceback: Option<String>) {
    tracing::error!(
        event = "lifespan_failed",
        slot,
        pid = std::process::id(),
        reason,
        traceback,
        "the lifespan of the app failed; requests are not touched"
    );
}

/// Threads of the app run on at the end of the worker.
#[pyfunction]
pub(crate) fn threads_left(slot: u32, names: Vec<String>) {
    tracing::warn!(
        event = "threads_left",
        slot,
        pid = std::process::id(),
        threads = names.join(", "),
        "threads of the app did not end within python.shutdown_grace; the worker ends without them"
    );
}

/// The process of the hooks did not answer, so the worker lacks what `pre_fork` gives it.
#[pyfunction]
pub(crate) fn pre_fork_missed(slot: u32, reason: String) {
    tracing::warn!(
        event = "pre_fork_missed",
        slot,
        pid = std::process::id(),
        reason,
        "the worker goes on without what the hook pre_fork sets for it"
    );
}

/// A hook of the worker's end has raised.
#[pyfunction]
pub(crate) fn hook_failed(slot: u32, reason: String, traceback: Option<String>) {
    tracing::error!(
        event = "hook_failed",
        slot,
        pid = std::process::id(),
        reason,
        traceback,
        "a hook of the configuration file failed; the worker goes on"
    );
}
