//! Lets an outer loop that is not tokio's run the worker, a step at a time.
//!
//! Owns: the worker's tokio runtime, the calls that run the worker's future in it, step by step, and the watch on a
//! poller of the outer loop. Refuses: the content of that future (`worker`), and the work of the outer loop between two
//! steps.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    future::{Future, poll_fn},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    runtime::{Handle, Runtime},
    time::{Instant, sleep_until},
};

use crate::sys::{fd, signals::TermAction};

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
    signals: Arc<Signals>,
    /// The waker of the worker's future. With a waker of its own, the future is polled only if it has been woken, and
    /// not in each drive.
    waker: Waker,
    /// The action by which a SIGTERM begins the drain. The worker listens to the signal before it makes its driver.
    term: Option<TermAction>,
    hang_report: OnceCell<OwnedFd>,
}

/// What ends a drive or makes it poll the worker's future. It may be raised on any thread.
#[derive(Debug)]
struct Signals {
    /// A [`DriverWaker`] was woken, and no drive has returned because of it yet.
    woken: AtomicBool,
    /// The worker's future must be polled.
    life_woken: AtomicBool,
    driven: AtomicBool,
    /// The waker of the future that `block_on` runs, which is the same in each drive.
    root: Mutex<Option<Waker>>,
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
pub struct DriverWaker(Arc<Signals>);

/// A watch on a descriptor of the outer loop, such as an epoll instance with the descriptors that the outer loop waits
/// for. [`Driver::watch`] makes it.
#[derive(Debug)]
pub struct DescriptorWatch(AsyncFd<OwnedFd>);

impl Driver {
    pub(super) fn new(runtime: Runtime, life: impl Future<Output = ()> + 'static) -> (Self, Rc<Life>) {
        let signals = Arc::new(Signals {
            woken: AtomicBool::new(false),
            life_woken: AtomicBool::new(true),
            driven: AtomicBool::new(false),
            root: Mutex::new(None),
        });
        let life = Rc::new(Life {
            future: RefCell::new(Some(Box::pin(life))),
            runtime: RefCell::new(Some(runtime)),
            driven: Cell::new(false),
            panicked: Cell::new(false),
            waker: Arc::new(LifeWaker(Arc::clone(&signals))).into(),
            signals,
            term: TermAction::present().ok(),
            hang_report: OnceCell::new(),
        });
        (Self(Rc::clone(&life)), life)
    }

    /// Keeps the file of [`hang_report`](Self::hang_report) open.
    pub(super) fn keep(&self, hang_report: Option<OwnedFd>) {
        if let Some(file) = hang_report {
            // A driver gets its file once, before the outer loop begins.
            let _ = self.0.hang_report.set(file);
        }
    }

    /// Returns the file in memory in which the runtime should write where the worker hangs, at the signal that
    /// [`Runtime::hang_signal`](crate::Runtime::hang_signal) names, and where it crashes. The master reads the file when
    /// the worker has ended, and logs its lines as `worker_stack` after the line that says why the worker ended; not
    /// after a drain that ended well. The result is `None` if there is no such signal, or if no master reads the file,
    /// as in `check --deep` and in the preflight of an upgrade. Write to the end of the file, as `write` does.
    #[must_use]
    pub fn hang_report(&self) -> Option<BorrowedFd<'_>> {
        self.0.hang_report.get().map(AsFd::as_fd)
    }

    /// Runs the worker until `timeout` is over, a [`DriverWaker`] is woken or the worker ends. Each call gives every
    /// task that is ready a turn, even if the driver was woken before the call. Without a timeout a call may last as
    /// long as the worker lives. With a timeout of zero it gives the tasks one turn, and then asks the kernel once which
    /// sockets are ready. The tasks that wait for those sockets run in the next call. Timers have a resolution of a
    /// millisecond.
    ///
    /// # Errors
    /// [`DriveError::Nested`] and [`DriveError::InsideRuntime`] if the call does not come from the outer loop. The
    /// worker continues as if the call had not been made.
    pub fn drive(&self, timeout: Option<Duration>) -> Result<Driven, DriveError> {
        self.drive_until(timeout, |_| Poll::Pending)
    }

    /// Runs the worker as [`drive`](Self::drive) does, and also returns once `outer` is ready. `outer` is polled inside
    /// the worker's runtime, at the beginning of the call and whenever its waker is woken. When it has been ready once,
    /// it is not polled again in this call.
    ///
    /// # Errors
    /// The errors of [`drive`](Self::drive).
    pub fn drive_until(
        &self,
        timeout: Option<Duration>,
        mut outer: impl FnMut(&mut Context<'_>) -> Poll<()>,
    ) -> Result<Driven, DriveError> {
        let Life { signals, waker, .. } = &*self.0;
        self.0.run(async |mut life| {
            let wait = timeout.filter(|timeout| !timeout.is_zero());
            let until = wait.and_then(|wait| Instant::now().checked_add(wait));
            let mut end = pin!(until.map(sleep_until));
            let (mut is_first, mut outer_ready) = (true, false);
            let mut returns = timeout.is_some_and(|timeout| timeout.is_zero());
            poll_fn(|cx| {
                if is_first {
                    signals.drive_begins(cx.waker());
                }
                if signals.life_woken.swap(false, SeqCst)
                    && life.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
                {
                    return Poll::Ready(Driven::Done);
                }
                outer_ready = outer_ready || outer(cx).is_ready();
                returns = returns
                    || outer_ready
                    || signals.woken.swap(false, SeqCst)
                    || end.as_mut().as_pin_mut().is_some_and(|end| end.poll(cx).is_ready());
                // The tasks have a turn before the first return. Otherwise no task would ever run if `outer` were ready
                // at the beginning of each drive.
                if returns && !is_first {
                    return Poll::Ready(Driven::Pending);
                }
                if std::mem::replace(&mut is_first, false) && returns {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            })
            .await
        })
    }

    /// Registers a descriptor of the outer loop with the worker's own poller. The outer loop passes the result to
    /// [`drive_until`](Self::drive_until) as a part of `outer`. If the descriptor is a poller of the outer loop, pass a
    /// duplicate of it, because the outer loop may close its own at any time.
    ///
    /// # Errors
    /// The errors of epoll_ctl(2), such as EPERM for a file that cannot be polled; `NotConnected` once the worker has
    /// ended.
    pub fn watch(&self, descriptor: OwnedFd) -> io::Result<DescriptorWatch> {
        let runtime = self.0.runtime.borrow();
        let runtime = runtime.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let _entered = runtime.enter();
        fd::watch(descriptor).map(DescriptorWatch)
    }

    /// Runs the worker until it ends.
    ///
    /// # Errors
    /// The errors of [`drive`](Self::drive).
    pub fn run_to_end(self) -> Result<(), DriveError> {
        while self.drive(None)? == Driven::Pending {}
        Ok(())
    }

    /// Makes a SIGTERM to this worker begin its drain again, after code of the app has set another action for it, as
    /// libraries of an interpreter do. That action is lost.
    ///
    /// # Errors
    /// It does not fail in practice.
    pub fn hold_sigterm(&self) -> io::Result<()> {
        self.0.term.as_ref().ok_or(io::ErrorKind::NotFound)?.restore()
    }

    /// Returns a waker that makes the present or the next [`drive`](Self::drive) return early.
    #[must_use]
    pub fn waker(&self) -> DriverWaker {
        DriverWaker(Arc::clone(&self.0.signals))
    }
}

impl Life {
    fn run(&self, turn: impl AsyncFnOnce(Pin<&mut dyn Future<Output = ()>>) -> Driven) -> Result<Driven, DriveError> {
        /// Marks the driver as no longer driven when `run` ends, even if it ends by a panic.
        struct Finally<'a>(&'a Life);
        impl Drop for Finally<'_> {
            fn drop(&mut self) {
                self.0.driven.set(false);
                self.0.signals.driven.store(false, SeqCst);
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
            *lock(&self.signals.root) = None;
            // A blocking call of the app must not keep the worker alive after its last response.
            runtime.shutdown_background();
        }
    }
}

impl DriverWaker {
    /// Makes the present [`Driver::drive`] return [`Driven::Pending`] once every task that is ready has had its turn.
    /// If no such call runs now, this applies to the next call. Several wakes before the return count as one.
    pub fn wake(&self) {
        self.0.raise(&self.0.woken);
    }
}

impl Signals {
    /// Takes the waker of the drive that begins. From now on a signal wakes the drive. The caller must look at the
    /// signals after this call, because a signal that was raised before it has woken nothing.
    fn drive_begins(&self, waker: &Waker) {
        let mut root = lock(&self.root);
        if !root.as_ref().is_some_and(|root| root.will_wake(waker)) {
            *root = Some(waker.clone());
        }
        self.driven.store(true, SeqCst);
    }

    fn raise(&self, signal: &AtomicBool) {
        // Between two drives nothing waits, and to wake the runtime would cost a system call.
        if !signal.swap(true, SeqCst)
            && self.driven.load(SeqCst)
            && let Some(root) = &*lock(&self.root)
        {
            root.wake_by_ref();
        }
    }
}

struct LifeWaker(Arc<Signals>);

impl Wake for LifeWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.raise(&self.0.life_woken);
    }
}

impl DescriptorWatch {
    /// Becomes ready when the descriptor is readable and `look` returns true. `look` asks the descriptor itself what is
    /// ready, without blocking, and returns false if nothing is. It is called whenever something may be ready.
    ///
    /// The worker's poller reports only that something has become ready, and not that something is still ready. So
    /// after `look` has returned true, it is called again in the next drive before the thread sleeps.
    pub fn poll(&self, cx: &mut Context<'_>, mut look: impl FnMut() -> bool) -> Poll<()> {
        loop {
            // The error means that the runtime ends.
            let Ok(mut readiness) = ready!(self.0.poll_read_ready(cx)) else { return Poll::Pending };
            if look() {
                return Poll::Ready(());
            }
            readiness.clear_ready();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("driven", &self.0.driven.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

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

    #[test]
    fn a_drive_ends_while_a_watched_descriptor_is_readable() {
        let (driver, _life) = Driver::new(runtime(), pending());
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let watch = driver.watch(ours.try_clone().unwrap().into()).unwrap();
        let mut got = Vec::new();
        let mut drive = |got: &mut Vec<u8>, timeout| {
            let mut byte = [0];
            let mut read = || {
                ours.read(&mut byte).is_ok_and(|_| {
                    got.push(byte[0]);
                    true
                })
            };
            driver.drive_until(Some(timeout), |cx| watch.poll(cx, &mut read)).unwrap()
        };
        let long = Duration::from_secs(60);
        theirs.write_all(b"abc").unwrap();
        for expected in [&b"a"[..], b"ab", b"abc"] {
            assert_eq!(drive(&mut got, long), Driven::Pending);
            assert_eq!(got, expected, "what is still unread ends the next drive too");
        }
        drive(&mut got, Duration::from_millis(1));
        theirs.write_all(b"d").unwrap();
        drive(&mut got, long);
        assert_eq!(got, b"abcd");
    }

    #[test]
    fn tasks_run_even_if_the_outer_loop_is_always_ready() {
        let (step, mut stepped) = oneshot::channel::<()>();
        let (driver, _life) = Driver::new(runtime(), async {
            tokio::spawn(async { step.send(()) });
            pending().await
        });
        assert_eq!(driver.drive_until(None, |_| Poll::Ready(())), Ok(Driven::Pending));
        assert_eq!(stepped.try_recv(), Ok(()));
    }
}
