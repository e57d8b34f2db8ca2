//! The shell of the master, which is a loop. It waits for events and reads them, calls `core.step`, and performs the
//! actions that `core.step` returns.
//!
//! Owns: every file descriptor of the master (listeners, channels, signals) and the pids of the children. Refuses: to
//! decide about workers (`core`), and to do anything that blocks, starts a thread or needs a runtime. A process that
//! forks must have one thread and hold no lock.

mod cgroup;
mod child;
mod children;
mod control;
mod core;
mod crash_suspect;
mod exits;
mod fork_failures;
mod free_memory;
mod handover;
mod hang_report;
mod history;
mod identity;
mod limits;
mod notify;
mod oom;
mod perform;
mod performed;
mod pidfile;
mod refresh;
mod reload;
#[cfg(test)]
mod sim;
mod status;
mod upgrade;
mod wording;

use std::{collections::VecDeque, os::fd::AsFd, sync::Arc, time::Duration};

use self::{
    child::Child,
    control::{ControlServer, Site},
    core::{Action, Caller, Event, ExitReason, Master, Millis, Policy, Scaling, Stage, Tally},
    crash_suspect::Deaths,
    fork_failures::ForkFailures,
    free_memory::MemoryWatch,
    history::History,
    limits::Jitter,
    notify::{Notify, ServiceState},
    oom::OomKills,
    performed::Performed,
    pidfile::{Pidfile, PidfileError},
    refresh::{Asked, Refreshes},
    reload::Reloads,
    upgrade::Upgrades,
};
pub(crate) use self::{children::fork_worker, handover::Handover, reload::SettingsLoader};
use crate::{
    app::{ForkedWorker, SupervisorEvent},
    channel::ToWorker,
    listener::{BindError, Listeners, Steering, slot_count},
    log, metrics,
    protocol::{self, Request},
    scoreboard::{Overview, Row, Scoreboard},
    settings::{self, LISTEN_FDS, Origin, Resolved, Settings, WORKERS_MAX},
    sys::{
        clock, fd, memory,
        poll::{Interest, wait},
        process,
        signals::{MasterSignals, Signal},
        title,
    },
    worker::WorkerSeed,
};

/// How often the master checks whether the TLS certificate is about to expire. The master must check it itself, because
/// a service may run without a reload for longer than a certificate is valid.
const CERTIFICATE_EVERY_MS: u64 = 24 * 60 * 60 * 1_000;

/// How long the master waits before it tries again to write lines that the output of the log had no room for.
const LINE_EVERY_MS: u64 = 250;

/// How often the master checks whether the file of the control socket still exists. A program that cleans `/tmp` may
/// remove it.
const CONTROL_EVERY_MS: u64 = 10_000;

/// How long a hung worker has to write its stack traces after the dump signal, before the master kills it.
const DUMP_MS: u64 = 1_000;

/// How a run of the master ends. A `fork` returns in the master and in the new worker, so the loop of the master also
/// returns in each new worker.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stopped,
    /// At the start of the service no worker became ready. The log says why the last worker failed.
    NoWorkerReady,
    /// This process is not the master but a new worker, which has just been forked.
    Worker(Box<WorkerSeed>),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MasterError {
    #[error("an address could not be bound")]
    Bind(#[from] BindError),
    #[error("the pid file could not be made")]
    Pidfile(#[from] PidfileError),
    #[error("the scoreboard could not be made")]
    Scoreboard(#[source] std::io::Error),
    #[error("the signals could not be taken over")]
    Signals(#[source] std::io::Error),
    #[error("could not take over from the old program: {0}")]
    TakeOver(String),
    #[error("{0}")]
    Start(String),
    #[error("waiting for events failed")]
    Wait(#[source] std::io::Error),
}

struct Shell {
    core: Master,
    loader: SettingsLoader,
    resolved: Arc<Resolved>,
    reloads: Reloads,
    upgrades: Upgrades,
    listeners: Listeners,
    scoreboard: Scoreboard,
    signals: MasterSignals,
    pidfile: Option<Pidfile>,
    /// `None` if the control socket is switched off or could not be made. The service works without a control socket.
    control: Option<ControlServer>,
    /// Tells the service manager, such as systemd, when the service is ready or stops. `None` if no service manager
    /// asked to be told.
    notify: Option<Notify>,
    started: Millis,
    /// When the certificate of TLS is checked the next time.
    certificate_due: Millis,
    /// When the file of the control socket is checked the next time.
    control_due: Millis,
    children: Vec<Child>,
    inbox: Vec<Event>,
    jitter: Jitter,
    history: History,
    deaths: Deaths,
    oom_kills: Option<OomKills>,
    /// Why the most recent worker that did not become ready failed. `None` if no worker has failed before it was ready.
    boot_failure: Option<String>,
    fork_failures: ForkFailures,
    memory_watch: MemoryWatch,
    refreshes: Refreshes,
    /// How many workers this service has forked, also over upgrades.
    forks: u32,
    /// The number of workers that the runtime knows of.
    told_target: u32,
}

/// What a master starts from: nothing, or a service that already runs.
pub(crate) enum Origins {
    Nothing,
    /// The master takes over a running service from an older program, at the end of an upgrade. `kept` names the
    /// settings that keep the values of that service, because only a restart can change these settings.
    Handover {
        handover: Box<Handover>,
        kept: Vec<&'static str>,
    },
}

/// Binds the addresses, forks the workers and supervises them. Returns in the master when the service has ended, and in
/// each new worker directly after its fork.
pub(crate) fn run(resolved: Resolved, loader: SettingsLoader, origins: Origins) -> Result<Outcome, MasterError> {
    let (shell, actions) = match origins {
        Origins::Nothing => Shell::begin(resolved, loader)?,
        Origins::Handover { handover, kept } => upgrade::adopt(resolved, loader, &kept, *handover)?,
    };
    shell.supervise(actions)
}

impl Shell {
    /// Starts the service for the first time.
    fn begin(resolved: Resolved, loader: SettingsLoader) -> Result<(Self, Vec<Action>), MasterError> {
        let settings = &resolved.settings;
        let name = &settings.process.name;
        tracing::info!(
            event = "starting",
            version = loader.app.program.version,
            pid = std::process::id(),
            workers = settings.workers.count,
            "{name} starts"
        );
        loader
            .ask(&SupervisorEvent::Starting { workers: settings.workers.count, alive: &[] })
            .map_err(MasterError::Start)?;
        let limit = fd::raise_nofile();
        let listeners = Listeners::bind(&settings.server, settings.workers.count)?;
        if resolved.origin("server.bind") == Origin::Env(LISTEN_FDS.to_owned()) {
            tracing::info!(
                event = "sockets_passed",
                sockets = settings.server.bind.len(),
                names = std::env::var("LISTEN_FDNAMES").unwrap_or_default(),
                "using the sockets of LISTEN_FDS instead of server.bind; all workers share them, and they stay open \
                 after a stop"
            );
        }
        for address in listeners.addresses() {
            tracing::info!(event = "listening", %address, "listening on {address}");
        }
        warn_of_few_files(limit, settings, &listeners);
        if let Steering::Refused(reason) = listeners.steering() {
            tracing::warn!(
                event = "steering_refused",
                reason,
                "the kernel refused the steering program; a connection to a slot without a worker waits until another \
                 worker accepts it"
            );
        }
        let room = Room::of(&listeners);
        let scoreboard = Scoreboard::create(room.rows, Room::ROWS_PER_SLOT * slot_count(WORKERS_MAX))
            .map_err(MasterError::Scoreboard)?;
        let pidfile = settings.process.pidfile.as_deref().map(Pidfile::create).transpose()?;
        let upgrades = Upgrades::new(resolved.start.path());
        let control = ControlServer::open(&Site { socket: &settings.control.socket, name, folder: upgrades.folder() });
        let signals = MasterSignals::install().map_err(MasterError::Signals)?;
        // A worker may leave processes behind when it dies. The master must become their parent, so that it can end
        // them. PID 1 always is the parent of such orphans; a master with another pid must ask the kernel for them.
        if let Err(error) = process::become_subreaper() {
            tracing::warn!(
                event = "subreaper_refused",
                %error,
                "could not become a subreaper: processes that workers leave behind go to init"
            );
        }
        let (core, actions) = Master::new(policy(settings, &loader, room), now());
        let mut shell = Self::assemble(core, loader, resolved, upgrades, listeners, scoreboard, signals);
        (shell.pidfile, shell.control) = (pidfile, control);
        shell.show_title();
        let addresses = shell.listeners.addresses();
        shell.loader.tell(&SupervisorEvent::Listening { addresses: &addresses });
        Ok((shell, actions))
    }

    /// Makes a shell with the values of a first start. After an upgrade, the caller then replaces the values that the
    /// old program has passed on.
    fn assemble(
        core: Master,
        loader: SettingsLoader,
        resolved: Resolved,
        upgrades: Upgrades,
        listeners: Listeners,
        scoreboard: Scoreboard,
        signals: MasterSignals,
    ) -> Self {
        let (started, told_target) = (now(), core.target());
        Self {
            core,
            loader,
            resolved: Arc::new(resolved),
            reloads: Reloads::default(),
            upgrades,
            listeners,
            scoreboard,
            signals,
            pidfile: None,
            control: None,
            notify: Notify::open(started),
            started,
            certificate_due: started.after(CERTIFICATE_EVERY_MS),
            control_due: started.after(CONTROL_EVERY_MS),
            children: Vec::new(),
            inbox: Vec::new(),
            jitter: Jitter::new(),
            history: History::default(),
            deaths: Deaths::default(),
            oom_kills: OomKills::find(),
            boot_failure: None,
            fork_failures: ForkFailures::default(),
            memory_watch: MemoryWatch::default(),
            refreshes: Refreshes::default(),
            forks: 0,
            told_target,
        }
    }

    fn supervise(mut self, actions: Vec<Action>) -> Result<Outcome, MasterError> {
        let mut todo = VecDeque::from(actions);
        release_boot_code();
        let mut read_at = now();
        loop {
            self.publish();
            self.notify();
            self.tell_target();
            while let Some(action) = todo.pop_front() {
                match self.perform(action) {
                    Performed::Done => {}
                    Performed::Learned(event) => self.inbox.push(event),
                    Performed::Child(child) => return Ok(Outcome::Worker(Box::new(self.into_worker_seed(*child)))),
                    Performed::Exit(reason) => return Ok(self.finish(reason)),
                }
            }
            // An action may take long before it reports an event. So the core checks deadlines as of the last reading:
            // it must know of an exit or a heartbeat that has come since then before it checks that worker's deadline.
            if self.inbox.is_empty() {
                self.wait_for_events()?;
                read_at = now();
            }
            todo.extend(self.core.step(read_at, std::mem::take(&mut self.inbox)));
        }
    }

    /// Returns what the runtime learns of the workers that run now.
    fn alive(&self) -> Vec<ForkedWorker> {
        self.children.iter().map(|child| child.facts(&self.core)).collect()
    }

    /// Tells the runtime of this program that it has taken over a service with workers.
    fn tell_start(&self) {
        let (workers, alive) = (self.core.target(), self.alive());
        self.loader.tell(&SupervisorEvent::Starting { workers, alive: &alive });
        self.loader.tell(&SupervisorEvent::Listening { addresses: &self.listeners.addresses() });
    }

    /// Tells the runtime that the number of workers that there should be has changed.
    fn tell_target(&mut self) {
        let workers = self.core.target();
        let before = std::mem::replace(&mut self.told_target, workers);
        if before != workers {
            self.loader.tell(&SupervisorEvent::WorkersChanged { workers, before });
        }
    }

    fn show_title(&self) {
        let name = &self.resolved.settings.process.name;
        let program = &self.loader.app.program.name;
        title::set(&format!("{program}: master [{name}] gen {}", self.core.generation().0));
    }

    /// Waits for an event or for the next deadline, and puts every new event into the inbox.
    fn wait_for_events(&mut self) -> Result<(), MasterError> {
        self.send_progress();
        let log_due = (!log::catch_up()).then(|| now().after(LINE_EVERY_MS));
        let deadlines = [
            self.core.deadline(),
            self.control.as_ref().and_then(ControlServer::deadline),
            self.notify.as_ref().and_then(Notify::deadline),
            Some(self.certificate_due),
            Some(self.control_due),
            self.refreshes.deadline(),
            log_due,
        ];
        let timeout = deadlines.into_iter().flatten().min().map(|at| Duration::from_millis(at.since(now())));
        let channels = self.children.iter().filter_map(|child| child.channel.as_ref()).map(AsFd::as_fd);
        let channels = channels.chain(self.upgrades.watched());
        let mut fds: Vec<_> =
            std::iter::once(self.signals.as_fd()).chain(channels).map(|fd| (fd, Interest::Read)).collect();
        let waiting = self.children.iter().filter(|child| !child.unsent.is_empty());
        fds.extend(waiting.filter_map(|child| child.channel.as_ref()).map(|fd| (fd.as_fd(), Interest::Write)));
        let ours = fds.len();
        let of_runtime = self.loader.watched();
        fds.extend(of_runtime.iter().map(|fd| (fd.as_fd(), Interest::Read)));
        let all_but_control = fds.len();
        fds.extend(self.control.iter().flat_map(ControlServer::watched));
        let ready = wait(&fds, timeout).map_err(MasterError::Wait)?;
        if self.certificate_due <= now() {
            self.certificate_due = now().after(CERTIFICATE_EVERY_MS);
            settings::say_warnings(&self.resolved.certificate_warnings());
        }
        self.children.iter_mut().for_each(Child::send_unsent);
        children::recv_all(self);
        upgrade::preflight::recv(self);
        if ready[ours..all_but_control].contains(&true) {
            self.loader.attend();
        }
        for (signal, times) in self.signals.take() {
            self.handle_signal(signal, times);
        }
        // Answer the requests only after the handling of SIGCHLD, which reaps the dead workers. Otherwise a status
        // could show a dead worker as alive.
        let requests =
            self.control.as_mut().map(|control| control.turn(&ready[all_but_control..], now())).unwrap_or_default();
        for (caller, request) in requests {
            self.handle_request(caller, request);
        }
        refresh::look(self);
        // This check may replace the control socket. It must come after the lines that pass the results of the poll to
        // the old socket.
        if self.control_due <= now() {
            self.control_due = now().after(CONTROL_EVERY_MS);
            self.look_after_control();
        }
        Ok(())
    }

    fn handle_signal(&mut self, signal: Signal, times: u32) {
        match signal {
            Signal::Term => self.inbox.push(Event::StopRequested { graceful: true }),
            Signal::Int | Signal::Quit => self.inbox.push(Event::StopRequested { graceful: false }),
            Signal::Ttin => self.scale_by(times.cast_signed()),
            Signal::Ttou => self.scale_by(-times.cast_signed()),
            Signal::Usr1 => self.reopen_logs(),
            Signal::Chld => children::reap_all(self),
            Signal::Hup => reload::request(self, None),
            Signal::Usr2 => upgrade::request(self, None, false, None),
            Signal::Winch => tracing::warn!(
                event = "signal_ignored",
                signal = signal.name(),
                "ignored {}, which has no meaning for the master",
                signal.name()
            ),
        }
    }

    fn scale_by(&mut self, by: i32) {
        self.inbox.push(Event::ScaleRequested { scaling: Scaling::By(by), caller: None });
    }

    /// Makes the control socket again if its file is gone, or for the first time if an earlier attempt failed.
    fn look_after_control(&mut self) {
        let settings = &self.resolved.settings;
        let (socket, name) = (&settings.control.socket, &settings.process.name);
        let site = Site { socket, name, folder: self.upgrades.folder() };
        match &mut self.control {
            Some(control) => control.look_after(&site),
            none => *none = ControlServer::open_late(&site),
        }
    }

    fn handle_request(&mut self, caller: Caller, request: Request) {
        if let Some(refusal) = identity::refusal(self, &request.meant) {
            tracing::info!(
                event = "control_socket",
                reason = refusal,
                "refused a command that is meant for another service; nothing was done"
            );
            return self.answer(caller, protocol::ControlResponse::refused(refusal));
        }
        match request.command {
            protocol::ControlCommand::Status => {
                let status = Some(Box::new(status::report(self)));
                let answer = protocol::ControlResponse { status, ..protocol::ControlResponse::done("") };
                self.answer(caller, answer);
            }
            protocol::ControlCommand::Metrics => {
                let page = metrics::render(&self.scoreboard, &self.listeners);
                self.answer(caller, protocol::ControlResponse::done(page));
            }
            protocol::ControlCommand::Scale(scale) => {
                let scale = match scale {
                    protocol::Scale::To(target) => Scaling::To(target),
                    protocol::Scale::By(by) => Scaling::By(by),
                };
                self.inbox.push(Event::ScaleRequested { scaling: scale, caller: Some(caller) });
            }
            protocol::ControlCommand::Reload => reload::request(self, Some(caller)),
            protocol::ControlCommand::Changes => refresh::ask(self, Asked::Preview(caller)),
            protocol::ControlCommand::Config { json } => {
                let settings = reload::in_effect(self);
                let text = if json { settings.to_json() } else { settings.to_toml() };
                self.answer(caller, protocol::ControlResponse::done(text));
            }
            protocol::ControlCommand::Upgrade { program, force } => {
                upgrade::request(self, program.map(Into::into), force, Some(caller));
            }
            protocol::ControlCommand::Stop { now } => self.inbox.push(Event::StopRequested { graceful: !now }),
        }
    }

    fn answer(&mut self, caller: Caller, answer: protocol::ControlResponse) {
        let answer = protocol::ControlResponse { service: Some(identity::service(self)), ..answer };
        if let Some(control) = &mut self.control {
            control.answer(caller, &answer, now());
        }
    }

    fn send_progress(&mut self) {
        let progress = status::progress(self);
        if let Some(control) = &mut self.control {
            control.send_progress(&progress);
        }
    }

    fn reopen_logs(&mut self) {
        let failed = log::reopen();
        // The master sends the open log files to the workers, because a worker may lack the right to open them. A
        // worker also does not need to know the names of these files.
        for child in &mut self.children {
            let files = [log::file().map(ToWorker::TakeLog), log::access_file().map(ToWorker::TakeAccessLog)];
            files.into_iter().flatten().for_each(|file| child.send(file));
        }
        if failed.is_empty() {
            tracing::info!(event = "logs_reopened", "reopened the log files");
        }
        for error in failed {
            tracing::error!(
                event = "logs_reopen_failed",
                error = &error as &dyn std::error::Error,
                "could not reopen a log file; the old file is still written to"
            );
        }
        self.log_totals();
    }

    /// Copies six numbers of the core to the scoreboard, where all processes can read them. It copies all six each
    /// time, because six stores cost less than finding out which of the numbers have changed.
    fn publish(&self) {
        let Tally { recycled, crashed, hung, boot_failed, reloads: _, upgrades: _ } = self.core.tally();
        let (generation, target) = (self.core.generation().0.into(), self.core.target().into());
        self.scoreboard.publish(&Overview { generation, target, recycled, crashed, hung, boot_failed });
    }

    fn notify(&mut self) {
        if self.notify.is_none() {
            return;
        }
        let state = match self.core.stage() {
            Stage::Delaying { .. } | Stage::Stopping { .. } | Stage::Done => ServiceState::Stopping,
            Stage::Running if self.core.served() > 0 => ServiceState::Serving,
            Stage::Running => ServiceState::Starting,
        };
        let status = format!("{}, generation {}", status::progress(self), self.core.generation().0);
        if let Some(notify) = &mut self.notify {
            notify.turn(state, &status, now());
            if !self.core.changes() {
                notify.ready(now());
            }
        }
    }

    fn log_totals(&self) {
        let totals = self.scoreboard.totals();
        let tally = self.core.tally();
        let [_, ok, redirects, client_errors, server_errors] = totals.responses;
        tracing::info!(
            event = "totals",
            requests = totals.requests,
            connections = totals.connections,
            responses_2xx = ok,
            responses_3xx = redirects,
            responses_4xx = client_errors,
            responses_5xx = server_errors,
            cut = totals.cut,
            recycled = tally.recycled,
            crashed = tally.crashed,
            hung = tally.hung,
            "totals since the start"
        );
    }

    fn finish(mut self, reason: ExitReason) -> Outcome {
        self.loader.tell(&SupervisorEvent::Stopped);
        self.scoreboard.cut(self.listeners.shut_down());
        self.log_totals();
        self.listeners.unlink();
        if let Some(pidfile) = self.pidfile.take() {
            pidfile.remove();
        }
        let last_words =
            protocol::ControlResponse { service: Some(identity::service(&self)), ..status::last_words(&self, reason) };
        // Answer the callers of the control socket last, because a caller may start the next service as soon as it
        // knows that this one has stopped.
        if let Some(control) = self.control.take() {
            control.close(&last_words, now());
        }
        match reason {
            ExitReason::Asked => {
                tracing::info!(event = "stopped", "stopped");
                Outcome::Stopped
            }
            ExitReason::NoWorkerReady => {
                let reason = self.boot_failure.as_deref().unwrap_or("no worker could be forked");
                tracing::error!(event = "boot_failed", reason, "no worker became ready; the master gives up");
                Outcome::NoWorkerReady
            }
        }
    }
}

fn requests_in_flight(row: Row) -> String {
    exits::in_flight(&row.requests_in_flight(), row.in_flight(), clock::now())
}

fn now() -> Millis {
    Millis(clock::now())
}

/// Releases the memory of the code that reads the command line and the settings. That code is larger than all other
/// code that the master runs.
fn release_boot_code() {
    if let Err(error) = memory::let_go_of_code() {
        tracing::debug!(
            event = "memory_not_released",
            %error,
            "could not release the memory of the start-up code; the master is larger than it needs to be"
        );
    }
}

/// The number of workers for which the listeners and the scoreboard have room.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// The number of slots that have listening sockets.
    slots: u32,
    /// The number of rows that the scoreboard has.
    rows: u32,
}

impl Room {
    /// The number of rows that the scoreboard has for each slot: one row for the worker that serves in the slot, and
    /// the others for workers of the slot that still drain.
    const ROWS_PER_SLOT: u32 = 4;

    fn of(listeners: &Listeners) -> Self {
        let slots = listeners.slots();
        Self { slots, rows: slots * Self::ROWS_PER_SLOT }
    }

    /// Adds the rows that these listeners need to the scoreboard, and returns the new room.
    fn make(listeners: &Listeners, scoreboard: &Scoreboard) -> Self {
        let room = Self::of(listeners);
        scoreboard.grow(room.rows);
        room
    }
}

fn policy(settings: &Settings, loader: &SettingsLoader, room: Room) -> Policy {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let workers = &settings.workers;
    Policy {
        workers: workers.count,
        workers_max: WORKERS_MAX,
        slots: room.slots,
        rows: room.rows,
        timeout_ms: ms(workers.timeout),
        boot_timeout_ms: ms(workers.boot_timeout),
        graceful_timeout_ms: ms(workers.graceful_timeout),
        shutdown_delay_ms: ms(workers.shutdown_delay),
        max_rss: workers.max_rss,
        dump_ms: if loader.dump_signal().is_some() { DUMP_MS } else { 0 },
        overlap: workers.overlap,
        code_on_disk: loader.code_on_disk(),
    }
}

fn warn_of_few_files(limit: std::io::Result<u64>, settings: &Settings, listeners: &Listeners) {
    // The number of files that a worker is assumed to have open in addition to its connections and listeners: the logs,
    // its channel, epoll and the files of the app.
    const ALLOWANCE: u64 = 64;
    let needed = settings.http.worker_connections + listeners.all().count() as u64 + ALLOWANCE;
    match limit {
        Ok(limit) if limit < needed => tracing::warn!(
            event = "nofile_limit_low",
            limit,
            needed,
            "the limit of open files (RLIMIT_NOFILE) is {limit}, but http.worker_connections and the listeners may \
             need {needed}; raise the limit or lower http.worker_connections"
        ),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(event = "nofile_refused", %error, "could not raise the limit of open files (RLIMIT_NOFILE)")
        }
    }
}
