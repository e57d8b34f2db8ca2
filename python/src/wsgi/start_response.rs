//! `start_response()` and the `write()` that it returns.
//!
//! Owns: the check of the response's head, and the form of the parts of a body. Refuses: the order of head and parts
//! (`exchange`).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use hyper::ext::ReasonPhrase;
use pyo3::{
    exceptions::{PyAssertionError, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use super::exchange::{NotSent, WsgiExchange, WsgiHead};
use crate::bridge::ClientDisconnected;

/// The `start_response` of one request.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
pub(super) struct StartResponse(pub(super) Arc<WsgiExchange>);

#[pymethods]
impl StartResponse {
    #[pyo3(signature = (status, headers, exc_info=None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        status: &Bound<'py, PyAny>,
        headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let exchange = &slf.get().0;
        let exc_info = match exc_info {
            Some(info) if info.is_truthy()? => Some(info),
            _ => None,
        };
        if let Some(info) = exc_info
            && exchange.is_head_sent()
        {
            return Err(raised(info)?);
        }
        let head = head(status, headers, exchange.request.version < Version::HTTP_2)?;
        if !exchange.start(head, exc_info.is_some()) {
            return Err(PyAssertionError::new_err("Response headers already set!"));
        }
        slf.getattr(intern!(slf.py(), "write"))
    }

    /// Sends a part of the body at once.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = part(data)?;
        match self.0.send(data, false) {
            Ok(()) => {}
            Err(NotSent::Gone) => return Err(gone()),
            Err(NotSent::NotStarted) => return Err(not_started()),
        }
        if self.0.is_blocked() {
            py.detach(|| self.0.wait_for_room());
            if self.0.is_lost() {
                return Err(gone());
            }
        }
        Ok(())
    }
}

fn gone() -> PyErr {
    ClientDisconnected::new_err("the client has gone")
}

pub(super) fn not_started() -> PyErr {
    PyAssertionError::new_err("a part of the body came before start_response() was called")
}

/// Returns the exception of an `exc_info`, with its traceback.
fn raised(info: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    let (value, trace) = (info.get_item(1)?, info.get_item(2)?);
    if !trace.is_none() {
        value.setattr("__traceback__", trace)?;
    }
    Ok(PyErr::from_value(value))
}

/// Returns a part of a body.
pub(super) fn part(data: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    match data.cast::<PyBytes>() {
        Ok(data) => Ok(Bytes::copy_from_slice(data.as_bytes())),
        Err(_) => {
            let kind = data.get_type().name()?;
            Err(PyTypeError::new_err(format!("a part of the body of a response must be bytes, not {kind}")))
        }
    }
}

fn head(status: &Bound<'_, PyAny>, headers: &Bound<'_, PyAny>, is_http1: bool) -> PyResult<WsgiHead> {
    let (status, reason) = status_line(status)?;
    let mut head = WsgiHead { status, reason, ..WsgiHead::default() };
    if let Ok(list) = headers.cast::<PyList>() {
        // The worker and hyper add three more.
        head.headers.reserve(list.len() + 3);
        list.iter().try_for_each(|pair| add_header(&mut head, &pair, is_http1))?;
    } else {
        headers.try_iter()?.try_for_each(|pair| add_header(&mut head, &pair?, is_http1))?;
    }
    Ok(head)
}

/// Reads a status such as `404 Not Found`.
fn status_line(status: &Bound<'_, PyAny>) -> PyResult<(StatusCode, Option<ReasonPhrase>)> {
    let Ok(text) = status.cast::<PyString>() else {
        return Err(PyTypeError::new_err(format!("the status must be a str such as '200 OK', not {}", status.repr()?)));
    };
    let wrong = || PyValueError::new_err(format!("{text:?} is not a status such as '200 OK'"));
    let bytes = latin1(text).ok_or_else(wrong)?;
    let (code, reason) = match bytes.split_at_checked(3) {
        Some((code, [])) => (code, &[][..]),
        Some((code, [b' ', reason @ ..])) => (code, reason),
        _ => return Err(wrong()),
    };
    let code = StatusCode::from_bytes(code).ok().filter(|code| !code.is_informational()).ok_or_else(wrong)?;
    if reason.is_empty() || code.canonical_reason().is_some_and(|usual| usual.as_bytes() == reason) {
        return Ok((code, None));
    }
    Ok((code, Some(ReasonPhrase::try_from(reason).map_err(|_| wrong())?)))
}

fn add_header(head: &mut WsgiHead, pair: &Bound<'_, PyAny>, is_http1: bool) -> PyResult<()> {
    let (name, value) = match pair.cast::<PyTuple>() {
        Ok(pair) if pair.len() == 2 => (pair.get_item(0)?, pair.get_item(1)?),
        _ => pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?,
    };
    let (Ok(name), Ok(value)) = (name.cast::<PyString>(), value.cast::<PyString>()) else {
        let (name, value) = (name.repr()?, value.repr()?);
        return Err(PyTypeError::new_err(format!("name and value of a header must be str: {name}: {value}")));
    };
    let Some(name) = latin1(name).and_then(|name| HeaderName::from_bytes(&name).ok()) else {
        return Err(PyValueError::new_err(format!("{} is not the name of a header", name.repr()?)));
    };
    // The value may be a secret, so the error does not quote it.
    let wrong = || PyValueError::new_err(format!("the value of the header '{name}' is not valid"));
    let value = latin1(value).ok_or_else(wrong)?;
    let value = HeaderValue::from_bytes(trimmed(&value)).map_err(|_| wrong())?;
    match name {
        // What the app says about the connection is not its to decide, but it may end the connection.
        header::CONNECTION if !is_http1 || !value.as_bytes().eq_ignore_ascii_case(b"close") => return Ok(()),
        header::TRANSFER_ENCODING
        | header::UPGRADE
        | header::TE
        | header::TRAILER
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION => return Ok(()),
        header::CONTENT_LENGTH => {
            let length = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = length.and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
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

/// Returns the bytes of a text of which each character stands for one byte.
fn latin1<'a>(text: &'a Bound<'_, PyString>) -> Option<std::borrow::Cow<'a, [u8]>> {
    let text = text.to_str().ok()?;
    if text.is_ascii() {
        return Some(text.as_bytes().into());
    }
    text.chars().map(|sign| u8::try_from(u32::from(sign)).ok()).collect::<Option<Vec<_>>>().map(Into::into)
}

/// Returns a value without the white space around it, which is no part of it (RFC 9110, section 5.5).
fn trimmed(value: &[u8]) -> &[u8] {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_blank(value.first()) || is_blank(value.last()) { value.trim_ascii() } else { value }
}
