//! oxicorn: a master that only decides and forks; workers that only serve.
//!
//! ```text
//!            supervisor.toml  env  flags
//!                     │ settings
//!                     ▼
//!   master (one thread, no runtime):  poll ─► events ─► core.step(now, event) ─► actions ─► perform
//!     owns every listening socket (slots, never closed), the scoreboard, the steering program, the table of workers
//!        │ fork               │ fork                 ▲ ready, please-recycle, exit
//!        ▼ slot 0             ▼ slot 1 …             │ (a socketpair to each worker, and SIGCHLD)
//!   worker: tokio and hyper on its own SO_REUSEPORT listener; beats and counts in its own row of the scoreboard;
//!           the app was built in the worker, after the fork
//! ```
//!
//! A program that embeds it is three lines: see [`App`].
//!
//! # Words
//!
//! One word, one thing; in code, log and README alike.
//!
//! - **master**: the first process. It serves nothing. **worker**: a process that serves; forked, never exec'ed.
//! - **slot**: a place 0..N with its listeners; outlives its workers. At most one *current* worker, any number draining.
//! - **listener**: a listening socket; one to a slot and address (SO_REUSEPORT), or one that all workers share.
//! - **generation**: one set of settings and program.
//! - **ready**: the app is built. **beat**: the promise, in shared memory, of when the serving loop beats next.
//! - **drain**: finish what was begun, take nothing new. **recycle**: planned replacement of one worker.
//! - **reload**: a new generation of the same program. **upgrade**: a new program. **stop**: the end of all.
//! - **peer**: the other end of a connection. **client**: who sent the request, also from behind proxies.
//! - **kill**: SIGKILL, nothing else. **steer**: send new connections to live slots only, the emptier first.
//! - **rescue**: accept from a sibling's slot. **scoreboard**: the shared memory that workers count in.
//! - **die young**: die at boot, or before the first answer. **back off**: wait with the next fork of a slot whose workers
//!   die young.
//! - **culprit**: the request in flight at most of the last deaths. **quarantine**: answering it 503 for a minute.
//! - **abandoned**: a request whose client left before it was handed to the app, and that is not served.
//! - **quiet**: at the final stop, all that waited in the listeners is accepted. **hush**: the time before it, in which no
//!   new connection begins. **cut**: lost without an answer, and counted.
//! - **idle**: a connection without a request under way; of HTTP/2, without an open stream. **evict**: close the connection
//!   that has been idle longest, for a new one. **goodbye**: the one GOAWAY that ends an idle HTTP/2 connection.
//! - **start folder**: the folder the service was started in, by the path the operator used; links in it are followed anew.
//!
//! # Invariants
//!
//! - The core decides, the shell performs; no syscall, clock or log in the one, no choice in the other.
//! - A listener is never closed while the master lives, and shut down only at the final stop: index of the slot and
//!   index in the kernel's group stay equal, and what is queued for a dead worker is served by the next.
//! - The master has one thread for life. Nothing that needs a runtime exists before the fork.
//! - `unsafe` is in `sys` alone.

#![cfg_attr(not(feature = "tls"), allow(dead_code, reason = "what only TLS uses is not taken out piece by piece"))]

mod app;
mod cli;
mod client_certificate;
mod client_gone;
mod client_info;
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
    App, BootFailure, FactoryOutput, IntoLifespan, Lifespan, Runtime, SetupContext, UpgradeCommand, WorkerContext, main,
};
#[cfg(feature = "test-util")]
pub use app::{WorkerContextBuilder, WorkerSignals};
pub use client_certificate::ClientCertificate;
pub use client_gone::ClientGone;
pub use client_info::ClientInfo;
#[cfg(feature = "test-util")]
pub use client_info::ClientInfoBuilder;
pub use log::log_layer;
pub use settings::table::TableSpec;
pub use worker::{BackgroundWork, Body, BodyError, DriveError, Driven, Driver, DriverWaker};

/// An error and its causes, on one line.
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
