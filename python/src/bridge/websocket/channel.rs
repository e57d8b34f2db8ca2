//! The native part of `receive` and `send` of one web socket; the rest is `oxicorn._websocket.Channel`.
//!
//! Owns: the form of the messages of ASGI. Refuses: their order (`websocket`).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use pyo3::{
    exceptions::{PyRuntimeError, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyBytes, PyDict, PyString},
};

use super::{Event, Outgoing, SendError, WebSocket, frames};
use crate::bridge::{
    channel::{self, add_headers, gone},
    exchange::Head,
};

/// One web socket, as Python sees it.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
pub(crate) struct WebSocketChannel(pub(in crate::bridge) Arc<WebSocket>);

#[pymethods]
impl WebSocketChannel {
    /// Returns the next message for the app; `None` if it must wait.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(event) = self.0.receive() else { return Ok(None) };
        let message = PyDict::new(py);
        let kind = intern!(py, "type");
        match event {
            Event::Connect => message.set_item(kind, intern!(py, "websocket.connect"))?,
            Event::Message(incoming) => {
                message.set_item(kind, intern!(py, "websocket.receive"))?;
                if incoming.is_text {
                    message.set_item(intern!(py, "text"), PyString::from_bytes(py, &incoming.data)?)?;
                } else {
                    message.set_item(intern!(py, "bytes"), PyBytes::new(py, &incoming.data))?;
                }
            }
            Event::Disconnect(code, reason) => {
                message.set_item(kind, intern!(py, "websocket.disconnect"))?;
                message.set_item(intern!(py, "code"), code)?;
                message.set_item(intern!(py, "reason"), reason)?;
            }
        }
        Ok(Some(message))
    }

    /// Takes a message of the app. Returns true if the app must wait now, because the client reads slowly.
    fn put(&self, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, message) = (message.py(), &channel::as_dict(message)?);
        let Some(kind) = message.get_item(intern!(py, "type"))? else {
            return Err(PyValueError::new_err("a message without 'type' was sent"));
        };
        let sent = match kind.cast::<PyString>()?.to_str()? {
            "websocket.send" => self.0.send(outgoing(message)?),
            "websocket.accept" => {
                let mut head = Head { status: StatusCode::OK, headers: HeaderMap::new(), ..Head::default() };
                add_headers(message, &mut head, self.is_http1())?;
                head.headers.remove(http::header::CONTENT_LENGTH);
                self.0.accept(head, subprotocol(message)?)
            }
            "websocket.close" => {
                let (code, reason) = closing(message)?;
                self.0.close(code, reason)
            }
            "websocket.http.response.start" => self.0.deny_start(channel::head(message, self.is_http1())?),
            "websocket.http.response.body" => {
                let body = channel::body(message)?;
                let more = message.get_item(intern!(py, "more_body"))?.map_or(Ok(false), |more| more.is_truthy())?;
                self.0.deny_body(&body, more)
            }
            other => return Err(PyRuntimeError::new_err(format!("unexpected message {other:?}"))),
        };
        match sent {
            Ok(()) => Ok(self.0.is_blocked()),
            Err(SendError::Gone) => Err(gone()),
            Err(error) => Err(PyRuntimeError::new_err(error.to_string())),
        }
    }

    /// Returns true if `send()` still has to wait.
    ///
    /// # Errors
    /// The client has gone.
    fn is_blocked(&self) -> PyResult<bool> {
        if self.0.is_lost() { Err(gone()) } else { Ok(self.0.is_blocked()) }
    }

    /// Returns a future that is resolved when there may be a message.
    fn wait_to_receive<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let future = self.0.app.event_loop().create_future(py)?;
        self.0.add_receiver(future.clone().unbind());
        Ok(future)
    }

    /// Returns a future that is resolved when the client has read enough.
    fn wait_to_send<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let future = self.0.app.event_loop().create_future(py)?;
        self.0.add_sender(future.clone().unbind());
        Ok(future)
    }

    fn forget(&self, future: &Bound<'_, PyAny>) {
        self.0.forget(future);
    }

    fn _task_done(&self, task: &Bound<'_, PyAny>) {
        self.0.app.socket_task_ended(&self.0, task);
    }
}

impl WebSocketChannel {
    fn is_http1(&self) -> bool {
        self.0.request.version < Version::HTTP_2
    }
}

/// Reads the message `websocket.send`.
fn outgoing(message: &Bound<'_, PyDict>) -> PyResult<Outgoing> {
    let py = message.py();
    let given = |key| Ok::<_, PyErr>(message.get_item(key)?.filter(|value| !value.is_none()));
    match (given(intern!(py, "text"))?, given(intern!(py, "bytes"))?) {
        (Some(text), None) => match text.cast::<PyString>() {
            Ok(text) => Ok(Outgoing::Text(Bytes::copy_from_slice(text.to_str()?.as_bytes()))),
            Err(_) => Err(PyTypeError::new_err("'text' of 'websocket.send' must be str")),
        },
        (None, Some(bytes)) => Ok(Outgoing::Binary(channel::bytes(&bytes)?)),
        (Some(_), Some(_)) => Err(PyValueError::new_err("'websocket.send' has both 'text' and 'bytes'")),
        (None, None) => Err(PyValueError::new_err("'websocket.send' has neither 'text' nor 'bytes'")),
    }
}

fn subprotocol(message: &Bound<'_, PyDict>) -> PyResult<Option<HeaderValue>> {
    let Some(subprotocol) = message.get_item(intern!(message.py(), "subprotocol"))? else { return Ok(None) };
    if subprotocol.is_none() {
        return Ok(None);
    }
    let text = subprotocol.extract::<String>()?;
    match HeaderValue::from_str(&text) {
        Ok(value) if !text.is_empty() => Ok(Some(value)),
        Ok(_) | Err(_) => Err(PyValueError::new_err(format!("{text:?} is not the name of a subprotocol"))),
    }
}

/// Reads the message `websocket.close`.
fn closing(message: &Bound<'_, PyDict>) -> PyResult<(u16, String)> {
    let py = message.py();
    let given = |key| Ok::<_, PyErr>(message.get_item(key)?.filter(|value| !value.is_none()));
    let code = given(intern!(py, "code"))?.map_or(Ok(1000), |code| code.extract::<u16>())?;
    let reason = given(intern!(py, "reason"))?.map_or(Ok(String::new()), |reason| reason.extract())?;
    if frames::is_closing(code, &reason) {
        Ok((code, reason))
    } else {
        Err(PyValueError::new_err(format!(
            "a web socket cannot be closed with code {code} and a reason of {} bytes: see RFC 6455, section 7.4; the \
             reason may have 123 bytes",
            reason.len()
        )))
    }
}
