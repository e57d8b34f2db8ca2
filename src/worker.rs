//! A worker: from the fork to its last connection.
//!
//! Owns: the order of a worker's life. Deaf to the master's handlers (the seed is), then rights, then signals, then the
//! runtime, then the app, `Ready`, and only at `Go` the first accept. Refuses: anything about other workers (`rescue` looks
//! after them).

mod accept;
mod access_log;
mod balance;
mod beat;
mod connection;
mod crowd;
mod driver;
mod forwarded;
mod proxy_protocol;
mod request_id;
mod rescue;
mod scanner;
mod shared;
mod throttle;

use std::{
    any::Any,
    future::{Future, pending},
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::Interest,
    net::UnixDatagram,
    runtime::{Builder, Runtime},
    select,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::{
    access_log::AccessLog,
    connection::{Answer, BoxError, Serve},
    rescue::Watch,
    shared::Shared,
};
pub use self::{
    connection::{Body, BodyError},
    driver::{Driven, Driver, DriverWaker},
};
use crate::{
    IntoLifespan, Lifespan, WorkerContext,
    app::AppInfo,
    channel::{Heard, ToMaster, ToWorker},
    error_chain,
    listener::Listeners,
    log,
    scoreboard::{Row, Scoreboard},
    settings::{self, Resolved},
    sys::{
        process,
        signals::{self, Blocked},
        title,
    },
};

/// At the final stop the listeners are polled this long before they close: handshakes under way are still completed,
/// one lost SYN-ACK included (its first retransmission comes after a second).
const QUIET: Duration = Duration::from_secs(1);

/// The last part of [`QUIET`], in which no new handshake begins. Handshakes between continents take less time.
const HUSH: Duration = Duration::from_millis(250);

/// The same for a grace that ends before the quiet second does.
const SHORT_HUSH: Duration = Duration::from_millis(20);

/// What half-closed connections get to read their end once the grace is over.
const LAST_BYTES: Duration = Duration::from_millis(250);

/// Of the grace, what is kept for the end itself: at most this, at most a quarter.
const RESERVE: Duration = Duration::from_millis(500);

/// After a SIGTERM, what a worker whose loop hangs gets beyond the grace before SIGALRM ends it.
const ALARM_SLACK: Duration = Duration::from_secs(5);

/// What a service manager said to the master. A worker, or a library of the app's, would take it for itself.
const FOR_THE_MASTER: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Of a worker that told the master why it could not boot.
pub(crate) const EXIT_BOOT_FAILED: u8 = 3;

/// What a worker is made of: all that the master hands to its child.
#[derive(Debug)]
pub(crate) struct WorkerSeed {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) row: Row,
    pub(crate) scoreboard: Scoreboard,
    pub(crate) channel: OwnedFd,
    pub(crate) blocked: Blocked,
    pub(crate) master: i32,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) app: Rc<AppInfo>,
    pub(crate) listeners: Listeners,
}

/// Serves until told to go; the process ends with what this returns.
pub(crate) fn run<F, Fut, L, E, B>(seed: WorkerSeed, factory: F) -> ExitCode
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoLifespan<Service: Serve<B>>,
    E: Into<BoxError>,
    B: Answer,
{
    let WorkerSeed { slot, generation, row, scoreboard, channel, blocked, master, resolved, app, listeners } = seed;
    app.runtime.after_fork_in_worker();
    let channel = Arc::new(channel);
    row.begin(std::process::id());
    title::set(&format!("oxicorn: worker {slot} [{}] gen {generation}", resolved.settings.process.name));
    log::take_panics("a panic in the app");

    let access = AccessLog::new(log::take_access(), &resolved.settings.log, row);
    let shared = Shared::new(row, scoreboard, listeners, Arc::clone(&channel), &resolved.settings, access);
    let ended = become_worker(&resolved, master).and_then(|(runtime, epoch)| {
        let entered = runtime.enter();
        let term =
            signal(SignalKind::terminate()).map_err(|source| BootError::Act { act: "listen to SIGTERM", source })?;
        // Only now: a SIGTERM before this waited, and finds somebody who listens.
        drop(blocked);
        let grace = resolved.settings.workers.graceful_timeout;
        let orders = Orders::new(&channel, term, master, grace, shared)
            .map_err(|source| BootError::Act { act: "listen to the master", source })?;
        drop(entered);
        let context =
            WorkerContext { slot, generation, resolved, row, stopping: shared.stopping(), draining: shared.draining() };
        let ended = runtime.block_on(live(context, factory, shared, orders, epoch));
        // A blocking call of the app's must not keep a worker alive whose last answer is given.
        runtime.shutdown_background();
        // Only now: requests that were cut have their lines too.
        if let Some(access) = &shared.access {
            access.finish();
        }
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shared.say(ToMaster::BootFailed(error_chain(&error)));
            ExitCode::from(EXIT_BOOT_FAILED)
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
    #[error("the master is gone")]
    Orphaned,
}

/// Rights first, then the death signal (a change of uid clears it), then the check that it did not come too late.
fn become_worker(resolved: &Resolved, master: i32) -> Result<(Runtime, Instant), BootError> {
    let failed = |act| move |source| BootError::Act { act, source };
    let settings = &resolved.settings;
    take_rights(&settings.process).map_err(failed("drop its privileges"))?;
    process::set_parent_death_signal().map_err(failed("ask for the master's death signal"))?;
    if process::parent_pid() != master {
        return Err(BootError::Orphaned);
    }
    let alarm = settings.workers.graceful_timeout + ALARM_SLACK;
    signals::term_arms_alarm(u32::try_from(alarm.as_secs()).unwrap_or(u32::MAX)).map_err(failed("arm its alarm"))?;
    process::remove_from_environment(&FOR_THE_MASTER);
    let epoch = Instant::now();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed("build its runtime"))?;
    Ok((runtime, epoch))
}

/// Of a worker and no more: its umask, user and group; with them the variables of `process.env_file`.
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

async fn live<F, Fut, L, E, B>(
    context: WorkerContext,
    factory: F,
    shared: &'static Shared,
    mut orders: Orders,
    epoch: Instant,
) -> Result<(), BootError>
where
    F: FnOnce(WorkerContext) -> Fut + Send + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoLifespan<Service: Serve<B>>,
    E: Into<BoxError>,
    B: Answer,
{
    let (slot, generation) = (context.slot, context.generation);
    // A task of its own: its panic is caught, and the master is heard meanwhile.
    let mut built = tokio::spawn(async move {
        factory(context).await.map(IntoLifespan::into_lifespan).map_err(|error| BootError::Factory(error.into()))
    });
    let lifespan = loop {
        select! {
            built = &mut built => match built {
                Ok(built) => break built?,
                Err(panicked) => return Err(BootError::Panicked(panic_message(panicked.into_panic().as_ref()))),
            },
            order = orders.next() => if leaves_early(&order, shared) { return Ok(()) },
        }
    };
    shared.say(ToMaster::Ready);
    loop {
        match orders.next().await {
            Order::Go => break,
            order => {
                if leaves_early(&order, shared) {
                    return Ok(());
                }
            }
        }
    }

    let Lifespan { service, shutdown } = lifespan;
    let mut door = Door { slot, shared, service, polls: Vec::new(), closing: Closing::Done };
    door.open(false).map_err(|source| BootError::Act { act: "poll its listeners", source })?;
    beat::start(shared, epoch, Watch::new(slot, shared, door.service.clone()));
    shared.row.serving();
    // Said before the master knows, so that its log shows the replacement before the end of the replaced.
    tracing::info!(event = "worker_serving", slot, pid = std::process::id(), generation, "worker serves");
    shared.say(ToMaster::Accepting);

    let (grace, last) = loop {
        match orders.next().await {
            Order::Drain { grace, last } => break (grace, Some(last)),
            Order::Term => {
                shared.say(ToMaster::DrainBegun);
                tracing::info!(
                    event = "worker_draining",
                    slot,
                    pid = std::process::id(),
                    generation,
                    reason = "SIGTERM to this worker",
                    "worker drains, within {:?}",
                    orders.grace
                );
                break (orders.grace, None);
            }
            Order::AnnounceStop => shared.begin_stop(),
            Order::Go => {}
        }
    };
    let began = Instant::now();
    let until = drain(&mut door, &mut orders, grace, last).await;
    if let Some(hook) = shutdown
        && timeout(until.saturating_duration_since(Instant::now()).max(LAST_BYTES), hook).await.is_err()
    {
        tracing::warn!(
            event = "shutdown_hook_timeout",
            slot,
            generation,
            "the shutdown hook did not end within the grace; it was cut"
        );
    }
    let took_ms = began.elapsed().as_millis() as u64;
    let cut = shared.row.in_flight();
    shared.row.cut(cut);
    if cut > 0 {
        tracing::warn!(
            event = "worker_drained",
            slot,
            pid = std::process::id(),
            generation,
            cut,
            took_ms,
            "worker drained, but {cut} requests were cut at the end of the grace"
        );
    } else {
        tracing::info!(
            event = "worker_drained",
            slot,
            pid = std::process::id(),
            generation,
            cut,
            took_ms,
            "worker drained"
        );
    }
    Ok(())
}

/// Before the first accept there is nothing to drain.
fn leaves_early(order: &Order, shared: &Shared) -> bool {
    match order {
        Order::Go => false,
        Order::AnnounceStop => {
            shared.begin_stop();
            false
        }
        Order::Term => {
            shared.say(ToMaster::DrainBegun);
            true
        }
        Order::Drain { .. } => true,
    }
}

/// Waits for the connections to end by themselves, at most until the grace does. Returns when the hook must be done.
/// `last`: whether the master said that this is the final stop; `None`: a signal asked for the drain, and the master has
/// not said so or otherwise yet.
async fn drain<S: Serve<B>, B: Answer>(
    door: &mut Door<S>,
    orders: &mut Orders,
    grace: Duration,
    mut last: Option<bool>,
) -> Instant {
    let shared = door.shared;
    shared.begin_drain(grace);
    let mut until = Instant::now() + grace;
    let mut idle = pin!(sleep(shared.drain_idle));
    let mut waits = !shared.drain_idle.is_zero();
    match last {
        Some(true) => door.open_all(),
        Some(false) => door.close(),
        None => door.hold(),
    }
    loop {
        let cut_at = until - RESERVE.min(grace / 4);
        let closing = door.closing.at();
        select! {
            () = shared.emptied(), if closing.is_none() => return until,
            () = sleep_until(closing.unwrap_or(cut_at)), if closing.is_some() => door.close_further(),
            () = idle.as_mut(), if waits => {
                waits = false;
                shared.call_all();
            }
            () = sleep_until(cut_at) => break,
            order = orders.next() => match order {
                Order::Drain { grace, last: ends } => {
                    until = until.min(Instant::now() + grace);
                    // Once the last drain, always the last. A drain that a signal began is decided by this order.
                    match (ends, last.replace(ends || last == Some(true))) {
                        (true, None | Some(false)) => door.open_all(),
                        (false, None) => door.close(),
                        (true, Some(true)) | (false, Some(_)) => {}
                    }
                }
                Order::AnnounceStop => shared.begin_stop(),
                Order::Go | Order::Term => {}
            },
        }
    }
    door.close_now().await;
    shared.begin_end();
    let _ = timeout(LAST_BYTES, shared.emptied()).await;
    until
}

/// The listeners a worker polls.
struct Door<S> {
    slot: u32,
    shared: &'static Shared,
    service: S,
    polls: Vec<JoinHandle<()>>,
    closing: Closing,
}

/// How far a draining worker is with its listeners, and until when.
#[derive(Clone, Copy)]
enum Closing {
    /// The worker polls its own listeners until the master has had time to say whether this is the final stop: the sender
    /// of the signal may have sent it to all, and then no next worker polls them.
    Held(Instant),
    /// At the final stop: the worker polls all listeners.
    Open(Instant),
    /// The worker polls all listeners, and no new connection begins.
    Hushed(Instant),
    Done,
}

impl Closing {
    fn at(self) -> Option<Instant> {
        match self {
            Self::Held(at) | Self::Open(at) | Self::Hushed(at) => Some(at),
            Self::Done => None,
        }
    }
}

impl<S> Door<S> {
    fn open<B>(&mut self, all: bool) -> io::Result<()>
    where
        S: Serve<B>,
        B: Answer,
    {
        let listeners = &self.shared.listeners;
        let sockets: Vec<_> = if all { listeners.all().collect() } else { listeners.for_slot(self.slot).collect() };
        for socket in sockets {
            self.polls.push(accept::poll(socket, self.shared, self.service.clone())?);
        }
        Ok(())
    }

    /// At the final stop a worker also accepts what waits for siblings that are gone or hang.
    fn open_all<B>(&mut self)
    where
        S: Serve<B>,
        B: Answer,
    {
        self.close();
        if let Err(error) = self.open(true) {
            tracing::warn!(event = "listener_not_polled", %error, "not every listener can be polled for the last time");
        }
        self.closing = Closing::Open(Instant::now() + QUIET - HUSH);
    }

    fn hold(&mut self) {
        self.closing = Closing::Held(Instant::now() + QUIET);
    }

    /// Stops polling: the next worker of the slot polls the same listeners.
    fn close(&mut self) {
        for poll in self.polls.drain(..) {
            poll.abort();
        }
        self.closing = Closing::Done;
    }

    /// Does the next step, which is due now.
    fn close_further<B>(&mut self)
    where
        S: Serve<B>,
        B: Answer,
    {
        match self.closing {
            Closing::Held(_) => self.close(),
            Closing::Open(_) => self.hush(HUSH),
            Closing::Hushed(_) => self.shut_down(),
            Closing::Done => {}
        }
    }

    /// Does all the steps at once: the grace is over.
    async fn close_now<B>(&mut self)
    where
        S: Serve<B>,
        B: Answer,
    {
        if let Closing::Open(_) = self.closing {
            self.hush(SHORT_HUSH);
            sleep(SHORT_HUSH).await;
        }
        self.close_further();
    }

    fn hush(&mut self, length: Duration) {
        self.shared.listeners.refuse_newcomers();
        self.closing = Closing::Hushed(Instant::now() + length);
    }

    fn shut_down<B>(&mut self)
    where
        S: Serve<B>,
        B: Answer,
    {
        self.close();
        for socket in self.shared.listeners.all() {
            accept::sweep(socket, self.shared, &self.service);
        }
        self.shared.row.cut(self.shared.listeners.shut_down());
        self.shared.say(ToMaster::Quiet);
    }
}

#[derive(Debug)]
enum Order {
    Go,
    AnnounceStop,
    Drain {
        grace: Duration,
        last: bool,
    },
    /// A SIGTERM to this worker alone.
    Term,
}

/// What the master says, and what its silence means.
struct Orders {
    /// A datagram socket to tokio; ours keeps its messages apart just so, and knows when the other end is gone.
    channel: Option<UnixDatagram>,
    term: Signal,
    master: i32,
    grace: Duration,
    shared: &'static Shared,
}

impl Orders {
    fn new(channel: &OwnedFd, term: Signal, master: i32, grace: Duration, shared: &'static Shared) -> io::Result<Self> {
        let channel = UnixDatagram::from_std(channel.try_clone()?.into())?;
        Ok(Self { channel: Some(channel), term, master, grace, shared })
    }

    async fn next(&mut self) -> Order {
        loop {
            let heard = select! {
                biased;
                heard = hear(self.channel.as_ref()) => heard,
                _ = self.term.recv() => {
                    if process::parent_pid() == self.master {
                        return Order::Term;
                    }
                    Heard::Closed
                }
            };
            return match heard {
                Heard::Message(ToWorker::Go) => Order::Go,
                Heard::Message(ToWorker::AnnounceStop) => Order::AnnounceStop,
                Heard::Message(ToWorker::Drain { grace_ms, last }) => {
                    Order::Drain { grace: Duration::from_millis(grace_ms), last }
                }
                Heard::Message(ToWorker::TakeLog(file)) => {
                    log::adopt(file);
                    continue;
                }
                Heard::Message(ToWorker::TakeAccessLog(file)) => {
                    if let Some(access) = &self.shared.access {
                        access.adopt(file);
                    }
                    continue;
                }
                Heard::Nothing => continue,
                Heard::Closed => {
                    self.channel = None;
                    tracing::error!(
                        event = "master_gone",
                        pid = std::process::id(),
                        "the master is gone; the worker drains and ends"
                    );
                    Order::Drain { grace: self.grace, last: true }
                }
            };
        }
    }
}

async fn hear(channel: Option<&UnixDatagram>) -> Heard<ToWorker> {
    let Some(channel) = channel else { return pending().await };
    let heard = channel.async_io(Interest::READABLE, || match ToWorker::hear(channel.as_fd()) {
        Ok(Heard::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
        heard => heard,
    });
    heard.await.unwrap_or(Heard::Closed)
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
