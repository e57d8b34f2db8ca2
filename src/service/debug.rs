//! Routes that show a worker from inside, and routes that make it hang, crash or leak so that its supervisor can be
//! watched at work.
//!
//! Owns: `/debug/*`. Refuses: everything but `/debug/connections` unless `service.debug` says so.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::error::{ApiError, Detail};
use crate::WorkerContext;

/// What `/debug/allocate` holds on to.
type Leak = Arc<Mutex<Vec<Vec<u8>>>>;

pub(super) fn routes(worker: WorkerContext, misbehave: bool) -> Router {
    let routes = Router::new().route("/debug/connections", get(connections)).with_state(worker);
    if !misbehave {
        return routes;
    }
    routes
        .route("/debug/sleep/{ms}", get(sleep))
        .route("/debug/block/{ms}", get(block))
        .route("/debug/abort", get(abort))
        .route("/debug/echo", post(echo))
        .merge(Router::new().route("/debug/allocate/{mib}", get(allocate)).with_state(Leak::default()))
}

async fn connections(State(worker): State<WorkerContext>) -> Json<Value> {
    Json(json!({
        "pid": worker.pid(),
        "slot": worker.slot(),
        "generation": worker.generation(),
        "active_requests": worker.in_flight(),
        "connections": worker.connections(),
    }))
}

async fn sleep(ms: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let ms = number("ms", ms)?;
    tokio::time::sleep(Duration::from_millis(ms.into())).await;
    Ok(Json(json!({"slept_ms": ms})))
}

async fn block(ms: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let ms = number("ms", ms)?;
    std::thread::sleep(Duration::from_millis(ms.into()));
    Ok(Json(json!({"blocked_ms": ms})))
}

async fn abort() -> Json<Value> {
    std::process::abort()
}

async fn allocate(State(leak): State<Leak>, mib: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let mib = number("mib", mib)?;
    let too_much = || ApiError::invalid(vec![Detail::new("mib", "is more memory than this machine gives")]);
    let bytes = usize::try_from(u64::from(mib) << 20).map_err(|_| too_much())?;
    let mut block = Vec::new();
    block.try_reserve_exact(bytes).map_err(|_| too_much())?;
    // Not zero: a page counts as resident only once it was written to.
    block.resize(bytes, 1);
    let mut leak = leak.lock().unwrap_or_else(PoisonError::into_inner);
    leak.push(block);
    let kept: usize = leak.iter().map(Vec::len).sum();
    Ok(Json(json!({"kept_mib": kept >> 20})))
}

async fn echo(headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Response, ApiError> {
    let mut response = body?.into_response();
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}

fn number(field: &str, segment: Result<Path<u32>, PathRejection>) -> Result<u32, ApiError> {
    segment.map(|Path(n)| n).map_err(|_| {
        ApiError::invalid(vec![Detail::new(field, format!("must be a whole number from 0 to {}", u32::MAX))])
    })
}
