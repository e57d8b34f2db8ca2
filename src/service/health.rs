//! Liveness and readiness, as probes ask for them.
//!
//! Owns: the four health routes. Refuses: asking a dependency about liveness; a dead database is no reason to restart.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::store::Store;
use crate::WorkerContext;

/// How long the store may take to answer before it counts as unavailable, and how long its answer is believed.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Readiness {
    worker: WorkerContext,
    store: Store,
    /// When the store last answered, and whether it was well. Locked while asking, so that many probes ask once.
    last: Arc<Mutex<Option<(Instant, bool)>>>,
}

#[derive(Serialize, ToSchema)]
struct Liveness {
    #[schema(example = "alive")]
    status: &'static str,
}

/// `ready`, `degraded` or `draining`; and how each dependency is, unless draining
#[derive(Serialize, ToSchema)]
struct Report {
    #[schema(example = "ready")]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = json!({"database": "ok"}))]
    checks: Option<BTreeMap<String, &'static str>>,
}

impl Report {
    fn new(status: &'static str, database: &'static str) -> Json<Self> {
        Json(Self { status, checks: Some(BTreeMap::from([("database".to_owned(), database)])) })
    }
}

pub(super) fn routes(worker: WorkerContext, store: Store) -> OpenApiRouter {
    let readiness = Readiness { worker, store, last: Arc::default() };
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(health_live))
        .routes(routes!(ready))
        .routes(routes!(health_ready))
        .with_state(readiness)
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
    (status = 503, description = "Not now: a dependency does not answer, or a stop was asked", body = Report,
     example = json!({"status": "degraded", "checks": {"database": "unavailable"}})),
))]
async fn ready(State(readiness): State<Readiness>) -> (StatusCode, Json<Report>) {
    if readiness.worker.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Report { status: "draining", checks: None }));
    }
    if readiness.database_is_well().await {
        (StatusCode::OK, Report::new("ready", "ok"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Report::new("degraded", "unavailable"))
    }
}

/// The same as /ready
#[utoipa::path(get, path = "/health/ready", tag = "health", responses(
    (status = 200, description = "Yes", body = Report),
    (status = 503, description = "Not now", body = Report, example = json!({"status": "draining"})),
))]
async fn health_ready(readiness: State<Readiness>) -> (StatusCode, Json<Report>) {
    ready(readiness).await
}

impl Readiness {
    async fn database_is_well(&self) -> bool {
        let mut last = self.last.lock().await;
        if let Some((asked, well)) = *last
            && asked.elapsed() < PATIENCE
        {
            return well;
        }
        let well = match timeout(PATIENCE, self.store.ping()).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(reason, "{error}; /ready answers 503 until it works again");
                false
            }
            Err(_) => {
                tracing::warn!("the store did not answer within {PATIENCE:?}; /ready answers 503 until it does");
                false
            }
        };
        *last = Some((Instant::now(), well));
        well
    }
}
