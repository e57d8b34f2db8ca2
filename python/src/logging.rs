//! What the module `oxicorn._logging` needs of Rust.
//!
//! Owns: the standard streams whose lines stay whole, and the flag that says whether the app wants records of requests.
//! Refuses: the loggers and their records, which are Python's.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use oxicorn::settings::Level;
use pyo3::{buffer::PyBuffer, exceptions::PyValueError, prelude::*};

/// True while a logger for requests has a handler of the app.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Returns true if the app wants a record of each request. Most apps do not, so this is all that most requests pay.
pub(crate) fn wants_records() -> bool {
    WANTED.load(Relaxed)
}

/// Notes whether the app wants a record of each request.
#[pyfunction]
pub(crate) fn want_access_records(wanted: bool) {
    WANTED.store(wanted, Relaxed);
}

/// Prepares the standard streams and the loggers of this worker. `level` is the value of `log.level`.
pub(crate) fn install(py: Python<'_>, level: Level) -> PyResult<()> {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Debug => "debug",
        Level::Trace => "trace",
        _ => "info",
    };
    py.import("oxicorn._logging")?.call_method1("install", (level,)).map(drop)
}

/// Standard output or standard error. What one call writes stays in one piece.
#[pyclass(frozen, module = "oxicorn._oxicorn")]
pub(crate) struct SharedStream(oxicorn::SharedStream);

#[pymethods]
impl SharedStream {
    #[new]
    fn new(number: i32) -> PyResult<Self> {
        match number {
            1 => Ok(Self(oxicorn::SharedStream::stdout()?)),
            2 => Ok(Self(oxicorn::SharedStream::stderr()?)),
            _ => Err(PyValueError::new_err("the number of a standard stream is 1 or 2")),
        }
    }

    /// Writes all of `data`, and returns its length. The lock of Python's buffered stream serializes the calls.
    fn write(&self, py: Python<'_>, data: PyBuffer<u8>) -> PyResult<usize> {
        let bytes = data.to_vec(py)?;
        py.detach(|| self.0.write_all(&bytes))?;
        Ok(bytes.len())
    }
}
