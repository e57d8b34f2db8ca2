//! The words between the core and the shell: facts that the shell reports, actions that the core asks for.
//!
//! Owns: the identifiers, the limits that decisions need, events, actions, replies and notes. Refuses: state, decisions and
//! sentences (`core` decides, the shell words what it logs).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Milliseconds on the monotonic clock. The shell supplies it; the core never reads one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    pub(crate) fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Pid(pub(crate) i32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct SlotId(pub(crate) u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Generation(pub(crate) u32);

/// Somebody who waits to hear how it went.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Caller(pub(crate) u64);

/// The numbers that decisions need, cut out of the settings. Milliseconds; a zero limit is off.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) workers: u32,
    /// Workers that may be asked for.
    pub(crate) workers_max: u32,
    /// Places that have listeners; `Grow` makes more.
    pub(crate) slots: u32,
    /// Rows of the scoreboard: processes that can live at once.
    pub(crate) rows: u32,
    pub(crate) timeout_ms: u64,
    pub(crate) boot_timeout_ms: u64,
    pub(crate) graceful_timeout_ms: u64,
    pub(crate) shutdown_delay_ms: u64,
    pub(crate) max_rss: u64,
    /// How long a hung worker has to write what it does, before it is ended; 0: it is not asked to.
    pub(crate) dump_ms: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    StopRequested {
        graceful: bool,
    },
    /// A signal has no `caller`: nobody hears of its end, and what is too much is cut to what is possible.
    ScaleRequested {
        scaling: Scaling,
        caller: Option<Caller>,
    },
    ReloadRequested {
        caller: Option<Caller>,
    },
    /// Read, checked, and its addresses bound. `count`: the file asks for another number of workers than it did.
    /// `removes`: some addresses are no longer named.
    SettingsLoaded {
        policy: Policy,
        count: Option<u32>,
        removes: bool,
    },
    /// Nothing was changed.
    SettingsRefused,
    /// `program`: another than the one that runs was started by.
    UpgradeRequested {
        program: Option<PathBuf>,
        caller: Option<Caller>,
    },
    /// The preflight is over and its process gone.
    PreflightEnded {
        passed: bool,
    },
    /// Neither `BecomeNew` nor `BecomeOld` returns, unless it fails: all is as before.
    ExecFailed,
    /// What came of `Grow`: the slots and rows there are now.
    Grown {
        slots: u32,
        rows: u32,
    },
    /// `max_age_ms`: this worker's own limit, jitter drawn; 0 is none.
    Forked {
        slot: SlotId,
        pid: Pid,
        max_age_ms: u64,
    },
    ForkFailed {
        slot: SlotId,
    },
    /// The app is built; the worker waits for `Go`.
    Ready {
        pid: Pid,
    },
    /// The worker polls its slot.
    Accepting {
        pid: Pid,
    },
    /// The worker promised to beat again by `due`.
    Heartbeat {
        pid: Pid,
        due: Millis,
    },
    /// The worker has answered its first request.
    Answered {
        pid: Pid,
    },
    /// A sibling finds that the worker of this slot has not beaten when it promised to.
    SlotSilent {
        slot: SlotId,
    },
    /// The worker has as many connections as it may, or room again.
    RoomChanged {
        pid: Pid,
        full: bool,
    },
    RecycleRequested {
        pid: Pid,
    },
    /// The worker was told to go by somebody else (a SIGTERM of its own).
    DrainBegun {
        pid: Pid,
    },
    /// At the final stop this worker has accepted all that waited in the listeners, and has shut them down.
    AllAccepted {
        pid: Pid,
    },
    Measured {
        pid: Pid,
        rss: u64,
    },
    Exited {
        pid: Pid,
    },
}

#[derive(Clone, PartialEq, Debug)]
#[must_use = "an action dropped is a promise broken"]
pub(crate) enum Action {
    Fork {
        slot: SlotId,
        generation: Generation,
    },
    Go {
        pid: Pid,
    },
    /// Tell the worker that the whole service will stop: readiness off, keep serving.
    AnnounceStop {
        pid: Pid,
    },
    /// `last`: nobody comes after; the worker closes the listeners behind itself.
    Drain {
        pid: Pid,
        grace_ms: u64,
        last: bool,
        cause: Cause,
    },
    /// Send the runtime's signal to a hung worker, so that it writes what it does. `Abort` follows.
    Dump {
        pid: Pid,
        silent_ms: u64,
    },
    /// End a hung worker. `silent_ms` is `None` if `Dump` came before: then the hang is logged already.
    Abort {
        pid: Pid,
        silent_ms: Option<u64>,
    },
    Kill {
        pid: Pid,
        cause: KillCause,
    },
    Measure {
        pid: Pid,
    },
    LoadSettings,
    /// The new generation is proven: the old settings are of no more use.
    KeepSettings,
    /// The new generation failed its trial: the old settings hold again.
    RestoreSettings {
        slot: SlotId,
        failed: Generation,
        why: Failure,
    },
    /// Try the new program beside us: it boots one worker that will never serve.
    BeginPreflight {
        program: Option<PathBuf>,
    },
    /// It takes too long, or is not wanted any more.
    EndPreflight,
    /// Replace our own program by the one that passed the preflight; it goes on from [`Master::snapshot`].
    BecomeNew,
    /// The new program is proven: the old one is of no more use.
    KeepProgram,
    /// Our workers failed their trial: the program before takes over again.
    BecomeOld {
        slot: SlotId,
        why: Failure,
    },
    /// Addresses that were removed will be closed soon. No new connection may begin there.
    RefuseAtRemoved,
    /// Addresses that were removed have been quiet for long enough.
    CloseRemoved,
    /// Make slots for so many workers.
    Grow {
        workers: u32,
    },
    /// New connections go to these slots only.
    Steer {
        live: Vec<SlotId>,
    },
    /// The one answer to a request to scale. Whoever asked for a stop is answered by `Exit`.
    Reply {
        caller: Caller,
        reply: CommandReply,
    },
    Note(Note),
    Exit {
        reason: ExitReason,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scaling {
    To(u32),
    By(i32),
}

/// How a request to scale ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommandReply {
    /// Every slot below the target is served, and the workers of all others were told to go.
    Serving {
        target: u32,
    },
    /// Nothing was changed.
    OutOfRange {
        asked: i64,
        most: u32,
    },
    /// The listeners for more could not be made; the target is what there are slots for.
    NoListeners {
        target: u32,
    },
    /// Another request came before this one was done.
    Superseded {
        target: u32,
    },
    Reloaded {
        generation: Generation,
    },
    /// The settings were not loaded; whoever refused them knows why.
    Refused,
    /// A worker of the new generation ended, hung or could not boot; the old ones never stopped serving.
    RolledBack {
        slot: SlotId,
        why: Failure,
    },
    Upgraded {
        generation: Generation,
    },
    /// The new program did not pass its preflight, or could not be executed; nothing was changed.
    UpgradeRefused,
    /// The workers of the new program failed their trial, or it could not go on.
    UpgradeFailed,
    /// Another upgrade runs or waits; nothing was changed.
    UpgradeUnderWay,
    /// The target stays; the slot is tried again.
    BootFailed {
        slot: SlotId,
        target: u32,
    },
    Stopping,
}

/// How a worker failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    Ended,
    Hung,
    BootTimeout,
    NotForked,
}

/// Why a worker is told to drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Recycle(RecycleCause),
    Reload,
    /// Its generation failed its trial.
    RollBack,
    ScaleDown,
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(clippy::enum_variant_names, reason = "each is named after its key")]
pub(crate) enum RecycleCause {
    MaxRequests,
    MaxAge,
    MaxRss,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum KillCause {
    BootTimeout,
    /// SIGABRT did not end it.
    Hung,
    DrainTimeout,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExitReason {
    Asked,
    NoWorkerReady,
}

/// What an operator should read, and nothing else follows from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Note {
    RecycleAsked {
        pid: Pid,
        cause: RecycleCause,
    },
    BackedOff {
        slot: SlotId,
        failures: u32,
        wait_ms: u64,
    },
    /// Every row of the scoreboard is taken by a draining worker; the slot waits for one to end.
    ScoreboardFull {
        slot: SlotId,
    },
    BootGivenUp {
        failures: u32,
    },
    /// Another reload is under way; this one follows.
    ReloadQueued,
    /// As above, of an upgrade.
    UpgradeQueued,
    TrialBegun {
        generation: Generation,
        target: u32,
    },
    Scaled {
        target: u32,
        asked: i64,
    },
    Stopping {
        graceful: bool,
        delay_ms: u64,
        grace_ms: u64,
    },
    Stalled {
        by_ms: u64,
    },
    /// A worker that was steered around beats again.
    HeartbeatResumed {
        pid: Pid,
        silent_ms: u64,
    },
    /// A bug of ours, said once; debug builds panic instead.
    InvariantBroken(&'static str),
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Phase {
    Forking,
    Starting {
        until: Millis,
    },
    Serving {
        silent_until: Millis,
    },
    /// A hung worker was asked to write what it does.
    Dumping {
        until: Millis,
    },
    /// SIGABRT sent to a hung worker.
    Aborting {
        until: Millis,
    },
    Draining {
        until: Millis,
    },
    /// SIGKILL sent: only its exit ends this.
    Killed {
        cause: KillCause,
    },
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Stage {
    Running,
    /// A stop was asked; everything is served as before until then (`workers.shutdown_delay`).
    Delaying {
        until: Millis,
    },
    Stopping {
        until: Millis,
        urgency: u8,
    },
    Done,
}

/// Counts for the operator; they only go up.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    pub(crate) recycled: u64,
    pub(crate) crashed: u64,
    pub(crate) hung: u64,
    pub(crate) boot_failed: u64,
    /// Generations proven: of the same program, and of a new one.
    pub(crate) reloads: u64,
    pub(crate) upgrades: u64,
}
