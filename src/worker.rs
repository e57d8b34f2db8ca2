//! A worker, from its fork to the end of its last connection.
//!
//! Owns: the order of the steps of a worker. Refuses: to watch other workers (`rescue` does).
//!
//! A new worker does not keep the master's actions for signals. It drops its privileges, sets up its signals, builds
//! the runtime and the app, and then sends the message `Ready`. It accepts its first connection only after the message
//! `Go`.

mod accept;
mod acceptors;
mod access_log;
mod app_report;
mod background_work;
mod balance;
mod connection;
mod connection_list;
mod driver;
mod forwarded;
mod heartbeat;
mod master_link;
mod own_pages;
mod peer;
mod proxy_protocol;
mod request_id;
mod rescue;
mod scanner;
mod serve;
mod shared;
mod throttle;

/// The checks that the fuzzer runs, and the types that they need.
#[cfg(fuzzing)]
pub(crate) mod fuzzed {
    pub(crate) use super::{
        proxy_protocol::assert_any_split_parses_alike,
        scanner::{
            SizeLimits,
            checks::{LIMITS, assert_hyper_sees_what_passes, assert_pieces_make_no_difference},
        },
    };
    pub(crate) use crate::settings::ProxyProtocol;
}

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    select,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until, timeout},
};

use self::{
    acceptors::Acceptors,
    access_log::AccessLog,
    master_link::{MasterLink, Order},
    rescue::SiblingWatch,
    serve::{AppBody, BoxError, Serve},
    shared::Shared,
};
pub(crate) use self::{app_report::AppReport, background_work::BackgroundCount};
pub use self::{
    background_work::BackgroundWork,
    connection::{Body, BodyError},
    driver::{DescriptorWatch, DriveError, Driven, Driver, DriverWaker},
};
use crate::{
    IntoLifespan, Lifespan, WorkerContext,
    app::{AppInfo, BootFailure, Shutdown},
    channel::ToMaster,
    error_chain,
    hook::{HookPanicked, panic_message},
    listener::Listeners,
    log,
    scoreboard::{Row, RowState, Scoreboard},
    settings::{self, Resolved},
    sys::{
        process,
        signals::{self, Blocked},
        title,
    },
};

/// How long a client may still read the rest of an answer after the drain has ended, on a connection that the worker
/// has already half closed.
const LAST_BYTES: Duration = Duration::from_millis(250);

/// How long before the end of the grace the shutdown hook is ended. The master kills the worker at the end of the
/// grace. In the time between, the worker logs what was cut.
const LAST_LINES: Duration = Duration::from_millis(100);

/// The part of the grace that is kept for the steps after the drain has cut the connections. It is at most this long,
/// and at most a quarter of the grace.
const RESERVE: Duration = Duration::from_millis(500);

/// The maximum number of lines that a worker logs of the long text of a [`BootFailure`].
const DETAILS_MAX: usize = 500;

/// If the loop of a worker hangs after a SIGTERM, SIGALRM ends the worker this long after the end of the grace.
const ALARM_SLACK: Duration = Duration::from_secs(5);

/// The environment variables by which a service manager speaks to the master. A worker removes them, because otherwise
/// the worker, or a library of the app, would act as if the variables were meant for it.
const FOR_THE_MASTER: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The exit code of a worker whose outer loop has failed.
const EXIT_FAILURE: u8 = 1;

/// The exit code of a worker that has drained.
const EXIT_DRAINED: u8 = 0;

/// The exit code of a worker that could not boot and has told the master why.
pub(crate) const EXIT_BOOT_FAILED: u8 = 3;

/// Everything that the master passes to a new worker through the fork.
#[derive(Debug)]
pub(crate) struct WorkerSeed {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) row: Row,
    pub(crate) scoreboard: Scoreboard,
    pub(crate) channel: OwnedFd,
    /// The file in which the runtime writes where the worker hangs; `None` if the master does not read it.
    pub(crate) report: Option<OwnedFd>,
    pub(crate) blocked: Blocked,
    pub(crate) master: i32,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) app: Rc<AppInfo>,
    pub(crate) listeners: Listeners,
    /// The panic of the runtime's hook after the fork, if that hook panicked. The worker then only reports this panic
    /// to the master.
    pub(crate) hook_panicked: Option<HookPanicked>,
}

impl WorkerSeed {
    /// Tells the master that a preflight is passed, without the boot of a worker. The app may be one that cannot exist
    /// beside the workers that serve (`workers.overlap = false`).
    pub(crate) fn pass_without_boot(&self) -> u8 {
        // If the message cannot be sent, the master has stopped meanwhile, and no longer needs it.
        let _ = ToMaster::Ready.send(self.channel.as_fd());
        0
    }
}

/// Runs the worker until it has drained or failed. The process must then exit with the returned code.
pub(crate) fn run<F, Fut, L, E, B>(seed: WorkerSeed, factory: F) -> u8
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoLifespan<Service: Serve<B>>,
    E: Into<BoxError>,
    B: AppBody,
{
    let WorkerSeed {
        slot,
        generation,
        row,
        scoreboard,
        channel,
        report,
        blocked,
        master,
        resolved,
        app,
        listeners,
        hook_panicked,
    } = seed;
    let channel = Arc::new(channel);
    row.begin(std::process::id());
    let (program, name) = (&app.program.name, &resolved.settings.process.name);
    title::set(&format!("{program}: worker {slot} [{name}] gen {generation}"));
    log::take_panics("a panic in the app");

    let access = AccessLog::new(log::take_access(), &resolved.settings.log, row);
    let shared = Shared::new(row, scoreboard, listeners, Arc::clone(&channel), &resolved.settings, access);
    let mut cut = (0, 0);
    let hooked = hook_panicked.map_or(Ok(()), |panicked| Err(BootError::Hook(panicked)));
    let ended = hooked.and_then(|()| become_worker(&resolved, master)).and_then(|(runtime, epoch)| {
        let entered = runtime.enter();
        let term =
            signal(SignalKind::terminate()).map_err(|source| BootError::Act { act: "listen to SIGTERM", source })?;
        // Unblock the signals only here, because from now on SIGTERM has a listener. A SIGTERM that came earlier is
        // still pending, and the kernel delivers it now.
        drop(blocked);
        let grace = resolved.settings.workers.graceful_timeout;
        let master_link = MasterLink::new(&channel, term, master, grace, shared)
            .map_err(|source| BootError::Act { act: "listen to the master", source })?;
        drop(entered);
        let context = WorkerContext {
            slot,
            generation,
            resolved,
            arguments: Arc::clone(&app.arguments),
            row,
            stopping: shared.stopping(),
            draining: shared.draining(),
            background: shared.background.clone(),
            report: shared.report.clone(),
        };
        let outcome = Rc::new(Cell::new(None));
        let (driver, life) = Driver::new(runtime, {
            let outcome = Rc::clone(&outcome);
            async move { outcome.set(Some(run_app(context, factory, shared, master_link, epoch).await)) }
        });
        driver.keep(report);
        let driven = catch_unwind(AssertUnwindSafe(|| app.runtime.drive(driver)));
        // Count the requests before the tasks are dropped, because a request that was dropped is not counted any more.
        let outcome = outcome.take();
        if outcome.is_none() {
            cut = (row.in_flight(), shared.background.running());
            row.cut(cut.0);
        }
        life.end();
        // Write the last lines of the access log only after the tasks were dropped, so that requests that were cut have
        // lines too.
        if let Some(access) = &shared.access {
            access.finish();
        }
        let driven = driven.unwrap_or_else(|payload| {
            if life.has_panicked() {
                resume_unwind(payload);
            }
            Err(format!("it panicked: {}", panic_message(payload.as_ref())).into())
        });
        match (outcome, driven) {
            (Some(Ok(())) | None, Err(error)) => Err(BootError::OuterLoop(error)),
            (Some(ended), _) => ended,
            (None, Ok(())) => Err(BootError::OuterLoop("it returned before the driver was done".into())),
        }
    });
    match ended {
        Ok(()) => EXIT_DRAINED,
        Err(error @ BootError::OuterLoop(_)) if row.state() != RowState::Starting => {
            let (reason, (cut, background_cut)) = (error_chain(&error), cut);
            tracing::error!(
                event = "outer_loop_failed",
                slot,
                pid = std::process::id(),
                generation,
                cut,
                background_cut,
                reason,
                "the worker ends, and {cut} requests and {background_cut} background tasks are cut"
            );
            EXIT_FAILURE
        }
        Err(error) => {
            let failure = BootFailure::of(&error);
            if let Some(details) = failure.and_then(BootFailure::details) {
                log_boot_failure(slot, details);
            }
            // The sentence of a `BootFailure` says what failed, so it needs no words before it.
            let reason = match &error {
                BootError::Factory(source) if failure.is_some() => error_chain(source.as_ref()),
                error => error_chain(error),
            };
            shared.send(ToMaster::BootFailed(reason));
            EXIT_BOOT_FAILED
        }
    }
}

/// Logs the long text of a boot failure line by line, because a traceback on one line is hard to read. The master
/// receives only the sentence of the failure, because the channel to the master takes no long text.
fn log_boot_failure(slot: u32, details: &str) {
    let (more, pid) = (details.lines().count().saturating_sub(DETAILS_MAX), std::process::id());
    let more = (more > 0).then(|| format!("… and {more} lines more"));
    for line in details.lines().take(DETAILS_MAX).chain(more.as_deref()) {
        if log::is_open() {
            tracing::error!(event = "boot_failure_details", slot, pid, "{line}");
        } else {
            // This process is the preflight of an upgrade and has no log. The master that runs the preflight logs its
            // stderr.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("the worker could not {act}")]
    Act { act: &'static str, source: io::Error },
    #[error("the factory failed")]
    Factory(#[source] BoxError),
    #[error("the factory panicked: {0}")]
    Panicked(String),
    #[error(transparent)]
    Hook(HookPanicked),
    #[error("the master is gone")]
    Orphaned,
    #[error("the outer loop of the worker failed")]
    OuterLoop(#[source] BoxError),
}

/// Prepares the process to be a worker. The death signal is the signal that the kernel sends to the worker when the
/// master dies. The worker first drops its privileges, because a change of the uid clears the death signal. Then it
/// asks for the death signal. At last it checks that the master was still alive when the worker asked.
fn become_worker(resolved: &Resolved, master: i32) -> Result<(Runtime, Instant), BootError> {
    let failed = |act| move |source| BootError::Act { act, source };
    let settings = &resolved.settings;
    take_rights(&settings.process).map_err(failed("drop its privileges"))?;
    process::set_parent_death_signal().map_err(failed("ask for the master's death signal"))?;
    if process::parent_pid() != master {
        return Err(BootError::Orphaned);
    }
    let alarm = settings.workers.graceful_timeout + ALARM_SLACK;
    signals::term_arms_alarm(u32::try_from(alarm.as_secs()).unwrap_or(u32::MAX)).map_err(failed("set its alarm"))?;
    process::remove_from_environment(&FOR_THE_MASTER);
    let epoch = Instant::now();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed("build its runtime"))?;
    Ok((runtime, epoch))
}

/// Applies the settings of `process` that apply only to workers: umask, user and group, and the variables of
/// `process.env_file`.
pub(crate) fn take_rights(settings: &settings::Process) -> io::Result<()> {
    if let Some(umask) = settings.umask {
        process::umask(umask);
    }
    let user = settings.user.as_ref();
    if let Some(gid) = settings.group.as_ref().map(|group| group.gid).or(user.map(|user| user.gid)) {
        process::drop_privileges(user.map(|user| (user.name.as_str(), user.uid)), gid)?;
    }
    process::add_to_environment(&settings.env);
    Ok(())
}

async fn run_app<F, Fut, L, E, B>(
    context: WorkerContext,
    factory: F,
    shared: &'static Shared,
    mut master_link: MasterLink,
    epoch: Instant,
) -> Result<(), BootError>
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoLifespan<Service: Serve<B>>,
    E: Into<BoxError>,
    B: AppBody,
{
    let (slot, generation) = (context.slot, context.generation);
    // Run the factory in a task of its own. So a panic of the factory is caught, and the worker reads the messages of
    // the master while the factory runs.
    let mut built = tokio::spawn(async move {
        factory(context).await.map(IntoLifespan::into_lifespan).map_err(|error| BootError::Factory(error.into()))
    });
    let lifespan = loop {
        select! {
            built = &mut built => match built {
                Ok(built) => break built?,
                Err(panicked) => return Err(BootError::Panicked(panic_message(panicked.into_panic().as_ref()))),
            },
            order = master_link.next() => if leaves_early(&order, shared) { return Ok(()) },
        }
    };
    log::give_way();
    shared.send(ToMaster::Ready);
    loop {
        match master_link.next().await {
            Order::Go => break,
            order => {
                let grace = if let Order::Drain { grace, .. } = order { grace } else { master_link.grace };
                if leaves_early(&order, shared) {
                    // The worker has served nothing, but the app is built, so it may have opened what it must close.
                    let left = grace.saturating_sub(LAST_LINES).max(LAST_LINES);
                    run_hooks((slot, generation), lifespan.shutdown, left).await;
                    return Ok(());
                }
            }
        }
    }

    let Lifespan { service, shutdown, shutdown_grace } = lifespan;
    let mut acceptors = Acceptors::new(slot, shared, service.clone());
    acceptors.open(false).map_err(|source| BootError::Act { act: "poll its listeners", source })?;
    heartbeat::start(shared, epoch, SiblingWatch::new(slot, shared, service));
    tokio::spawn(shared.tell_busy());
    shared.row.serving();
    // Log this before the message to the master. Then the log shows the new worker before the end of the worker that it
    // replaces.
    tracing::info!(event = "worker_serving", slot, pid = std::process::id(), generation, "worker serves");
    shared.send(ToMaster::Accepting);

    let (grace, last) = loop {
        match master_link.next().await {
            Order::Drain { grace, last } => break (grace, Some(last)),
            Order::Term => {
                shared.send(ToMaster::DrainBegun);
                tracing::info!(
                    event = "worker_draining",
                    slot,
                    pid = std::process::id(),
                    generation,
                    reason = "SIGTERM to this worker",
                    "worker drains within {:?}",
                    master_link.grace
                );
                break (master_link.grace, None);
            }
            Order::AnnounceStop => shared.begin_stop(),
            Order::Go => {}
        }
    };
    let began = Instant::now();
    let until = drain(&mut acceptors, &mut master_link, grace, shutdown_grace, last).await;
    // Count before the hooks, because a hook may end the requests that are left, as an interpreter cancels its tasks.
    let (cut, background_cut) = (shared.row.in_flight(), shared.background.running());
    let left = until.saturating_duration_since(Instant::now()).saturating_sub(LAST_LINES);
    run_hooks((slot, generation), shutdown, left.max(LAST_LINES)).await;
    let took_ms = began.elapsed().as_millis() as u64;
    shared.row.cut(cut);
    if cut + background_cut > 0 {
        tracing::warn!(
            event = "worker_drained",
            slot,
            pid = std::process::id(),
            generation,
            cut,
            background_cut,
            took_ms,
            "worker drained, but {cut} requests and {background_cut} background tasks were cut at the end of the grace"
        );
    } else {
        tracing::info!(
            event = "worker_drained",
            slot,
            pid = std::process::id(),
            generation,
            cut,
            background_cut,
            took_ms,
            "worker drained"
        );
    }
    Ok(())
}

/// Runs the shutdown hooks, but not for longer than `left`.
async fn run_hooks((slot, generation): (u32, u32), hooks: Vec<Shutdown>, left: Duration) {
    let run = async {
        for hook in hooks {
            run_hook(hook).await;
        }
    };
    if timeout(left, run).await.is_err() {
        tracing::warn!(
            event = "shutdown_hook_timeout",
            slot,
            generation,
            "the shutdown hook did not end within the grace; it was cut"
        );
    }
}

/// Runs a shutdown hook. A hook that panics counts as one that has ended, because the panic is already in the log and
/// the worker has drained.
async fn run_hook(mut hook: Shutdown) {
    poll_fn(|context| catch_unwind(AssertUnwindSafe(|| hook.as_mut().poll(context))).unwrap_or(Poll::Ready(()))).await;
}

/// Carries out an order that comes before the worker accepts connections. Returns true if the worker must end at once,
/// because it has no connection to drain.
fn leaves_early(order: &Order, shared: &Shared) -> bool {
    match order {
        Order::Go => false,
        Order::AnnounceStop => {
            shared.begin_stop();
            false
        }
        Order::Term => {
            shared.send(ToMaster::DrainBegun);
            true
        }
        Order::Drain { .. } => true,
    }
}

/// Waits until the connections have ended by themselves. Near the end of the grace, it cuts the connections that are
/// left. Returns the time at which the grace ends. The caller computes from that time how long the shutdown hook may
/// run.
///
/// `last` says whether this is the final stop of the service. It is `None` if a signal asked for the drain, and the
/// master has not said yet whether the service stops.
async fn drain<S: Serve<B>, B: AppBody>(
    acceptors: &mut Acceptors<S>,
    master_link: &mut MasterLink,
    mut grace: Duration,
    shutdown_grace: Duration,
    mut last: Option<bool>,
) -> Instant {
    let shared = acceptors.shared;
    shared.begin_drain(grace);
    let mut until = Instant::now() + grace;
    let least = RESERVE.min(grace / 4);
    let mut idle = pin!(sleep(shared.drain_idle));
    let mut waits = !shared.drain_idle.is_zero();
    match last {
        Some(true) => acceptors.open_all(),
        Some(false) => acceptors.close(),
        None => acceptors.hold(),
    }
    loop {
        let kept = shutdown_grace.saturating_add(LAST_BYTES + LAST_LINES).min(grace / 2);
        let cut_at = until - if shutdown_grace.is_zero() { least } else { least.max(kept) };
        let closing = acceptors.next_step_at();
        select! {
            () = shared.finished(), if closing.is_none() => return until,
            () = sleep_until(closing.unwrap_or(cut_at)), if closing.is_some() => acceptors.close_further(),
            () = idle.as_mut(), if waits => {
                waits = false;
                shared.wake_all();
            }
            () = sleep_until(cut_at) => break,
            order = master_link.next() => match order {
                Order::Drain { grace: other, last: ends } => {
                    grace = grace.min(other);
                    until = until.min(Instant::now() + other);
                    // Once an order has said that this is the final stop, later orders do not change that. If a signal
                    // began the drain, the first order decides whether this is the final stop.
                    match (ends, last.replace(ends || last == Some(true))) {
                        (true, None | Some(false)) => acceptors.open_all(),
                        (false, None) => acceptors.close(),
                        (true, Some(true)) | (false, Some(_)) => {}
                    }
                }
                Order::AnnounceStop => shared.begin_stop(),
                Order::Go | Order::Term => {}
            },
        }
    }
    acceptors.close_now().await;
    shared.begin_end();
    // The master kills the worker at the end of the grace. If little time is left until then, clients get at most half
    // of it, and the other half is kept for the shutdown hook.
    let left = until.saturating_duration_since(Instant::now());
    let _ = timeout(LAST_BYTES.min(left / 2), shared.emptied()).await;
    until
}
