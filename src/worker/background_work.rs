//! Work of the app that outlives its response.
//!
//! Owns: the count of the work that outlives its response (a drain waits until this count is 0). Refuses: the execution
//! of this work, and the limit of the wait (`worker`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// A guard that stands for work which outlives its response, such as a mail that is sent after the response. A draining
/// worker waits for this work as it waits for a request, but not longer than `workers.graceful_timeout`.
/// [`WorkerContext::background_work`](crate::WorkerContext::background_work) makes the guard; the work counts as ended
/// when the guard is dropped.
///
/// Work that has not ended after `workers.graceful_timeout` is cut off, and counted as `background_cut` in the log
/// event `worker_drained`. A worker that crashes loses its background work, like everything else in its memory.
#[derive(Debug)]
#[must_use = "the work counts as ended when this is dropped"]
pub struct BackgroundWork(Arc<Count>);

/// Counts the background work of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackgroundCount(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    /// How much work has not ended. The count is changed atomically, because an app may drop a guard on another thread.
    running: AtomicU64,
    ended: Notify,
}

impl BackgroundCount {
    pub(crate) fn begin(&self) -> BackgroundWork {
        self.0.running.fetch_add(1, SeqCst);
        BackgroundWork(Arc::clone(&self.0))
    }

    pub(super) fn running(&self) -> u64 {
        self.0.running.load(SeqCst)
    }

    /// Completes when no background work is left.
    pub(super) async fn ended(&self) {
        while self.running() > 0 {
            self.0.ended.notified().await;
        }
    }
}

impl Drop for BackgroundWork {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, SeqCst) == 1 {
            self.0.ended.notify_one();
        }
    }
}
