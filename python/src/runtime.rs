//! Python's interpreter in the processes of the supervisor.
//!
//! Owns: what the interpreter needs around a fork, the stacks of a worker that hangs or crashes, and the defaults of
//! settings for Python. Refuses: to import the app (`boot`) and to run the event loop (`bridge`).

use std::{
    cell::Cell,
    error::Error,
    os::fd::{AsFd, IntoRawFd},
    path::Path,
    rc::Rc,
    time::Duration,
};

use oxicorn::{
    Driver, Runtime, SupervisorEvent, UpgradeCommand,
    settings::{ForeignContext, ForeignSettings},
};
use pyo3::{ffi, prelude::*, types::IntoPyDict};

use crate::{
    boot,
    compat::Compat,
    upgrade::{Files, Start},
};

/// The signal at which a worker writes where its threads are. The kernel does not send it, and apps use others, such as
/// SIGUSR1.
const HANG_SIGNAL: i32 = libc::SIGSTKFLT;

/// The interpreter, which the master keeps without `site` and without the app.
#[derive(Debug)]
pub(crate) struct Interpreter {
    start: Start,
    files: Files,
    compat: Compat,
    /// True between the two hooks of a fork. The second half of a fork must not come without the first.
    forks: Cell<bool>,
    /// The number of the last fork.
    age: Cell<u32>,
}

impl Interpreter {
    pub(crate) fn new(start: Start, files: Files, compat: Compat) -> Self {
        Self { start, files, compat, forks: Cell::new(false), age: Cell::new(0) }
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

    fn settings(&self, context: &ForeignContext<'_>) -> ForeignSettings {
        self.compat.settings(context)
    }

    fn refresh(&self, context: &ForeignContext<'_>) -> Option<Duration> {
        self.compat.refresh(context)
    }

    fn refreshed(&self, overdue: bool) -> bool {
        self.compat.refreshed(overdue)
    }

    fn watched(&self) -> Vec<Rc<dyn AsFd>> {
        self.compat.watched()
    }

    fn attend(&self) {
        self.compat.attend();
    }

    fn on_event(&self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        if let SupervisorEvent::Forking(worker) = event {
            self.age.set(worker.age);
        }
        self.compat.on_event(event)
    }

    /// Each worker imports the app for itself, after the fork.
    fn code_on_disk(&self) -> bool {
        true
    }

    /// Most apps have no path for health checks, and the command `health` must work in their containers.
    fn any_answer_is_alive(&self) -> bool {
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
        self.compat.leave_master();
        Python::attach(|_| {
            // SAFETY: this is the thread that forked. It held the GIL, and PyOS_BeforeFork was called before the fork.
            #[expect(unsafe_code, reason = "a fork outside of os.fork() has to be announced")]
            unsafe {
                ffi::PyOS_AfterFork_Child();
            }
        });
    }

    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        let command = self.start.again(asked);
        Some(match self.compat.original_words() {
            Some(words) => words.iter().fold(command, UpgradeCommand::arg).whole(),
            None => command,
        })
    }

    fn way_back(&self) -> Result<(), String> {
        self.files.are_kept()
    }

    fn hang_signal(&self) -> Option<i32> {
        Some(HANG_SIGNAL)
    }

    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        Python::attach(|py| {
            write_stacks(py, &driver)?;
            py.import("oxicorn._worker")?.setattr("age", self.age.get())?;
            boot::drive(py, driver, &self.compat)
        })
    }
}

/// Makes the interpreter write where all its threads are, when the worker hangs and when it crashes. The handler is C,
/// so it also works while a call blocks the interpreter.
fn write_stacks(py: Python<'_>, driver: &Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(file) = driver.hang_report() else { return Ok(()) };
    // The file stays open until the process ends, because the worker may hang after its event loop has ended.
    let file = file.try_clone_to_owned()?.into_raw_fd();
    let faulthandler = py.import("faulthandler")?;
    let options = [("file", file), ("all_threads", 1)].into_py_dict(py)?;
    faulthandler.call_method("enable", (), Some(&options))?;
    options.set_item("chain", false)?;
    faulthandler.call_method("register", (HANG_SIGNAL,), Some(&options))?;
    py.import("oxicorn._worker")?.setattr("stacks", file)?;
    Ok(())
}
