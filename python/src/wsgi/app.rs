//! The app, and the run of one request in a thread.
//!
//! Owns: the threads, the call of the app, the iteration of what it returns, the one call of `close()`, and the log of an
//! error of the app. Refuses: the order of head and body (`exchange`), and the choice of the thread (`pool`).

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::request::Parts;
use oxicorn::{BackgroundWork, WorkerContext};
use pyo3::{
    ffi, intern,
    prelude::*,
    types::{PyBytes, PyCFunction, PyDict, PyIterator, PyList, PyTuple},
};

use super::{
    environ::Environs,
    exchange::{NotSent, WsgiExchange, joined},
    pool::ThreadPool,
    start_response::{StartResponse, not_started, part},
    wakes::Wakes,
};
use crate::{
    bridge::{WINDOW, log_app_end, named},
    logging, settings,
};

/// The most parts of a list that are looked at, to send them together.
const LIST_MAX: usize = 64;

/// The app of a worker.
pub(crate) struct WsgiApp {
    callable: Py<PyAny>,
    /// The same app, with a record of each request for the loggers of Gunicorn.
    recorded: Py<PyAny>,
    environs: Environs,
    /// The class of `wsgi.file_wrapper`.
    file_wrapper: Py<PyAny>,
    pool: Arc<ThreadPool>,
    wakes: Arc<Wakes>,
    body_buffer: usize,
    has_told_dropped_body: AtomicBool,
    has_told_long_body: AtomicBool,
}

impl WsgiApp {
    /// Makes the app.
    ///
    /// # Errors
    /// The package is not whole.
    pub(crate) fn new(
        py: Python<'_>,
        callable: &Bound<'_, PyAny>,
        context: WorkerContext,
        settings: &settings::Python,
    ) -> PyResult<Arc<Self>> {
        // A connection has one request of HTTP/1 at a time, so this limit is one for HTTP/2.
        let limit = usize::try_from(context.settings().http.worker_connections).unwrap_or(usize::MAX);
        let wakes = Arc::<Wakes>::default();
        Ok(Arc::new(Self {
            callable: callable.clone().unbind(),
            recorded: py.import("oxicorn._logging")?.call_method1("with_wsgi_records", (callable,))?.unbind(),
            environs: Environs::new(py, context, settings)?,
            file_wrapper: py.import("oxicorn._wsgi")?.getattr("FileWrapper")?.unbind(),
            pool: Arc::new(ThreadPool::new(settings.threads.get(), limit, Arc::clone(&wakes))),
            wakes,
            body_buffer: usize::try_from(settings.wsgi_body_buffer).unwrap_or(usize::MAX),
            has_told_dropped_body: AtomicBool::new(false),
            has_told_long_body: AtomicBool::new(false),
        }))
    }

    /// Starts the threads, and the tasks that serve them. Call it inside of tokio.
    ///
    /// # Errors
    /// The process may start no more threads.
    pub(crate) fn start(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let threading = py.import("threading")?;
        for number in 0..self.pool.len() {
            let app = Arc::clone(self);
            let run = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| app.serve(args.py(), number);
            let options = PyDict::new(py);
            options.set_item("target", PyCFunction::new_closure(py, None, None, run)?)?;
            options.set_item("name", format!("wsgi-{number}"))?;
            threading.getattr("Thread")?.call((), Some(&options))?.call_method0("start")?;
        }
        self.wakes.start();
        tokio::spawn(Arc::clone(&self.pool).care(self.environs.context().clone()));
        tokio::spawn(super::watch::watch(Arc::clone(&self.pool), self.environs.context().clone()));
        Ok(())
    }

    /// Lets the threads end, each after the request that it runs.
    pub(crate) fn end(&self) {
        self.pool.end();
    }

    pub(super) fn body_buffer(&self) -> usize {
        self.body_buffer
    }

    /// Puts a request into the queue. Returns false if the queue is full.
    pub(super) fn queue(&self, exchange: &Arc<WsgiExchange>) -> bool {
        self.pool.push(exchange)
    }

    pub(super) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    pub(super) fn background_work(&self) -> BackgroundWork {
        self.environs.context().background_work()
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

    /// Logs, once, that the app has sent more than it had announced.
    pub(super) fn tell_long_body(&self, request: &Parts) {
        if !self.has_told_long_body.swap(true, Relaxed) {
            let (method, path, request_id) = named(request);
            tracing::warn!(
                event = "body_dropped",
                method,
                path,
                request_id,
                "the app sent more than its Content-Length announced, in {method} {path}; the rest is dropped, and not \
                 told again"
            );
        }
    }

    // A thread.

    /// Runs requests until the worker ends.
    fn serve(self: &Arc<Self>, py: Python<'_>, number: usize) -> PyResult<()> {
        let ident = py.import("threading")?.call_method0("get_ident")?.extract()?;
        self.pool.join(number, ident);
        while let Some(exchange) = py.detach(|| self.pool.next(number)) {
            // A panic is a fault of this crate. It must not cost the worker a thread.
            if catch_unwind(AssertUnwindSafe(|| self.run(py, &exchange))).is_err() {
                exchange.finish(true);
                exchange.thread_ends();
            }
        }
        Ok(())
    }

    fn run(&self, py: Python<'_>, exchange: &Arc<WsgiExchange>) {
        if !exchange.begin() {
            return;
        }
        let context = OwnContext::enter(py);
        let error = context.and_then(|context| {
            let result = self.call(py, exchange);
            drop(context);
            result
        });
        let ending = exchange.finish(error.is_err());
        log_app_end(py, &exchange.request, error.err(), ending);
        exchange.thread_ends();
    }

    fn call(&self, py: Python<'_>, exchange: &Arc<WsgiExchange>) -> PyResult<()> {
        let start_response = Bound::new(py, StartResponse(Arc::clone(exchange)))?;
        let environ = self.environs.environ(py, exchange)?;
        let callable = if logging::wants_records() { &self.recorded } else { &self.callable };
        let result = callable.bind(py).call1((environ, start_response))?;
        let sent = self.send(py, exchange, &result);
        if is_list(&result) {
            return sent;
        }
        // The client has the whole response before the app ends the request.
        exchange.finish(sent.is_err());
        let closed = match result.getattr_opt(intern!(py, "close"))? {
            Some(close) => close.call0().map(drop),
            None => Ok(()),
        };
        match (sent, closed) {
            (Err(error), Err(other)) => {
                other.write_unraisable(py, Some(&result));
                Err(error)
            }
            (sent, closed) => sent.and(closed),
        }
    }

    /// Sends what the app has returned.
    fn send(&self, py: Python<'_>, exchange: &Arc<WsgiExchange>, result: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(parts) = parts(result)? {
            return sent(exchange.send(joined(&parts), true)).map(drop);
        }
        if result.get_type().is(&self.file_wrapper)
            && let Some((file, size)) = file_of(result)?
            && sent(exchange.send_file(file, size))?.unwrap_or(true)
        {
            return Ok(());
        }
        for data in PyIterator::from_object(result)? {
            let data = part(&data?)?;
            if data.is_empty() {
                continue;
            }
            if sent(exchange.send(data, false))?.is_none() {
                // The client has gone.
                break;
            }
            if exchange.is_blocked() {
                py.detach(|| exchange.wait_for_room());
            }
        }
        Ok(())
    }
}

/// Returns `None` if a part was not sent because the client has gone.
fn sent<T>(sent: Result<T, NotSent>) -> PyResult<Option<T>> {
    match sent {
        Ok(sent) => Ok(Some(sent)),
        Err(NotSent::Gone) => Ok(None),
        Err(NotSent::NotStarted) => Err(not_started()),
    }
}

fn is_list(result: &Bound<'_, PyAny>) -> bool {
    result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>()
}

/// Returns the parts of a list or tuple that can be sent together: its whole body is there, and no code of the app runs
/// between its parts.
fn parts(result: &Bound<'_, PyAny>) -> PyResult<Option<Vec<Bytes>>> {
    let items: Vec<_> = if let Ok(list) = result.cast_exact::<PyList>() {
        list.iter().take(LIST_MAX + 1).collect()
    } else if let Ok(tuple) = result.cast_exact::<PyTuple>() {
        tuple.iter().take(LIST_MAX + 1).collect()
    } else {
        return Ok(None);
    };
    let size: usize =
        items.iter().filter_map(|item| item.cast::<PyBytes>().ok()).map(|item| item.as_bytes().len()).sum();
    if items.len() > LIST_MAX || items.len() > 1 && size > WINDOW {
        return Ok(None);
    }
    items.iter().map(part).collect::<PyResult<Vec<_>>>().map(Some)
}

/// Returns the file of a `wsgi.file_wrapper`, at its present position, and the number of bytes that are left in it.
/// Returns `None` if it is no regular file.
///
/// The file is opened anew: it has a position of its own then, and stays open when the app closes its own.
fn file_of(wrapper: &Bound<'_, PyAny>) -> PyResult<Option<(File, u64)>> {
    let py = wrapper.py();
    let found = py.import(intern!(py, "oxicorn._wsgi"))?.call_method1(intern!(py, "descriptor_of"), (wrapper,))?;
    let Some((descriptor, position)) = found.extract::<Option<(i32, u64)>>()? else { return Ok(None) };
    let opened = || -> std::io::Result<(File, u64)> {
        let mut file = File::open(format!("/proc/self/fd/{descriptor}"))?;
        let size = file.metadata()?.len();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(position))?;
        Ok((file, size.saturating_sub(position)))
    };
    Ok(opened().ok())
}

/// The context variables of one request. The thread leaves them when this is dropped.
struct OwnContext<'py>(Bound<'py, PyAny>);

impl<'py> OwnContext<'py> {
    fn enter(py: Python<'py>) -> PyResult<Self> {
        // SAFETY: this thread holds the GIL. `PyContext_CopyCurrent` returns a new reference or sets an exception, and
        // `PyContext_Enter` takes the context that it has made.
        #[expect(unsafe_code, reason = "to run a function of Rust in a context, Python offers only C")]
        unsafe {
            let context = Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent())?;
            if ffi::PyContext_Enter(context.as_ptr()) == 0 { Ok(Self(context)) } else { Err(PyErr::fetch(py)) }
        }
    }
}

impl Drop for OwnContext<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread holds the GIL, and the context is the one that it has entered. If the app has left another
        // one entered, Python says so with an exception, which is taken here.
        #[expect(unsafe_code, reason = "to run a function of Rust in a context, Python offers only C")]
        unsafe {
            if ffi::PyContext_Exit(self.0.as_ptr()) != 0 {
                drop(PyErr::take(self.0.py()));
            }
        }
    }
}
