//! The requests that wait for a thread, and the threads that wait for a request.
//!
//! Owns: the queue, the choice which thread is woken and when, and how long each thread has been running its request.
//! Refuses: to run a request (`app`).
//!
//! Python runs one thread at a time. If the requests of an app need only the processor, a second thread makes none of
//! them end earlier, and both threads pass the GIL to each other all the time. So a thread that is about to finish takes
//! the next request too, and a further thread is woken only if a request has waited for [`PATIENCE`], or if the last
//! request took longer than that.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::Duration,
};

use oxicorn::WorkerContext;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{exchange::WsgiExchange, wakes::Wakes};
use crate::bridge::lock;

/// How long a request waits for a thread that runs another one, before a thread of its own is woken.
const PATIENCE: Duration = Duration::from_millis(1);

/// The pool is busy if each thread has been running its request for this long. Then new connections go to other workers.
const BUSY: Duration = Duration::from_millis(5);

pub(super) struct ThreadPool {
    queue: Mutex<RequestQueue>,
    threads: Box<[PoolThread]>,
    /// The most requests that wait; zero means that there is no limit.
    limit: usize,
    epoch: Instant,
    wakes: Arc<Wakes>,
    /// Wakes the task of [`care`](Self::care).
    care: Notify,
    /// Wakes the task that watches the threads.
    busy: Notify,
    is_watched: AtomicBool,
}

#[derive(Default)]
struct RequestQueue {
    waiting: VecDeque<(Arc<WsgiExchange>, Instant)>,
    /// The threads that sleep. The last one has slept for the shortest time, so its memory is in the caches.
    parked: Vec<usize>,
    /// The number of threads that are awake.
    awake: usize,
    /// The last request that ended took longer than [`PATIENCE`].
    is_slow: bool,
    /// The task of [`ThreadPool::care`] looks at the queue again and again.
    has_care: bool,
    has_ended: bool,
}

/// One thread of the pool.
#[derive(Default)]
pub(super) struct PoolThread {
    handle: OnceLock<Thread>,
    /// Python's number of the thread.
    ident: AtomicU64,
    /// When its request began, in nanoseconds since the pool was made, plus one; zero while it has none.
    begun: AtomicU64,
    request: Mutex<Option<Arc<WsgiExchange>>>,
}

/// A request that runs.
pub(super) struct Running {
    pub(super) exchange: Arc<WsgiExchange>,
    /// How long it has been running since it began, or since it last waited for its client.
    pub(super) age: Duration,
    /// Python's number of its thread.
    pub(super) ident: u64,
}

impl Running {
    /// Returns a number that is different for each request that runs.
    pub(super) fn number(&self) -> usize {
        Arc::as_ptr(&self.exchange).addr()
    }
}

impl ThreadPool {
    pub(super) fn new(threads: usize, limit: usize, wakes: Arc<Wakes>) -> Self {
        Self {
            queue: Mutex::default(),
            threads: (0..threads).map(|_| PoolThread::default()).collect(),
            limit,
            epoch: Instant::now(),
            wakes,
            care: Notify::new(),
            busy: Notify::new(),
            is_watched: AtomicBool::new(false),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    // The loop's side.

    /// Puts a request into the queue. Returns false if the queue is full.
    pub(super) fn push(&self, exchange: &Arc<WsgiExchange>) -> bool {
        if !self.is_watched.swap(true, Relaxed) {
            self.busy.notify_one();
        }
        let mut queue = lock(&self.queue);
        if self.limit > 0 && queue.waiting.len() >= self.limit {
            return false;
        }
        let is_first = queue.waiting.is_empty();
        queue.waiting.push_back((Arc::clone(exchange), Instant::now()));
        let waits = queue.awake > 0 && !queue.is_slow;
        let woken = if waits { None } else { queue.wake_one() };
        // The first request that waits needs a look soon. If no thread sleeps on, the pool may be busy, which can wait.
        let needs_care = waits && is_first || !queue.has_care && (waits || queue.parked.is_empty());
        queue.has_care |= needs_care;
        drop(queue);
        self.unpark(woken);
        if needs_care {
            self.care.notify_one();
        }
        true
    }

    /// Wakes a thread for each request that has waited for too long, and reports when all threads are busy. It ends with
    /// the pool.
    pub(super) async fn care(self: Arc<Self>, context: WorkerContext) {
        loop {
            self.care.notified().await;
            let (mut is_busy, mut at) = (false, self.next_look(Instant::now() + BUSY));
            loop {
                if timeout_at(at, self.care.notified()).await.is_ok() {
                    at = self.next_look(at);
                    continue;
                }
                // A thread may have noted a response and then begun a long request.
                self.wakes.tell(false);
                let (woken, all_run, waits) = {
                    let mut queue = lock(&self.queue);
                    if queue.has_ended {
                        return;
                    }
                    let late = queue.waiting.iter().take_while(|(_, since)| since.elapsed() >= PATIENCE).count();
                    let woken: Vec<_> = (0..late).map_while(|_| queue.wake_one()).collect();
                    let (all_run, waits) = (queue.parked.is_empty(), !queue.waiting.is_empty());
                    queue.has_care = all_run || waits;
                    (woken, all_run, waits)
                };
                woken.into_iter().for_each(|thread| self.unpark(Some(thread)));
                // A request that has just begun may soon be over. But once the pool is busy, it is so until a thread has
                // nothing to do.
                is_busy = all_run && (is_busy || self.youngest() >= BUSY);
                context.app_is_busy(is_busy);
                if !all_run && !waits {
                    break;
                }
                at = self.next_look(Instant::now() + BUSY);
            }
        }
    }

    /// Returns the time of the next look: `at`, or sooner if a request waits for a thread that should be free soon.
    fn next_look(&self, at: Instant) -> Instant {
        let queue = lock(&self.queue);
        if queue.waiting.is_empty() || queue.is_slow { at } else { at.min(Instant::now() + PATIENCE) }
    }

    /// Returns how long the request runs that began last; zero if a thread has none.
    fn youngest(&self) -> Duration {
        let (now, begun) = (self.now(), self.threads.iter().map(|thread| thread.begun.load(Relaxed)));
        begun
            .map(|begun| if begun == 0 { 0 } else { now.saturating_sub(begun) })
            .min()
            .map_or(Duration::ZERO, Duration::from_nanos)
    }

    fn unpark(&self, thread: Option<usize>) {
        if let Some(handle) = thread.and_then(|number| self.threads.get(number)?.handle.get()) {
            handle.unpark();
        }
    }

    /// Lets the threads end, each after its request.
    pub(super) fn end(&self) {
        let parked = {
            let mut queue = lock(&self.queue);
            queue.has_ended = true;
            queue.awake += queue.parked.len();
            std::mem::take(&mut queue.parked)
        };
        parked.into_iter().for_each(|thread| self.unpark(Some(thread)));
    }

    /// Completes when a request may be running.
    pub(super) async fn has_work(&self) {
        self.busy.notified().await;
    }

    /// Returns the requests that run.
    pub(super) fn running(&self) -> Vec<Running> {
        let now = self.now();
        self.threads.iter().filter_map(|thread| thread.running(now)).collect()
    }

    /// Notes that nothing watches the threads any more, until the next request comes. Returns false if there is one.
    pub(super) fn rest(&self) -> bool {
        self.is_watched.store(false, Relaxed);
        let queue = lock(&self.queue);
        let is_idle = queue.awake == 0 && queue.waiting.is_empty();
        if !is_idle {
            self.is_watched.store(true, Relaxed);
        }
        is_idle
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX) + 1
    }

    // The threads' side.

    /// Makes the calling thread a thread of the pool.
    pub(super) fn join(&self, number: usize, ident: u64) {
        if let Some(me) = self.threads.get(number) {
            me.handle.get_or_init(thread::current);
            me.ident.store(ident, Relaxed);
        }
        lock(&self.queue).awake += 1;
    }

    /// Ends the request of a thread, and returns the next one. Waits for it, so the caller must not hold the GIL. Returns
    /// `None` when the thread must end.
    pub(super) fn next(&self, number: usize) -> Option<Arc<WsgiExchange>> {
        let me = self.threads.get(number)?;
        let begun = me.begun.swap(0, Relaxed);
        let ended = lock(&me.request).take();
        let mut queue = lock(&self.queue);
        if begun > 0 {
            queue.is_slow = Duration::from_nanos(self.now() - begun) > PATIENCE;
        }
        let mut has_told = false;
        let next = loop {
            if let Some((next, _)) = queue.waiting.pop_front() {
                break Some(next);
            }
            if !std::mem::replace(&mut has_told, true) {
                drop(queue);
                self.wakes.tell(false);
                queue = lock(&self.queue);
                continue;
            }
            if queue.has_ended {
                break None;
            }
            queue.parked.push(number);
            queue.awake -= 1;
            while queue.parked.contains(&number) {
                drop(queue);
                thread::park();
                queue = lock(&self.queue);
            }
        };
        let is_slow = queue.is_slow;
        drop(queue);
        drop(ended);
        self.wakes.tell(!is_slow);
        if let Some(next) = &next {
            *lock(&me.request) = Some(Arc::clone(next));
            me.begun.store(self.now(), Relaxed);
        }
        next
    }
}

impl RequestQueue {
    /// Takes a thread out of those that sleep. The caller unparks it.
    fn wake_one(&mut self) -> Option<usize> {
        let woken = self.parked.pop()?;
        self.awake += 1;
        Some(woken)
    }
}

impl PoolThread {
    fn running(&self, now: u64) -> Option<Running> {
        let exchange = lock(&self.request).clone()?;
        let begun = self.begun.load(Relaxed);
        // A client that is slow must not be able to end a worker. Limits for it are `http.body_timeout` and
        // `http.write_timeout`.
        let age = Duration::from_nanos(now.saturating_sub(begun)).min(exchange.since_wait().unwrap_or(Duration::MAX));
        (begun > 0).then(|| Running { exchange, age, ident: self.ident.load(Relaxed) })
    }
}
