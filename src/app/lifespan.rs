//! The types that a factory returns.
//!
//! Owns: the service with its shutdown hook. Refuses: to set the bounds of the service (`factory`), and to run the
//! service (`worker`).

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tower_service::Service;

use crate::worker::Body;

pub(crate) type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service with a shutdown hook. The worker runs the hook after its last request. The hook can close pools or flush
/// buffers.
///
/// ```
/// use std::convert::Infallible;
///
/// use axum::{Router, routing::get};
/// use oxicorn::{Lifespan, WorkerContext};
///
/// # struct Pool;
/// # impl Pool {
/// #     fn open() -> Self { Self }
/// #     async fn close(self) {}
/// # }
/// async fn factory(_worker: WorkerContext) -> Result<Lifespan<Router>, Infallible> {
///     let pool = Pool::open();
///     let service = Router::new().route("/", get(async || "hello\n"));
///     Ok(Lifespan::new(service).on_shutdown(async move { pool.close().await }))
/// }
/// # let _ = oxicorn::App::new(factory);
/// ```
pub struct Lifespan<S> {
    pub(crate) service: S,
    /// The hooks, in the order in which they run.
    pub(crate) shutdown: Vec<Shutdown>,
    pub(crate) shutdown_grace: Duration,
}

impl<S> Lifespan<S> {
    /// Wraps a service without a shutdown hook.
    pub fn new(service: S) -> Self {
        Self { service, shutdown: Vec::new(), shutdown_grace: Duration::ZERO }
    }

    /// Adds a shutdown hook. The worker runs it after the drain, in the time that is left of
    /// `workers.graceful_timeout`. If the hook has not ended 100 ms before the end of that time, the worker drops it.
    /// Several hooks run one after the other, in the order in which they were added. A hook that panics counts as
    /// ended, and the panic is in the log.
    #[must_use]
    pub fn on_shutdown(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown.push(Box::pin(hook));
        self
    }

    /// Reserves `time` for the shutdown hook, as a part of `workers.graceful_timeout`. The drain then ends `time` plus
    /// 350 ms before the end of the grace. Of these 350 ms, clients get 250 ms to read the last bytes of their
    /// responses, and 100 ms are kept for the worker's last log lines. The drain cuts the requests and the background
    /// work that are left. At most half of the grace is reserved. Without this call, the drain ends half a second
    /// before the end of the grace. If a quarter of the grace is shorter than half a second, the drain ends that
    /// quarter before the end.
    #[must_use]
    pub fn shutdown_grace(mut self, time: Duration) -> Self {
        self.shutdown_grace = time;
        self
    }
}

/// Methods for unit tests of a service, with the feature `test-util`.
#[cfg(feature = "test-util")]
impl<S> Lifespan<S> {
    /// Runs the shutdown hooks, as a worker does after its drain. If a hook panics, this call panics too, so that the
    /// test fails.
    pub async fn shut_down(self) {
        for hook in self.shutdown {
            hook.await;
        }
    }
}

impl<S> fmt::Debug for Lifespan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan").field("shutdown", &self.shutdown.len()).finish_non_exhaustive()
    }
}

/// The types that a factory may return: a service, or a [`Lifespan`] around a service. The trait is sealed, so there
/// are no other implementations.
pub trait IntoLifespan: sealed::Lifespan {
    /// The type of the service that answers requests.
    type Service;

    /// Returns the service with its shutdown hook, if it has one.
    fn into_lifespan(self) -> Lifespan<Self::Service>;
}

impl<S> IntoLifespan for Lifespan<S> {
    type Service = S;

    fn into_lifespan(self) -> Self {
        self
    }
}

impl<S: Service<http::Request<Body>>> IntoLifespan for S {
    type Service = S;

    fn into_lifespan(self) -> Lifespan<S> {
        Lifespan::new(self)
    }
}

/// Has the private supertrait of [`IntoLifespan`], so that only this crate can implement that trait.
mod sealed {
    use http::Request;
    use tower_service::Service;

    use crate::worker::Body;

    pub trait Lifespan {}

    impl<S> Lifespan for super::Lifespan<S> {}

    impl<S: Service<Request<Body>>> Lifespan for S {}
}
