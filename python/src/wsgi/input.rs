//! `wsgi.input`: the body of a request, as the app reads it.
//!
//! Owns: the methods of a file that PEP 3333 wants. Refuses: the way of the bytes (`exchange`).
//!
//! A body that has ended gives empty bytes, as the end of a file does (`wsgi.input_terminated`). A body whose client has
//! gone raises an `OSError`, so that an app does not take a part for the whole.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyList},
};

use super::exchange::{Piece, WsgiExchange};
use crate::bridge::ClientDisconnected;

#[pyclass(frozen, module = "oxicorn._oxicorn")]
pub(super) struct Input(Arc<WsgiExchange>);

#[pymethods]
impl Input {
    /// Returns `size` bytes, or less at the end of the body. Without a size it returns all.
    #[pyo3(signature = (size=None))]
    fn read<'py>(&self, py: Python<'py>, size: Option<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let mut left = limit(size);
        let Some(first) = self.piece(py, left)? else { return Ok(PyBytes::new(py, b"")) };
        left -= first.len();
        let Some(second) = self.piece(py, left)? else { return Ok(PyBytes::new(py, &first)) };
        left -= second.len();
        let mut whole = BytesMut::from(&first[..]);
        whole.extend_from_slice(&second);
        while let Some(piece) = self.piece(py, left)? {
            left -= piece.len();
            whole.extend_from_slice(&piece);
        }
        Ok(PyBytes::new(py, &whole))
    }

    /// Returns the next line with its end, but at most `size` bytes of it.
    #[pyo3(signature = (size=None))]
    fn readline<'py>(&self, py: Python<'py>, size: Option<i64>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.line(py, limit(size))?))
    }

    /// Returns the lines that are left, up to the line in which `hint` bytes are reached.
    #[pyo3(signature = (hint=None))]
    fn readlines<'py>(&self, py: Python<'py>, hint: Option<i64>) -> PyResult<Bound<'py, PyList>> {
        let most = hint.filter(|hint| *hint > 0).map_or(usize::MAX, |hint| limit(Some(hint)));
        let (lines, mut count) = (PyList::empty(py), 0);
        while count < most {
            let line = self.line(py, usize::MAX)?;
            if line.is_empty() {
                break;
            }
            count += line.len();
            lines.append(PyBytes::new(py, &line))?;
        }
        Ok(lines)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.line(py, usize::MAX)?;
        Ok((!line.is_empty()).then(|| PyBytes::new(py, &line)))
    }

    /// Does nothing: the worker drops what the app does not read.
    fn close(&self) {}
}

impl Input {
    pub(super) fn new(exchange: &Arc<WsgiExchange>) -> Self {
        Self(Arc::clone(exchange))
    }

    /// Returns the next part of the body, which has at most `most` bytes; `None` at the end of the body.
    fn piece(&self, py: Python<'_>, most: usize) -> PyResult<Option<Bytes>> {
        if most == 0 {
            return Ok(None);
        }
        let piece = if self.0.is_at_hand() { self.0.read(most) } else { py.detach(|| self.0.read(most)) };
        match piece {
            Piece::Data(data) => Ok(Some(data)),
            Piece::End => Ok(None),
            Piece::CutOff => Err(ClientDisconnected::new_err("the client has gone before the end of its body")),
        }
    }

    fn line(&self, py: Python<'_>, most: usize) -> PyResult<Bytes> {
        let mut line = BytesMut::new();
        while let Some(mut piece) = self.piece(py, most - line.len())? {
            let end = piece.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                self.0.unread(piece.split_off(end + 1));
                if line.is_empty() {
                    return Ok(piece);
                }
            }
            line.extend_from_slice(&piece);
            if end.is_some() {
                break;
            }
        }
        Ok(line.freeze())
    }
}

/// Reads the argument for a size: `None` and a negative number mean that there is no limit.
fn limit(size: Option<i64>) -> usize {
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX)
}
