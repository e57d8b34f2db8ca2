//! The bounds that say which types a factory may return.
//!
//! Owns: the bounds of a factory's output, which no other file repeats. Refuses: to call a factory (`worker` does).

/// The output of a factory's future: a `Result` of a service, or of a [`Lifespan`](crate::Lifespan) around a service.
/// The trait is sealed.
///
/// The service is a tower `Service` from `http::Request<Body>` to an `http::Response` with any body. It must be `Clone`
/// and `Send`, and its futures must be `Send`. The errors of the service, of the body and of the factory may be any
/// error, or any type that converts into one. An axum `Router` is such a service.
///
/// A worker has one thread, so it would not need `Send`. The bound is there because most services are `Send` anyway,
/// such as those of axum, and because it allows workers with several threads later.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a factory of oxicorn returns",
    note = "it returns `Result<S, E>` or `Result<oxicorn::Lifespan<S>, E>`; `S` is a `tower_service::Service` of \
            `http::Request<oxicorn::Body>`, `Clone` and `Send`"
)]
pub trait FactoryOutput: sealed::Work {}

impl<R: sealed::Work> FactoryOutput for R {}

/// Has the private supertrait of [`FactoryOutput`], so that only this crate can implement and call that trait.
pub(super) mod sealed {
    use std::future::Future;

    use http::{Request, Response};
    use tower_service::Service;

    use super::super::{BoxError, lifespan::IntoLifespan};
    use crate::{
        WorkerContext,
        worker::{self, Body, WorkerSeed},
    };

    /// A public name for the private type `WorkerSeed`, because the public trait `Work` must not mention a private
    /// type.
    #[derive(Debug)]
    pub struct Seed(pub(crate) WorkerSeed);

    pub trait Work: Sized {
        /// Runs a worker that serves the output of `factory`, and returns its exit code.
        fn work<F, Fut>(seed: Seed, factory: F) -> u8
        where
            F: FnOnce(WorkerContext) -> Fut + Send + 'static,
            Fut: Future<Output = Self> + Send + 'static;
    }

    /// The bounds of a factory's output. They are written only here; `FactoryOutput` and `App` refer to them.
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
        fn work<F, Fut>(seed: Seed, factory: F) -> u8
        where
            F: FnOnce(WorkerContext) -> Fut + Send + 'static,
            Fut: Future<Output = Self> + Send + 'static,
        {
            worker::run(seed.0, factory)
        }
    }
}
