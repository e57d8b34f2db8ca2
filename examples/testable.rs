//! A service with unit tests. The feature `test-util` has builders for the values that the supervisor passes to a
//! factory and to a handler.
//!
//! ```toml
//! [dev-dependencies]
//! oxicorn = { version = "0.1", features = ["test-util"] }
//! ```
//!
//! Run `cargo test --example testable --features test-util` for the tests, and `cargo run --example testable` to serve.

use std::{convert::Infallible, process::ExitCode, sync::Arc};

use axum::{Extension, Router, extract::State, http::StatusCode, routing::get};
use oxicorn::{App, ClientInfo, WorkerContext};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Greeter {
    greeting: String,
}

impl Default for Greeter {
    fn default() -> Self {
        Self { greeting: "hello".into() }
    }
}

#[derive(Clone)]
struct AppState {
    worker: WorkerContext,
    greeter: Arc<Greeter>,
}

fn main() -> ExitCode {
    App::new(factory).table::<Greeter>("greeter").run()
}

async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
    let state = AppState { greeter: worker.table(), worker };
    Ok(Router::new().route("/", get(greet).post(echo)).route("/ready", get(ready)).with_state(state))
}

async fn greet(State(state): State<AppState>, Extension(client): Extension<ClientInfo>) -> String {
    let address = client.address().map_or("a unix socket".to_owned(), |address| address.to_string());
    format!("{}, {address}, from worker {}\n", state.greeter.greeting, state.worker.slot())
}

async fn echo(body: String) -> String {
    body
}

async fn ready(State(state): State<AppState>) -> StatusCode {
    if state.worker.is_stopping() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt;
    use oxicorn::{Body, WorkerContextBuilder};
    use tower_service::Service;

    use super::*;

    fn worker() -> WorkerContextBuilder {
        WorkerContext::builder().table(Greeter { greeting: "good morning".into() })
    }

    async fn ask(service: &mut Router, request: Request<Body>) -> (StatusCode, String) {
        let response = service.call(request).await.expect("a Router answers always");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("the body is whole").to_bytes();
        (status, String::from_utf8(bytes.into()).expect("the service answers in UTF-8"))
    }

    #[tokio::test]
    async fn a_client_is_greeted_by_its_address() {
        let mut service = factory(worker().slot(2).build()).await.unwrap();
        let client = ClientInfo::builder().address("203.0.113.7".parse().unwrap()).build();
        let request = Request::get("/").extension(client).body(Body::from("")).unwrap();
        let greeting = "good morning, 203.0.113.7, from worker 2\n";
        assert_eq!(ask(&mut service, request).await, (StatusCode::OK, greeting.to_owned()));
    }

    #[tokio::test]
    async fn a_body_comes_back() {
        let mut service = factory(worker().build()).await.unwrap();
        let request = Request::post("/").body(Body::from("milk")).unwrap();
        assert_eq!(ask(&mut service, request).await, (StatusCode::OK, "milk".to_owned()));
    }

    #[tokio::test]
    async fn a_service_that_stops_is_not_ready() {
        let (worker, signals) = worker().build_with_signals();
        let mut service = factory(worker).await.unwrap();
        let ready = || Request::get("/ready").body(Body::from("")).unwrap();
        assert_eq!(ask(&mut service, ready()).await.0, StatusCode::OK);
        signals.stop();
        assert_eq!(ask(&mut service, ready()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
