//! oxicorn turns your program into a pre-fork supervisor for an HTTP service, as Gunicorn does for Python. A master
//! process forks, watches and replaces workers, and the workers serve with tokio and hyper.
//!
//! # Quick start
//!
//! ```toml
//! [dependencies]
//! axum = { version = "0.8", default-features = false }
//! oxicorn = "0.1"
//! ```
//!
//! ```no_run
//! use std::{convert::Infallible, process::ExitCode};
//!
//! use axum::{Router, extract::Path, routing::get};
//!
//! fn main() -> ExitCode {
//!     oxicorn::main(factory)
//! }
//!
//! /// Runs in each worker after the fork. Open pools and start tasks here, not in `main`.
//! async fn factory(worker: oxicorn::WorkerContext) -> Result<Router, Infallible> {
//!     let hello = async move |Path(name): Path<String>| format!("hello {name}, from worker {}\n", worker.slot());
//!     Ok(Router::new().route("/hello/{name}", get(hello)))
//! }
//! ```
//!
//! `cargo run -- --workers 4` serves on `http://127.0.0.1:8000`. Your program *is* the supervisor: `--help` shows its
//! commands (`status`, `reload`, `upgrade`, `check` and more), and it reads `./supervisor.toml`. Start no thread and no
//! runtime before you call `oxicorn::main`. So your `main` must be a plain `main`, without `#[tokio::main]`.
//!
//! # What there is
//!
//! | for | see |
//! |---|---|
//! | a name, settings, hooks and arguments of your own | [`App`] |
//! | what a worker knows about itself, and when it must drain | [`WorkerContext`] |
//! | work that a worker does after its last request | [`Lifespan`] |
//! | work with the master's rights, migration of a database | [`App::prepare`], [`App::migrate`], [`SetupContext`] |
//! | a table of your own in supervisor.toml | [`App::table`], [`TableSpec`] |
//! | the client of a request, also behind proxies | [`ClientInfo`], [`ClientCertificate`], [`ClientGone`] |
//! | your own layers of `tracing` | [`log_layer`] |
//! | unit tests of a factory or a handler | the feature `test-util`: `WorkerContext::builder()`, `ClientInfo::builder()` |
//! | an interpreter in the worker | [`Runtime`], [`Driver`], [`SharedStream`] |
//!
//! # Features
//!
//! - `tls` (on by default): HTTPS by rustls. Without this feature, a settings file with the table `[tls]` is refused.
//! - `test-util`: builders for unit tests. This feature belongs to `[dev-dependencies]`.
//!
//! # Words
//!
//! - The **master** is the first process. It owns the listening sockets, serves no request and has one thread. A
//!   **worker** is a forked process that serves; it has one thread and a tokio runtime of its own.
//! - A **slot** is the place of a worker, with a number in 0..N. It outlives its workers: when a worker is replaced,
//!   the next one has the same slot.
//! - A **generation** is one set of settings and program. A **reload** starts the next generation with the same
//!   program, an **upgrade** starts it with a new program. The next generation is on trial until its workers serve.
//! - A worker **drains** when it finishes what it has begun and accepts nothing new. It is **recycled** when it is
//!   replaced as planned, after a number of requests or after a time.
//! - The **peer** is the other end of a connection. The **client** is the program that sent the request; if there are
//!   proxies in between, the peer is the last of these proxies.
//!
//! The folder `docs` of the repository has a guide, the reference of all settings, and a description of the internals.

#![warn(missing_docs)]
#![cfg_attr(not(feature = "tls"), allow(dead_code, reason = "what only TLS uses is not taken out piece by piece"))]

mod app;
mod cli;
mod client_certificate;
mod client_gone;
mod client_info;
mod hook;
pub mod settings;

mod channel;
mod listener;
mod master;
mod metrics;
mod protocol;
mod scoreboard;

mod worker;

mod ctl;

mod log;
mod sys;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;

pub use app::{
    App, BootFailure, FactoryOutput, ForkedWorker, IntoLifespan, Lifespan, Runtime, SetupContext, SupervisorEvent,
    UpgradeCommand, WorkerContext, main,
};
#[cfg(feature = "test-util")]
pub use app::{WorkerContextBuilder, WorkerSignals};
pub use client_certificate::ClientCertificate;
pub use client_gone::ClientGone;
pub use client_info::ClientInfo;
#[cfg(feature = "test-util")]
pub use client_info::ClientInfoBuilder;
pub use log::{SharedStream, log_layer};
pub use settings::table::TableSpec;
pub use worker::{BackgroundWork, Body, BodyError, DescriptorWatch, DriveError, Driven, Driver, DriverWaker};

/// The type of every error that the code of an app returns.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Joins the messages of an error and of all its causes, with `: ` between them.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
