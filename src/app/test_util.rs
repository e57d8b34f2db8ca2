//! What unit tests of a service need: the context of a worker, without a worker.
//!
//! Owns: the builder of a context, and the signals that a test gives it. Refuses: to serve a request; a test calls the
//! service itself.

use std::{any::TypeId, collections::BTreeMap, path::Path, sync::Arc};

use tokio::sync::watch;

use super::WorkerContext;
use crate::{
    scoreboard::Scoreboard,
    settings::{self, Declared, Flags, Purpose, Resolved, Settings, StartFolder},
    worker::BackgroundCount,
};

/// Builds a [`WorkerContext`] for unit tests of a factory or a handler, from
/// [`WorkerContext::builder`](WorkerContext::builder). It needs the feature `test-util`, which belongs to
/// `[dev-dependencies]`.
///
/// ```
/// use oxicorn::WorkerContext;
///
/// #[derive(Debug, Default, PartialEq, serde::Deserialize)]
/// struct Greeter {
///     greeting: String,
/// }
///
/// let greeter = Greeter { greeting: "hello".into() };
/// let worker = WorkerContext::builder().slot(3).table(greeter).argument("app").build();
/// assert_eq!((worker.slot(), &*worker.table::<Greeter>().greeting), (3, "hello"));
/// assert_eq!(worker.arguments(), ["app"]);
/// assert!(!worker.is_stopping());
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct WorkerContextBuilder {
    slot: u32,
    generation: u32,
    resolved: Resolved,
    arguments: Vec<String>,
}

/// What the master would tell the worker of a [`WorkerContext`] that a test has built.
#[derive(Debug)]
pub struct WorkerSignals {
    stopping: watch::Sender<bool>,
    draining: watch::Sender<bool>,
}

impl WorkerContext {
    /// Begins a context for a unit test: of slot 0 and generation 1, with default settings, no table and no argument,
    /// in the folder `/`. It needs the feature `test-util`.
    pub fn builder() -> WorkerContextBuilder {
        let (environment, root) = (BTreeMap::new(), StartFolder::at(Path::new("/")));
        let resolved = settings::resolve(&Flags::default(), &environment, &root, &Declared::default(), Purpose::Ask)
            .expect("the defaults are valid settings");
        WorkerContextBuilder { slot: 0, generation: 1, resolved, arguments: Vec::new() }
    }
}

impl WorkerContextBuilder {
    /// Sets the worker's slot.
    pub fn slot(mut self, slot: u32) -> Self {
        self.slot = slot;
        self
    }

    /// Sets the worker's generation.
    pub fn generation(mut self, generation: u32) -> Self {
        self.generation = generation;
        self
    }

    /// Changes the settings, which are the defaults before.
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.resolved.settings);
        self
    }

    /// Adds a table, as [`App::table`](crate::App::table) and a settings file would.
    pub fn table<T: Send + Sync + 'static>(mut self, table: T) -> Self {
        self.resolved.tables.0.insert(TypeId::of::<T>(), Arc::new(table));
        self
    }

    /// Adds an argument, as of [`App::positional`](crate::App::positional).
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Builds the context of a worker that is never asked to stop or to drain.
    ///
    /// # Panics
    /// When the kernel has no memory for the counters of one worker.
    #[must_use]
    pub fn build(self) -> WorkerContext {
        self.build_with_signals().0
    }

    /// Builds the context, and what asks its worker to stop and to drain.
    ///
    /// # Panics
    /// As for [`build`](Self::build).
    #[must_use]
    pub fn build_with_signals(self) -> (WorkerContext, WorkerSignals) {
        let Self { slot, generation, resolved, arguments } = self;
        let scoreboard = Scoreboard::create(1, 1).expect("memory for one row");
        let row = scoreboard.claim(slot, generation, 0, 0).expect("the row is free");
        let ((stopping, stop), (draining, drain)) = (watch::channel(false), watch::channel(false));
        let context = WorkerContext {
            slot,
            generation,
            resolved: Arc::new(resolved),
            arguments: arguments.into(),
            row,
            stopping: stop,
            draining: drain,
            background: BackgroundCount::default(),
        };
        (context, WorkerSignals { stopping, draining })
    }
}

impl WorkerSignals {
    /// Tells the worker that the whole service was asked to stop: [`WorkerContext::stopping`] completes.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Asks the worker to drain: [`WorkerContext::draining`] completes.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }
}
