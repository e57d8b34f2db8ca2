//! The loop of asyncio, whose selector is tokio.
//!
//! Owns: the native part of `oxicorn._loop.Loop` (`select`, `call_soon`), the driver of the worker, and the run of the
//! loop to the worker's end. Refuses: all other work of a loop, which the standard library's `SelectorEventLoop` does.
//!
//! The worker has one thread. It runs Python's `run_forever()`, and sleeps only in `select()`. There it runs tokio, so
//! that connections, timers and the heartbeat of the worker are served whenever asyncio would sleep or poll. asyncio's
//! own epoll instance is nested in tokio's.

use std::{
    cell::{Cell, RefCell},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use oxicorn::{DescriptorWatch, DriveError, Driven, Driver};
use pyo3::{
    exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyCFunction, PyDict, PyList, PyTuple},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    app,
    hub::{Hub, Job, lock},
};
use crate::settings;

/// While callbacks of asyncio are ready, tokio gets a turn at most this often, because each turn asks the kernel.
const BETWEEN_TURNS: Duration = Duration::from_micros(100);

/// The most events of asyncio's own descriptors that one `select()` returns.
const EVENTS: usize = 256;

thread_local! {
    /// The core of this thread's loop. It holds the driver, which cannot leave the thread.
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

struct Core {
    driver: Rc<Driver>,
    hub: Arc<Hub>,
    /// asyncio's own poller; `None` before the loop is made, and after it is closed.
    nested: RefCell<Option<Nested>>,
    events: RefCell<Vec<(RawFd, u32)>>,
    is_done: Cell<bool>,
    last_turn: Cell<Option<Instant>>,
}

struct Nested {
    epoll: Epoll,
    watch: DescriptorWatch,
}

impl Core {
    fn of_thread() -> PyResult<Rc<Self>> {
        CORE.with(|core| core.borrow().clone())
            .ok_or_else(|| PyRuntimeError::new_err("oxicorn's loop exists only in the main thread of a worker"))
    }

    /// Runs tokio until `timeout` is over, asyncio has something to do, or one of asyncio's descriptors is ready.
    fn turn(&self, timeout: Option<Duration>) -> Result<Driven, DriveError> {
        let nested = self.nested.borrow();
        let mut events = self.events.borrow_mut();
        events.clear();
        self.driver.drive_until(timeout, |cx| {
            self.hub.start_runner();
            self.hub.flush();
            let Some(nested) = &*nested else { return std::task::Poll::Pending };
            nested.watch.poll(cx, || {
                let mut buffer = [EpollEvent::empty(); EVENTS];
                let count = nested.epoll.wait(&mut buffer, EpollTimeout::ZERO).unwrap_or(0);
                let ready = buffer.get(..count).unwrap_or_default();
                events.extend(ready.iter().map(|event| (event.data() as RawFd, event.events().bits() as u32)));
                count > 0
            })
        })
    }
}

/// The loop of the worker. It holds the worker's driver, so it stays on the thread of the worker.
pub(crate) struct EventLoop {
    core: Rc<Core>,
    handle: LoopHandle,
}

/// What the tasks of tokio need of the loop.
#[derive(Clone)]
pub(crate) struct LoopHandle(Arc<Objects>);

struct Objects {
    event_loop: Py<PyAny>,
    base: Py<LoopBase>,
    create_future: Py<PyAny>,
    create_task: Py<PyAny>,
    hub: Arc<Hub>,
}

impl EventLoop {
    /// Makes the loop of this thread, and makes it asyncio's current one.
    ///
    /// # Errors
    /// asyncio cannot be used.
    pub(crate) fn new(py: Python<'_>, driver: Rc<Driver>, settings: &settings::Python) -> PyResult<Self> {
        let is_plain = settings.r#loop == settings::Loop::Asyncio;
        let hub = Hub::new(driver.waker());
        let core = Rc::new(Core {
            driver,
            hub: Arc::clone(&hub),
            nested: RefCell::new(None),
            events: RefCell::default(),
            is_done: Cell::new(false),
            last_turn: Cell::new(None),
        });
        CORE.with(|slot| *slot.borrow_mut() = Some(Rc::clone(&core)));
        let event_loop = py.import("oxicorn._loop")?.getattr("Loop")?.call1((is_plain,))?;
        py.import("asyncio")?.call_method1("set_event_loop", (&event_loop,))?;
        let handle = LoopHandle(Arc::new(Objects {
            base: event_loop.cast::<LoopBase>()?.clone().unbind(),
            create_future: event_loop.getattr("create_future")?.unbind(),
            create_task: event_loop.getattr("create_task")?.unbind(),
            event_loop: event_loop.unbind(),
            hub,
        }));
        Ok(Self { core, handle })
    }

    /// Returns the loop object of Python.
    pub(crate) fn object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.handle.object(py)
    }

    pub(crate) fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Gives the driver up, because the app needs no loop. What the import of the app has begun to do with the loop goes
    /// on: it is a plain one from now on.
    pub(crate) fn release(self, py: Python<'_>) {
        self.handle.0.base.bind(py).get().is_released.store(true, Relaxed);
        CORE.set(None);
    }

    /// Runs the loop until the worker has ended. The app cannot end it earlier: if it stops the loop, the loop runs on.
    ///
    /// # Errors
    /// The loop itself failed.
    pub(crate) fn run(&self, py: Python<'_>) -> PyResult<()> {
        let event_loop = self.handle.object(py);
        let mut was_stopped = false;
        while !self.core.is_done.get() {
            match event_loop.call_method0(intern!(py, "run_forever")) {
                Ok(_) if self.core.is_done.get() => {}
                Ok(_) => {
                    if !std::mem::replace(&mut was_stopped, true) {
                        tracing::warn!(
                            event = "app_stopped_loop",
                            "the app called loop.stop(); the loop runs on, because the worker still serves"
                        );
                    }
                }
                // The Task whose step raised this has the exception as its result too. If it is the Task of a request,
                // its end, which comes first, says which request it was.
                Err(error)
                    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) =>
                {
                    leave_later(event_loop, error)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Ends the worker in the next turn of the loop, because the app has asked for the end of the process.
fn leave_later(event_loop: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    let py = event_loop.py();
    let leave = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| app::leave(args.py(), &error, None);
    let leave = PyCFunction::new_closure(py, None, None, leave)?;
    event_loop.call_method1(intern!(py, "call_soon"), (leave,)).map(drop)
}

impl LoopHandle {
    /// Returns the loop object of Python.
    pub(crate) fn object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.0.event_loop.bind(py)
    }

    /// Runs a coroutine as a Task. The result is the result of the Task, or its exception.
    ///
    /// # Errors
    /// The object is not a coroutine.
    pub(crate) fn spawn(&self, coroutine: &Bound<'_, PyAny>) -> PyResult<oneshot::Receiver<PyResult<Py<PyAny>>>> {
        let py = coroutine.py();
        let (sender, receiver) = oneshot::channel();
        let task = self.0.create_task.bind(py).call1((coroutine,))?;
        let sender = Mutex::new(Some(sender));
        let hub = Arc::clone(&self.0.hub);
        let ended = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<()> {
            let task = args.get_item(0)?;
            let result = task.call_method0(intern!(task.py(), "result")).map(Bound::unbind);
            if let Some(sender) = lock(&sender).take() {
                // The receiver is woken inside of `select()`, because there it costs no system call.
                hub.enqueue(Job::Call(Box::new(move |_| _ = sender.send(result))));
            }
            Ok(())
        };
        task.call_method1(intern!(py, "add_done_callback"), (PyCFunction::new_closure(py, None, None, ended)?,))?;
        Ok(receiver)
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    pub(super) fn base(&self) -> &LoopBase {
        self.0.base.get()
    }

    pub(super) fn create_future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.create_future.bind(py).call0()
    }

    pub(super) fn create_task<'py>(&self, coroutine: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.0.create_task.bind(coroutine.py()).call1((coroutine,))
    }
}

/// The native part of `oxicorn._loop.Loop`.
#[pyclass(subclass, frozen, module = "oxicorn._oxicorn")]
pub(crate) struct LoopBase {
    hub: Arc<Hub>,
    bound: PyOnceLock<Bindings>,
    /// True if `call_soon` must be the standard library's: in asyncio's debug mode, which checks more.
    uses_stdlib: AtomicBool,
    has_task_factory: AtomicBool,
    /// True once the app has turned out to be one of WSGI: the loop is a plain one then, which the app may use.
    is_released: AtomicBool,
    /// True while the Task of a request is made: its first step is caught, because it runs at once.
    catches: AtomicBool,
    caught: Mutex<Option<Step>>,
}

/// The first step of a Task, and the context in which it runs.
pub(super) struct Step {
    callback: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

struct Bindings {
    /// The method `append` of the queue of handles.
    append: Py<PyAny>,
    handle: Py<PyAny>,
    /// The methods of the standard library, bound to this loop and its selector.
    call_soon: Py<PyAny>,
    select: Py<PyAny>,
    /// The selector's table of descriptors.
    keys: Py<PyDict>,
}

#[pymethods]
impl LoopBase {
    #[new]
    #[pyo3(signature = (*_args))]
    fn new(_args: &Bound<'_, PyTuple>) -> PyResult<Self> {
        Ok(Self {
            hub: Arc::clone(&Core::of_thread()?.hub),
            bound: PyOnceLock::new(),
            uses_stdlib: AtomicBool::new(true),
            has_task_factory: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
            catches: AtomicBool::new(false),
            caught: Mutex::new(None),
        })
    }

    /// Nests the selector's epoll instance, of which `descriptor` is a duplicate that now belongs to the loop.
    #[expect(clippy::too_many_arguments, reason = "each is an object of the standard library's loop")]
    fn _oxicorn_bind(
        &self,
        py: Python<'_>,
        descriptor: RawFd,
        append: Py<PyAny>,
        handle: Py<PyAny>,
        call_soon: Py<PyAny>,
        select: Py<PyAny>,
        keys: Py<PyDict>,
    ) -> PyResult<()> {
        let core = Core::of_thread()?;
        // SAFETY: the caller, `_loop.Selector`, has made this descriptor at this moment, and gives it away.
        #[expect(unsafe_code, reason = "Python knows a descriptor only as a number")]
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let watch = core.driver.watch(descriptor.try_clone()?)?;
        *core.nested.borrow_mut() = Some(Nested { epoll: Epoll(descriptor), watch });
        self.bound
            .set(py, Bindings { append, handle, call_soon, select, keys })
            .map_err(|_| PyRuntimeError::new_err("the loop is bound already"))
    }

    /// The loop's selector is closed.
    fn _oxicorn_unbind(&self) -> PyResult<()> {
        if self.is_released.load(Relaxed) {
            return Ok(());
        }
        Core::of_thread()?.nested.borrow_mut().take();
        Ok(())
    }

    fn _oxicorn_use_stdlib(&self, uses: bool) {
        self.uses_stdlib.store(uses, Relaxed);
    }

    fn _oxicorn_has_task_factory(&self, has: bool) {
        self.has_task_factory.store(has, Relaxed);
    }

    /// A timer was set. If it was set inside `select()`, asyncio's timeout is too long for it.
    fn _oxicorn_scheduled(&self) {
        self.hub.scheduled();
    }

    /// Makes SIGTERM begin the drain of the worker again, after the app has set a handler for it.
    fn _hold_sigterm(&self) -> PyResult<()> {
        if self.is_released.load(Relaxed) {
            return Ok(());
        }
        Ok(Core::of_thread()?.driver.hold_sigterm()?)
    }

    /// Ends `select()`; it may be called on any thread. Returns true if a `select()` inside of another one runs. Only
    /// the loop's own pipe ends that one.
    fn _oxicorn_interrupt(&self) -> bool {
        self.hub.interrupt();
        self.hub.is_nested() || self.is_released.load(Relaxed)
    }

    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, me) = (slf.py(), slf.get());
        // A Task schedules its first step without arguments, and with its context.
        if me.catches.load(Relaxed) && args.is_empty() && context.is_some() {
            me.catches.store(false, Relaxed);
            *lock(&me.caught) = Some(Step { callback: callback.unbind(), context: context.map(Bound::unbind) });
            return Ok(py.None().into_bound(py));
        }
        let bound = me.bound(py)?;
        let handle = if me.uses_stdlib.load(Relaxed) {
            let given = PyDict::new(py);
            given.set_item(intern!(py, "context"), context)?;
            let mut all = vec![callback];
            all.extend(args.iter());
            bound.call_soon.bind(py).call(PyTuple::new(py, all)?, Some(&given))?
        } else {
            let handle = bound.handle.bind(py).call1((callback, args, slf, context))?;
            bound.append.bind(py).call1((&handle,))?;
            handle
        };
        me.hub.scheduled();
        Ok(handle)
    }

    /// The selector's `select`.
    fn _oxicorn_select<'py>(slf: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let (py, me) = (slf.py(), slf.get());
        if me.is_released.load(Relaxed) {
            return me.select_alone(py, timeout);
        }
        let core = Core::of_thread()?;
        if core.is_done.get() {
            // The worker has ended. What is left of the app runs on asyncio's own poller.
            return me.select_alone(py, timeout);
        }
        let timeout = timeout.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let is_busy = timeout == Some(Duration::ZERO);
        if is_busy && core.last_turn.get().is_some_and(|last| last.elapsed() < BETWEEN_TURNS) {
            return Ok(PyTuple::empty(py).into_any());
        }
        if !me.hub.enter() {
            let nested = me.hub.nests(true);
            let events = me.select_alone(py, timeout.map(|timeout| timeout.as_secs_f64()));
            me.hub.nests(nested);
            return events;
        }
        drop(core);
        // The driver stays on this thread: the closure finds it through the thread, and so takes no reference into the
        // detached part.
        let driven = py.detach(move || CORE.with(|core| core.borrow().clone()).map(|core| core.turn(timeout)));
        me.hub.leave();
        let core = Core::of_thread()?;
        core.last_turn.set(Some(Instant::now()));
        match driven {
            Some(Ok(Driven::Pending)) => {}
            Some(Ok(Driven::Done)) | None => {
                core.is_done.set(true);
                slf.call_method0(intern!(py, "stop"))?;
            }
            Some(Err(error)) => return Err(PyRuntimeError::new_err(error.to_string())),
        }
        py.check_signals()?;
        me.ready(py, &core)
    }
}

impl LoopBase {
    fn bound(&self, py: Python<'_>) -> PyResult<&Bindings> {
        self.bound.get(py).ok_or_else(|| PyRuntimeError::new_err("the loop is not bound yet"))
    }

    /// Asks only asyncio's own poller.
    fn select_alone<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.bound(py)?.select.bind(py).call1((timeout,))
    }

    /// Returns the events of asyncio's own descriptors as a selector does: a list of pairs of key and mask.
    fn ready<'py>(&self, py: Python<'py>, core: &Core) -> PyResult<Bound<'py, PyAny>> {
        const READ: u32 = 1;
        const WRITE: u32 = 2;
        const IN: u32 = libc::EPOLLIN as u32;
        const OUT: u32 = libc::EPOLLOUT as u32;
        let events = core.events.borrow();
        if events.is_empty() {
            return Ok(PyTuple::empty(py).into_any());
        }
        let keys = self.bound(py)?.keys.bind(py);
        let list = PyList::empty(py);
        for (descriptor, event) in events.iter() {
            let Some(key) = keys.get_item(descriptor)? else { continue };
            let wanted: u32 = key.getattr(intern!(py, "events"))?.extract()?;
            // A hang-up and an error are both, so that reader and writer notice them.
            let mask = if event & !IN != 0 { WRITE } else { 0 } | if event & !OUT != 0 { READ } else { 0 };
            list.append((key, mask & wanted))?;
        }
        Ok(list.into_any())
    }

    pub(super) fn has_task_factory(&self) -> bool {
        self.has_task_factory.load(Relaxed)
    }

    /// Makes a Task by `make`, and catches the first step that the Task schedules.
    pub(super) fn catch<'py>(
        &self,
        make: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Option<Step>)> {
        self.catches.store(true, Relaxed);
        let made = make();
        self.catches.store(false, Relaxed);
        let step = lock(&self.caught).take();
        Ok((made?, step))
    }
}

impl Step {
    /// Runs the step in its context.
    pub(super) fn run(self, py: Python<'_>) -> PyResult<()> {
        let Self { callback, context } = self;
        match context {
            Some(context) => context.call_method1(py, intern!(py, "run"), (callback,)),
            None => callback.call0(py),
        }
        .map(drop)
    }
}
