//! `receive` and `send` of one HTTP request, as the app calls them.
//!
//! Owns: the form of the messages of ASGI, the awaitables that both functions return, and the check of the response's
//! head. Refuses: the order of the messages (`exchange`).
//!
//! Both functions act when they are called. If there is nothing to wait for, they return an awaitable that is finished
//! already, so that the app's Task goes on without a turn of the loop.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pyo3::{
    PyTypeInfo, create_exception,
    exceptions::{PyOSError, PyRuntimeError, PyStopIteration, PyTypeError, PyValueError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyString, PyTuple, PyType},
};

use super::{
    exchange::{Exchange, Head, Incoming, SendError},
    hub::lock,
};

create_exception!(
    oxicorn,
    ClientDisconnected,
    PyOSError,
    "Raised by send() if the client has gone and scope[\"asgi\"][\"spec_version\"] is 2.4 or later."
);

/// The two functions of a request, as bound methods of one object.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
pub(super) struct Channel(pub(super) Arc<Exchange>);

#[pymethods]
impl Channel {
    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.0.receive() {
            Some(incoming) => {
                let message = message(py, incoming)?.unbind();
                Ok(Bound::new(py, Ready(Mutex::new(Some(Ok(message)))))?.into_any())
            }
            None => Wait::make(py, &self.0, Waits::Receive),
        }
    }

    /// An error is raised by the awaitable and not by the call, as it is where `send` is an `async def`.
    fn send<'py>(&self, py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.try_send(py, message).or_else(|error| Ok(Bound::new(py, Ready(Mutex::new(Some(Err(error)))))?.into_any()))
    }

    fn _task_done(&self, task: &Bound<'_, PyAny>) {
        self.0.app.task_ended(&self.0, task);
    }
}

impl Channel {
    fn try_send<'py>(&self, py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let message = &as_dict(message)?;
        let Some(kind) = message.get_item(intern!(py, "type"))? else {
            return Err(PyValueError::new_err("a message without 'type' was sent"));
        };
        let sent = match kind.cast::<PyString>()?.to_str()? {
            "http.response.body" => {
                let body = body(message)?;
                let more = message.get_item(intern!(py, "more_body"))?.map_or(Ok(false), |more| more.is_truthy())?;
                let sent = self.0.send_body(body, more);
                if more && sent.is_ok() && self.0.is_blocked() {
                    return Wait::make(py, &self.0, Waits::Send);
                }
                sent
            }
            "http.response.start" => {
                let is_http1 = self.0.request.version < Version::HTTP_2;
                self.0.send_start(head(message, is_http1)?)
            }
            "http.response.pathsend" => {
                let (file, size) = open_file(message)?;
                self.0.send_file(file, size)
            }
            "http.response.trailers" => {
                let more =
                    message.get_item(intern!(py, "more_trailers"))?.map_or(Ok(false), |more| more.is_truthy())?;
                self.0.send_trailers(trailers(message)?, more)
            }
            "http.response.early_hint" => {
                // hyper sends no 103. A hint is not worth an error.
                tracing::debug!(event = "early_hint_dropped", "an early hint of the app was not sent");
                Ok(())
            }
            other => return Err(PyRuntimeError::new_err(format!("unexpected message {other:?}"))),
        };
        match sent {
            Ok(()) => done(py),
            Err(SendError::Gone) if !self.0.app.raises_when_gone() => done(py),
            Err(SendError::Gone) => Err(gone()),
            Err(error) => Err(PyRuntimeError::new_err(error.to_string())),
        }
    }
}

pub(super) fn gone() -> PyErr {
    ClientDisconnected::new_err(SendError::Gone.to_string())
}

/// Returns a message as a dict. Nearly every message is one already.
pub(super) fn as_dict<'py>(message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    match message.cast::<PyDict>() {
        Ok(message) => Ok(message.clone()),
        Err(_) => Ok(PyDict::type_object(message.py()).call1((message,))?.cast_into::<PyDict>()?),
    }
}

/// Returns the part of the body that a message has.
pub(super) fn body(message: &Bound<'_, PyDict>) -> PyResult<Bytes> {
    message.get_item(intern!(message.py(), "body"))?.map_or(Ok(Bytes::new()), |body| bytes(&body))
}

/// Returns the content of a bytes-like object.
pub(super) fn bytes(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Bytes::copy_from_slice(bytes.as_bytes()));
    }
    if object.is_none() || object.is_instance_of::<PyString>() {
        let kind = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!("the body of a response must be bytes, not {kind}")));
    }
    let whole = PyBytes::type_object(object.py()).call1((PyMemoryLike::view(object)?,))?;
    Ok(Bytes::copy_from_slice(whole.cast::<PyBytes>()?.as_bytes()))
}

/// `bytes(5)` makes five zeros, so only objects with a buffer are copied.
struct PyMemoryLike;

impl PyMemoryLike {
    fn view<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pyo3::types::PyMemoryView::from(object)?.into_any())
    }
}

fn message<'py>(py: Python<'py>, incoming: Incoming) -> PyResult<Bound<'py, PyDict>> {
    let message = PyDict::new(py);
    match incoming {
        Incoming::Body { body, more } => {
            message.set_item(intern!(py, "type"), intern!(py, "http.request"))?;
            message.set_item(intern!(py, "body"), PyBytes::new(py, &body))?;
            message.set_item(intern!(py, "more_body"), more)?;
        }
        Incoming::Disconnect => message.set_item(intern!(py, "type"), intern!(py, "http.disconnect"))?,
    }
    Ok(message)
}

/// Reads the message `http.response.start`.
pub(super) fn head(message: &Bound<'_, PyDict>, is_http1: bool) -> PyResult<Head> {
    let py = message.py();
    let Some(status) = message.get_item(intern!(py, "status"))? else {
        return Err(PyValueError::new_err("'http.response.start' has no 'status'"));
    };
    let status = status.extract::<u16>().ok().and_then(|number| StatusCode::from_u16(number).ok());
    let Some(status) = status.filter(|status| !status.is_informational()) else {
        let status = message.get_item(intern!(py, "status"))?;
        return Err(PyValueError::new_err(format!("{status:?} is not the status of a response: 200 to 999")));
    };
    let has_trailers = message.get_item(intern!(py, "trailers"))?.map_or(Ok(false), |has| has.is_truthy())?;
    let mut head = Head { status, headers: HeaderMap::new(), length: None, has_trailers };
    add_headers(message, &mut head, is_http1)?;
    Ok(head)
}

/// Adds the headers of a message to a head.
pub(super) fn add_headers(message: &Bound<'_, PyDict>, head: &mut Head, is_http1: bool) -> PyResult<()> {
    if let Some(headers) = message.get_item(intern!(message.py(), "headers"))? {
        // The worker and hyper add three more.
        head.headers.reserve(headers.len().unwrap_or_default() + 3);
        for pair in headers.try_iter()? {
            add_header(head, &pair?, is_http1)?;
        }
    }
    Ok(())
}

/// Opens the file of the message `http.response.pathsend`. The error is no `OSError`, which an app would take for a
/// client that has gone.
fn open_file(message: &Bound<'_, PyDict>) -> PyResult<(File, u64)> {
    let Some(path) = message.get_item(intern!(message.py(), "path"))? else {
        return Err(PyValueError::new_err("'http.response.pathsend' has no 'path'"));
    };
    let path: PathBuf = path.extract()?;
    // Without O_NONBLOCK the open of a named pipe would block the loop.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).and_then(|file| {
        let metadata = file.metadata()?;
        if metadata.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok((file, metadata.len())) }
    });
    opened.map_err(|error| PyRuntimeError::new_err(format!("cannot send the file {}: {error}", path.display())))
}

/// Reads the message `http.response.trailers`.
fn trailers(message: &Bound<'_, PyDict>) -> PyResult<HeaderMap> {
    let mut trailers = HeaderMap::new();
    if let Some(headers) = message.get_item(intern!(message.py(), "headers"))? {
        for pair in headers.try_iter()? {
            let (name, value) = header(&pair?)?;
            trailers.append(name, value);
        }
    }
    Ok(trailers)
}

fn add_header(head: &mut Head, pair: &Bound<'_, PyAny>, is_http1: bool) -> PyResult<()> {
    let (name, value) = header(pair)?;
    match name {
        header::TRANSFER_ENCODING => return Ok(()),
        // An app may end the connection. What else it says about the connection is not its to decide.
        header::CONNECTION if !is_http1 || !value.as_bytes().eq_ignore_ascii_case(b"close") => return Ok(()),
        header::UPGRADE if !is_http1 => return Ok(()),
        header::CONTENT_LENGTH => {
            let length = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let Some(length) = length.and_then(|text| text.parse().ok()) else {
                return Err(PyValueError::new_err(format!("{value:?} is not a valid Content-Length")));
            };
            if head.length.replace(length).is_some_and(|other| other != length) {
                return Err(PyValueError::new_err("the response has two different Content-Lengths"));
            }
            head.headers.insert(name, value);
            return Ok(());
        }
        _ if matches!(name.as_str(), "keep-alive" | "proxy-connection") => return Ok(()),
        _ => {}
    }
    head.headers.append(name, value);
    Ok(())
}

/// Reads a pair of name and value.
fn header(pair: &Bound<'_, PyAny>) -> PyResult<(HeaderName, HeaderValue)> {
    let (name, value) = match pair.cast::<PyTuple>() {
        Ok(pair) if pair.len() == 2 => (pair.get_borrowed_item(0)?.to_owned(), pair.get_borrowed_item(1)?.to_owned()),
        _ => pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().or_else(|_| {
            let pair: Vec<Bound<'_, PyAny>> = pair.extract()?;
            <[_; 2]>::try_from(pair).map(|[name, value]| (name, value)).map_err(|pair| {
                PyValueError::new_err(format!("a header of the response has {} items, not name and value", pair.len()))
            })
        })?,
    };
    let (Ok(name), Ok(value)) = (name.cast::<PyBytes>(), value.cast::<PyBytes>()) else {
        let (name, value) = (name.repr()?, value.repr()?);
        return Err(PyTypeError::new_err(format!("name and value of a header must be bytes: {name}: {value}")));
    };
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err(PyValueError::new_err(format!("{} is not the name of a header", name.repr()?)));
    };
    let Ok(value) = HeaderValue::from_bytes(trimmed(value.as_bytes())) else {
        let value = value.repr()?;
        return Err(PyValueError::new_err(format!("the value of the header '{name}' is not valid: {value}")));
    };
    Ok((name, value))
}

/// Returns a value without the white space around it, which is no part of it (RFC 9110, section 5.5).
fn trimmed(value: &[u8]) -> &[u8] {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_blank(value.first()) || is_blank(value.last()) { value.trim_ascii() } else { value }
}

/// Returns the one awaitable that is finished already and has no result.
fn done(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static DONE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(DONE.get_or_try_init(py, || Py::new(py, Done).map(Py::into_any))?.bind(py).clone())
}

/// The awaitable of a `send()` that waits for nothing. It has the methods of a coroutine, so that `create_task(send(…))`
/// works.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
struct Done;

#[pymethods]
impl Done {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Option<()> {
        None
    }

    fn send(&self, _value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyStopIteration::new_err(()))
    }

    #[pyo3(signature = (kind, value=None, _traceback=None))]
    fn throw(
        &self,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        Err(thrown(kind, value))
    }

    fn close(&self) {}
}

/// The awaitable of a `receive()` whose message is at hand, and of a `send()` that fails.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
struct Ready(Mutex<Option<PyResult<Py<PyDict>>>>);

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> PyResult<Option<()>> {
        let message = lock(&self.0).take();
        match message {
            Some(Ok(message)) => Err(PyStopIteration::new_err((message,))),
            Some(Err(error)) => Err(error),
            None => Err(PyRuntimeError::new_err("cannot reuse an awaitable of receive() or send()")),
        }
    }

    fn send(&self, _value: &Bound<'_, PyAny>) -> PyResult<Option<()>> {
        self.__next__()
    }

    #[pyo3(signature = (kind, value=None, _traceback=None))]
    fn throw(
        &self,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        Err(thrown(kind, value))
    }

    fn close(&self) {}
}

#[derive(Clone, Copy)]
enum Waits {
    Receive,
    Send,
}

/// The awaitable of a `receive()` or `send()` that must wait. It waits in a future of asyncio.
///
/// The future only says that there may be something. The message is taken in the step in which the app's code goes on,
/// so that a `receive()` that is cancelled in between loses no message.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
struct Wait {
    exchange: Arc<Exchange>,
    waits: Waits,
    future: Mutex<Option<Py<PyAny>>>,
}

impl Wait {
    fn make<'py>(py: Python<'py>, exchange: &Arc<Exchange>, waits: Waits) -> PyResult<Bound<'py, PyAny>> {
        let wait = Self { exchange: Arc::clone(exchange), waits, future: Mutex::new(None) };
        Ok(Bound::new(py, wait)?.into_any())
    }

    fn step<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let waited = lock(&self.future).take();
        if let Some(future) = waited {
            let future = future.into_bound(py);
            if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
                *lock(&self.future) = Some(future.clone().unbind());
                return Ok(future);
            }
            future.call_method0(intern!(py, "result"))?;
        }
        match self.waits {
            Waits::Receive => {
                if let Some(incoming) = self.exchange.receive() {
                    return Err(PyStopIteration::new_err((message(py, incoming)?.unbind(),)));
                }
            }
            Waits::Send if !self.exchange.is_blocked() => {
                return Err(if self.exchange.is_lost() && self.exchange.app.raises_when_gone() {
                    gone()
                } else {
                    PyStopIteration::new_err(())
                });
            }
            Waits::Send => {}
        }
        let future = self.exchange.app.event_loop().create_future(py)?;
        // This is what the future's own iterator does before it yields the future to the Task.
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        match self.waits {
            Waits::Receive => self.exchange.add_receiver(future.clone().unbind()),
            Waits::Send => self.exchange.add_sender(future.clone().unbind()),
        }
        *lock(&self.future) = Some(future.clone().unbind());
        Ok(future)
    }

    fn leave(&self, py: Python<'_>) {
        let waited = lock(&self.future).take();
        if let Some(future) = waited {
            self.exchange.forget(future.bind(py));
        }
    }
}

#[pymethods]
impl Wait {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.step(py)
    }

    fn send<'py>(&self, py: Python<'py>, _value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.step(py)
    }

    #[pyo3(signature = (kind, value=None, _traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.leave(py);
        Err(thrown(kind, value))
    }

    fn close(&self, py: Python<'_>) {
        self.leave(py);
    }
}

/// Returns the exception that was given to `throw()`: as an exception, or as its type and value.
fn thrown(kind: Bound<'_, PyAny>, value: Option<Bound<'_, PyAny>>) -> PyErr {
    match (value, kind.cast::<PyType>()) {
        (Some(value), _) if value.is_instance_of::<pyo3::exceptions::PyBaseException>() => PyErr::from_value(value),
        (Some(value), Ok(kind)) => PyErr::from_type(kind.clone(), (value.unbind(),)),
        (_, Ok(kind)) => PyErr::from_type(kind.clone(), ()),
        (_, Err(_)) => PyErr::from_value(kind),
    }
}
