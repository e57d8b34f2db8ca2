//! A service with its own settings, a background task and a shutdown hook.
//!
//! The table of the service is in the same supervisor.toml as all other settings. oxicorn checks the table like all
//! others, and the environment can override its keys:
//!
//! ```toml
//! [greeter]
//! greeting = "good morning"
//! goodbye_file = "/tmp/goodbye.txt"
//! ```
//!
//! Run `OXICORN_GREETER__GREETING=hi cargo run --example lifespan`, then `curl http://127.0.0.1:8000/`.

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, extract::State, routing::get};
use oxicorn::{App, Lifespan, WorkerContext};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Greeter {
    greeting: String,
    /// The file to which each worker appends a line when the worker ends. If this file path is empty, no line is
    /// written.
    goodbye_file: PathBuf,
}

impl Default for Greeter {
    fn default() -> Self {
        Self { greeting: "hello".into(), goodbye_file: PathBuf::new() }
    }
}

struct Desk {
    settings: Arc<Greeter>,
    greeted: AtomicU64,
}

fn main() -> ExitCode {
    App::new(factory).table::<Greeter>("greeter").run()
}

async fn factory(worker: WorkerContext) -> Result<Lifespan<Router>, io::Error> {
    let desk = Arc::new(Desk { settings: worker.table(), greeted: AtomicU64::new(0) });

    // An app may listen to SIGTERM too. The worker still drains when it gets the signal.
    let mut term = signal(SignalKind::terminate())?;
    tokio::spawn({
        let desk = Arc::clone(&desk);
        async move {
            term.recv().await;
            eprintln!(
                "worker {}: asked to drain after {} greetings",
                worker.slot(),
                desk.greeted.load(Ordering::Relaxed)
            );
        }
    });

    let service =
        Router::new().route("/", get(greet)).route("/health", get(async || "alive\n")).with_state(Arc::clone(&desk));
    Ok(Lifespan::new(service).on_shutdown(async move {
        if let Err(error) = say_goodbye(&desk) {
            eprintln!("no goodbye in greeter.goodbye_file: {error}");
        }
    }))
}

async fn greet(State(desk): State<Arc<Desk>>) -> String {
    let nth = desk.greeted.fetch_add(1, Ordering::Relaxed) + 1;
    format!("{} (greeting {nth} of process {})\n", desk.settings.greeting, std::process::id())
}

fn say_goodbye(desk: &Desk) -> io::Result<()> {
    let path = &desk.settings.goodbye_file;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    let line = format!("{} greeted {}\n", std::process::id(), desk.greeted.load(Ordering::Relaxed));
    io::Write::write_all(&mut file, line.as_bytes())
}
