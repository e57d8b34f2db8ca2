//! What the hooks and the factory of an app are told.
//!
//! Owns: the contexts that a user's code gets, and what it may ask of them. Refuses: to make the facts (`settings`,
//! `scoreboard`).

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    scoreboard::Row,
    settings::{Resolved, Settings},
    sys::process,
    worker::{BackgroundCount, BackgroundWork},
};

/// What [`App::prepare`] may know and do.
#[derive(Clone, Copy, Debug)]
pub struct SetupContext<'a> {
    pub(super) resolved: &'a Resolved,
    pub(super) running: Option<&'a Resolved>,
    pub(super) arguments: &'a [String],
}

impl SetupContext<'_> {
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

    /// As [`table`](Self::table), for code that does not know whether the table was declared.
    #[must_use]
    pub fn try_table<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.resolved.tables.get()
    }

    /// As [`WorkerContext::arguments`].
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        self.arguments
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
    pub fn running(&self) -> Option<SetupContext<'_>> {
        let arguments = self.arguments;
        self.running.map(|resolved| SetupContext { resolved, running: None, arguments })
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
    pub(crate) arguments: Arc<[String]>,
    pub(crate) row: Row,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) background: BackgroundCount,
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

    /// As [`table`](Self::table), for code that does not know whether the table was declared.
    #[must_use]
    pub fn try_table<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.resolved.tables.get()
    }

    /// The program's own arguments, declared with [`App::positional`](crate::App::positional): those that were given, in
    /// the order of their declaration.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
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

    /// Counts work that outlives its response, until the guard is dropped: a drain waits for it within the grace.
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
