//! A service that uses what the worker offers to runtimes for other languages than Rust. Only `tests/seams_worker.rs`
//! starts it.
//!
//! Owns: an outer loop with a queue of callbacks, handlers that wait until their client has gone, background work, a
//! slow shutdown hook, and a boot that fails with a long text. Refuses: to be an example for users (see `examples/`).
//!
//! `SEAMS_LOOP` chooses the outer loop: `own` is the loop below, `returns` is a loop that returns at once, and any
//! other value means no outer loop.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: this outer loop sleeps and has threads")]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    error::Error,
    fmt,
    fs::OpenOptions,
    io::Write,
    process::ExitCode,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Request},
    routing::{any, get},
};
use oxicorn::{BootFailure, ClientInfo, Driven, Driver, DriverWaker, Lifespan, Runtime, WorkerContext};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// The service's own settings, from the table `[seams]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    /// If this is not 0, the factory fails, and the details of its failure have this many lines.
    details: usize,
    /// If this is true, the first shutdown hook, which runs before the slow hook, panics.
    hook_panics: bool,
    /// If this text is not empty, the factory fails, and the text is the reason.
    reason: String,
    /// How long the shutdown hook takes, in milliseconds.
    hook_ms: u64,
    /// The argument of `Lifespan::shutdown_grace`, in milliseconds.
    shutdown_grace_ms: u64,
    /// The file to which each handler, each piece of background work and each hook adds a line when it ends.
    notes: String,
}

/// The runtime's own error type. It wraps the boot failure, as an interpreter would do.
#[derive(Debug)]
struct Wrapped(BootFailure);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the app cannot be imported")
    }
}

impl Error for Wrapped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

type Callback = Box<dyn FnOnce() + Send>;

/// Callbacks that any thread may add and that the outer loop runs.
static CALLBACKS: Mutex<VecDeque<Callback>> = Mutex::new(VecDeque::new());
static DRIVES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The driver, which only the thread of the outer loop can use.
    static DRIVER: RefCell<Option<Rc<Driver>>> = const { RefCell::new(None) };
    static WAKER: RefCell<Option<DriverWaker>> = const { RefCell::new(None) };
    static RETURNS: Cell<bool> = const { Cell::new(false) };
    static PANICS: Cell<bool> = const { Cell::new(false) };
}

struct OuterLoop {
    returns: bool,
}

impl Runtime for OuterLoop {
    fn name(&self) -> &'static str {
        "seams"
    }

    fn any_answer_is_alive(&self) -> bool {
        true
    }

    fn drive(&self, driver: Driver) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.returns {
            return Ok(());
        }
        let driver = Rc::new(driver);
        WAKER.set(Some(driver.waker()));
        // This loop keeps the driver until the process ends, because an interpreter may do the same.
        DRIVER.set(Some(Rc::clone(&driver)));
        while !RETURNS.get() {
            DRIVES.fetch_add(1, Relaxed);
            if driver.drive(Some(Duration::from_secs(10)))? == Driven::Done {
                return Ok(());
            }
            while let Some(callback) = next_callback() {
                callback();
            }
        }
        assert!(!PANICS.get(), "the app's loop has a fault");
        Err("the app's loop has ended".into())
    }
}

fn next_callback() -> Option<Callback> {
    CALLBACKS.lock().expect("no callback panicked").pop_front()
}

fn waker() -> DriverWaker {
    WAKER.with_borrow(Clone::clone).expect("the outer loop runs")
}

/// Runs a callback in the outer loop, between two drives, and returns the callback's result.
async fn in_outer_loop(waker: DriverWaker, callback: impl FnOnce() -> String + Send + 'static) -> String {
    let (reply, replied) = oneshot::channel();
    CALLBACKS.lock().expect("no callback panicked").push_back(Box::new(move || {
        let _ = reply.send(callback());
    }));
    waker.wake();
    replied.await.unwrap_or_default()
}

fn note(path: &str, line: &str) {
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        eprintln!("seams_worker: cannot write to {path}: {error}");
    }
}

async fn factory(context: WorkerContext) -> Result<Lifespan<Router>, Box<dyn Error + Send + Sync>> {
    let table: Arc<Table> = context.table::<Table>();
    if table.details > 0 {
        let text: String = (1..=table.details).map(|line| format!("  frame {line} of the traceback\n")).collect();
        let failure = BootFailure::new("app.py, line 3: no such name").with_details(text);
        return Err(Box::new(Wrapped(failure)));
    }
    if !table.reason.is_empty() {
        return Err(table.reason.as_str().into());
    }
    let notes = table.notes.clone();
    let watched = notes.clone();
    let worker = context.clone();
    let router = Router::new()
        .route("/pid", get(move || async move { Json(serde_json::json!({ "pid": context.pid() })) }))
        .route(
            "/sleep/{ms}",
            get(async |Path(ms): Path<u64>| {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                "slept"
            }),
        )
        .route(
            "/watch/{name}/{ms}",
            any(async move |Path((name, ms)): Path<(String, u64)>, request: Request| {
                let client = request.extensions().get::<ClientInfo>().cloned().expect("each request has it");
                let (gone, path, who) = (client.gone(), watched.clone(), name.clone());
                tokio::spawn(async move {
                    gone.await;
                    note(&path, &format!("{who} gone"));
                });
                tokio::time::sleep(Duration::from_millis(ms)).await;
                note(&watched, &format!("{name} answered"));
                name
            }),
        )
        .route(
            "/background/{ms}",
            get(async move |Path(ms): Path<u64>| {
                let work = worker.background_work();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    note(&notes, &format!("background {ms}"));
                    drop(work);
                });
                "begun"
            }),
        )
        .route("/drives", get(async || DRIVES.load(Relaxed).to_string()))
        .route("/outer", get(async || in_outer_loop(waker(), || "from the outer loop".to_owned()).await))
        .route(
            "/outer/thread",
            get(async || {
                let (waker, (reply, replied)) = (waker(), oneshot::channel());
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    CALLBACKS.lock().expect("no callback panicked").push_back(Box::new(move || {
                        let _ = reply.send("from a thread");
                    }));
                    waker.wake();
                });
                replied.await.unwrap_or_default()
            }),
        )
        .route(
            "/outer/hang",
            get(async || {
                in_outer_loop(waker(), || {
                    loop {
                        thread::sleep(Duration::from_secs(60));
                    }
                })
                .await
            }),
        )
        .route(
            "/outer/return",
            get(async || {
                in_outer_loop(waker(), || {
                    RETURNS.set(true);
                    "it returns".to_owned()
                })
                .await
            }),
        )
        .route(
            "/outer/panic",
            get(async || {
                in_outer_loop(waker(), || {
                    PANICS.set(true);
                    RETURNS.set(true);
                    "it panics".to_owned()
                })
                .await
            }),
        )
        .route(
            "/nested",
            get(async || {
                let driver = DRIVER.with_borrow(Clone::clone).map(|driver| driver.drive(None));
                driver.map_or_else(String::new, |driven| format!("{driven:?}"))
            }),
        );
    let (hook, path) = (Duration::from_millis(table.hook_ms), table.notes.clone());
    let (panics, first) = (table.hook_panics, table.notes.clone());
    let lifespan = Lifespan::new(router).on_shutdown(async move {
        if panics {
            note(&first, "first hook");
            tokio::task::yield_now().await;
            panic!("the hook has a fault");
        }
    });
    let lifespan = lifespan.on_shutdown(async move {
        tokio::time::sleep(hook).await;
        if !path.is_empty() {
            note(&path, "hook ended");
        }
    });
    Ok(lifespan.shutdown_grace(Duration::from_millis(table.shutdown_grace_ms)))
}

fn main() -> ExitCode {
    let app = oxicorn::App::new(factory).table::<Table>("seams");
    match std::env::var("SEAMS_LOOP").as_deref() {
        Ok("own") => app.runtime(OuterLoop { returns: false }).run(),
        Ok("returns") => app.runtime(OuterLoop { returns: true }).run(),
        _ => app.run(),
    }
}
