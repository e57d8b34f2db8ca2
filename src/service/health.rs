//! Liveness and readiness, as probes ask for them.
//!
//! Owns: the four health routes. Refuses: asking a dependency about liveness; a dead database is no reason to restart.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

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

pub(super) fn routes(worker: WorkerContext, store: Store) -> Router {
    let readiness = Readiness { worker, store, last: Arc::default() };
    Router::new()
        .route("/health", get(alive))
        .route("/health/live", get(alive))
        .route("/ready", get(ready))
        .route("/health/ready", get(ready))
        .with_state(readiness)
}

async fn alive() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, Json<Value>) {
    if readiness.worker.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "draining"})));
    }
    if readiness.database_is_well().await {
        (StatusCode::OK, Json(json!({"status": "ready", "checks": {"database": "ok"}})))
    } else {
        let body = json!({"status": "degraded", "checks": {"database": "unavailable"}});
        (StatusCode::SERVICE_UNAVAILABLE, Json(body))
    }
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
