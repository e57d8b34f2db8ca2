//! What a user's program sees: `App`, the context its factory is given, and the lifespan it gives back.
//!
//! Owns: the public types of embedding. Refuses: how workers run (`worker`), how they are kept alive (`master`).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::sync::watch;
use tower_service::Service;

use crate::{
    scoreboard::Row,
    settings::{Settings, Tables},
};

/// What the supervisor tells the factory about the worker it runs in. Cheap to clone; keep one in your state.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) settings: Arc<Settings>,
    pub(crate) tables: Tables,
    pub(crate) row: Row,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) draining: watch::Receiver<bool>,
}

impl WorkerContext {
    /// The worker's place, 0..N. It outlives the worker: a replacement has the same slot.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Which set of settings and program this worker belongs to; a reload makes the next.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// This process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The supervisor's effective settings in this generation.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The app's own table, declared with [`App::table`](crate::App::table).
    ///
    /// # Panics
    /// When no table of this type was declared: a mistake in the program, reported as a boot failure.
    #[must_use]
    pub fn table<T: Send + Sync + 'static>(&self) -> Arc<T> {
        self.tables.get().unwrap_or_else(|| {
            panic!("no table of type {0} was declared: call App::table::<{0}>(\"name\")", std::any::type_name::<T>())
        })
    }

    /// Completes when the whole service was asked to stop, before `workers.shutdown_delay` begins. `/ready` should
    /// answer 503 from here on. A worker that drains for a recycle, a reload or a scale-down does not see it.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.stopping.clone())
    }

    /// Completes when this worker was asked to drain, whatever the reason. Long-lived connections should say goodbye.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        raised(self.draining.clone())
    }

    /// Whether [`stopping`](Self::stopping) has completed.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Whether [`draining`](Self::draining) has completed.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Requests this worker has begun and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.row.in_flight()
    }

    /// Connections this worker holds open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.row.connections()
    }
}

async fn raised(mut flag: watch::Receiver<bool>) {
    // An error means the worker is past its end: whoever still waits should go too.
    let _ = flag.wait_for(|up| *up).await;
}

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service and what to do after the last request: close pools, flush, say goodbye.
pub struct Lifespan<S> {
    pub(crate) service: S,
    pub(crate) shutdown: Option<Shutdown>,
}

impl<S> Lifespan<S> {
    pub fn new(service: S) -> Self {
        Self { service, shutdown: None }
    }

    /// Runs in the worker after its drain, within what is left of `workers.graceful_timeout`.
    #[must_use]
    pub fn on_shutdown(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(hook));
        self
    }
}

impl<S> fmt::Debug for Lifespan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan").field("shutdown", &self.shutdown.is_some()).finish_non_exhaustive()
    }
}

/// What a factory may return: a bare service, or a [`Lifespan`] around one.
pub trait IntoLifespan {
    type Service;
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

/// A request's body as it arrives from the connection.
#[derive(Debug)]
pub struct Body(pub(crate) hyper::body::Incoming);

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
impl WorkerContext {
    /// A worker of slot 0 with default settings, for tests of services.
    pub(crate) fn for_test(tables: Tables, stopping: watch::Receiver<bool>) -> Self {
        use crate::settings::*;
        use std::time::Duration;
        let settings = Settings {
            server: Server {
                bind: Vec::new(),
                backlog: 2048,
                reuse_port: true,
                proxy_protocol: ProxyProtocol::Off,
                unix_mode: 0o660,
                unix_owner: String::new(),
            },
            workers: Workers {
                count: 1,
                max_requests: 0,
                max_requests_jitter: 0,
                max_age: Duration::ZERO,
                max_rss: 0,
                timeout: Duration::ZERO,
                boot_timeout: Duration::ZERO,
                graceful_timeout: Duration::ZERO,
                shutdown_delay: Duration::ZERO,
            },
            http: Http {
                keep_alive: Duration::ZERO,
                header_timeout: Duration::ZERO,
                body_timeout: Duration::ZERO,
                write_timeout: Duration::ZERO,
                worker_connections: 0,
                limit_concurrency: 0,
                limit_exempt: Vec::new(),
                metrics_path: String::new(),
                limit_request_line: 0,
                limit_request_fields: 0,
                limit_request_field_size: 0,
                limit_request_body: 16 << 20,
                request_timeout: Duration::ZERO,
                http2: true,
                forwarded_allow_ips: Vec::new(),
            },
            tls: Tls { certfile: None, keyfile: None, client_ca: None },
            log: Log {
                level: Level::Info,
                format: LogFormat::Text,
                file: LogTarget::Standard,
                access: LogTarget::Off,
                access_exclude: Vec::new(),
                access_format: String::new(),
            },
            control: Control { socket: ControlSocket::Off },
            process: Process {
                name: String::new(),
                user: None,
                group: None,
                umask: None,
                pidfile: None,
                env_file: None,
                env: Vec::new(),
            },
        };
        let draining = stopping.clone();
        Self { slot: 0, generation: 1, settings: Arc::new(settings), tables, row: Row, stopping, draining }
    }
}
