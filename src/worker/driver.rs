//! Lets an outer loop that is not tokio's run the worker, a step at a time.
//!
//! Owns: the worker's tokio runtime, and the calls that run the worker's future in it, step by step. Refuses: the
//! content of that future (`worker`), and the work of the outer loop between two steps.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::{Future, pending, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::{Handle, Runtime},
    select,
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep_until},
};

/// The whole work of the worker, which the outer loop of a [`Runtime`](crate::Runtime) runs step by step. The worker
/// does nothing outside of [`drive`](Self::drive): it runs no factory and no request, and makes no heartbeat. If the
/// outer loop does not call `drive` for longer than `workers.timeout`, the master believes that the worker hangs.
///
/// A driver cannot leave the thread on which the worker began. Once [`Runtime::drive`](crate::Runtime::drive) has
/// returned, the worker ends, even if something still holds the driver.
pub struct Driver(Rc<Life>);

/// What a [`Driver`] runs: the worker's future and its runtime. The worker can end both even while code outside of it
/// still holds the driver.
pub(super) struct Life {
    /// The future of the whole worker; `None` once the worker has ended.
    future: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// The runtime that runs the future; `None` once it is shut down.
    runtime: RefCell<Option<Runtime>>,
    driven: Cell<bool>,
    /// True once the worker's own future has panicked. A panic of the outer loop around it does not count.
    panicked: Cell<bool>,
    wake: Arc<Notify>,
}

/// The state of the worker when a [`Driver::drive`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// The worker has not ended: the outer loop should drive it again.
    Pending,
    /// The worker has ended: the outer loop should return.
    Done,
}

/// Why a call of [`Driver::drive`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The worker is being driven: the call comes from code that the worker runs, such as the factory or a handler.
    #[error("Driver::drive was called from inside a drive; only the outer loop may call it")]
    Nested,
    /// The call comes from inside another tokio runtime, which would stand still while the worker runs.
    #[error("Driver::drive was called from inside another tokio runtime; the outer loop must run outside of tokio")]
    InsideRuntime,
}

/// Makes a [`Driver::drive`] return early. It can be used from any thread.
#[derive(Clone, Debug)]
pub struct DriverWaker(Arc<Notify>);

impl Driver {
    pub(super) fn new(runtime: Runtime, life: impl Future<Output = ()> + 'static) -> (Self, Rc<Life>) {
        let life = Rc::new(Life {
            future: RefCell::new(Some(Box::pin(life))),
            runtime: RefCell::new(Some(runtime)),
            driven: Cell::new(false),
            panicked: Cell::new(false),
            wake: Arc::default(),
        });
        (Self(Rc::clone(&life)), life)
    }

    /// Runs the worker until `timeout` is over, a [`DriverWaker`] is woken or the worker ends. Each call gives every
    /// task that is ready a turn, even if the driver was woken before the call. Without a timeout a call may last as
    /// long as the worker lives. With a timeout of zero it does what can be done at once. Timers have a resolution of a
    /// millisecond.
    ///
    /// # Errors
    /// [`DriveError::Nested`] and [`DriveError::InsideRuntime`] if the call does not come from the outer loop. The
    /// worker continues as if the call had not been made.
    pub fn drive(&self, timeout: Option<Duration>) -> Result<Driven, DriveError> {
        let wake = &self.0.wake;
        self.0.run(async |life| {
            let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            let pause = async {
                // Gives the tasks a turn before the wake counts. Otherwise a driver that is woken before each drive
                // would never run a task.
                yield_now().await;
                if timeout == Some(Duration::ZERO) {
                    // In the first turn the runtime asks the kernel which sockets are ready. In this second turn, the
                    // tasks that wait for those sockets run.
                    yield_now().await;
                    select! {
                        biased;
                        () = wake.notified() => {}
                        () = ready(()) => {}
                    }
                    return;
                }
                let end = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => pending().await,
                    }
                };
                select! {
                    () = wake.notified() => {}
                    () = end => {}
                }
            };
            select! {
                biased;
                () = life => Driven::Done,
                () = pause => Driven::Pending,
            }
        })
    }

    /// Runs the worker until it ends.
    ///
    /// # Errors
    /// The errors of [`drive`](Self::drive).
    pub fn run_to_end(self) -> Result<(), DriveError> {
        let driven = self.0.run(async |life| {
            life.await;
            Driven::Done
        });
        driven.map(|_| ())
    }

    /// Returns a waker that makes the present or the next [`drive`](Self::drive) return early.
    #[must_use]
    pub fn waker(&self) -> DriverWaker {
        DriverWaker(Arc::clone(&self.0.wake))
    }
}

impl Life {
    fn run(&self, turn: impl AsyncFnOnce(Pin<&mut dyn Future<Output = ()>>) -> Driven) -> Result<Driven, DriveError> {
        /// Marks the driver as no longer driven when `run` ends, even if it ends by a panic.
        struct Finally<'a>(&'a Life);
        impl Drop for Finally<'_> {
            fn drop(&mut self) {
                self.0.driven.set(false);
                self.0.panicked.set(self.0.panicked.get() || std::thread::panicking());
            }
        }

        if self.driven.get() {
            return Err(DriveError::Nested);
        }
        if Handle::try_current().is_ok() {
            return Err(DriveError::InsideRuntime);
        }
        let (mut future, runtime) = (self.future.borrow_mut(), self.runtime.borrow());
        let (Some(life), Some(runtime)) = (future.as_mut(), runtime.as_ref()) else { return Ok(Driven::Done) };
        self.driven.set(true);
        let _finally = Finally(self);
        let driven = runtime.block_on(turn(life.as_mut()));
        if driven == Driven::Done {
            *future = None;
        }
        Ok(driven)
    }

    /// Returns true if the worker's own future has panicked. A panic of a handler does not count, because its task
    /// catches it.
    pub(super) fn has_panicked(&self) -> bool {
        self.panicked.get()
    }

    /// Drops the worker's future and its tasks. Does not wait for blocking calls that still run on other threads.
    pub(super) fn end(&self) {
        *self.future.borrow_mut() = None;
        if let Some(runtime) = self.runtime.borrow_mut().take() {
            // A blocking call of the app must not keep the worker alive after its last response.
            runtime.shutdown_background();
        }
    }
}

impl DriverWaker {
    /// Makes the present [`Driver::drive`] return [`Driven::Pending`] once every task that is ready has had its turn.
    /// If no such call runs now, this applies to the next call. Several wakes before the return count as one.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("driven", &self.0.driven.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Builder, sync::oneshot, time::sleep};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a thread of an outer loop wakes the driver")]
    fn a_worker_is_driven_a_step_at_a_time_until_it_ends() {
        let (end, ended) = oneshot::channel::<()>();
        let (step, mut stepped) = oneshot::channel::<()>();
        let (driver, _life) = Driver::new(runtime(), async {
            tokio::spawn(async { step.send(()) });
            let _ = ended.await;
            sleep(Duration::from_millis(1)).await;
        });
        assert_eq!(driver.drive(Some(Duration::ZERO)), Ok(Driven::Pending));
        assert_eq!(stepped.try_recv(), Ok(()), "a task of the worker's has run");

        let waker = driver.waker();
        waker.wake();
        assert_eq!(driver.drive(None), Ok(Driven::Pending), "the next drive ends early");
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        assert_eq!(driver.drive(None), Ok(Driven::Pending), "and the present one");
        other.join().unwrap();

        end.send(()).unwrap();
        assert_eq!(driver.drive(Some(Duration::from_secs(10))), Ok(Driven::Done));
        assert_eq!(driver.drive(None), Ok(Driven::Done));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    fn tasks_run_even_if_the_driver_is_woken_before_each_drive() {
        let (driver, _life) = Driver::new(runtime(), async {
            let (mut ours, mut theirs) = tokio::io::duplex(1);
            tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut theirs, b"0123456789").await });
            let mut bytes = [0; 10];
            tokio::io::AsyncReadExt::read_exact(&mut ours, &mut bytes).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        });
        let waker = driver.waker();
        let begun = std::time::Instant::now();
        loop {
            waker.wake();
            if driver.drive(None) == Ok(Driven::Done) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "no task has its turn");
        }
    }

    #[test]
    fn a_drive_inside_a_drive_or_another_runtime_is_an_error() {
        let kept: Rc<RefCell<Option<Driver>>> = Rc::default();
        let within = Rc::clone(&kept);
        let seen: Rc<Cell<Option<Result<Driven, DriveError>>>> = Rc::default();
        let said = Rc::clone(&seen);
        let (driver, life) = Driver::new(runtime(), async move {
            said.set(within.borrow().as_ref().map(|driver| driver.drive(None)));
            pending().await
        });
        *kept.borrow_mut() = Some(driver);
        let driver = kept.borrow();
        let driver = driver.as_ref().unwrap();
        assert_eq!(driver.drive(Some(Duration::ZERO)), Ok(Driven::Pending));
        assert_eq!(seen.get(), Some(Err(DriveError::Nested)));
        let inside = runtime().block_on(async { driver.drive(Some(Duration::ZERO)) });
        assert_eq!(inside, Err(DriveError::InsideRuntime));
        assert_eq!(driver.drive(Some(Duration::from_millis(1))), Ok(Driven::Pending), "it can still be driven");
        life.end();
        assert_eq!(driver.drive(None), Ok(Driven::Done), "the worker has ended, and the driver is still held");
    }
}
