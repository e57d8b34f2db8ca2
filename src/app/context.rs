//! The contexts through which the supervisor informs the hooks and the factory of an app.
//!
//! Owns: the types of these contexts. Refuses: to find out the facts in them, which `settings` and `scoreboard` supply.

use std::{
    future::{Future, pending},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    scoreboard::Row,
    settings::{Resolved, Settings},
    sys::process,
    worker::{AppReport, BackgroundCount, BackgroundWork},
};

/// The context of the hooks [`App::prepare`](crate::App::prepare), [`App::migrate`](crate::App::migrate) and
/// [`App::check`](crate::App::check). It gives a hook the settings and arguments of the program, and makes folders and
/// files for the workers.
///
/// ```
/// use std::{io, path::Path};
///
/// use oxicorn::SetupContext;
///
/// fn prepare(setup: &SetupContext<'_>) -> io::Result<()> {
///     if let Some(running) = setup.running() {
///         // This is a reload or an upgrade: the service runs with the settings of `running`.
///         assert_eq!(running.settings().process.name, setup.settings().process.name);
///     }
///     setup.make_folder(&setup.state_path(Path::new("uploads")))
/// }
/// # let _ = oxicorn::App::new(async |_| Ok::<_, io::Error>(axum::Router::new())).prepare(prepare);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SetupContext<'a> {
    pub(super) resolved: &'a Resolved,
    pub(super) running: Option<&'a Resolved>,
    pub(super) arguments: &'a [String],
}

impl SetupContext<'_> {
    /// Returns the supervisor's settings. At a reload or an upgrade they are the new settings, which the new workers
    /// get.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// Returns the app's own table, as [`WorkerContext::table`] does.
    ///
    /// # Panics
    /// If no table of this type was declared, which is a mistake in the program.
    #[must_use]
    pub fn table<T: Send + Sync + 'static>(&self) -> Arc<T> {
        table(self.resolved)
    }

    /// Returns the app's own table of the type `T`; `None` if no table of this type was declared.
    #[must_use]
    pub fn try_table<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.resolved.tables.get()
    }

    /// Returns the values of the arguments that the program declares, as [`WorkerContext::arguments`] does.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        self.arguments
    }

    /// Resolves the path of a file that the app reads, as [`WorkerContext::path`] does.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.folder.join(path)
    }

    /// Resolves the path of a file that the app writes, as [`WorkerContext::state_path`] does.
    #[must_use]
    pub fn state_path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.state_folder.join(path)
    }

    /// Returns the context of the service that runs now, with the settings that the reload or the upgrade will replace.
    /// The result is `None` at a start, in `migrate` and in `check`.
    #[must_use]
    pub fn running(&self) -> Option<SetupContext<'_>> {
        let arguments = self.arguments;
        self.running.map(|resolved| SetupContext { resolved, running: None, arguments })
    }

    /// Makes a folder and the missing folders above it, with mode 0750. The folders that it makes belong to
    /// `process.user` and `process.group`. A folder that exists stays as it is.
    ///
    /// # Errors
    /// The errors of `mkdir(2)` and `chown(2)`: missing rights, no space, or a file with that name.
    pub fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let (uid, gid) = self.owner();
        process::make_folder(folder, 0o750, uid, gid)
    }

    /// Makes an empty file with mode 0644 less the umask. The file belongs to `process.user` and `process.group`. A
    /// file that exists stays as it is.
    ///
    /// # Errors
    /// The errors of `open(2)` and `chown(2)`: missing rights, no space, or no such folder.
    pub fn make_file(&self, path: &Path) -> io::Result<()> {
        let (uid, gid) = self.owner();
        process::make_file(path, uid, gid)
    }

    /// Returns the user and the group that `process` sets for the workers; `None` means the user or the group of the
    /// master.
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

/// The context that the factory gets. It tells what the worker knows about itself, and signals that the worker must
/// stop or drain. The context is cheap to clone, so an app can keep it in its state.
///
/// ```
/// use std::convert::Infallible;
///
/// use axum::{Router, extract::State, http::StatusCode, routing::get};
/// use oxicorn::WorkerContext;
///
/// async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
///     tokio::spawn({
///         let draining = worker.draining();
///         async move {
///             draining.await;
///             // Close long-lived connections here, such as web sockets.
///         }
///     });
///     Ok(Router::new().route("/ready", get(ready)).with_state(worker))
/// }
///
/// /// Answers 503 once the whole service was asked to stop, so that load balancers send their requests elsewhere.
/// async fn ready(State(worker): State<WorkerContext>) -> StatusCode {
///     if worker.is_stopping() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
/// }
/// # let _ = oxicorn::App::new(factory);
/// ```
#[derive(Clone, Debug)]
pub struct WorkerContext {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) arguments: Arc<[String]>,
    pub(crate) row: Row,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) background: BackgroundCount,
    pub(crate) report: AppReport,
}

impl WorkerContext {
    /// Returns the number of the worker's slot, 0..N. When the worker is replaced, the next worker has the same slot.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Returns the worker's generation, which is the number of the set of settings and program that the worker runs
    /// with. It begins at 1, and each reload and each upgrade makes the next one.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the pid of this process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Returns the supervisor's settings that this worker's generation runs with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// Returns the app's own table, declared with [`App::table`](crate::App::table).
    ///
    /// # Panics
    /// If no table of this type was declared. This is a mistake in the program, and the worker reports it as a boot
    /// failure.
    #[must_use]
    pub fn table<T: Send + Sync + 'static>(&self) -> Arc<T> {
        table(&self.resolved)
    }

    /// Returns the app's own table of the type `T`; `None` if no table of this type was declared.
    #[must_use]
    pub fn try_table<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.resolved.tables.get()
    }

    /// Returns the values of the arguments that the program declares with [`App::positional`](crate::App::positional),
    /// in the order of their declaration. Arguments that the operator left out are missing.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Returns the text that the runtime has recorded with the settings of this worker's generation: see
    /// [`ForeignSettings::file`](crate::settings::ForeignSettings::file). `None` if it has recorded none.
    #[must_use]
    pub fn foreign(&self) -> Option<&str> {
        self.resolved.foreign()
    }

    /// Resolves the path of a file that the app reads, such as a path that the app's own table names. A relative path
    /// is resolved against the folder of the settings file. If there is no such file, it is resolved against the folder
    /// in which the program was started.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.folder.join(path)
    }

    /// Resolves the path of a file that the app writes, such as a database. A relative path is resolved against
    /// `$STATE_DIRECTORY` if a service manager sets this variable, as systemd does for `StateDirectory=`. If the
    /// variable names several folders, the first one counts. Without the variable, a relative path is resolved against
    /// the same folder as in [`path`](Self::path).
    #[must_use]
    pub fn state_path(&self, path: &Path) -> PathBuf {
        self.resolved.settings.state_folder.join(path)
    }

    /// Returns a future that completes when the whole service was asked to stop, before `workers.shutdown_delay`
    /// begins. From then on a URL path such as `/ready` should answer 503. The future does not complete in a worker
    /// that drains for a recycle, a reload or a scale-down.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.stopping.clone())
    }

    /// Returns a future that completes when this worker was asked to drain, for any reason. When it completes, the app
    /// should close long-lived connections.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.draining.clone())
    }

    /// Returns true once the whole service was asked to stop: see [`stopping`](Self::stopping).
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow() || self.row.told_stopping()
    }

    /// Returns true once this worker was asked to drain: see [`draining`](Self::draining).
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow() || self.row.told_drain()
    }

    /// Counts work that continues after the response of its request, until the returned guard is dropped. A drain waits
    /// for this work, but not longer than until the end of the grace.
    ///
    /// ```
    /// # async fn send_mail() {}
    /// # fn handler(worker: &oxicorn::WorkerContext) {
    /// let work = worker.background_work();
    /// tokio::spawn(async move {
    ///     send_mail().await;
    ///     drop(work);
    /// });
    /// # }
    /// ```
    pub fn background_work(&self) -> BackgroundWork {
        self.background.begin()
    }

    /// Reports that all of an app that runs beside the serving loop, on threads of its own, has stood still for `age`;
    /// `None` means that it works again. The loop of such an app makes its heartbeats whatever the app does. While an
    /// app stands still, the worker counts as silent for `age`: its siblings accept its connections, and the master
    /// replaces it if `age` is `workers.timeout` or longer.
    pub fn app_stands_still(&self, age: Option<Duration>) {
        self.report.stands_still(age);
    }

    /// Reports whether an app that runs beside the serving loop is busy: a further request would have to wait. While
    /// it is, new connections go to the workers whose app is not busy. If all are busy, each takes its part.
    pub fn app_is_busy(&self, busy: bool) {
        self.report.set_busy(busy);
    }

    /// Returns the number of requests that this worker has begun and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.row.in_flight()
    }

    /// Returns the number of connections that this worker holds open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.row.connections()
    }
}

async fn raised(mut flag: watch::Receiver<bool>) {
    // An error means that the sender was dropped, so nothing can raise the flag any more. The sender of a worker exists
    // as long as the process of the worker. So this is a unit test that has dropped its `WorkerSignals` or has built
    // none.
    if flag.wait_for(|up| *up).await.is_err() {
        pending().await
    }
}
