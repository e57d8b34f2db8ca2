//! What the tasks of tokio, the loop of asyncio and other threads share: the wake-ups between them, and the queue of the
//! work that needs Python.
//!
//! Owns: the rule when `select()` must end, the wake-ups that wait for the next `select()`, and the one task that runs
//! Python's part of requests in batches. Refuses: that part itself (`app`, `exchange`).

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use oxicorn::DriverWaker;
use pyo3::Python;
use tokio::time::Instant;

use super::{exchange::Exchange, websocket::WebSocket};

/// The most jobs of a batch, and the longest time after which a batch takes no further job. Then the connections get a
/// turn, so that the answers of the batch leave before the next batch runs.
const BATCH: usize = 16;
const BATCH_TIME: Duration = Duration::from_millis(4);

/// Work that needs the interpreter, which one task does in batches. A request that arrives alone waits for nothing.
/// Requests that arrive together run one after the other, so that Python's code stays in the caches of the processor.
pub(super) enum Job {
    /// Start the app's Task for a request.
    Start(Arc<Exchange>),
    /// Wake what waits in `receive()` or `send()`.
    Notify(Arc<Exchange>),
    /// Begin to read the body of a request.
    Read(Arc<Exchange>),
    /// Watch for the moment at which the client goes.
    Watch(Arc<Exchange>),
    /// Start the app's Task for a web socket.
    StartSocket(Arc<WebSocket>),
    /// Wake what waits in `receive()` or `send()` of a web socket.
    NotifySocket(Arc<WebSocket>),
    /// Something else.
    Call(Box<dyn FnOnce(Python<'_>) + Send>),
}

pub(super) struct Hub {
    select: DriverWaker,
    gate: Mutex<Gate>,
    /// True while a `select()` runs inside of another one.
    nested: AtomicBool,
    jobs: Mutex<VecDeque<Job>>,
    has_runner: AtomicBool,
    runner: OnceLock<Waker>,
}

#[derive(Default)]
struct Gate {
    /// True while the loop's thread is inside `select()`, and so inside of tokio.
    inside: bool,
    /// The tasks of tokio that were woken outside of `select()`. To wake such a task at once would cost a system call,
    /// because tokio would have to wake its poller. They are woken at the beginning of the next `select()`.
    woken: Vec<Waker>,
}

impl Hub {
    pub(super) fn new(select: DriverWaker) -> Arc<Self> {
        Arc::new(Self {
            select,
            gate: Mutex::default(),
            nested: AtomicBool::new(false),
            jobs: Mutex::default(),
            has_runner: AtomicBool::new(false),
            runner: OnceLock::new(),
        })
    }

    /// Notes that `select()` begins. Returns false if it runs already, which means that the app runs the loop inside of
    /// a callback of the loop (`nest_asyncio`).
    pub(super) fn enter(&self) -> bool {
        !std::mem::replace(&mut lock(&self.gate).inside, true)
    }

    pub(super) fn leave(&self) {
        lock(&self.gate).inside = false;
    }

    /// Notes that a `select()` inside of another one begins or ends.
    pub(super) fn nests(&self, nested: bool) -> bool {
        self.nested.swap(nested, SeqCst)
    }

    pub(super) fn is_nested(&self) -> bool {
        self.nested.load(SeqCst)
    }

    /// Wakes the tasks that were woken outside of `select()`. Call it inside of tokio.
    pub(super) fn flush(&self) {
        let mut woken = {
            let mut gate = lock(&self.gate);
            if gate.woken.is_empty() {
                return;
            }
            std::mem::take(&mut gate.woken)
        };
        woken.drain(..).for_each(Waker::wake);
        // The vector goes back, so that it is allocated once.
        let mut gate = lock(&self.gate);
        if gate.woken.is_empty() {
            gate.woken = woken;
        }
    }

    /// Wakes a task of tokio, now or at the beginning of the next `select()`.
    pub(super) fn wake(&self, waker: Waker) {
        let mut gate = lock(&self.gate);
        if !gate.inside {
            gate.woken.push(waker);
            return;
        }
        drop(gate);
        waker.wake();
    }

    /// Ends the `select()` that runs, because asyncio has something to do since it computed the timeout. What is
    /// scheduled while Python runs outside of `select()` must not end the next one: asyncio knows of it.
    pub(super) fn scheduled(&self) {
        if lock(&self.gate).inside {
            self.select.wake();
        }
    }

    /// Ends the `select()` that runs, or the next one. It may be called on any thread.
    pub(super) fn interrupt(&self) {
        self.select.wake();
    }

    pub(super) fn enqueue(&self, job: Job) {
        let is_first = {
            let mut jobs = lock(&self.jobs);
            jobs.push_back(job);
            jobs.len() == 1
        };
        if is_first && let Some(runner) = self.runner.get() {
            self.wake(runner.clone());
        }
    }

    /// Starts the task that does the jobs, if it does not run yet. Call it inside of tokio.
    pub(super) fn start_runner(self: &Arc<Self>) {
        if self.has_runner.swap(true, SeqCst) {
            return;
        }
        let hub = Arc::clone(self);
        let mut started = Vec::with_capacity(BATCH);
        tokio::spawn(poll_fn(move |cx| {
            hub.run_batch(&mut started, cx);
            Poll::<()>::Pending
        }));
    }

    fn run_batch(&self, started: &mut Vec<Arc<Exchange>>, cx: &Context<'_>) {
        self.runner.get_or_init(|| cx.waker().clone());
        if lock(&self.jobs).is_empty() {
            return;
        }
        let is_left = Python::attach(|py| {
            let begun = Instant::now();
            for done in 1.. {
                let (job, is_left) = {
                    let mut jobs = lock(&self.jobs);
                    (jobs.pop_front(), !jobs.is_empty())
                };
                match job {
                    Some(Job::Start(exchange)) => {
                        exchange.start(py);
                        started.push(exchange);
                    }
                    Some(Job::Notify(exchange)) => exchange.notify(py),
                    Some(Job::Read(exchange)) => exchange.begin_to_read(),
                    Some(Job::Watch(exchange)) => exchange.begin_to_watch(),
                    Some(Job::StartSocket(socket)) => socket.start(py),
                    Some(Job::NotifySocket(socket)) => socket.notify(py),
                    Some(Job::Call(call)) => call(py),
                    None => return false,
                }
                if !is_left {
                    return false;
                }
                if done == BATCH || begun.elapsed() >= BATCH_TIME {
                    return true;
                }
            }
            false
        });
        // The connections are woken first, so that they write before the next batch runs.
        started.drain(..).for_each(|exchange| exchange.wake());
        if is_left || !lock(&self.jobs).is_empty() {
            cx.waker().wake_by_ref();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
