//! The context of a worker for unit tests of a service that run without a worker process.
//!
//! Owns: the builder of a context, and the signals that a test sends to it. Refuses: to serve a request, because a test
//! calls the service itself.

use std::{any::TypeId, collections::BTreeMap, path::Path, sync::Arc};

use tokio::sync::watch;

use super::WorkerContext;
use crate::{
    scoreboard::Scoreboard,
    settings::{self, Declared, Flags, Purpose, Resolved, Settings, Sources, StartFolder},
    worker::{AppReport, BackgroundCount},
};

/// Builds a [`WorkerContext`] for unit tests of a factory or a handler. [`WorkerContext::builder`] makes this builder.
/// Both need the feature `test-util`, which belongs to `[dev-dependencies]`.
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

/// Sends the signals that a master would send, to the [`WorkerContext`] that was built together with this value.
///
/// If the test drops this value, its worker gets no further signals. A signal that was sent before still counts, and a
/// future that waits for another signal never completes.
#[derive(Debug)]
pub struct WorkerSignals {
    stopping: watch::Sender<bool>,
    draining: watch::Sender<bool>,
}

impl WorkerContext {
    /// Returns a builder of a context for a unit test. The context begins with slot 0, generation 1, default settings,
    /// no table and no argument, and its folder is `/`. This method needs the feature `test-util`.
    pub fn builder() -> WorkerContextBuilder {
        let (environment, root) = (BTreeMap::new(), StartFolder::at(Path::new("/")));
        let resolved = settings::resolve(
            Sources::default(),
            &Flags::default(),
            &environment,
            &root,
            &Declared::default(),
            Purpose::Ask,
        )
        .expect("the defaults are valid settings");
        WorkerContextBuilder { slot: 0, generation: 1, resolved, arguments: Vec::new() }
    }
}

impl WorkerContextBuilder {
    /// Sets the number of the worker's slot; without this call it is 0.
    pub fn slot(mut self, slot: u32) -> Self {
        self.slot = slot;
        self
    }

    /// Sets the number of the worker's generation; without this call it is 1.
    pub fn generation(mut self, generation: u32) -> Self {
        self.generation = generation;
        self
    }

    /// Changes the settings. Before this call they are the default settings.
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.resolved.settings);
        self
    }

    /// Adds a table of the app with this value, as if it was declared with [`App::table`](crate::App::table) and read
    /// from a settings file.
    pub fn table<T: Send + Sync + 'static>(mut self, table: T) -> Self {
        self.resolved.tables.0.insert(TypeId::of::<T>(), Arc::new(table));
        self
    }

    /// Adds an argument, as if it was declared with [`App::positional`](crate::App::positional) and given on the
    /// command line.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Builds the context of a worker that is never asked to stop or to drain.
    ///
    /// # Panics
    /// If the kernel has no memory for the counters of one worker.
    #[must_use]
    pub fn build(self) -> WorkerContext {
        self.build_with_signals().0
    }

    /// Builds the context, together with the [`WorkerSignals`] by which the test asks its worker to stop or to drain.
    ///
    /// # Panics
    /// If the kernel has no memory for the counters of one worker.
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
            report: AppReport::default(),
        };
        (context, WorkerSignals { stopping, draining })
    }
}

impl WorkerSignals {
    /// Tells the worker that the whole service was asked to stop: the future of [`WorkerContext::stopping`] completes.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Asks the worker to drain: the future of [`WorkerContext::draining`] completes.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{select, time::timeout};

    use super::*;

    /// How long a test waits for a future that should complete at once.
    const A_WHILE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_worker_without_signals_is_never_asked_to_stop_or_to_drain() {
        let (context, signals) = WorkerContext::builder().build_with_signals();
        drop(signals);
        for context in [WorkerContext::builder().build(), context] {
            let asked = async {
                select! {
                    () = context.stopping() => "to stop",
                    () = context.draining() => "to drain",
                }
            };
            assert_eq!(timeout(A_WHILE, asked).await.ok(), None);
            assert!(!context.is_stopping() && !context.is_draining());
        }
    }

    #[tokio::test]
    async fn a_signal_counts_even_if_the_signals_are_dropped_after_it() {
        let (context, signals) = WorkerContext::builder().build_with_signals();
        signals.drain();
        drop(signals);
        assert_eq!(timeout(A_WHILE, context.draining()).await, Ok(()));
        assert!(timeout(A_WHILE, context.stopping()).await.is_err());
    }
}
