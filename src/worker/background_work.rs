//! Work of the app that outlives its response.
//!
//! Owns: counting it, so that a drain waits for it. Refuses: running it, and how long a drain waits (`worker`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// Work that outlives its response, such as a mail that is sent after the response: a draining worker waits for it,
/// within `workers.graceful_timeout`, as for a request.
/// [`WorkerContext::background_work`](crate::WorkerContext::background_work) makes it; the work has ended when it is
/// dropped.
///
/// What is left at the end of the grace is cut, and counted as `background_cut` in the log event `worker_drained`. A
/// worker that crashes loses it, as everything in memory.
#[derive(Debug)]
#[must_use = "the work counts as ended when this is dropped"]
pub struct BackgroundWork(Arc<Count>);

/// How much background work a worker has.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackgroundCount(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    /// A true counter: an app may drop its guard on another thread.
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

    /// Completes when there is none.
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
