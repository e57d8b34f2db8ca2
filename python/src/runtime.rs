//! Python's interpreter in the processes of the supervisor.
//!
//! Owns: what the interpreter needs around a fork, and the defaults of settings for Python. Refuses: to import the app
//! (`boot`) and to run the event loop (`bridge`).

use std::{cell::Cell, error::Error, path::Path};

use oxicorn::{Driver, Runtime, UpgradeCommand};
use pyo3::{Python, ffi};

use crate::{
    boot,
    upgrade::{Files, Start},
};

/// The interpreter, which the master keeps without `site` and without the app.
#[derive(Debug)]
pub(crate) struct Interpreter {
    start: Start,
    files: Files,
    /// True between the two hooks of a fork. The second half of a fork must not come without the first.
    forks: Cell<bool>,
}

impl Interpreter {
    pub(crate) fn new(start: Start, files: Files) -> Self {
        Self { start, files, forks: Cell::new(false) }
    }
}

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "python"
    }

    /// A body of any size passes, because the bridge never holds more of it than the app has asked for. An import may
    /// take minutes.
    fn defaults(&self) -> Vec<(&'static str, String)> {
        vec![("http.limit_request_body", "0".to_owned()), ("workers.boot_timeout", "5m".to_owned())]
    }

    /// Each worker imports the app for itself, after the fork.
    fn code_on_disk(&self) -> bool {
        true
    }

    fn before_fork(&self) {
        Python::attach(|_| {
            // SAFETY: this thread holds the GIL.
            #[expect(unsafe_code, reason = "a fork outside of os.fork() has to be announced")]
            unsafe {
                ffi::PyOS_BeforeFork();
            }
        });
        self.forks.set(true);
    }

    fn after_fork_in_master(&self) {
        if self.forks.replace(false) {
            Python::attach(|_| {
                // SAFETY: this thread holds the GIL, and PyOS_BeforeFork was called before the fork.
                #[expect(unsafe_code, reason = "a fork outside of os.fork() has to be announced")]
                unsafe {
                    ffi::PyOS_AfterFork_Parent();
                }
            });
        }
    }

    fn after_fork_in_worker(&self) {
        self.forks.set(false);
        Python::attach(|_| {
            // SAFETY: this is the thread that forked. It held the GIL, and PyOS_BeforeFork was called before the fork.
            #[expect(unsafe_code, reason = "a fork outside of os.fork() has to be announced")]
            unsafe {
                ffi::PyOS_AfterFork_Child();
            }
        });
    }

    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        Some(self.start.again(asked))
    }

    fn way_back(&self) -> Result<(), String> {
        self.files.are_kept()
    }

    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        Python::attach(|py| boot::drive(py, driver))
    }
}
