//! The loop of the main thread of a WSGI worker: it runs tokio without the GIL.
//!
//! Owns: the driver of the worker, and Python's handlers of signals, which run in the main thread only. Refuses: the
//! requests, which run in other threads (`app`).

use std::{
    cell::RefCell,
    error::Error,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    task::Poll,
};

use oxicorn::{DescriptorWatch, DriveError, Driven, Driver};
use pyo3::{
    exceptions::{PyKeyboardInterrupt, PySystemExit},
    prelude::*,
    types::IntoPyDict,
};

use crate::bridge::leave;

thread_local! {
    /// The driver cannot leave its thread, so the part without the GIL finds it here.
    static MAIN: RefCell<Option<Main>> = const { RefCell::new(None) };
}

struct Main {
    driver: Rc<Driver>,
    /// Python writes a byte here when a signal has come that it has a handler for.
    signals: UnixStream,
    watch: DescriptorWatch,
}

/// Runs the worker until it has ended.
///
/// # Errors
/// The loop cannot begin or continue.
pub(crate) fn run(py: Python<'_>, driver: Rc<Driver>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (signals, python) = UnixStream::pair()?;
    signals.set_nonblocking(true)?;
    python.set_nonblocking(true)?;
    let options = [("warn_on_full_buffer", false)].into_py_dict(py)?;
    py.import("signal")?.call_method("set_wakeup_fd", (python.as_raw_fd(),), Some(&options))?;
    let watch = driver.watch(signals.as_fd().try_clone_to_owned()?)?;
    MAIN.set(Some(Main { driver, signals, watch }));
    let ended = run_to_end(py);
    py.import("signal")?.call_method1("set_wakeup_fd", (-1,))?;
    MAIN.set(None);
    ended
}

fn run_to_end(py: Python<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    // A signal may have come before Python knew where to write.
    loop {
        match py.check_signals() {
            Ok(()) => {}
            Err(error)
                if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) =>
            {
                leave(py, &error, None);
            }
            Err(error) => error.write_unraisable(py, None),
        }
        if py.detach(turn)? == Driven::Done {
            return Ok(());
        }
    }
}

/// Runs tokio until a signal for Python comes, or the worker has ended.
fn turn() -> Result<Driven, DriveError> {
    MAIN.with_borrow(|main| match main {
        Some(Main { driver, signals, watch }) => driver.drive_until(None, |cx| {
            let read = || {
                let (mut signals, mut found, mut bytes) = (signals, false, [0; 64]);
                while signals.read(&mut bytes).is_ok_and(|count| count > 0) {
                    found = true;
                }
                found
            };
            if watch.poll(cx, read).is_ready() { Poll::Ready(()) } else { Poll::Pending }
        }),
        None => Ok(Driven::Done),
    })
}
