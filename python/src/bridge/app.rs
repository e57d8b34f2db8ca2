//! The app, and the Tasks of its requests.
//!
//! Owns: the start and the end of the Task of a request, the log of an error of the app, and the end of the Tasks that
//! outlast the grace. Refuses: the messages (`channel`, `exchange`) and the scope (`scope`).

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use http::request::Parts;
use nix::sys::signal::{Signal, raise};
use oxicorn::{BackgroundWork, WorkerContext};
use pyo3::{
    PyTypeInfo,
    exceptions::{PyBaseException, PyKeyboardInterrupt, PySystemExit},
    intern,
    prelude::*,
    types::PyDict,
};
use tokio::sync::Notify;

use super::{
    channel::{Channel, ClientDisconnected},
    event_loop::{EventLoop, LoopHandle},
    exchange::{Ending, Exchange},
    hub::{Hub, lock},
    scope::{self, Scopes},
    websocket::{WebSocket, WebSocketChannel},
};
use crate::{
    logging,
    settings::{self, AsgiSpec},
};

thread_local! {
    /// The exception by which the app has asked for the end of the process, once it is in the log.
    static TOLD: RefCell<Option<Py<PyBaseException>>> = const { RefCell::new(None) };
}

/// The app of a worker.
pub(crate) struct App {
    callable: Py<PyAny>,
    /// The same app, with a record of each request for the loggers of Uvicorn and Gunicorn.
    recorded: Py<PyAny>,
    event_loop: LoopHandle,
    context: WorkerContext,
    scopes: Scopes,
    settings: settings::Python,
    raises_when_gone: bool,
    /// The type of a coroutine that an `async def` makes.
    coroutine: Py<PyAny>,
    task: Py<PyAny>,
    task_arguments: Py<PyDict>,
    starts_eagerly: bool,
    /// The Tasks that wait for something, by their address. asyncio itself holds them only weakly.
    tasks: Mutex<HashMap<usize, Py<PyAny>>>,
    is_cancelling: AtomicBool,
    has_told_dropped_body: AtomicBool,
    /// The last of the Tasks has ended.
    emptied: Notify,
}

impl App {
    /// Makes the app. `state` is the state of the lifespan.
    ///
    /// # Errors
    /// asyncio cannot be used.
    pub(crate) fn new(
        py: Python<'_>,
        callable: &Bound<'_, PyAny>,
        event_loop: &EventLoop,
        state: &Bound<'_, PyDict>,
        context: WorkerContext,
        settings: &settings::Python,
    ) -> PyResult<Arc<Self>> {
        let event_loop = event_loop.handle();
        let task_arguments = PyDict::new(py);
        task_arguments.set_item("loop", event_loop.object(py))?;
        // The first step runs in the constructor of the Task. Python 3.11 has no such Task; there the step is caught.
        let starts_eagerly = py.version_info() >= (3, 12);
        if starts_eagerly {
            task_arguments.set_item("eager_start", true)?;
        }
        Ok(Arc::new(Self {
            callable: callable.clone().unbind(),
            recorded: py.import("oxicorn._logging")?.call_method1("with_records", (callable,))?.unbind(),
            scopes: Scopes::new(py, state.clone().unbind(), context.clone(), settings)?,
            context,
            settings: settings.clone(),
            raises_when_gone: settings.asgi_spec == AsgiSpec::V2_5,
            coroutine: py.import("types")?.getattr("CoroutineType")?.unbind(),
            task: py.import("asyncio")?.getattr("Task")?.unbind(),
            task_arguments: task_arguments.unbind(),
            starts_eagerly,
            event_loop,
            tasks: Mutex::default(),
            is_cancelling: AtomicBool::new(false),
            has_told_dropped_body: AtomicBool::new(false),
            emptied: Notify::new(),
        }))
    }

    /// Cancels the Tasks of the requests that are left at the end of the grace.
    pub(crate) fn cancel_requests(&self, py: Python<'_>) {
        self.is_cancelling.store(true, Relaxed);
        let tasks: Vec<_> = lock(&self.tasks).values().map(|task| task.clone_ref(py)).collect();
        for task in tasks {
            if let Err(error) = task.call_method0(py, intern!(py, "cancel")) {
                error.write_unraisable(py, None);
            }
        }
    }

    /// Logs, once, that the app has sent a body with a status that has none.
    pub(super) fn tell_dropped_body(&self, request: &Parts) {
        if !self.has_told_dropped_body.swap(true, Relaxed) {
            let (method, path, request_id) = named(request);
            tracing::warn!(
                event = "body_dropped",
                method,
                path,
                request_id,
                "the app sent a body with a status that has none, in {method} {path}; it is dropped, and not told again"
            );
        }
    }

    /// Completes when no Task of a request is left.
    pub(crate) async fn requests_ended(&self) {
        while !lock(&self.tasks).is_empty() {
            self.emptied.notified().await;
        }
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        self.event_loop.hub()
    }

    pub(super) fn event_loop(&self) -> &LoopHandle {
        &self.event_loop
    }

    /// Returns the settings of web sockets.
    pub(super) fn sockets(&self) -> &settings::Python {
        &self.settings
    }

    /// Completes when the worker was asked to drain.
    pub(super) fn draining(&self) -> impl Future<Output = ()> + Send {
        self.context.draining()
    }

    pub(super) fn background_work(&self) -> BackgroundWork {
        self.context.background_work()
    }

    /// Returns true if `send()` raises an `OSError` when the client has gone.
    pub(super) fn raises_when_gone(&self) -> bool {
        self.raises_when_gone
    }

    /// Starts the Task of a request, and runs its first step.
    pub(super) fn start(&self, py: Python<'_>, exchange: &Arc<Exchange>) {
        if let Err(error) = self.try_start(py, exchange) {
            self.ended(py, exchange, Some(error));
        }
    }

    fn try_start(&self, py: Python<'_>, exchange: &Arc<Exchange>) -> PyResult<()> {
        let scope = self.scopes.scope(py, &exchange.request)?;
        let channel = Bound::new(py, Channel(Arc::clone(exchange)))?;
        let receive = channel.getattr(intern!(py, "receive"))?;
        let send = channel.getattr(intern!(py, "send"))?;
        let callable = if logging::wants_records() { &self.recorded } else { &self.callable };
        let coroutine = callable.bind(py).call1((scope, receive, send))?;
        let task = self.start_task(coroutine)?;
        if task.call_method0(intern!(py, "done"))?.is_truthy()? {
            self.ended(py, exchange, error_of(&task));
        } else {
            let ended = channel.getattr(intern!(py, "_task_done"))?;
            task.call_method1(intern!(py, "add_done_callback"), (ended,))?;
            exchange.set_task(task.clone().unbind());
            lock(&self.tasks).insert(task.as_ptr().addr(), task.unbind());
        }
        Ok(())
    }

    /// Starts the Task of a web socket, and runs its first step.
    pub(super) fn start_socket(&self, py: Python<'_>, socket: &Arc<WebSocket>) {
        if let Err(error) = self.try_start_socket(py, socket) {
            self.socket_ended(py, socket, Some(error));
        }
    }

    fn try_start_socket(&self, py: Python<'_>, socket: &Arc<WebSocket>) -> PyResult<()> {
        let scope = self.scopes.web_socket_scope(py, &socket.request)?;
        let native = Bound::new(py, WebSocketChannel(Arc::clone(socket)))?;
        let channel =
            py.import(intern!(py, "oxicorn._websocket"))?.getattr(intern!(py, "Channel"))?.call1((&native,))?;
        let (receive, send) = (channel.getattr(intern!(py, "receive"))?, channel.getattr(intern!(py, "send"))?);
        let coroutine = self.callable.bind(py).call1((scope, receive, send))?;
        let task = self.start_task(coroutine)?;
        if task.call_method0(intern!(py, "done"))?.is_truthy()? {
            self.socket_task_ended(socket, &task);
        } else {
            let ended = native.getattr(intern!(py, "_task_done"))?;
            task.call_method1(intern!(py, "add_done_callback"), (ended,))?;
            socket.set_task(task.clone().unbind());
            lock(&self.tasks).insert(task.as_ptr().addr(), task.unbind());
        }
        Ok(())
    }

    /// Notes that the Task of a web socket is over.
    pub(super) fn socket_task_ended(&self, socket: &Arc<WebSocket>, task: &Bound<'_, PyAny>) {
        let (known, error) = self.take_ended(task);
        self.socket_ended(task.py(), socket, error);
        drop(known);
    }

    fn socket_ended(&self, py: Python<'_>, socket: &Arc<WebSocket>, error: Option<PyErr>) {
        let told = socket.task_ends(error.is_some());
        let request = &socket.request;
        match error {
            None => {
                if told == Some("answered 500") {
                    log_incomplete(request, Ending::Answered500);
                }
            }
            Some(error) if error.is_instance(py, &ClientDisconnected::type_object(py)) => {}
            Some(error) if is_exit(py, &error) => leave(py, &error, Some(request)),
            Some(_) if self.is_cancelling.load(Relaxed) => {}
            Some(error) => log_error(py, request, &error, told.unwrap_or("the web socket had ended")),
        }
    }

    /// Makes a Task of a coroutine, and runs its first step here and now. It is called inside of `select()` only, where
    /// no Task is the current one and the context is that of the worker.
    pub(super) fn start_task<'py>(&self, coroutine: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = coroutine.py();
        let coroutine = if coroutine.get_type().is(&self.coroutine) {
            coroutine
        } else {
            py.import(intern!(py, "oxicorn._loop"))?.call_method1(intern!(py, "as_coroutine"), (coroutine,))?
        };
        let base = self.event_loop.base();
        let make = || self.task.bind(py).call((&coroutine,), Some(self.task_arguments.bind(py)));
        let (task, step) = if base.has_task_factory() {
            base.catch(|| self.event_loop.create_task(&coroutine))?
        } else if self.starts_eagerly {
            (make()?, None)
        } else {
            base.catch(make)?
        };
        if let Some(step) = step
            && let Err(error) = step.run(py)
        {
            // The error is reported by the caller. Without this asyncio would report it once more.
            let _ = error_of(&task);
            return Err(error);
        }
        Ok(task)
    }

    /// Notes that the Task of a request is over.
    pub(super) fn task_ended(&self, exchange: &Arc<Exchange>, task: &Bound<'_, PyAny>) {
        let (known, error) = self.take_ended(task);
        self.ended(task.py(), exchange, error);
        drop(known);
    }

    /// Takes a Task that is over out of the table. Returns what the table held, and the error of the Task.
    fn take_ended(&self, task: &Bound<'_, PyAny>) -> (Option<Py<PyAny>>, Option<PyErr>) {
        let (known, is_last) = {
            let mut tasks = lock(&self.tasks);
            (tasks.remove(&task.as_ptr().addr()), tasks.is_empty())
        };
        if is_last && self.is_cancelling.load(Relaxed) {
            self.emptied.notify_one();
        }
        (known, error_of(task))
    }

    fn ended(&self, py: Python<'_>, exchange: &Arc<Exchange>, error: Option<PyErr>) {
        let ending = exchange.task_ends();
        let request = &exchange.request;
        match error {
            None => log_incomplete(request, ending),
            // It is no error of the app that its client went.
            Some(error) if ending == Ending::ClientGone && says_client_gone(error.value(py), 0) => {
                log_client_gone(request, &error);
            }
            Some(error) if exchange.has_told_gone() && is_named_disconnect(&error, py) => {
                log_client_gone(request, &error)
            }
            Some(error) if is_exit(py, &error) => leave(py, &error, Some(request)),
            // The worker itself has cancelled the Task.
            Some(_) if self.is_cancelling.load(Relaxed) => {}
            Some(error) => log_error(py, request, &error, ending.said()),
        }
    }
}

/// Returns the error of a Task that is over.
fn error_of(task: &Bound<'_, PyAny>) -> Option<PyErr> {
    match task.call_method0(intern!(task.py(), "exception")) {
        Ok(error) if error.is_none() => None,
        Ok(error) => Some(PyErr::from_value(error)),
        Err(cancelled) => Some(cancelled),
    }
}

/// Returns true if an exception comes from a `send()` to a client that has gone. Frameworks raise an exception of their
/// own from it, and task groups put it into a group.
fn says_client_gone(error: &Bound<'_, PyBaseException>, depth: u32) -> bool {
    const DEPTH: u32 = 8;
    let py = error.py();
    let is_one = |one: PyResult<Bound<'_, PyAny>>| {
        one.ok().and_then(|one| one.cast_into().ok()).is_some_and(|one| says_client_gone(&one, depth + 1))
    };
    if error.is_instance(&ClientDisconnected::type_object(py)).unwrap_or(false) {
        return true;
    }
    if depth >= DEPTH {
        return false;
    }
    match error.getattr(intern!(py, "exceptions")).and_then(|all| all.try_iter()) {
        Ok(mut all) => all.all(is_one),
        Err(_) => is_one(error.getattr(intern!(py, "__cause__"))) || is_one(error.getattr(intern!(py, "__context__"))),
    }
}

/// Returns true if an exception is the one by which a framework ends a request whose client has gone. Each has its own:
/// Starlette's `ClientDisconnect`, Litestar's `ClientDisconnect`, Quart's `ClientDisconnected`, Django's `RequestAborted`.
fn is_named_disconnect(error: &PyErr, py: Python<'_>) -> bool {
    let name = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    name.contains("Disconnect") || name == "RequestAborted"
}

fn log_client_gone(request: &Parts, error: &PyErr) {
    let (method, path, request_id) = named(request);
    tracing::debug!(
        event = "app_met_gone_client",
        method,
        path,
        request_id,
        "the app ended {method} {path} with {error}, because its client had gone"
    );
}

fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// Logs that the app has ended without an error, but has not sent a whole response.
fn log_incomplete(request: &Parts, ending: Ending) {
    let (what, done) = match ending {
        Ending::Complete | Ending::ClientGone => return,
        Ending::Short => ("sent less than its Content-Length announced", "the response was cut"),
        Ending::Answered500 => ("returned without a response", "answered 500"),
        Ending::Cut => ("returned in the middle of its response", "the response was cut"),
    };
    let (method, path, request_id) = named(request);
    tracing::error!(event = "app_error", method, path, request_id, "the app {what} in {method} {path}; {done}");
}

/// Logs how a request has ended that has no Task, as those of WSGI.
pub(crate) fn log_app_end(py: Python<'_>, request: &Parts, error: Option<PyErr>, ending: Ending) {
    if let Some(error) = &error
        && let Some(traceback) = error.traceback(py)
    {
        // Until Python 3.12 an exception that has left Python's code has no traceback of its own.
        let _ = error.value(py).setattr(intern!(py, "__traceback__"), traceback);
    }
    match error {
        None => log_incomplete(request, ending),
        Some(error) if ending == Ending::ClientGone && says_client_gone(error.value(py), 0) => {
            log_client_gone(request, &error);
        }
        Some(error) if is_exit(py, &error) => leave(py, &error, Some(request)),
        Some(error) => log_error(py, request, &error, ending.said()),
    }
}

impl Ending {
    fn said(self) -> &'static str {
        match self {
            Self::Complete => "the response was complete",
            Self::ClientGone => "the client had gone",
            Self::Answered500 => "answered 500",
            Self::Short | Self::Cut => "the response was cut",
        }
    }
}

fn log_error(py: Python<'_>, request: &Parts, error: &PyErr, done: &str) {
    let (method, path, request_id) = named(request);
    let traceback = traceback(py, error);
    let error = error.to_string();
    tracing::error!(
        event = "app_error",
        method,
        path,
        request_id,
        traceback,
        "the app failed in {method} {path}: {error}; {done}"
    );
}

/// Logs that a file which the app has sent by its path could not be read to its end.
pub(crate) fn log_file_error(request: &Parts, error: &io::Error) {
    let (method, path, request_id) = named(request);
    tracing::error!(
        event = "app_error",
        method,
        path,
        request_id,
        "the file of the response to {method} {path} cannot be read to its end: {error}; the response was cut"
    );
}

pub(crate) fn named(request: &Parts) -> (&str, &str, &str) {
    (request.method.as_str(), request.uri.path(), scope::request_id(&request.headers))
}

/// Returns the traceback of an exception as Python prints it. The loggers of the app learn of the exception too.
fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let failed = || py.import("oxicorn._logging")?.call_method1("app_failed", (error.value(py),))?.extract();
    failed().unwrap_or_else(|_| error.to_string())
}

/// Ends the worker, because the app has asked for the end of the process. The worker drains, as after a SIGTERM.
/// `request` is the request in which the app did so; `None` if it was not in a request.
pub(crate) fn leave(py: Python<'_>, error: &PyErr, request: Option<&Parts>) {
    let told = TOLD.with_borrow_mut(|told| told.replace(error.value(py).clone().unbind()));
    if told.is_some_and(|told| told.is(error.value(py))) {
        return;
    }
    let what = if error.is_instance_of::<PySystemExit>(py) {
        match error.value(py).getattr("code") {
            Ok(code) if !code.is_none() => format!("called sys.exit({code})"),
            _ => "called sys.exit()".to_owned(),
        }
    } else {
        "raised KeyboardInterrupt".to_owned()
    };
    match request.map(named) {
        Some((method, path, request_id)) => tracing::error!(
            event = "app_exit",
            method,
            path,
            request_id,
            "the app {what} in {method} {path}; the worker drains, and is replaced"
        ),
        None => tracing::error!(
            event = "app_exit",
            "the app {what} outside of a request; the worker drains, and is replaced"
        ),
    }
    if let Err(error) = raise(Signal::SIGTERM) {
        tracing::error!(event = "app_exit", %error, "the worker cannot drain itself");
    }
}
