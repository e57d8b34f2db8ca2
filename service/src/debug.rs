//! Routes that show the state of a worker, and routes that make a worker hang, crash or leak, so that an operator can
//! watch how the supervisor reacts.
//!
//! Owns: the routes below `/debug/`. Refuses: to serve these routes while `service.debug` is off. Only
//! `/debug/connections` is always served.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::error::{ApiError, Detail, TooLarge, documented};
use oxicorn::WorkerContext;

/// The blocks of memory that `/debug/allocate` keeps.
type Leak = Arc<Mutex<Vec<Vec<u8>>>>;

/// The worker that answers, now
#[derive(Serialize, ToSchema)]
struct Connections {
    pid: u32,
    slot: u32,
    generation: u32,
    active_requests: u64,
    connections: u64,
}

pub(crate) fn routes(worker: WorkerContext, misbehave: bool) -> OpenApiRouter {
    let routes = OpenApiRouter::new().routes(routes!(connections)).with_state(worker);
    if !misbehave {
        return routes;
    }
    routes
        .routes(routes!(sleep))
        .routes(routes!(block))
        .routes(routes!(abort))
        .routes(routes!(echo))
        .merge(OpenApiRouter::new().routes(routes!(allocate)).with_state(Leak::default()))
}

documented!(BadNumber, [bad_number("ms")]);

/// Show the worker that answers, and how busy it is
#[utoipa::path(get, path = "/debug/connections", tag = "debug", responses(
    (status = 200, description = "This worker, now", body = Connections),
))]
async fn connections(State(worker): State<WorkerContext>) -> Json<Connections> {
    Json(Connections {
        pid: worker.pid(),
        slot: worker.slot(),
        generation: worker.generation(),
        active_requests: worker.in_flight(),
        connections: worker.connections(),
    })
}

/// Answer late, without blocking the worker
#[utoipa::path(get, path = "/debug/sleep/{ms}", tag = "debug", params(("ms" = u32, Path, example = 5)), responses(
    (status = 200, description = "After that time", body = Object, example = json!({"slept_ms": 5})),
    BadNumber,
))]
async fn sleep(ms: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let ms = number("ms", ms)?;
    tokio::time::sleep(Duration::from_millis(ms.into())).await;
    Ok(Json(json!({"slept_ms": ms})))
}

/// Block the worker: a hang
#[utoipa::path(get, path = "/debug/block/{ms}", tag = "debug", params(("ms" = u32, Path, example = 5)), responses(
    (status = 200, description = "After that time", body = Object, example = json!({"blocked_ms": 5})),
    BadNumber,
))]
async fn block(ms: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let ms = number("ms", ms)?;
    std::thread::sleep(Duration::from_millis(ms.into()));
    Ok(Json(json!({"blocked_ms": ms})))
}

/// Abort the worker: a crash
#[utoipa::path(get, path = "/debug/abort", tag = "debug", responses(
    (status = "default", description = "None: the connection is reset"),
))]
async fn abort() -> Json<Value> {
    std::process::abort()
}

/// Keep this much more memory: a leak
#[utoipa::path(get, path = "/debug/allocate/{mib}", tag = "debug", params(("mib" = u32, Path, example = 1)), responses(
    (status = 200, description = "The memory it keeps now", body = Object, example = json!({"kept_mib": 1})),
    BadNumber,
))]
async fn allocate(State(leak): State<Leak>, mib: Result<Path<u32>, PathRejection>) -> Result<Json<Value>, ApiError> {
    let mib = number("mib", mib)?;
    let too_much = || ApiError::invalid(vec![Detail::new("mib", "is more memory than this machine gives")]);
    let bytes = usize::try_from(u64::from(mib) << 20).map_err(|_| too_much())?;
    let mut block = Vec::new();
    block.try_reserve_exact(bytes).map_err(|_| too_much())?;
    // The block is filled with 1 and not with 0, because a page counts as resident only after a write to it.
    block.resize(bytes, 1);
    let mut leak = leak.lock().unwrap_or_else(PoisonError::into_inner);
    leak.push(block);
    let kept: usize = leak.iter().map(Vec::len).sum();
    Ok(Json(json!({"kept_mib": kept >> 20})))
}

/// Return the body
#[utoipa::path(post, path = "/debug/echo", tag = "debug", request_body(content = String, content_type = "*/*"), responses(
    (status = 200, description = "The body, with the content type of the request", body = String, content_type = "*/*"),
    TooLarge,
))]
async fn echo(headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Response, ApiError> {
    let mut response = body?.into_response();
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}

fn number(field: &str, segment: Result<Path<u32>, PathRejection>) -> Result<u32, ApiError> {
    segment.map(|Path(n)| n).map_err(|_| bad_number(field))
}

fn bad_number(field: &str) -> ApiError {
    ApiError::invalid(vec![Detail::new(field, format!("must be a whole number from 0 to {}", u32::MAX))])
}
