//! The interface for the runtime of another language, such as an interpreter in the worker.
//!
//! Owns: the trait [`Runtime`], the command of an upgrade, and the boot failure with a long text. Refuses: to call the
//! methods of the trait. The `master` calls the hooks in the master, and the `worker` calls the hook in the worker and
//! the outer loop.

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    os::fd::AsFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{SetupContext, SupervisorEvent};
use crate::{
    cli::ProgramSpec,
    hook,
    log::terminal,
    settings::{ForeignContext, ForeignSettings, Resolved, Sources, StartFolder},
    worker::Driver,
};

/// A runtime of another language inside the worker, such as an interpreter. It supplies the hooks around each fork, the
/// loop that drives the worker, and its own defaults of settings.
///
/// Every method except [`name`](Self::name) has a default implementation, which does nothing, or does what a service in
/// Rust needs. Pass your implementation to [`App::runtime`](crate::App::runtime).
///
/// The master has one thread and must not block, so the methods that run in the master must return at once and start no
/// thread.
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
///             // Run the interpreter's own timers and callbacks here.
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
    /// Returns a short name in lower case for messages. For example, with the name `python` the command `config` shows
    /// `default (python)` beside a value of [`defaults`](Self::defaults).
    fn name(&self) -> &'static str;

    /// Returns defaults for settings, as pairs of a key (`section.key`) and a value in the form that it has in the
    /// environment (`"2m"`, `"true"`, `":9000"`). They override the built-in defaults.
    /// [`App::default_setting`](crate::App::default_setting), the settings file, the environment and the command line
    /// override them.
    fn defaults(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Reads the sources that only this runtime knows, such as the configuration file and the flags of another server,
    /// and returns their settings. The default has none. oxicorn checks these settings and shows them with their
    /// origins, as its own. [`Strength`](crate::settings::Strength) says what they override.
    ///
    /// Every command that reads settings calls this method, and it may take its time there. In the master of a running
    /// service it must return at once: there it is called after a [`refresh`](Self::refresh), and returns what that has
    /// read.
    fn settings(&self, context: &ForeignContext<'_>) -> ForeignSettings {
        let _ = context;
        ForeignSettings::new()
    }

    /// Begins to read the sources of [`settings`](Self::settings) again, in the master of a running service, for a
    /// reload or for a preview of one. Returns how long this may take. If the result is `None`, which is the default,
    /// there is nothing to wait for. The master continues meanwhile, and polls [`watched`](Self::watched).
    fn refresh(&self, context: &ForeignContext<'_>) -> Option<Duration> {
        let _ = context;
        None
    }

    /// Returns true if the last [`refresh`](Self::refresh) is done, well or not. `overdue` is true if its time is over.
    /// Then this is the last call, and [`settings`](Self::settings) says why there is no answer.
    fn refreshed(&self, overdue: bool) -> bool {
        let _ = overdue;
        true
    }

    /// Returns descriptors that the master polls. If one of them can be read, the master calls
    /// [`attend`](Self::attend).
    fn watched(&self) -> Vec<Rc<dyn AsFd>> {
        Vec::new()
    }

    /// Reads what has come on the descriptors of [`watched`](Self::watched). It must return at once.
    fn attend(&self) {}

    /// Tells the runtime, in the master, what happens to the service. It must return at once, except for
    /// [`Starting`](SupervisorEvent::Starting) at a start and for [`Stopped`](SupervisorEvent::Stopped).
    ///
    /// # Errors
    /// The sentence that says why the service must not start. It ends a start with exit code 3, if the event is
    /// [`Starting`](SupervisorEvent::Starting) and no worker runs yet; for any other event it only has a line in the
    /// log.
    fn on_event(&self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        let _ = event;
        Ok(())
    }

    /// Runs in the master before each fork of a worker, with signals blocked. If this method panics, the fork counts as
    /// failed.
    fn before_fork(&self) {}

    /// Runs in the master after each fork of a worker, even if the fork failed, with signals blocked. If this method
    /// panics, the log has an error, and the worker lives.
    fn after_fork_in_master(&self) {}

    /// Runs in each new worker before anything else, while the worker still has the privileges of the master. If this
    /// method panics, the worker fails to boot.
    fn after_fork_in_worker(&self) {}

    /// Runs the outer loop of the worker. It must return when [`Driver::drive`] has returned
    /// [`Driven::Done`](crate::Driven::Done). The default only calls the driver until it is done.
    ///
    /// # Errors
    /// The reason why the loop cannot continue. The worker then ends as a failure, with this error in the log. It also
    /// ends as a failure if the loop panics, or returns `Ok` before the driver is done. The requests that are in flight
    /// then count as cut.
    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(driver.run_to_end()?)
    }

    /// Returns true if each new worker loads the app's code from the disk. It returns false, which is the default, if
    /// the program itself contains the code. The master asks when it starts and at each reload and upgrade.
    ///
    /// If a reload or an upgrade is refused, the code on the disk may be the code that was refused. Until a reload or
    /// an upgrade succeeds, the master then replaces no worker that serves: `workers.max_requests`, `workers.max_age`
    /// and `workers.max_rss` have no effect.
    fn code_on_disk(&self) -> bool {
        false
    }

    /// Returns the signal that the master sends to a worker that hangs, boots or drains for too long, so that the worker
    /// writes where it hangs (in Python, see `faulthandler.register`). The worker should write it to
    /// [`Driver::hang_report`], because the master then logs it. At most a second later, the master ends the worker. If
    /// the result is `None`, or is not the number of a standard signal of Linux, the master sends no signal.
    fn hang_signal(&self) -> Option<i32> {
        None
    }

    /// Returns true if the command `health` takes any answer with a status below 500 as a sign of life, because an app of
    /// this runtime may have no path for health checks. If the result is false, which is the default, only an answer
    /// with a 2xx status counts. The result does not matter if `http.health_path` is set, or if the operator tells the
    /// command what to ask.
    fn any_answer_is_alive(&self) -> bool {
        false
    }

    /// Returns the program that an upgrade executes. `asked` is the value of `upgrade --program`; it is `None` if the
    /// operator gave no program. If the result is `None`, which is the default, the upgrade executes the program at
    /// `asked`. If `asked` is `None` too, it executes the file by whose path the running program was started. In both
    /// cases the program gets the arguments of the running program.
    fn upgrade_command(&self, asked: Option<&Path>) -> Option<UpgradeCommand> {
        let _ = asked;
        None
    }

    /// Checks, before an upgrade, whether the running program could be executed again. The master does this if the new
    /// program fails its trial. The program file itself stays open, but a runtime may need other files too, such as the
    /// modules of an interpreter. The default finds nothing missing.
    ///
    /// # Errors
    /// What is missing, as a part of a sentence such as "the wheel was replaced in place". The upgrade is then refused.
    /// With `upgrade --force` it is done all the same, without a way back.
    fn way_back(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The program that an upgrade executes, and its first arguments. The arguments of the service's own command line come
/// after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) is_whole: bool,
}

impl UpgradeCommand {
    /// Makes a command without arguments. `program` is the path of a file. A relative path is resolved against the
    /// folder in which the service was started, and `$PATH` is not searched.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), is_whole: false }
    }

    /// Adds an argument. All arguments of this command come before those of the service's own command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Declares that this command is whole: it does not get the arguments of the service's own command line. A program
    /// that gives [`App::run_from`](crate::App::run_from) other arguments than those it was started with needs this.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.is_whole = true;
        self
    }
}

/// The default runtime, for a service in Rust. It has only tokio, so it needs no hooks.
struct Tokio;

impl Runtime for Tokio {
    fn name(&self) -> &'static str {
        "rust"
    }
}

/// The reason why a worker cannot boot. It has one sentence, and may have a long text, such as an interpreter's
/// traceback. The master writes the sentence to the log and sends it to the command that waits for the worker. The
/// worker writes the long text to the log. A factory may return this type as its error, or as a cause of its error.
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
    /// Makes a failure with this sentence as its reason. The sentence must be one line.
    #[must_use]
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), details: None }
    }

    /// Adds a long text, such as a traceback, which may have any number of lines.
    #[must_use]
    pub fn with_details(mut self, text: impl Into<String>) -> Self {
        self.details = Some(text.into());
        self
    }

    /// Returns the long text; `None` if the failure has only the sentence.
    #[must_use]
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    /// Returns the first [`BootFailure`] among an error and its causes.
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

/// What the master and the workers know about the program that they run.
pub(crate) struct AppInfo {
    pub(crate) program: ProgramSpec,
    pub(crate) runtime: Box<dyn Runtime>,
    /// The values of the positional arguments that the program declares.
    pub(crate) arguments: Arc<[String]>,
    /// The whole command line as it was given to [`App::run_from`](crate::App::run_from); the first item is the name of
    /// the program.
    pub(crate) command_line: Vec<OsString>,
}

impl Default for AppInfo {
    fn default() -> Self {
        let (name, version) = (terminal::DEFAULT_NAME.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let program = ProgramSpec { name, version, positionals: Vec::new(), commands: Vec::new() };
        Self { program, runtime: Box::new(Tokio), arguments: Arc::new([]), command_line: Vec::new() }
    }
}

impl AppInfo {
    /// Begins to read the runtime's own sources again, and returns how long this may take; `None` if there is nothing to
    /// wait for. A panic is reported by [`with_foreign`](Self::with_foreign), which then has to call the runtime again.
    pub(crate) fn refresh(&self, start: &StartFolder) -> Option<Duration> {
        let context = ForeignContext { folder: start.path(), recorded: None };
        hook::call("Runtime::refresh", || self.runtime.refresh(&context)).ok().flatten()
    }

    /// Adds what the runtime has read from its own sources to `sources`. `start` is the folder in which the service was
    /// started.
    pub(crate) fn with_foreign(&self, sources: Sources, start: &StartFolder) -> Sources {
        let context = ForeignContext { folder: start.path(), recorded: sources.recorded_texts() };
        let read = hook::call("Runtime::settings", || self.runtime.settings(&context));
        let foreign = read.unwrap_or_else(|panicked| {
            let mut refused = ForeignSettings::new();
            refused.refuse(self.runtime.name(), panicked.to_string());
            refused
        });
        sources.with_foreign(foreign)
    }

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
