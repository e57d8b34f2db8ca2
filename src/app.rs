//! What a user's program sees: [`App`], which is given a factory and run.
//!
//! Owns: the building of an `App`, and the exit codes of a program. Refuses: what its commands do (`app::run`), how workers
//! run (`worker`), how they are kept alive (`master`).

mod check;
mod context;
mod lifespan;
mod run;
mod runtime;
#[cfg(feature = "test-util")]
mod test_util;

use std::{error::Error, fmt, future::Future, process::ExitCode};

use serde::de::DeserializeOwned;
use tokio::runtime::Builder;

use self::lifespan::sealed::{Seed, Work};
pub(crate) use self::runtime::AppInfo;
#[cfg(feature = "test-util")]
pub use self::test_util::{WorkerContextBuilder, WorkerSignals};
pub use self::{
    context::{SetupContext, WorkerContext},
    lifespan::{FactoryOutput, IntoLifespan, Lifespan},
    runtime::{BootFailure, Runtime, UpgradeCommand},
};
use crate::{
    settings::{Declared, TableSpec},
    worker::WorkerSeed,
};

type BoxError = Box<dyn Error + Send + Sync>;
type Prepare = dyn Fn(&SetupContext<'_>) -> Result<(), BoxError>;
type Check = dyn Fn(&SetupContext<'_>) -> Result<Vec<String>, BoxError>;
type Migrate = dyn FnOnce(&SetupContext<'_>) -> Result<Vec<String>, BoxError>;

/// How a program ends: its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Failure = 1,
    Usage = 2,
    NoWorkerReady = 3,
    Bind = 4,
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A supervised program: a factory of services, and what it wants to be tuned by.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use axum::{Router, routing::get};
///
/// fn main() -> ExitCode {
///     oxicorn::App::new(factory).run()
/// }
///
/// async fn factory(_: oxicorn::WorkerContext) -> Result<Router, std::io::Error> {
///     Ok(Router::new().route("/", get(async || "hello\n")))
/// }
/// ```
#[must_use = "an App does nothing until it is run"]
pub struct App {
    work: Box<dyn FnOnce(WorkerSeed) -> ExitCode>,
    prepare: Box<Prepare>,
    migrate: Option<Box<Migrate>>,
    check: Option<Box<Check>>,
    declared: Declared,
    /// By key, as the environment would have it.
    default_settings: Vec<(&'static str, String)>,
    info: AppInfo,
}

impl App {
    /// `factory` is called once in every worker, after the fork and inside the worker's runtime. It returns a service
    /// (an axum `Router`, or any cloneable tower service), or a [`Lifespan`] around one. Its error or panic is a boot
    /// failure, with its message in the log.
    pub fn new<F, Fut>(factory: F) -> Self
    where
        F: FnOnce(WorkerContext) -> Fut + Send + 'static,
        Fut: Future<Output: FactoryOutput> + Send + 'static,
    {
        Self {
            work: Box::new(move |seed| Fut::Output::work(Seed(seed), factory)),
            prepare: Box::new(|_| Ok(())),
            migrate: None,
            check: None,
            declared: Declared::default(),
            default_settings: Vec::new(),
            info: AppInfo::default(),
        }
    }

    /// Sets the name of the program, in lower case and without blanks: `--version`, error messages and the titles that `ps`
    /// shows begin with it, and it is the default of `process.name`. Without it, the program calls itself `oxicorn`.
    ///
    /// ```no_run
    /// # use std::{convert::Infallible, process::ExitCode};
    /// # use axum::Router;
    /// # async fn factory(_: oxicorn::WorkerContext) -> Result<Router, Infallible> { Ok(Router::new()) }
    /// fn main() -> ExitCode {
    ///     oxicorn::App::new(factory)
    ///         .name(env!("CARGO_PKG_NAME"))
    ///         .version(env!("CARGO_PKG_VERSION"))
    ///         .default_setting("server.bind", ":9000")
    ///         .run()
    /// }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.info.program.name = name.into();
        self
    }

    /// Sets the version that `--version` prints. Without it, it is oxicorn's own.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.info.program.version = version.into();
        self
    }

    /// Sets a default of a setting in code: above the built-in one, below the settings file, the environment and the
    /// command line. The value has the form that the environment has: `"2m"`, `"true"`, `":9000"`; a relative path
    /// begins in the folder of the settings file. `config` shows it as `default (<name of the program>)`. Of two for
    /// one key the later counts. A key that does not exist, or a value that is refused, is an error of the settings: exit
    /// code 2.
    pub fn default_setting(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.default_settings.push((key, value.into()));
        self
    }

    /// Declares an argument of the program's own, after its name: `program NAME`, `program run NAME`; the commands
    /// `check`, `config` and `migrate` take it too. `name` stands in the help, usually in capitals. An argument may be
    /// left out; those that were given are read by [`SetupContext::arguments`] and [`WorkerContext::arguments`], and stay
    /// the same over reloads and upgrades.
    ///
    /// ```no_run
    /// # use std::{convert::Infallible, process::ExitCode};
    /// # use axum::Router;
    /// use oxicorn::{App, SetupContext, WorkerContext};
    ///
    /// fn main() -> ExitCode {
    ///     App::new(factory)
    ///         .positional("FOLDER", "The folder whose files are served")
    ///         .prepare(|setup: &SetupContext<'_>| match setup.arguments() {
    ///             [_folder] => Ok(()),
    ///             _ => Err("the folder is missing: give it as the first argument"),
    ///         })
    ///         .run()
    /// }
    ///
    /// async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
    ///     let folder = worker.path(worker.arguments()[0].as_ref());
    ///     # let _ = folder;
    ///     Ok(Router::new())
    /// }
    /// ```
    pub fn positional(mut self, name: &'static str, help: &'static str) -> Self {
        self.info.program.positionals.push((name, help));
        self
    }

    /// Declares a table of the settings file as the app's own. It is checked, overridable and shown like the
    /// supervisor's: unknown keys are errors if `T` denies them, and `OXICORN_<NAME>__<KEY>` overrides. The factory
    /// reads it by [`WorkerContext::table`].
    ///
    /// # Panics
    /// When the name is one of the supervisor's own, or when another table has the same name or the same type: a mistake in
    /// the program.
    pub fn table<T: DeserializeOwned + Send + Sync + 'static>(self, name: &'static str) -> Self {
        self.table_spec(TableSpec::new::<T>(name))
    }

    /// As [`table`](Self::table), for a table that is more than its name and its type: one with environment variables of
    /// other names, or with keys that name files.
    ///
    /// # Panics
    /// As for [`table`](Self::table).
    pub fn table_spec(mut self, spec: TableSpec) -> Self {
        for other in &self.declared.tables {
            spec.assert_differs(other);
        }
        self.declared.tables.push(spec);
        self
    }

    /// What needs the rights of the master, which workers may not have: done before the first of them, and again before
    /// those of each reload and upgrade, which an error refuses. At the start an error ends it with exit code 3. What it
    /// does must bear being repeated while the service runs.
    pub fn prepare<E: Into<BoxError>>(mut self, hook: impl Fn(&SetupContext<'_>) -> Result<(), E> + 'static) -> Self {
        self.prepare = Box::new(move |setup| hook(setup).map_err(Into::into));
        self
    }

    /// Adds a hook to the command `check`: what the program can verify without a worker, beside the settings, which are
    /// valid then. The lines it returns are printed; its error makes the command end with exit code 2. It runs in the
    /// process of the command, with the rights of the operator, and should change nothing.
    pub fn check<E: Into<BoxError>>(
        mut self,
        hook: impl Fn(&SetupContext<'_>) -> Result<Vec<String>, E> + 'static,
    ) -> Self {
        self.check = Some(Box::new(move |setup| hook(setup).map_err(Into::into)));
        self
    }

    /// What the command `migrate` does, before a release and beside a service that runs: make a database ready for the
    /// workers. It returns a line for each thing it did. It runs in a tokio runtime of its own, after
    /// [`prepare`](Self::prepare) and with the rights of a worker, without master or sockets. An error ends the command
    /// with exit code 5. As deployments start it in several places at once, it should be idempotent.
    pub fn migrate<E: Into<BoxError>>(
        mut self,
        hook: impl AsyncFnOnce(&SetupContext<'_>) -> Result<Vec<String>, E> + 'static,
    ) -> Self {
        self.migrate = Some(Box::new(move |setup| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let done = runtime.block_on(hook(setup)).map_err(Into::into);
            runtime.shutdown_background();
            done
        }));
        self
    }

    /// Lets another runtime than Rust's own drive the workers: see [`Runtime`].
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.info.runtime = Box::new(runtime);
        self
    }
}

/// [`App::new`] and [`App::run`] in one, for an app without a table.
pub fn main<F, Fut>(factory: F) -> ExitCode
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output: FactoryOutput> + Send + 'static,
{
    App::new(factory).run()
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("tables", &self.declared.tables).finish_non_exhaustive()
    }
}
