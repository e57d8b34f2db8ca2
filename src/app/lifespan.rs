//! The types that a factory returns.
//!
//! Owns: the service with its shutdown hook, and the bounds of a factory. Refuses: calling a factory (`worker`).

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tower_service::Service;

use crate::worker::Body;

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service with a shutdown hook, which runs after the last request: to close pools or to flush buffers.
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
    pub(crate) shutdown: Option<Shutdown>,
    pub(crate) shutdown_grace: Duration,
}

impl<S> Lifespan<S> {
    /// Wraps a service without a shutdown hook.
    pub fn new(service: S) -> Self {
        Self { service, shutdown: None, shutdown_grace: Duration::ZERO }
    }

    /// Adds the shutdown hook. The worker runs it after its drain, within the rest of `workers.graceful_timeout`, and
    /// drops it at the end of that time.
    #[must_use]
    pub fn on_shutdown(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(hook));
        self
    }

    /// Reserves a part of `workers.graceful_timeout` for the shutdown hook: the drain then ends this long before the
    /// end of the grace, and cuts the requests and the background work that are left. At most half of the grace is
    /// reserved. Without this call, the hook has the time that the requests leave, and at least half a second.
    #[must_use]
    pub fn shutdown_grace(mut self, time: Duration) -> Self {
        self.shutdown_grace = time;
        self
    }
}

/// Methods for unit tests of a service, with the feature `test-util`.
#[cfg(feature = "test-util")]
impl<S> Lifespan<S> {
    /// Runs the shutdown hook, as a worker does after its drain.
    pub async fn shut_down(self) {
        if let Some(hook) = self.shutdown {
            hook.await;
        }
    }
}

impl<S> fmt::Debug for Lifespan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan").field("shutdown", &self.shutdown.is_some()).finish_non_exhaustive()
    }
}

/// The types that a factory may return: a bare service, or a [`Lifespan`] around one. The trait is sealed, so there are
/// no other implementations.
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

/// The output of a factory's future: a `Result` of a service, or of a [`Lifespan`] around a service. The trait is
/// sealed.
///
/// The service is a tower `Service` from `http::Request<Body>` to an `http::Response` with any body. It must be `Clone`
/// and `Send`, and its futures must be `Send`. The errors of the service, of the body and of the factory may be any
/// error, or any type that converts into one. An axum `Router` is such a service.
///
/// A worker has one thread and does not need `Send`. The bound is there because most services are `Send` anyway, such
/// as those of axum, and because it allows workers with several threads later.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a factory of oxicorn returns",
    note = "it returns `Result<S, E>` or `Result<oxicorn::Lifespan<S>, E>`; `S` is a `tower_service::Service` of \
            `http::Request<oxicorn::Body>`, `Clone` and `Send`"
)]
pub trait FactoryOutput: sealed::Work {}

impl<R: sealed::Work> FactoryOutput for R {}

/// The private halves of the public traits, so that only this crate can implement and call them.
pub(super) mod sealed {
    use std::{future::Future, process::ExitCode};

    use http::{Request, Response};
    use tower_service::Service;

    use super::{super::BoxError, IntoLifespan};
    use crate::{
        WorkerContext,
        worker::{self, Body, WorkerSeed},
    };

    pub trait Lifespan {}

    impl<S> Lifespan for super::Lifespan<S> {}

    impl<S: Service<Request<Body>>> Lifespan for S {}

    /// A public name for the private type `WorkerSeed`, so that the public trait `Work` can mention it.
    #[derive(Debug)]
    pub struct Seed(pub(crate) WorkerSeed);

    pub trait Work: Sized {
        /// Runs a worker that serves the output of `factory`, and returns its exit code.
        fn work<F, Fut>(seed: Seed, factory: F) -> ExitCode
        where
            F: FnOnce(WorkerContext) -> Fut + Send + 'static,
            Fut: Future<Output = Self> + Send + 'static;
    }

    /// The bounds of a factory's output. They are written only here, and `FactoryOutput` and `App` refer to them.
    impl<L, E, S, B> Work for Result<L, E>
    where
        L: IntoLifespan<Service = S> + 'static,
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        fn work<F, Fut>(seed: Seed, factory: F) -> ExitCode
        where
            F: FnOnce(WorkerContext) -> Fut + Send + 'static,
            Fut: Future<Output = Self> + Send + 'static,
        {
            worker::run(seed.0, factory)
        }
    }
}
