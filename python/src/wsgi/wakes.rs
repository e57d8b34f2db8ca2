//! What the threads ask of the tasks of tokio.
//!
//! Owns: the list of the tasks that a thread has woken, and the one task of tokio that wakes them. To wake tokio from
//! another thread costs a system call, so what comes together is told together. Refuses: what the woken tasks do.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, OnceLock},
    task::{Poll, Waker},
};

use super::exchange::WsgiExchange;
use crate::bridge::lock;

#[derive(Default)]
pub(super) struct Wakes {
    list: Mutex<Vec<WakeUp>>,
    runner: OnceLock<Waker>,
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

    /// Lets the body of a request be read.
    pub(super) fn read_on(&self, exchange: Arc<WsgiExchange>) {
        self.add(WakeUp::Read(exchange));
    }

    fn add(&self, one: WakeUp) {
        let is_first = {
            let mut list = lock(&self.list);
            list.push(one);
            list.len() == 1
        };
        if is_first && let Some(runner) = self.runner.get() {
            runner.wake_by_ref();
        }
    }

    /// Starts the task that wakes the others. Call it inside of tokio.
    pub(super) fn start(self: &Arc<Self>) {
        let wakes = Arc::clone(self);
        let mut woken = Vec::new();
        tokio::spawn(poll_fn(move |cx| {
            wakes.runner.get_or_init(|| cx.waker().clone());
            std::mem::swap(&mut *lock(&wakes.list), &mut woken);
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
