//! The pace of a load. Each request is due at a fixed time, and any free connection sends the next request that is due.

use std::{
    cell::RefCell,
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, sync::Semaphore};

use crate::now;

pub(super) struct Queue {
    due: RefCell<VecDeque<Instant>>,
    waiting: Semaphore,
}

impl Default for Queue {
    fn default() -> Self {
        Self { due: RefCell::default(), waiting: Semaphore::new(0) }
    }
}

/// Lets tokio wait for a timer of nix. The wrapper is needed because nix gives only a borrowed descriptor (`AsFd`), but
/// tokio needs the descriptor's number (`AsRawFd`).
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Queue {
    /// Adds each request to the queue at the time when it is due, until the load is over. Uses the kernel's timer,
    /// because tokio's timer is late by up to a millisecond.
    pub(super) async fn fill(&self, begun: Instant, rate: f64, is_over: impl Fn() -> bool) {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).expect("a timer");
        #[expect(deprecated, reason = "its successor is unsafe; this descriptor is owned by what waits for it")]
        let timer = AsyncFd::new(Timer(timer)).expect("it can be waited for");
        let mut asked: u64 = 0;
        while !is_over() {
            let next = begun + Duration::from_secs_f64(asked as f64 / rate);
            let wait = next.saturating_duration_since(now());
            if wait > Duration::ZERO {
                let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
                timer.get_ref().0.set(expiration, TimerSetTimeFlags::empty()).expect("a timer can be set");
                timer.readable().await.expect("a timer can be waited for").clear_ready();
                continue;
            }
            self.due.borrow_mut().push_back(next);
            self.waiting.add_permits(1);
            asked += 1;
        }
        self.waiting.close();
    }

    pub(super) async fn next(&self) -> Option<Instant> {
        self.waiting.acquire().await.ok()?.forget();
        self.due.borrow_mut().pop_front()
    }
}
