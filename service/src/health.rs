//! Liveness and readiness, for probes.
//!
//! Owns: the four health routes, and the requests to the dependencies of `[[service.check]]`. Refuses: to ask a
//! dependency when a probe asks whether the worker is alive, because a dead database is no reason to restart the
//! worker.

use std::{collections::BTreeMap, io, sync::Arc};

use axum::{Json, extract::State, http::StatusCode};
use futures_util::future::{join, join_all};
use http::{
    Request, Uri,
    header::{CONNECTION, HOST},
};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use oxicorn::WorkerContext;
use serde::Serialize;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    dependency::{DependencyHealth, PATIENCE, Telling},
    settings::{DependencyCheck, ProbeTarget},
    store::{Health, Store},
};

struct Readiness {
    worker: WorkerContext,
    store: Store,
    checks: Vec<(DependencyCheck, DependencyHealth)>,
    /// When all dependencies were last asked, and the results. These results are used again for `PATIENCE`, the time
    /// that one dependency may take to answer. The lock is held during the requests, so that many probes at the same
    /// time ask only once.
    last: Mutex<Option<(Instant, Checked)>>,
}

/// The health of each dependency, with its name.
type Checked = Arc<[(String, Health)]>;

#[derive(Serialize, ToSchema)]
struct Liveness {
    #[schema(example = "alive")]
    status: &'static str,
}

/// `ready`, `degraded` or `draining`; and, unless draining, the state of each dependency: `ok`, `unavailable`, or
/// `read-only` for a database that answers and takes no writes
#[derive(Serialize, ToSchema)]
struct Report {
    #[schema(example = "ready")]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = json!({"database": "ok"}))]
    checks: Option<BTreeMap<String, &'static str>>,
}

pub(crate) fn routes(worker: WorkerContext, store: Store, checks: &[DependencyCheck]) -> OpenApiRouter {
    let checks = checks.iter().map(|check| (check.clone(), DependencyHealth::new(&check.name))).collect();
    let readiness = Readiness { worker, store, checks, last: Mutex::default() };
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(health_live))
        .routes(routes!(ready))
        .routes(routes!(health_ready))
        .with_state(Arc::new(readiness))
}

/// Is it alive? Asks no dependency
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It is", body = Liveness),
))]
async fn health() -> Json<Liveness> {
    Json(Liveness { status: "alive" })
}

/// The same as /health
#[utoipa::path(get, path = "/health/live", tag = "health", responses(
    (status = 200, description = "It is", body = Liveness),
))]
async fn health_live() -> Json<Liveness> {
    health().await
}

/// Should it be sent requests?
#[utoipa::path(get, path = "/ready", tag = "health", responses(
    (status = 200, description = "Yes", body = Report),
    (status = 503, description = "Not now: a dependency does not answer, or the service stops", body = Report,
     example = json!({"status": "degraded", "checks": {"database": "unavailable"}})),
))]
async fn ready(State(readiness): State<Arc<Readiness>>) -> (StatusCode, Json<Report>) {
    if readiness.worker.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Report { status: "draining", checks: None }));
    }
    let checked = readiness.checked().await;
    let (status, word) = match checked.iter().all(|(_, health)| *health == Health::Well) {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "degraded"),
    };
    let answer = |health| match health {
        Health::Well => "ok",
        Health::ReadOnly => "read-only",
        Health::Unavailable => "unavailable",
    };
    let checks = checked.iter().map(|(name, health)| (name.clone(), answer(*health))).collect();
    (status, Json(Report { status: word, checks: Some(checks) }))
}

/// The same as /ready
#[utoipa::path(get, path = "/health/ready", tag = "health", responses(
    (status = 200, description = "Yes", body = Report),
    (status = 503, description = "Not now", body = Report, example = json!({"status": "draining"})),
))]
async fn health_ready(readiness: State<Arc<Readiness>>) -> (StatusCode, Json<Report>) {
    ready(readiness).await
}

impl Readiness {
    async fn checked(&self) -> Checked {
        let mut last = self.last.lock().await;
        match &*last {
            Some((asked, checked)) if asked.elapsed() < PATIENCE => Arc::clone(checked),
            _ => {
                let checked = self.ask().await;
                *last = Some((Instant::now(), Arc::clone(&checked)));
                checked
            }
        }
    }

    /// Asks all dependencies at the same time, so that a probe waits only for the slowest one.
    async fn ask(&self) -> Checked {
        let further = self.checks.iter().map(|(check, health)| ask(check, health));
        let (pinged, further) = join(self.store.ping(), join_all(further)).await;
        let names = self.checks.iter().map(|(check, _)| check.name.clone());
        [("database".to_owned(), pinged)].into_iter().chain(names.zip(further)).collect()
    }
}

async fn ask(check: &DependencyCheck, health: &DependencyHealth) -> Health {
    let asked = async {
        match &check.probe {
            ProbeTarget::Tcp(address) => connect(address).await.map(drop),
            ProbeTarget::Http(uri) => get_status(uri).await.and_then(|status| match status.as_u16() {
                ..400 => Ok(()),
                _ => Err(Refused::Status(status)),
            }),
        }
    };
    match timeout(PATIENCE, asked).await.unwrap_or(Err(Refused::Late)) {
        Ok(()) => {
            health.works();
            Health::Well
        }
        Err(refused) => {
            let telling = match refused {
                Refused::Late => Telling::Nothing,
                Refused::Connect { .. } | Refused::Http(_) => Telling::Unreached,
                Refused::Status(_) | Refused::Request(_) => Telling::Cause,
            };
            health.failed(telling, &refused);
            Health::Unavailable
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no answer within {PATIENCE:?}")]
    Late,
    #[error("cannot connect to {address}")]
    Connect { address: String, source: io::Error },
    #[error("the answer is not HTTP, or ended early")]
    Http(#[from] hyper::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("its URL makes no valid request")]
    Request(#[from] http::Error),
}

async fn connect(address: &str) -> Result<TcpStream, Refused> {
    TcpStream::connect(address).await.map_err(|source| Refused::Connect { address: address.to_owned(), source })
}

/// Returns the status of one GET. It uses a connection of its own, which ends with the answer.
async fn get_status(uri: &Uri) -> Result<StatusCode, Refused> {
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let stream = TokioIo::new(connect(&format!("{host}:{port}")).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(HOST, authority).header(CONNECTION, "close").body(Empty::<Bytes>::new())?;
    // The body is dropped unread, and the sender is dropped too. Both end the connection.
    let status = async move { Ok(sender.send_request(request).await?.status()) };
    join(status, connection).await.0
}
