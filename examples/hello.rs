//! The smallest axum service under the supervisor.
//!
//! Run `cargo run --example hello -- --workers 4`, then `curl http://127.0.0.1:8000/hello/world`. This program *is* the
//! supervisor: `--help` shows its flags, and it reads `./supervisor.toml`.

use std::{convert::Infallible, process::ExitCode};

use axum::{Router, extract::Path, routing::get};

fn main() -> ExitCode {
    oxicorn::main(factory)
}

/// Runs in each worker after the fork. Open pools and start tasks here, not in `main`.
async fn factory(worker: oxicorn::WorkerContext) -> Result<Router, Infallible> {
    let hello = async move |Path(name): Path<String>| {
        format!("hello {name}, from worker {} (pid {})\n", worker.slot(), worker.pid())
    };
    Ok(Router::new().route("/health", get(async || "alive\n")).route("/hello/{name}", get(hello)))
}
