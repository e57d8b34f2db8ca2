//! The entry point of a user's program: [`App`], which takes a factory and runs the program.
//!
//! Owns: the building of an `App`, and the exit codes of a program. Refuses: to run the commands (`app::run`), to run a
//! worker (`worker`), and to supervise workers (`master`).

mod check;
mod context;
mod factory;
mod lifespan;
mod run;
mod runtime;
mod supervisor_event;
#[cfg(feature = "test-util")]
mod test_util;

use std::{fmt, future::Future, process::ExitCode};

use serde::de::DeserializeOwned;
use tokio::runtime::Builder;

use self::factory::sealed::{Seed, Work};
#[cfg(feature = "test-util")]
pub use self::test_util::{WorkerContextBuilder, WorkerSignals};
pub use self::{
    context::{SetupContext, WorkerContext},
    factory::FactoryOutput,
    lifespan::{IntoLifespan, Lifespan},
    runtime::{BootFailure, Runtime, UpgradeCommand},
    supervisor_event::{ForkedWorker, SupervisorEvent},
};
pub(crate) use self::{lifespan::Shutdown, runtime::AppInfo};
use crate::{
    BoxError,
    log::terminal,
    settings::{Declared, TableSpec},
    worker::WorkerSeed,
};

type Prepare = dyn Fn(&SetupContext<'_>) -> Result<(), BoxError>;
type Check = dyn Fn(&SetupContext<'_>) -> Result<Vec<String>, BoxError>;
type Migrate = dyn FnOnce(&SetupContext<'_>) -> Result<Vec<String>, BoxError>;

/// The exit code of a program that did what it was asked. Exit codes are numbers up to the end of
/// [`App::exit_code_from`], because the number of an [`ExitCode`] cannot be read.
const SUCCESS: u8 = 0;

/// The exit codes of a program that ends with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum ProgramExit {
    Failure = 1,
    Usage = 2,
    NoWorkerReady = 3,
    Bind = 4,
    Refused = 5,
}

impl From<ProgramExit> for u8 {
    fn from(exit: ProgramExit) -> Self {
        exit as Self
    }
}

/// A program that oxicorn supervises. It has the factory that builds the service in each worker, and the program's own
/// settings, arguments and hooks.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use axum::{Router, routing::get};
/// use oxicorn::{App, WorkerContext};
///
/// fn main() -> ExitCode {
///     App::new(factory)
///         .name(env!("CARGO_PKG_NAME"))
///         .version(env!("CARGO_PKG_VERSION"))
///         .default_setting("server.bind", ":9000")
///         .run()
/// }
///
/// async fn factory(_worker: WorkerContext) -> Result<Router, std::io::Error> {
///     Ok(Router::new().route("/", get(async || "hello\n")))
/// }
/// ```
#[must_use = "an App does nothing until it is run"]
pub struct App {
    work: Box<dyn FnOnce(WorkerSeed) -> u8>,
    prepare: Box<Prepare>,
    migrate: Option<Box<Migrate>>,
    check: Option<Box<Check>>,
    declared: Declared,
    /// The defaults of [`App::default_setting`]: each has a key (`section.key`) and a value in the form of an
    /// environment variable.
    default_settings: Vec<(&'static str, String)>,
    info: AppInfo,
}

impl App {
    /// Makes a program from a factory. Each worker calls the factory once, after the fork and inside the runtime of the
    /// worker. The factory returns a service (an axum `Router`, or any cloneable tower service), or a [`Lifespan`]
    /// around a service. [`FactoryOutput`] describes the types that are allowed. If the factory returns an error or
    /// panics, the worker fails to boot, and the log has the message.
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

    /// Sets the name of the program, in lower case and without blanks. The output of `--version`, error messages and
    /// the titles that `ps` shows begin with this name. The name is also the default of `process.name`. Without this
    /// call the name is `oxicorn`.
    ///
    /// # Panics
    /// If the name is empty, or has a blank, a control character or a bidirectional control.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        let is_wrong = |c: char| c.is_whitespace() || terminal::is_unsafe(c);
        assert!(!name.is_empty(), "App::name: the name of the program is empty");
        assert!(!name.contains(is_wrong), "App::name: {name:?} has a blank or a control character");
        self.info.program.name = name;
        self
    }

    /// Sets the version that `--version` prints. The default is oxicorn's own version.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.info.program.version = version.into();
        self
    }

    /// Sets a default for the setting `section.key`. This default replaces the built-in default. The settings file, the
    /// environment and the command line override it. The value has the form that it has in the environment: `"2m"`,
    /// `"true"`, `":9000"`. A relative file path is resolved against the folder of the settings file. The command
    /// `config` shows the value as `default (<name of the program>)`. If a key is set twice, the later value counts. A
    /// key that does not exist, or a value that is refused, is an error of the settings: the program ends with exit
    /// code 2.
    pub fn default_setting(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.default_settings.push((key, value.into()));
        self
    }

    /// Declares a positional argument of the program. The operator writes its value after the name of the program:
    /// `program VALUE` or `program run VALUE`. The commands `check`, `config` and `migrate` take the argument too.
    /// `name` is its name in the help, usually in capitals. The operator may leave an argument out.
    /// [`SetupContext::arguments`] and [`WorkerContext::arguments`] return the arguments that were given; reloads and
    /// upgrades do not change them.
    ///
    /// In a program with a positional argument, a mistyped command counts as the value of the argument: `program
    /// statsu` starts a service with the value `statsu`. So check the value in [`prepare`](Self::prepare). The operator
    /// cannot give a value that begins with `-`, because such a word is read as a flag. The words after `--` are
    /// reserved.
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
    ///
    /// # Panics
    /// If `name` is empty, or is the name of another argument, of a command or of a flag of oxicorn. Each of these
    /// cases is a mistake in the program.
    pub fn positional(mut self, name: &'static str, help: &'static str) -> Self {
        self.info.program.add_positional(name, help);
        self
    }

    /// Adds a command to the help, for a program whose starter runs this command itself and does not come here with it.
    ///
    /// # Panics
    /// If oxicorn has a command with this name, or if it is added twice.
    pub fn command(mut self, name: &'static str, help: &'static str) -> Self {
        self.info.program.add_command(name, help);
        self
    }

    /// Declares a table of the settings file that belongs to the app. oxicorn checks and shows this table as it does
    /// its own tables. An unknown key is an error if `T` denies unknown keys. The variable `OXICORN_<NAME>__<KEY>` of
    /// the environment overrides the key in the file. If the file does not have the table, `T` is read from an empty
    /// table. The factory gets the value from [`WorkerContext::table`].
    ///
    /// A variable of the environment cannot set a key inside a nested table (`[greeter.colours]`), nor a whole number
    /// above `i64::MAX`.
    ///
    /// ```no_run
    /// # use std::{convert::Infallible, process::ExitCode};
    /// # use axum::{Router, routing::get};
    /// # use oxicorn::{App, WorkerContext};
    /// /// The table `[greeter]` of supervisor.toml.
    /// #[derive(serde::Deserialize)]
    /// #[serde(deny_unknown_fields, default)]
    /// struct Greeter {
    ///     greeting: String,
    /// }
    ///
    /// impl Default for Greeter {
    ///     fn default() -> Self {
    ///         Self { greeting: "hello".into() }
    ///     }
    /// }
    ///
    /// fn main() -> ExitCode {
    ///     App::new(factory).table::<Greeter>("greeter").run()
    /// }
    ///
    /// async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
    ///     let greeter = worker.table::<Greeter>();
    ///     Ok(Router::new().route("/", get(async move || greeter.greeting.clone())))
    /// }
    /// ```
    ///
    /// # Panics
    /// If `name` is one of the supervisor's own tables, or if another table has the same name or the same type. Each of
    /// these cases is a mistake in the program.
    pub fn table<T: DeserializeOwned + Send + Sync + 'static>(self, name: &'static str) -> Self {
        self.table_spec(TableSpec::new::<T>(name))
    }

    /// Declares a table as [`table`](Self::table) does. A [`TableSpec`] can also declare environment variables with
    /// names of the app's choice, and keys whose value is the name of a file that holds the real value.
    ///
    /// # Panics
    /// If [`table`](Self::table) would panic with the same name and type.
    pub fn table_spec(mut self, spec: TableSpec) -> Self {
        for other in &self.declared.tables {
            spec.assert_differs(other);
        }
        self.declared.tables.push(spec);
        self
    }

    /// Adds a hook that runs in the master, with the master's rights. It runs before the first worker is forked, and
    /// again before the new workers of each reload and each upgrade. If the hook returns an error or panics at the
    /// start, the program ends with exit code 3. If that happens at a reload or an upgrade, the reload or the upgrade
    /// is refused, and the service continues as before. The hook must be safe to repeat while the service runs, and
    /// must not block the master for long. It counts as an error if the hook leaves a thread behind, because a process
    /// with two threads cannot fork a worker.
    ///
    /// ```no_run
    /// # use std::{convert::Infallible, io, path::Path, process::ExitCode};
    /// # use axum::Router;
    /// # use oxicorn::{App, SetupContext, WorkerContext};
    /// # async fn factory(_: WorkerContext) -> Result<Router, Infallible> { Ok(Router::new()) }
    /// fn main() -> ExitCode {
    ///     App::new(factory).prepare(prepare).run()
    /// }
    ///
    /// /// Makes a folder that the workers cannot make, because they have the rights of `process.user`.
    /// fn prepare(setup: &SetupContext<'_>) -> io::Result<()> {
    ///     setup.make_folder(&setup.state_path(Path::new("uploads")))
    /// }
    /// ```
    pub fn prepare<E: Into<BoxError>>(mut self, hook: impl Fn(&SetupContext<'_>) -> Result<(), E> + 'static) -> Self {
        self.prepare = Box::new(move |setup| hook(setup).map_err(Into::into));
        self
    }

    /// Adds a hook to the command `check`, to verify what the program can verify without a worker. The command calls
    /// the hook only if the settings are valid, and prints the lines that the hook returns. If the hook returns an
    /// error or panics, the command ends with exit code 2. The hook runs in the process of the command, with the rights
    /// of the operator, and should change nothing.
    pub fn check<E: Into<BoxError>>(
        mut self,
        hook: impl Fn(&SetupContext<'_>) -> Result<Vec<String>, E> + 'static,
    ) -> Self {
        self.check = Some(Box::new(move |setup| hook(setup).map_err(Into::into)));
        self
    }

    /// Adds the hook of the command `migrate`, which makes a database ready for the workers. Operators run this command
    /// before a release, and the service may be running then. The hook returns one line for each thing that it did. The
    /// hook runs in a tokio runtime of its own, after [`prepare`](Self::prepare) and with the rights of a worker,
    /// without a master or sockets. If the hook returns an error or panics, the command ends with exit code 5.
    /// Deployments start the command in several places at once, so the hook should be idempotent.
    ///
    /// ```no_run
    /// # use std::{convert::Infallible, io, process::ExitCode};
    /// # use axum::Router;
    /// # use oxicorn::{App, SetupContext, WorkerContext};
    /// # async fn factory(_: WorkerContext) -> Result<Router, Infallible> { Ok(Router::new()) }
    /// # async fn create_the_index() -> io::Result<()> { Ok(()) }
    /// fn main() -> ExitCode {
    ///     App::new(factory).migrate(migrate).run()
    /// }
    ///
    /// async fn migrate(_setup: &SetupContext<'_>) -> io::Result<Vec<String>> {
    ///     create_the_index().await?;
    ///     Ok(vec!["the index is there".to_owned()])
    /// }
    /// ```
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

    /// Sets the runtime of another language that drives the workers, such as an interpreter: see [`Runtime`].
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.info.runtime = Box::new(runtime);
        self
    }
}

/// Makes an [`App`] from a factory and runs the app. This function is for a program that sets no name, settings or
/// hooks of its own.
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
