//! The types that the core and the shell exchange: facts that the shell reports, and actions that the core asks for.
//!
//! Owns: the identifiers, the limits that decisions need, events, actions, replies and notes. Refuses: state, decisions
//! and sentences. The core decides, and the shell writes the sentences of the log.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Milliseconds on the monotonic clock. The shell supplies the time; the core never reads a clock.
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

/// Identifies a client of the control socket that waits for a reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Caller(pub(crate) u64);

/// The settings that decisions need. Times are in milliseconds; a limit of 0 is off.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) workers: u32,
    /// The most workers that a command may ask for.
    pub(crate) workers_max: u32,
    /// How many slots have listeners; the action `Grow` makes more.
    pub(crate) slots: u32,
    /// How many rows the scoreboard has, which is also the number of worker processes that can live at once.
    pub(crate) rows: u32,
    pub(crate) timeout_ms: u64,
    pub(crate) boot_timeout_ms: u64,
    pub(crate) graceful_timeout_ms: u64,
    pub(crate) shutdown_delay_ms: u64,
    pub(crate) max_rss: u64,
    /// How long a worker that hangs or is late has to write where it hangs, before the master ends it; 0 means that the
    /// worker is not asked to write this.
    pub(crate) dump_ms: u64,
    /// If true, a worker leaves only when its replacement serves. If false, a slot gets its next worker only after the
    /// last process of the slot has ended.
    pub(crate) overlap: bool,
    /// True if each new worker loads the app's code from the disk. False if the program itself contains this code.
    pub(crate) code_on_disk: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    StopRequested {
        graceful: bool,
    },
    /// The number of workers is to change. A request by a signal has no `caller`, so it gets no reply. If the number in
    /// such a request is out of range, the nearest possible number is used.
    ScaleRequested {
        scaling: Scaling,
        caller: Option<Caller>,
    },
    ReloadRequested {
        caller: Option<Caller>,
    },
    /// The shell has read and checked the settings, and has bound their addresses. `count` is the number of workers in
    /// the file, if this number has changed. `removes` is true if the file no longer names some addresses.
    SettingsLoaded {
        policy: Policy,
        count: Option<u32>,
        removes: bool,
    },
    /// The shell could not load the settings; nothing was changed.
    SettingsRefused,
    /// An upgrade was requested. `program` is the path of the new program; `None` means the path by which the running
    /// program was started. With `force` the upgrade is done even if there is no way back.
    UpgradeRequested {
        program: Option<PathBuf>,
        force: bool,
        caller: Option<Caller>,
    },
    /// The test of a new program is over, and its process has been reaped.
    PreflightEnded {
        passed: bool,
    },
    /// The action `BecomeNew` or `BecomeOld` failed, so this program still runs, and nothing has changed.
    ExecFailed,
    /// The action `Grow` is done. `slots` and `rows` are the numbers that exist now.
    Grown {
        slots: u32,
        rows: u32,
    },
    /// A worker was forked. `max_age_ms` is the age, jitter included, at which the worker is replaced; 0 means no
    /// limit.
    Forked {
        slot: SlotId,
        pid: Pid,
        max_age_ms: u64,
    },
    ForkFailed {
        slot: SlotId,
    },
    /// The worker has built the app, and waits for `Go`.
    Ready {
        pid: Pid,
    },
    /// The worker has begun to accept the connections of its slot.
    Accepting {
        pid: Pid,
    },
    /// The worker has sent a heartbeat and promised the next one by `due`.
    Heartbeat {
        pid: Pid,
        due: Millis,
    },
    /// The worker has answered its first request.
    Answered {
        pid: Pid,
    },
    /// A sibling reports that the worker of this slot has missed its promised heartbeat.
    SlotSilent {
        slot: SlotId,
    },
    /// The worker has reached its limit of connections (`full`), or it can take connections again (not `full`).
    RoomChanged {
        pid: Pid,
        full: bool,
    },
    RecycleRequested {
        pid: Pid,
    },
    /// The worker drains because it got a SIGTERM that the master did not send.
    DrainBegun {
        pid: Pid,
    },
    /// At the final stop this worker has accepted every connection that waited in the listeners, and has shut the
    /// listeners down.
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
    /// Tell the worker that the whole service will stop. The worker serves on, but its `/ready` answers 503 from now
    /// on.
    AnnounceStop {
        pid: Pid,
    },
    /// Tell the worker to drain. `last` is true if no other worker comes after this one. The worker then accepts the
    /// connections that wait in the listeners, and closes the listeners.
    Drain {
        pid: Pid,
        grace_ms: u64,
        last: bool,
        cause: Cause,
    },
    /// Send the runtime's signal to a worker that hangs or is late, so that it writes where it hangs. The action `Abort`
    /// or `Kill` follows later. `silent_ms` is the time since the last heartbeat; it is `None` if the worker is late.
    Dump {
        pid: Pid,
        cause: KillCause,
        silent_ms: Option<u64>,
    },
    /// End a hung worker. `silent_ms` is `None` if `Dump` came before, because the hang is in the log already.
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
    /// Forget the old settings, because the new generation has passed its trial.
    KeepSettings,
    /// Use the old settings again, because the new generation failed its trial.
    RestoreSettings {
        slot: SlotId,
        failed: Generation,
        why: Failure,
    },
    /// Start the new program beside this one, to test it. The new program boots one worker, which never serves.
    BeginPreflight {
        program: Option<PathBuf>,
        force: bool,
    },
    /// End the preflight, because it takes too long or the service stops.
    EndPreflight,
    /// Replace this program with the new one, which has passed the preflight and continues from [`Master::snapshot`].
    BecomeNew,
    /// Forget the old program, because the workers of the new program have passed their trial.
    KeepProgram,
    /// Replace this program with the old one, because the workers of this program failed their trial.
    BecomeOld {
        slot: SlotId,
        why: Failure,
    },
    /// Refuse new connections at the removed addresses, which will be closed soon.
    RefuseAtRemoved,
    /// Close the removed addresses, because no connection waits there any more.
    CloseRemoved,
    /// Make listeners, and rows of the scoreboard, for this many workers.
    Grow {
        workers: u32,
    },
    /// Send new connections to these slots only.
    Steer {
        live: Vec<SlotId>,
    },
    /// Send a caller its only reply. A caller that asked for a stop gets its reply at `Exit`.
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

/// The reply to a request that came over the control socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommandReply {
    /// Every slot below the target is served, and the workers of all other slots were told to drain.
    Serving {
        target: u32,
    },
    /// The service cannot have this number of workers; nothing was changed.
    OutOfRange {
        asked: i64,
        most: u32,
    },
    /// The listeners for more workers could not be made; the target is now the number of slots that have listeners.
    NoListeners {
        target: u32,
    },
    /// Another request to change the number of workers came before this one was done.
    Superseded {
        target: u32,
    },
    Reloaded {
        generation: Generation,
    },
    /// The new settings could not be loaded; the shell knows the reason.
    Refused,
    /// A worker of the new generation ended, hung or could not boot, so the old settings stay. If workers overlap, the
    /// old workers never stopped serving. Otherwise the slots that have no old worker any more get a new one with the
    /// old settings.
    RolledBack {
        slot: SlotId,
        why: Failure,
        overlap: bool,
    },
    Upgraded {
        generation: Generation,
    },
    /// The new program did not pass its preflight or could not be executed; nothing was changed.
    UpgradeRefused,
    /// The workers of the new program failed their trial, or the new program could not take over.
    UpgradeFailed,
    /// Another upgrade is under way or queued; nothing was changed.
    UpgradeUnderWay,
    /// A worker could not boot. The target stays, and the master tries the slot again.
    BootFailed {
        slot: SlotId,
        target: u32,
    },
    /// A worker of an added slot could not boot, after a reload or an upgrade was refused. The target is again the one
    /// from before the request.
    ScaleRefused {
        slot: SlotId,
        target: u32,
    },
    Stopping,
}

/// In which way a worker failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    Ended,
    Hung,
    BootTimeout,
    NotForked,
}

/// Why the master tells a worker to drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Recycle(RecycleCause),
    Reload,
    /// The worker belongs to a generation that failed its trial.
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

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum KillCause {
    BootTimeout,
    /// The worker hung, and did not end after SIGABRT.
    #[default]
    Hung,
    DrainTimeout,
}

/// The change that was refused last, and after which none has succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RefusedChange {
    Reload,
    Upgrade,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExitReason {
    Asked,
    NoWorkerReady,
}

/// Something that an operator should read; the shell only logs it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Note {
    /// A worker has reached a limit. If `held`, it is not replaced, because its replacement would load code that was
    /// refused.
    RecycleAsked {
        pid: Pid,
        cause: RecycleCause,
        held: bool,
    },
    /// The worker of this slot is gone or leaves, and the next one loads code that was refused.
    LoadsRefusedCode {
        slot: SlotId,
        refused: RefusedChange,
    },
    /// A worker of an added slot could not boot and loads code that was refused, so there will be `target` workers, as
    /// before the request.
    ScaleRefused {
        slot: SlotId,
        target: u32,
        refused: RefusedChange,
    },
    BackedOff {
        slot: SlotId,
        failures: u32,
        wait_ms: u64,
    },
    /// Every row of the scoreboard is taken. The slot waits until a draining worker ends.
    ScoreboardFull {
        slot: SlotId,
    },
    BootGivenUp {
        failures: u32,
    },
    /// Another reload or upgrade is under way; this reload begins after it.
    ReloadQueued,
    /// Another reload or upgrade is under way; this upgrade begins after it.
    UpgradeQueued,
    TrialBegun {
        generation: Generation,
        target: u32,
        overlap: bool,
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
    /// A worker that was silent sends heartbeats again, so its slot gets new connections again.
    HeartbeatResumed {
        pid: Pid,
        silent_ms: u64,
    },
    /// An invariant of the core does not hold, which is a bug in oxicorn. It is logged once; debug builds panic
    /// instead.
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
    /// The master asked a worker that hangs or is late to write where it hangs. `cause` says why the master ends it.
    Dumping {
        until: Millis,
        #[serde(default)]
        cause: KillCause,
    },
    /// The master has sent SIGABRT to a hung worker.
    Aborting {
        until: Millis,
    },
    Draining {
        until: Millis,
    },
    /// The master has sent SIGKILL; only the exit of the process ends this phase.
    Killed {
        cause: KillCause,
    },
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Stage {
    Running,
    /// A stop was requested and begins at `until`. Before that, the service serves as usual (`workers.shutdown_delay`).
    Delaying {
        until: Millis,
    },
    Stopping {
        until: Millis,
        urgency: u8,
    },
    Done,
}

/// Counters that the status shows to the operator; they only increase.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    pub(crate) recycled: u64,
    pub(crate) crashed: u64,
    pub(crate) hung: u64,
    pub(crate) boot_failed: u64,
    /// How many generations passed their trial: `reloads` counts those of the same program, `upgrades` those of a new
    /// one.
    pub(crate) reloads: u64,
    pub(crate) upgrades: u64,
}
