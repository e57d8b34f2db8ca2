//! The worker, driven a step at a time by an outer loop that is not tokio's.
//!
//! Owns: the worker's tokio runtime and the future that is the worker's life. Refuses: what that life is.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    runtime::Runtime,
    select,
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep_until},
};

/// The worker's whole life, for the outer loop of a [`Runtime`](crate::Runtime): nothing in the worker runs but inside
/// [`drive`](Self::drive). It stays on the thread that the worker began on.
pub struct Driver {
    runtime: Runtime,
    /// `None` once it has ended.
    life: Option<Pin<Box<dyn Future<Output = ()>>>>,
    wake: Arc<Notify>,
}

/// What came of a [`Driver::drive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// The worker lives on: drive it again.
    Pending,
    /// The worker's life is over: the outer loop returns.
    Done,
}

/// Ends a [`Driver::drive`] early, from any thread.
#[derive(Clone, Debug)]
pub struct DriverWaker(Arc<Notify>);

impl Driver {
    #[allow(dead_code, reason = "the worker is to be driven by it")]
    pub(crate) fn new(runtime: Runtime, life: impl Future<Output = ()> + 'static) -> Self {
        Self { runtime, life: Some(Box::pin(life)), wake: Arc::default() }
    }

    /// Runs the worker until `timeout` is over, a [`DriverWaker`] is woken or the worker ends. Without a timeout it may
    /// run for as long as the worker lives; with one of zero it does what can be done at once.
    pub fn drive(&mut self, timeout: Option<Duration>) -> Driven {
        let Self { runtime, life, wake } = self;
        let Some(future) = life else { return Driven::Done };
        let driven = runtime.block_on(async {
            let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            let over = async {
                // Every task that is ready has its turn, however short the timeout is.
                yield_now().await;
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                biased;
                () = future.as_mut() => Driven::Done,
                () = wake.notified() => Driven::Pending,
                () = over => Driven::Pending,
            }
        });
        if driven == Driven::Done {
            *life = None;
        }
        driven
    }

    /// Runs the worker to its end.
    pub fn run_to_end(mut self) {
        if let Some(life) = self.life.take() {
            self.runtime.block_on(life);
        }
    }

    /// Ends the present or the next [`drive`](Self::drive) early.
    #[must_use]
    pub fn waker(&self) -> DriverWaker {
        DriverWaker(Arc::clone(&self.wake))
    }
}

impl DriverWaker {
    /// Makes the present [`Driver::drive`], or else the next, return [`Driven::Pending`] at once. Calls before it returns
    /// count as one.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("done", &self.life.is_none()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Builder, sync::oneshot, time::sleep};

    use super::*;

    #[test]
    fn a_worker_is_driven_a_step_at_a_time_until_it_ends() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let (step, mut stepped) = oneshot::channel::<()>();
        let mut driver = Driver::new(runtime, async {
            tokio::spawn(async { step.send(()) });
            let _ = ended.await;
            sleep(Duration::from_millis(1)).await;
        });
        assert_eq!(driver.drive(Some(Duration::ZERO)), Driven::Pending);
        assert_eq!(stepped.try_recv(), Ok(()), "a task of the worker's has run");

        let waker = driver.waker();
        waker.wake();
        assert_eq!(driver.drive(None), Driven::Pending, "the next drive ends early");
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        assert_eq!(driver.drive(None), Driven::Pending, "and the present one");
        other.join().unwrap();

        end.send(()).unwrap();
        assert_eq!(driver.drive(Some(Duration::from_secs(10))), Driven::Done);
        assert_eq!(driver.drive(None), Driven::Done);
    }
}
