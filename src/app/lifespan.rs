//! What a factory returns.
//!
//! Owns: the service with its shutdown hook, and the bounds of a factory, written once. Refuses: to call a factory
//! (`worker`).

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tower_service::Service;

use crate::worker::Body;

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service, and what to do after its last request: close pools, flush buffers.
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
    /// Wraps a service that has nothing to do after its last request.
    pub fn new(service: S) -> Self {
        Self { service, shutdown: None, shutdown_grace: Duration::ZERO }
    }

    /// Adds the shutdown hook. It runs in the worker after its drain, within what is left of
    /// `workers.graceful_timeout`, and is dropped at the end of that time.
    #[must_use]
    pub fn on_shutdown(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(hook));
        self
    }

    /// Keeps this much of the grace for the shutdown hook: a drain waits for requests and background work until this
    /// long before the end of `workers.graceful_timeout`, and cuts what is left then. At most half of the grace is
    /// kept. Without it the hook has what the requests leave, and half a second at least.
    #[must_use]
    pub fn shutdown_grace(mut self, time: Duration) -> Self {
        self.shutdown_grace = time;
        self
    }
}

/// For unit tests of a service, with the feature `test-util`.
#[cfg(feature = "test-util")]
impl<S> Lifespan<S> {
    /// Runs the shutdown hook, as the worker does after its drain.
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

/// What a factory may return: a bare service, or a [`Lifespan`] around one. Sealed: it has these two kinds and no more.
pub trait IntoLifespan: sealed::Lifespan {
    /// The service that answers requests.
    type Service;

    /// The service and what to do after its last request.
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

/// What the future of a factory gives: a `Result` of a service, or of a [`Lifespan`] around one. Sealed.
///
/// The service is a tower `Service` from `http::Request<Body>` to `http::Response` of any body, `Clone` and `Send`,
/// with futures that are `Send`. Its errors, the body's and the factory's are any error, or what converts into one. An
/// axum `Router` is such a service.
///
/// A worker has one thread, so it could do without `Send`; it is asked for because most services have it, axum's among
/// them, and it leaves the way open to workers of several threads.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a factory of oxicorn returns",
    note = "it returns `Result<S, E>` or `Result<oxicorn::Lifespan<S>, E>`; `S` is a `tower_service::Service` of \
            `http::Request<oxicorn::Body>`, `Clone` and `Send`"
)]
pub trait FactoryOutput: sealed::Work {}

impl<R: sealed::Work> FactoryOutput for R {}

/// What only this crate can implement and call.
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

    /// A name for a private type, so that a public trait may speak of it.
    #[derive(Debug)]
    pub struct Seed(pub(crate) WorkerSeed);

    pub trait Work: Sized {
        /// Runs a worker that serves what the factory makes.
        fn work<F, Fut>(seed: Seed, factory: F) -> ExitCode
        where
            F: FnOnce(WorkerContext) -> Fut + Send + 'static,
            Fut: Future<Output = Self> + Send + 'static;
    }

    /// The bounds of a factory, written once.
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
