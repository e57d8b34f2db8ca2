//! What a user's program sees: `App`, the context its factory is given, and the lifespan it gives back.
//!
//! Owns: the public types of embedding, and what a command line becomes: a command, an exit code. Refuses: how workers
//! run (`worker`), how they are kept alive (`master`).

mod check;
mod runtime;

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
};

use clap::Parser;
use serde::de::DeserializeOwned;
use tokio::{runtime::Builder, sync::watch};
use tower_service::Service;

pub(crate) use self::runtime::AppInfo;
pub use self::runtime::{BootFailure, Runtime, UpgradeCommand};
use crate::{
    cli::{Cli, Command, Format, Place},
    ctl, error_chain, log,
    master::{self, Handover, Origins, Outcome, SettingsLoader},
    protocol,
    scoreboard::Row,
    settings::{
        self, Flags, Origin, Problem, Problems, Purpose, Resolved, Settings, Sources, StartFolder, TableSpec,
        Whereabouts,
    },
    sys::{fork, inherited, process, title},
    worker::{self, Body, WorkerSeed},
};

type BoxError = Box<dyn Error + Send + Sync>;
type Prepare = dyn Fn(&Preparation<'_>) -> Result<(), BoxError>;
type Migrate = dyn FnOnce(&Preparation<'_>) -> Result<Vec<String>, BoxError>;

/// How a program ends.
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
    tables: Vec<TableSpec>,
    info: AppInfo,
}

impl App {
    /// `factory` is called once in every worker, after the fork and inside the worker's runtime. It returns a service
    /// (an axum `Router`, or any cloneable tower service), or a [`Lifespan`] around one. Its error or panic is a boot
    /// failure, with its message in the log.
    pub fn new<F, Fut, L, S, B, E>(factory: F) -> Self
    where
        F: FnOnce(WorkerContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<L, E>> + Send + 'static,
        L: IntoLifespan<Service = S> + 'static,
        S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        Self {
            work: Box::new(move |seed| worker::run(seed, factory)),
            prepare: Box::new(|_| Ok(())),
            migrate: None,
            tables: Vec::new(),
            info: AppInfo::default(),
        }
    }

    /// Declares a table of the settings file as the app's own. It is checked, overridable and shown like the
    /// supervisor's: unknown keys are errors if `T` denies them, and `OXICORN_<NAME>__<KEY>` overrides. The factory
    /// reads it by [`WorkerContext::table`].
    ///
    /// # Panics
    /// When the name is one of the supervisor's own.
    pub fn table<T: DeserializeOwned + Send + Sync + 'static>(self, name: &'static str) -> Self {
        self.table_spec(TableSpec::new::<T>(name))
    }

    /// [`table`](Self::table), for one that also listens to environment variables of other names.
    pub fn table_spec(mut self, spec: TableSpec) -> Self {
        self.tables.push(spec);
        self
    }

    /// What needs the rights of the master, which workers may not have: done before the first of them, and again before
    /// those of each reload and upgrade, which an error refuses. At the start an error ends it with exit code 3. What it
    /// does must bear being repeated while the service runs.
    pub fn prepare<E: Into<BoxError>>(mut self, hook: impl Fn(&Preparation<'_>) -> Result<(), E> + 'static) -> Self {
        self.prepare = Box::new(move |preparation| hook(preparation).map_err(Into::into));
        self
    }

    /// What the command `migrate` does, before a release and beside a service that runs: make a database ready for the
    /// workers. It returns a line for each thing it did. It runs in a tokio runtime of its own, after
    /// [`prepare`](Self::prepare) and with the rights of a worker, without master or sockets. An error ends the command
    /// with exit code 5. As deployments start it in several places at once, it should be idempotent.
    pub fn migrate<E: Into<BoxError>>(
        mut self,
        hook: impl AsyncFnOnce(&Preparation<'_>) -> Result<Vec<String>, E> + 'static,
    ) -> Self {
        self.migrate = Some(Box::new(move |preparation| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let done = runtime.block_on(hook(preparation)).map_err(Into::into);
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

    /// Reads the command line and does what it says. In the master this returns when all is over; in a worker, when
    /// that worker is. Return the exit code from `main`, and start no thread (no `#[tokio::main]`) before.
    pub fn run(self) -> ExitCode {
        title::prepare();
        match fork::thread_count() {
            Ok(0 | 1) | Err(_) => {}
            Ok(threads) => {
                return refuse(&format!(
                    "the process already has {threads} threads, and what is forked from it could wait for their locks \
                     for ever; call App::run from a plain main, not from #[tokio::main]"
                ));
            }
        }
        let handover = match Handover::receive() {
            Some(Ok(handover)) => Some(handover),
            Some(Err(exit)) => return exit,
            None => None,
        };
        // The program that hands over to us has blocked signals on purpose.
        let inherited = if handover.is_none() { inherited::reset() } else { Vec::new() };
        let cli = match Cli::try_parse() {
            Ok(cli) => cli,
            Err(wrong) if handover.is_some() => {
                let wrong = wrong.to_string();
                let sentence = wrong.lines().next().unwrap_or_default();
                return handover.map_or(ExitCode::SUCCESS, |handover| handover.refuse(sentence));
            }
            Err(help) => {
                // Nobody to tell when the terminal is gone.
                let _ = help.print();
                return ExitCode::from(u8::try_from(help.exit_code()).unwrap_or(Exit::Usage as u8));
            }
        };
        let (command, flags) = cli.split();
        if let Some(handover) = handover {
            return self.succeed(handover, flags);
        }
        self.obey(command, flags, &inherited)
    }

    /// Does what one command says, `run` among them.
    fn obey(self, command: Command, flags: Flags, inherited: &[String]) -> ExitCode {
        if let Some(page) = command.page() {
            // An error means that the reader, such as head, has seen enough.
            let _ = page.and_then(|page| io::stdout().write_all(&page));
            return ExitCode::SUCCESS;
        }
        let start = StartFolder::here();
        let environment = settings::environment();
        let resolve = |tables: &[TableSpec], purpose| settings::resolve(&flags, &environment, &start, tables, purpose);
        let control = |socket, act: &dyn Fn(&ctl::Place) -> Result<(), ctl::Failed>| match place(
            socket,
            &flags,
            &environment,
            &start,
        ) {
            Ok(place) => end(act(&place)),
            Err(problems) => refuse(&problems.to_string()),
        };
        let ask = |at: Place, command: &protocol::Command, json| {
            control(at.socket, &|place| ctl::ask(place, command.clone(), json))
        };
        match command {
            Command::Run(_) => match resolve(&self.tables, Purpose::Serve) {
                Ok(resolved) => self.supervise(resolved, flags, inherited),
                Err(problems) => refuse(&problems.to_string()),
            },
            Command::Check { deep, json, .. } => {
                let resolved = resolve(&self.tables, Purpose::Serve);
                let place = resolved.is_ok().then(|| place(None, &flags, &environment, &start).ok()).flatten();
                self.check(resolved, place.as_ref(), deep, json)
            }
            Command::Config { running: true, socket, json, .. } => {
                control(socket, &|place| ctl::print_running(place, json))
            }
            Command::Config { socket, json, .. } => {
                let is_named = socket.is_some();
                let place = place(socket, &flags, &environment, &start);
                match (resolve(&self.tables, Purpose::Ask), place) {
                    (Ok(_), Err(problems)) if is_named => refuse(&problems.to_string()),
                    (Ok(resolved), place) => {
                        let differs = place.ok().and_then(|place| ctl::differs(&place, &resolved.to_map()));
                        print_settings(&resolved, differs, json)
                    }
                    (Err(problems), _) => refuse(&problems.to_string()),
                }
            }
            Command::Status { place, json, format, watch } => {
                let format = if json { Format::Json } else { format };
                control(place.socket, &|place| ctl::status(place, format, watch))
            }
            Command::Scale { place, workers, json } => ask(place, &protocol::Command::Scale(workers), json),
            Command::Reload { place, json } => ask(place, &protocol::Command::Reload, json),
            Command::Upgrade { place, program, json } => {
                match program.map(|program| start.join(Path::new(&program))).transpose() {
                    Ok(program) => {
                        let program = program.map(|program| program.to_string_lossy().into_owned());
                        ask(place, &protocol::Command::Upgrade { program }, json)
                    }
                    Err(sentence) => refuse(&sentence),
                }
            }
            Command::Stop { place, now, json } => ask(place, &protocol::Command::Stop { now }, json),
            Command::Migrate { json, .. } => match resolve(&self.tables, Purpose::Ask) {
                Ok(resolved) => self.migrate_once(&resolved, json),
                Err(problems) => refuse(&problems.to_string()),
            },
            Command::Health { place, url } => {
                let read = || resolve(&self.tables, Purpose::Ask).ok().map(|resolved| resolved.settings);
                control(place.socket, &|place| ctl::health(url.as_deref(), place, &read))
            }
            // Printed before anything was read.
            Command::Completions { .. } | Command::Man => ExitCode::SUCCESS,
        }
    }

    fn migrate_once(self, resolved: &Resolved, json: bool) -> ExitCode {
        let Some(migrate) = self.migrate else {
            return refuse("there is nothing to migrate: this program has no App::migrate hook");
        };
        if let Err(error) = log::configure(&resolved.settings.log) {
            return refuse(&error_chain(&error));
        }
        let preparation = Preparation { resolved, running: None };
        let done = (self.prepare)(&preparation)
            .and_then(|()| worker::take_rights(&resolved.settings.process).map_err(Into::into))
            .and_then(|()| migrate(&preparation));
        match done {
            Ok(lines) if json => println!("{}", serde_json::json!({ "ok": true, "done": lines })),
            Ok(lines) if lines.is_empty() => println!("nothing to do"),
            Ok(lines) => println!("{}", lines.join("\n")),
            Err(error) => {
                let reason = error_chain(error.as_ref());
                if json {
                    println!("{}", serde_json::json!({ "ok": false, "reason": reason }));
                }
                refuse(&reason);
                return Exit::Refused.into();
            }
        }
        ExitCode::SUCCESS
    }

    fn supervise(self, resolved: Resolved, flags: Flags, inherited: &[String]) -> ExitCode {
        if let Err(error) = log::configure(&resolved.settings.log) {
            return refuse(&error_chain(&error));
        }
        for found in inherited {
            tracing::warn!(event = "inherited_state", "inherited from the program that started this one: {found}");
        }
        settings::say_warnings(&resolved.warnings);
        if let Err(error) = (self.prepare)(&Preparation { resolved: &resolved, running: None }) {
            let reason = error_chain(error.as_ref());
            tracing::error!(
                event = "boot_failed",
                reason,
                "what workers need could not be prepared; the master gives up"
            );
            return Exit::NoWorkerReady.into();
        }
        self.master(resolved, flags, Origins::Nothing)
    }

    /// In the place of another program, or to show that it could be.
    fn succeed(self, handover: Handover, flags: Flags) -> ExitCode {
        let start = handover.start_folder();
        start.enter();
        let (resolved, kept) = match self.resolve_as(&handover, &flags, &start) {
            Ok(resolved) => resolved,
            Err(reason) => return handover.refuse(&reason),
        };
        if handover.is_preflight() {
            return match handover.try_on(resolved, Rc::new(self.info)) {
                Ok(seed) => (self.work)(seed),
                Err(reason) => handover.refuse(&reason),
            };
        }
        if let Err(error) = log::go_on(&resolved.settings.log, handover.log(), handover.access_log()) {
            return handover.refuse(&error_chain(&error));
        }
        // The old program said its own when it started.
        if !handover.is_return() {
            settings::say_warnings(&resolved.warnings);
        }
        self.master(resolved, flags, Origins::Handover { handover: Box::new(handover), kept })
    }

    fn resolve_as(
        &self,
        handover: &Handover,
        flags: &Flags,
        start: &StartFolder,
    ) -> Result<(Resolved, Vec<&'static str>), String> {
        let environment = handover.environment();
        let mut resolved =
            settings::resolve_from(handover.sources(), flags, &environment, start, &self.tables, Purpose::Serve)
                .map_err(|problems| problems.to_string().replace('\n', "; "))?;
        let kept = handover.fix(&mut resolved);
        if handover.is_return() {
            // The old program prepared when it started.
            resolved = handover.pinned(resolved);
        } else {
            let (sources, before) = handover.running();
            let running = settings::resolve_from(sources, flags, &environment, &before, &self.tables, Purpose::Serve);
            // This program may not understand the old settings; then there is nothing to compare with.
            let running = running.ok().map(|running| handover.pinned(running));
            let preparation = Preparation { resolved: &resolved, running: running.as_ref() };
            (self.prepare)(&preparation).map_err(|error| error_chain(error.as_ref()))?;
        }
        Ok((resolved, kept))
    }

    fn master(self, resolved: Resolved, flags: Flags, origins: Origins) -> ExitCode {
        let Self { work, prepare, tables, info, migrate: _ } = self;
        log::take_panics("a panic in the master: a bug in oxicorn; the master ends");
        let load = SettingsLoader {
            app: Rc::new(info),
            read: Box::new(move |running| {
                let sources = Sources::after(running.file.is_some(), running.sources.texts());
                let start = StartFolder::at(running.start.path());
                settings::resolve_from(sources, &flags, &settings::environment(), &start, &tables, Purpose::Serve)
                    .map_err(|problems| problems.to_string().replace('\n', "; "))
            }),
            prepare: Box::new(move |resolved, running| {
                let preparation = Preparation { resolved, running: Some(running) };
                prepare(&preparation).map_err(|error| error_chain(error.as_ref()))
            }),
        };
        match master::run(resolved, load, origins) {
            Ok(Outcome::Stopped) => ExitCode::SUCCESS,
            Ok(Outcome::NoWorkerReady) => Exit::NoWorkerReady.into(),
            Ok(Outcome::Worker(seed)) => work(*seed),
            Err(error) => {
                tracing::error!(event = "master_failed", reason = error_chain(&error), "the master cannot go on");
                match error {
                    master::MasterError::Bind(_) => Exit::Bind.into(),
                    _ => Exit::Failure.into(),
                }
            }
        }
    }
}

/// [`App::new`] and [`App::run`] in one, for an app without a table.
pub fn main<F, Fut, L, S, B, E>(factory: F) -> ExitCode
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoLifespan<Service = S> + 'static,
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    App::new(factory).run()
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("tables", &self.tables).finish_non_exhaustive()
    }
}

/// How a command to a running service ended.
fn end(done: Result<(), ctl::Failed>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The status was printed, and says so.
        Err(ctl::Failed::NotAllServe) => Exit::Failure.into(),
        Err(failed) => {
            let exit = match failed {
                ctl::Failed::Refused(_) | ctl::Failed::NotAllServe => Exit::Failure,
                ctl::Failed::Ambiguous(_) => Exit::Usage,
            };
            refuse(&failed.to_string());
            exit.into()
        }
    }
}

/// Where to ask the service that these flags, this environment and this folder mean.
fn place(
    socket: Option<PathBuf>,
    flags: &Flags,
    environment: &BTreeMap<String, String>,
    start: &StartFolder,
) -> Result<ctl::Place, Problems> {
    let is_named = socket.is_some();
    let socket = socket.map(|socket| start.join(&socket)).transpose();
    let socket =
        socket.map_err(|message| Problems(vec![Problem::at(Origin::Flag("--socket"), "control.socket", message)]))?;
    let whereabouts = Whereabouts::find(flags, environment, start, is_named)?;
    Ok(ctl::Place::of(socket, whereabouts))
}

fn print_settings(resolved: &Resolved, differs: Option<ctl::Differs>, json: bool) -> ExitCode {
    match (differs, json) {
        (None, true) => print!("{}", resolved.to_json()),
        (None, false) => print!("{}", resolved.to_toml()),
        (Some(ctl::Differs { service, keys }), true) => {
            let mut map = resolved.to_object();
            map.insert("running".to_owned(), serde_json::json!({ "service": service, "differs": keys }));
            print!("{:#}", serde_json::Value::Object(map));
        }
        (Some(ctl::Differs { service, keys }), false) => {
            let keys = keys.join(", ");
            println!("# {service} runs with other values of {keys}: see oxicorn config --running\n");
            print!("{}", resolved.to_toml());
        }
    }
    ExitCode::SUCCESS
}

fn refuse(sentence: &str) -> ExitCode {
    for line in sentence.lines() {
        eprintln!("oxicorn: error: {line}");
    }
    Exit::Usage.into()
}

/// What [`App::prepare`] may know and do.
#[derive(Clone, Copy, Debug)]
pub struct Preparation<'a> {
    resolved: &'a Resolved,
    running: Option<&'a Resolved>,
}

impl Preparation<'_> {
    /// The supervisor's effective settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// As [`WorkerContext::table`].
    ///
    /// # Panics
    /// When no table of this type was declared.
    #[must_use]
    pub fn table<T: Send + Sync + 'static>(&self) -> Arc<T> {
        table(self.resolved)
    }

    /// As [`WorkerContext::path`].
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.folder.join(path)
    }

    /// The path of a file that the app writes, as [`WorkerContext::state_path`] has it.
    #[must_use]
    pub fn state_path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.state_folder.join(path)
    }

    /// The settings in effect, which these are to replace at a reload or an upgrade. `None` at a start, and in `migrate`.
    #[must_use]
    pub fn running(&self) -> Option<Preparation<'_>> {
        self.running.map(|resolved| Preparation { resolved, running: None })
    }

    /// Makes a folder and those above it, mode 0750, and gives what it made to `process.user` and `process.group`.
    /// What exists is left as it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let (uid, gid) = self.owner();
        process::make_folder(folder, 0o750, uid, gid)
    }

    /// Makes an empty file, mode 0644 less the umask, and gives it to `process.user` and `process.group`. What exists is
    /// left as it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn make_file(&self, path: &Path) -> io::Result<()> {
        let (uid, gid) = self.owner();
        process::make_file(path, uid, gid)
    }

    /// Of the workers, where that is not us.
    fn owner(&self) -> (Option<u32>, Option<u32>) {
        let process = &self.settings().process;
        let uid = process.user.as_ref().map(|user| user.uid);
        let gid = process.group.as_ref().map(|group| group.gid).or(process.user.as_ref().map(|user| user.gid));
        (uid, gid)
    }
}

fn table<T: Send + Sync + 'static>(resolved: &Resolved) -> Arc<T> {
    resolved.tables.get().unwrap_or_else(|| {
        panic!("no table of type {0} was declared: call App::table::<{0}>(\"name\")", std::any::type_name::<T>())
    })
}

/// What the supervisor tells the factory about the worker it runs in. Cheap to clone; keep one in your state.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) row: Row,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) draining: watch::Receiver<bool>,
}

impl WorkerContext {
    /// The worker's place, 0..N. It outlives the worker: a replacement has the same slot.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Which set of settings and program this worker belongs to; a reload makes the next.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// This process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The supervisor's effective settings in this generation.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// The app's own table, declared with [`App::table`](crate::App::table).
    ///
    /// # Panics
    /// When no table of this type was declared: a mistake in the program, reported as a boot failure.
    #[must_use]
    pub fn table<T: Send + Sync + 'static>(&self) -> Arc<T> {
        table(&self.resolved)
    }

    /// The path of a file that the app reads, from a table of its own: relative to the folder of the settings file, or to
    /// where the program was started if there is none.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.folder.join(path)
    }

    /// The path of a file that the app writes, such as a database: relative to `$STATE_DIRECTORY` where a service manager
    /// sets it (systemd does for `StateDirectory=`; of several folders the first counts), else as [`path`](Self::path).
    #[must_use]
    pub fn state_path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.state_folder.join(path)
    }

    /// Completes when the whole service was asked to stop, before `workers.shutdown_delay` begins. `/ready` should
    /// answer 503 from here on. A worker that drains for a recycle, a reload or a scale-down does not see it.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.stopping.clone())
    }

    /// Completes when this worker was asked to drain, whatever the reason. Long-lived connections should say goodbye.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.draining.clone())
    }

    /// Whether [`stopping`](Self::stopping) has completed.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow() || self.row.told_stopping()
    }

    /// Whether [`draining`](Self::draining) has completed.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow() || self.row.told_drain()
    }

    /// Requests this worker has begun and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.row.in_flight()
    }

    /// Connections this worker holds open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.row.connections()
    }
}

async fn raised(mut flag: watch::Receiver<bool>) {
    // An error means the worker is past its end: whoever still waits should go too.
    let _ = flag.wait_for(|up| *up).await;
}

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service and what to do after the last request: close pools, flush, say goodbye.
pub struct Lifespan<S> {
    pub(crate) service: S,
    pub(crate) shutdown: Option<Shutdown>,
}

impl<S> Lifespan<S> {
    pub fn new(service: S) -> Self {
        Self { service, shutdown: None }
    }

    /// Runs in the worker after its drain, within what is left of `workers.graceful_timeout`.
    #[must_use]
    pub fn on_shutdown(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(hook));
        self
    }
}

impl<S> fmt::Debug for Lifespan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan").field("shutdown", &self.shutdown.is_some()).finish_non_exhaustive()
    }
}

/// What a factory may return: a bare service, or a [`Lifespan`] around one.
pub trait IntoLifespan {
    type Service;
    fn into_lifespan(self) -> Lifespan<Self::Service>;
}

impl<S> IntoLifespan for Lifespan<S> {
    type Service = S;
    fn into_lifespan(self) -> Self {
        self
    }
}

impl<S: Service<http::Request<Body>>> IntoLifespan for S {
    type Service = S;
    fn into_lifespan(self) -> Lifespan<S> {
        Lifespan::new(self)
    }
}

#[cfg(test)]
impl WorkerContext {
    /// A worker of slot 0 with default settings, for tests of services.
    pub(crate) fn for_test(tables: settings::Tables, stopping: watch::Receiver<bool>) -> Self {
        use crate::{scoreboard::Scoreboard, settings::Flags};

        let environment = std::collections::BTreeMap::new();
        let root = StartFolder::at("/");
        let nothing_given = settings::resolve(&Flags::default(), &environment, &root, &[], Purpose::Ask);
        let resolved = Resolved { tables, ..nothing_given.unwrap() };
        let row = Scoreboard::create(1, 1).unwrap().claim(0, 1, 0, 0).unwrap();
        let draining = watch::channel(false).1;
        Self { slot: 0, generation: 1, resolved: Arc::new(resolved), row, stopping, draining }
    }
}
