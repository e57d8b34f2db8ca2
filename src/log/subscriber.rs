//! The log as a subscriber of `tracing`: the only one, or a layer beside the app's own layers.
//!
//! Owns: the choice of the events that are written, by level and target, and the choice of the subscriber that gets the
//! events. The subscriber may differ between the master, a worker that boots and a worker that serves. Refuses: to
//! record spans. A line of the log shows no spans, so only the app's layers get them.

use std::{
    cell::RefCell,
    sync::{PoisonError, RwLock},
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber, dispatcher,
    level_filters::LevelFilter,
    span,
    subscriber::{self, DefaultGuard, Interest},
};
use tracing_subscriber::{
    layer::{Context, Filter, Layer},
    registry::LookupSpan,
};

/// The levels that the current settings give.
static LEVELS: RwLock<Levels> = RwLock::new(Levels { level: LevelFilter::INFO, targets: Vec::new() });

thread_local! {
    /// While this guard exists, the events of this thread go to [`Lines`], even if the app has set a subscriber for the
    /// whole process.
    static FIRST: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// The levels that decide which events are written.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    pub(super) level: LevelFilter,
    /// The levels of single targets. Such a level replaces `level` for its target and for all targets below it: the
    /// level of `sqlx` also applies to `sqlx::query`.
    pub(super) targets: Vec<(String, LevelFilter)>,
}

impl Levels {
    /// Returns the level that applies to a target: the level of the longest name in `targets` that the target begins
    /// with, or else `level`.
    fn of(&self, target: &str) -> LevelFilter {
        let fits = |name: &str| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        let fitting = self.targets.iter().filter(|(name, _)| fits(name));
        fitting.max_by_key(|(name, _)| name.len()).map_or(self.level, |(_, level)| *level)
    }

    fn writes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.of(metadata.target())
    }

    fn most(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.level, LevelFilter::max)
    }
}

pub(super) fn set_levels(levels: Levels) {
    *LEVELS.write().unwrap_or_else(PoisonError::into_inner) = levels;
    tracing::callsite::rebuild_interest_cache();
}

fn with_levels<T>(ask: impl FnOnce(&Levels) -> T) -> T {
    ask(&LEVELS.read().unwrap_or_else(PoisonError::into_inner))
}

/// Sends the events of this thread to the log, even if the app has set a subscriber for the whole process.
pub(super) fn come_first() {
    FIRST.with_borrow_mut(|first| {
        first.get_or_insert_with(|| dispatcher::set_default(&Dispatch::new(Lines)));
    });
}

/// Lets the app's subscriber take over. If the app has set no subscriber, the log takes the events of all threads.
/// Returns `false` if the app's subscriber has no [`log_layer`], so that the events of oxicorn do not reach the log.
pub(super) fn give_way() -> bool {
    let is_alone = subscriber::set_global_default(Lines).is_ok();
    // The factory may have set a subscriber for this thread after our guard was made. Then dropping our guard would
    // remove the app's subscriber too. So drop the guard only if this thread still uses our subscriber.
    if dispatcher::get_default(|current| current.is::<Lines>()) {
        step_aside();
    }
    is_alone || writes_here()
}

/// Ends the default of this thread, if [`come_first`] has set one here. The app's subscriber then gets the spans and
/// events of this thread.
fn step_aside() {
    drop(FIRST.take());
}

/// Returns true if events of this thread reach the log.
pub(super) fn writes_here() -> bool {
    dispatcher::get_default(|current| current.is::<Lines>() || current.is::<LogLayer>())
}

/// Calls `say`, and makes the log the only subscriber of this thread during the call.
pub(super) fn alone<T>(say: impl FnOnce() -> T) -> T {
    subscriber::with_default(Lines, say)
}

/// The log as the only subscriber. It keeps no registry of spans, because a registry would cost instructions in each
/// request, and no layer would read it.
pub(super) struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        with_levels(|levels| levels.writes(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(with_levels(Levels::most))
    }

    fn event(&self, event: &Event<'_>) {
        super::write(event);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Returns the log of oxicorn as a layer, for an app that has layers of its own, such as those for OpenTelemetry,
/// Sentry or the console of tokio. Install the layers in the factory, where threads may be started:
///
/// ```
/// use std::convert::Infallible;
///
/// use axum::{Router, routing::get};
/// use tracing_subscriber::{Registry, layer::SubscriberExt, util::SubscriberInitExt};
/// # use tracing_subscriber::layer::Identity as MyLayer;
///
/// async fn factory(_worker: oxicorn::WorkerContext) -> Result<Router, Infallible> {
///     # let my_layer = MyLayer::new();
///     Registry::default().with(oxicorn::log_layer()).with(my_layer).init();
///     Ok(Router::new().route("/", get(async || "hello\n")))
/// }
/// ```
///
/// The layer writes the events that `log.level` and `log.targets` let through, as lines of `log.file`. These lines show
/// no spans. The app's other layers get the spans and all events. The layer never waits for a reader of the log.
///
/// The app's subscriber gets all spans and events from the moment at which the factory installs it. Earlier events go
/// to the log alone. Install the subscriber on the thread of the factory. If another thread installs it, the thread of
/// the factory uses it only once the factory is done.
///
/// If the app installs no subscriber, its events go to the log without this layer. If the app installs a subscriber
/// without this layer, that subscriber also takes the events of oxicorn in the worker once the factory is done. These
/// events are then missing in the log, and the warning `log_layer_missing` says so. The event `panic` still goes to the
/// log.
///
/// The master always writes to its log, even if `main` has installed a subscriber. A process takes only one subscriber.
/// If `main` has installed one, `init` in the factory panics, and the worker fails to boot.
pub fn log_layer<S>() -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    LogLayer.with_filter(Leveled)
}

struct LogLayer;

impl<S: Subscriber> Layer<S> for LogLayer {
    /// Ends the default subscriber of this thread when the app installs the subscriber that holds this layer. The log
    /// must not stay the default until the factory ends, because the rest of the factory may make spans for its tasks.
    /// Such a span keeps, as long as it exists, the subscriber that it was made with.
    fn on_register_dispatch(&self, _: &Dispatch) {
        step_aside();
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        super::write(event);
    }
}

/// The filter of the layer by level and target. `tracing` calls the filter only once for each place in the code, so an
/// event that is not written costs nothing.
struct Leveled;

impl<S> Filter<S> for Leveled {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        with_levels(|levels| levels.writes(metadata))
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if with_levels(|levels| levels.writes(metadata)) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(with_levels(Levels::most))
    }
}
