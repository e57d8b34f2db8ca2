//! What a runtime other than Rust's own asks of the supervisor.
//!
//! Owns: the trait [`Runtime`], the command of an upgrade, the boot failure with a long text. Refuses: to call the
//! methods (`master` calls those around a fork, `worker` the outer loop).

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::SetupContext;
use crate::{cli::ProgramSpec, log::terminal, settings::Resolved, worker::Driver};

/// A runtime of another language inside the worker, such as an interpreter: the hooks it needs at each fork, the loop
/// that drives the worker, and the defaults of its settings.
///
/// Every method but [`name`](Self::name) has a default, which does nothing or does what a service in Rust needs. Give
/// it to [`App::runtime`](crate::App::runtime).
///
/// The master has one thread and must not block: the methods that run in it must return at once and start no thread.
///
/// ```no_run
/// use std::{convert::Infallible, error::Error, process::ExitCode, time::Duration};
///
/// use axum::{Router, routing::get};
/// use oxicorn::{Driven, Driver, Runtime};
///
/// struct Interpreter;
///
/// impl Runtime for Interpreter {
///     fn name(&self) -> &'static str {
///         "lua"
///     }
///
///     fn defaults(&self) -> Vec<(&'static str, String)> {
///         vec![("workers.boot_timeout", "2m".to_owned())]
///     }
///
///     fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
///         while driver.drive(Some(Duration::from_millis(100)))? == Driven::Pending {
///             // The interpreter's own timers and callbacks have their turn here.
///         }
///         Ok(())
///     }
/// }
///
/// fn main() -> ExitCode {
///     oxicorn::App::new(async |_worker| Ok::<_, Infallible>(Router::new().route("/", get(async || "hello\n"))))
///         .runtime(Interpreter)
///         .run()
/// }
/// ```
pub trait Runtime: 'static {
    /// Returns a short name for messages, in lower case: `config` shows `default (python)` beside a value of
    /// [`defaults`](Self::defaults).
    fn name(&self) -> &'static str;

    /// Returns defaults of settings, by `section.key`, each in the form that it has in the environment (`"2m"`,
    /// `"true"`, `":9000"`). They stand above the built-in defaults and below
    /// [`App::default_setting`](crate::App::default_setting), the settings file, the environment and the command line.
    fn defaults(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Runs in the master before each fork of a worker, with signals blocked.
    fn before_fork(&self) {}

    /// Runs in the master after each fork of a worker, also after one that failed, with signals blocked.
    fn after_fork_in_master(&self) {}

    /// Runs first in each new worker, before it drops its privileges.
    fn after_fork_in_worker(&self) {}

    /// Runs the outer loop of the worker. It returns when [`Driver::drive`] has returned
    /// [`Driven::Done`](crate::Driven::Done). The default does nothing but drive.
    ///
    /// # Errors
    /// Why the loop cannot continue. The worker then ends as a failure, with this error in the log; so does a worker
    /// whose loop returns `Ok` before the driver is done.
    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(driver.run_to_end()?)
    }

    /// Returns a signal that the master sends to a worker that hangs, so that the worker writes what it does (for
    /// Python, `faulthandler.register`). The master ends the worker as always, at most a second later. `None`, or a
    /// number that is not one of Linux's standard signals: no signal is sent.
    fn hang_signal(&self) -> Option<i32> {
        None
    }

    /// Returns the program that an upgrade executes. `asked` is the path of `upgrade --program`, `None` if the operator
    /// gave none. `None`, the default: the program at that path, or at the path the running one was started by, with
    /// the arguments that the running one was started with.
    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        let _ = asked;
        None
    }
}

/// A program that an upgrade executes, and its first arguments. The arguments of the service's own command line follow
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl UpgradeCommand {
    /// Names the program by its path, relative to the folder that the service was started in; `$PATH` is not searched.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new() }
    }

    /// Adds an argument before those of the service's own command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

/// The runtime of a service in Rust: tokio alone.
struct Tokio;

impl Runtime for Tokio {
    fn name(&self) -> &'static str {
        "rust"
    }
}

/// Why a worker cannot boot: one sentence for the master, its log and the command that waits; and a long text, such as
/// an interpreter's traceback, for the worker's log. A factory may return it as its error, or as a cause of its error.
///
/// ```
/// let failure = oxicorn::BootFailure::new("app.py, line 3: NameError: name 'router' is not defined")
///     .with_details("Traceback (most recent call last):\n  …");
/// assert_eq!(failure.to_string(), "app.py, line 3: NameError: name 'router' is not defined");
/// ```
#[derive(Clone, Debug)]
pub struct BootFailure {
    sentence: String,
    details: Option<String>,
}

impl BootFailure {
    /// Makes a failure with this reason, on one line.
    #[must_use]
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), details: None }
    }

    /// Adds the long text, of any number of lines.
    #[must_use]
    pub fn with_details(mut self, text: impl Into<String>) -> Self {
        self.details = Some(text.into());
        self
    }

    /// Returns the long text.
    #[must_use]
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    /// Finds the failure in an error or its causes.
    pub(crate) fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
    }
}

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for BootFailure {}

/// What master and worker know of the program that they are part of.
pub(crate) struct AppInfo {
    pub(crate) program: ProgramSpec,
    pub(crate) runtime: Box<dyn Runtime>,
    /// The values of the program's own positional arguments.
    pub(crate) arguments: Arc<[String]>,
    /// The command line as it was given to the program; the first item is the program's name.
    pub(crate) command_line: Vec<OsString>,
}

impl Default for AppInfo {
    fn default() -> Self {
        let (name, version) = (terminal::DEFAULT_NAME.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let program = ProgramSpec { name, version, positionals: Vec::new() };
        Self { program, runtime: Box::new(Tokio), arguments: Arc::new([]), command_line: Vec::new() }
    }
}

impl AppInfo {
    pub(super) fn setup<'a>(&'a self, resolved: &'a Resolved, running: Option<&'a Resolved>) -> SetupContext<'a> {
        SetupContext { resolved, running, arguments: &self.arguments }
    }
}

impl fmt::Debug for AppInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, runtime, arguments, command_line: _ } = self;
        let mut info = f.debug_struct("AppInfo");
        info.field("program", program).field("runtime", &runtime.name()).field("arguments", arguments);
        info.finish_non_exhaustive()
    }
}
