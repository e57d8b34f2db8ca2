//! What the master tells its runtime.
//!
//! Owns: the events and their fields. Refuses: to decide when they happen (`master`), and to act on them (the runtime).

/// An event in the life of the service, which the master tells with [`Runtime::on_event`](crate::Runtime::on_event).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorEvent<'a> {
    /// The master starts. At a start of the service it has bound no address and forked no worker yet, and
    /// [`Runtime::on_event`](crate::Runtime::on_event) may take its time.
    Starting {
        /// How many workers there should be.
        workers: u32,
        /// The workers of the program before, if this program takes the service over at an upgrade.
        alive: &'a [ForkedWorker],
    },
    /// The master listens, and forks its first worker next.
    Listening {
        /// The addresses, as the log writes them.
        addresses: &'a [String],
    },
    /// The master is about to fork a worker. The pid of this worker is 0.
    Forking(ForkedWorker),
    /// The master has forked a worker.
    Forked(ForkedWorker),
    /// A worker has ended, and the master has reaped it.
    Exited(ForkedWorker),
    /// A reload has read the settings. They are in effect, and workers with them are forked next.
    Reloading {
        /// How many workers there should be.
        workers: u32,
        /// How many workers there should have been before.
        before: u32,
        /// The addresses, as the log writes them.
        addresses: &'a [String],
        /// The workers that run now.
        alive: &'a [ForkedWorker],
    },
    /// The workers with the settings of the last [`Reloading`](Self::Reloading) have passed their trial.
    Reloaded,
    /// The workers with the settings of the last [`Reloading`](Self::Reloading) have failed their trial. The settings
    /// before are in effect again.
    RolledBack,
    /// What the last [`Runtime::refresh`](crate::Runtime::refresh) has read is not used: it was a preview, or the
    /// reload was refused, or the service stops.
    RefreshUnused,
    /// The number of workers that there should be has changed.
    WorkersChanged {
        /// How many workers there should be.
        workers: u32,
        /// How many workers there should have been before.
        before: u32,
    },
    /// An upgrade executes the new program next. If that fails, the master goes on.
    Executing,
    /// A stop begins, or a quick one takes the place of a graceful one.
    Stopping {
        /// True if the workers have two seconds at most, as after SIGINT.
        quick: bool,
        /// The workers that run now.
        alive: &'a [ForkedWorker],
    },
    /// All workers have ended, and the master ends next.
    Stopped,
}

/// A worker in a [`SupervisorEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForkedWorker {
    /// The number of the worker's slot.
    pub slot: u32,
    /// The worker's generation.
    pub generation: u32,
    /// The number of the fork: 1 for the first worker of the service, also over upgrades.
    pub age: u32,
    /// The pid of the worker.
    pub pid: u32,
}
