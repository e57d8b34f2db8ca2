//! What the threads ask of the tasks of tokio.
//!
//! Owns: the list of the tasks that a thread has woken, and the one task of tokio that wakes them. Refuses: what the
//! woken tasks do.
//!
//! To wake tokio from another thread costs a system call here, and one more there. So a thread that has the next request
//! at hand only notes that a response is whole, and tokio is told of several responses at once.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, OnceLock},
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::exchange::WsgiExchange;
use crate::bridge::lock;

/// The most responses that are told together, and the longest time for which the first of them waits.
const BATCH: usize = 16;
const BATCH_TIME: Duration = Duration::from_micros(500);

#[derive(Default)]
pub(super) struct Wakes {
    list: Mutex<WakeList>,
    runner: OnceLock<Waker>,
}

#[derive(Default)]
struct WakeList {
    ups: Vec<WakeUp>,
    /// Since when tokio has not been told of the list; `None` if it has.
    untold: Option<Instant>,
}

enum WakeUp {
    Task(Waker),
    /// Begin to read the body of a request.
    Read(Arc<WsgiExchange>),
}

impl Wakes {
    /// Wakes a task, from any thread.
    pub(super) fn wake(&self, waker: Waker) {
        self.add(WakeUp::Task(waker));
    }

    /// Wakes a task at the next [`tell`](Self::tell).
    pub(super) fn wake_later(&self, waker: Waker) {
        let mut list = lock(&self.list);
        if list.ups.is_empty() {
            list.untold = Some(Instant::now());
        }
        list.ups.push(WakeUp::Task(waker));
    }

    /// Tells tokio of what is noted. If `goes_on`, the thread has the next request already, and tokio is told only of a
    /// whole batch.
    pub(super) fn tell(&self, goes_on: bool) {
        let mut list = lock(&self.list);
        let Some(since) = list.untold else { return };
        if goes_on && list.ups.len() < BATCH && since.elapsed() < BATCH_TIME {
            return;
        }
        list.untold = None;
        drop(list);
        self.wake_runner();
    }

    /// Lets the body of a request be read.
    pub(super) fn read_on(&self, exchange: Arc<WsgiExchange>) {
        self.add(WakeUp::Read(exchange));
    }

    fn add(&self, one: WakeUp) {
        let must_tell = {
            let mut list = lock(&self.list);
            list.ups.push(one);
            list.untold.take().is_some() || list.ups.len() == 1
        };
        if must_tell {
            self.wake_runner();
        }
    }

    fn wake_runner(&self) {
        if let Some(runner) = self.runner.get() {
            runner.wake_by_ref();
        }
    }

    /// Starts the task that wakes the others. Call it inside of tokio.
    pub(super) fn start(self: &Arc<Self>) {
        let wakes = Arc::clone(self);
        let mut woken = Vec::new();
        tokio::spawn(poll_fn(move |cx| {
            wakes.runner.get_or_init(|| cx.waker().clone());
            {
                let mut list = lock(&wakes.list);
                list.untold = None;
                std::mem::swap(&mut list.ups, &mut woken);
            }
            for one in woken.drain(..) {
                match one {
                    WakeUp::Task(waker) => waker.wake(),
                    WakeUp::Read(exchange) => exchange.read_on(),
                }
            }
            Poll::<()>::Pending
        }));
    }
}
