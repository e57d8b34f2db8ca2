//! A program that uses the library and brings everything of its own: name, version, settings in code, arguments and
//! tracing. Environment variables choose what it does. Only tests/user_program.rs starts it.

use std::{convert::Infallible, env, fs::OpenOptions, io::Write, process::ExitCode, sync::Mutex, thread};

use axum::{Router, extract::State, routing::get};
use oxicorn::{App, SetupContext, WorkerContext};
use serde::Deserialize;
use tracing::{Event, Subscriber, field::Visit, span};
use tracing_subscriber::{
    Registry,
    layer::{Context, Layer, SubscriberExt},
    util::SubscriberInitExt,
};

/// Characters that a terminal would obey: control characters, and characters that change the direction of the text.
const CONTROL: &str = "\u{1b}[31m\r\0\u{202e}\u{2066}";

#[derive(Deserialize)]
struct First {}

#[derive(Deserialize)]
struct Second {}

fn main() -> ExitCode {
    let mode = env::var("EMBEDDER").unwrap_or_default();
    if mode == "subscriber in main" {
        // This subscriber takes every event of the process and writes none of them.
        Registry::default().init();
    }
    let name = env::var("EMBEDDER_NAME").unwrap_or_else(|_| "embedder".to_owned());
    let app = App::new(factory)
        .name(name)
        .version("7.8.9")
        .default_setting("workers.count", "3")
        .default_setting("http.keep_alive", "7s")
        .positional("GREETING", "What a client is greeted with")
        .check(|setup: &SetupContext<'_>| match setup.arguments() {
            [greeting] if greeting == "control" => Err(format!("red {CONTROL}")),
            [greeting] => Ok(vec![format!("the greeting is {greeting}"), format!("red {CONTROL}")]),
            _ => Err("there is no greeting".to_owned()),
        });
    match mode.as_str() {
        "one type twice" => app.table::<First>("first").table::<First>("second").run(),
        "one name twice" => app.table::<First>("first").table::<Second>("first").run(),
        "one argument twice" => app.positional("GREETING", "again").run(),
        "argument of ours" => app.positional("workers", "a flag of oxicorn").run(),
        "wrong default" => app.default_setting("workers.cuont", "3").run(),
        "own command line" => app.run_from(["embedder", "--workers", "1", "hello"]),
        _ => app.run(),
    }
}

async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
    match env::var("EMBEDDER").as_deref() {
        Ok("layers in the factory") => {
            tracing::info!("before the init");
            Registry::default().with(oxicorn::log_layer()).with(SpansToFile::open()).init();
            tracing::info!("after the init");
            let span = tracing::info_span!("a_task");
            tokio::spawn(tracing::Instrument::instrument(async { tracing::info!("in the task") }, span));
            tokio::task::yield_now().await;
        }
        Ok("own layers") => Registry::default().with(oxicorn::log_layer()).with(SpansToFile::open()).init(),
        Ok("no log layer") => Registry::default().with(SpansToFile::open()).init(),
        _ => {}
    }
    tracing::info!("the factory is called");
    Ok(Router::new()
        .route("/", get(greet))
        .route("/span", get(span))
        .route("/thread", get(log_in_a_thread))
        .route("/targets", get(log_by_target))
        .with_state(worker))
}

async fn greet(State(worker): State<WorkerContext>) -> String {
    worker.arguments().join(", ")
}

async fn span() {
    tracing::info_span!("a_span", number = 5).in_scope(|| tracing::info!("inside the span"));
}

#[expect(clippy::disallowed_methods, reason = "an app may start threads in its workers")]
async fn log_in_a_thread() {
    let logged = thread::spawn(|| tracing::info!("from a thread of the app")).join();
    logged.expect("the thread does not panic");
}

async fn log_by_target() {
    tracing::info!(target: "loud_crate::query", "loud info");
    tracing::warn!(target: "loud_crate::query", "loud warning");
    tracing::debug!(target: "watched_crate", "watched debug");
    tracing::trace!(target: "watched_crate", "watched trace");
    tracing::debug!(target: "watched_crate_too", "another crate");
}

/// The app's own tracing layer. It writes the name of each span and the message of each event to a file.
struct SpansToFile(Mutex<std::fs::File>);

impl SpansToFile {
    fn open() -> Self {
        let path = env::var("EMBEDDER_SPANS").expect("the test names the file");
        Self(Mutex::new(OpenOptions::new().create(true).append(true).open(path).expect("the test's own folder")))
    }

    fn write(&self, line: &str) {
        let mut file = self.0.lock().expect("no writer panics");
        file.write_all(format!("{line}\n").as_bytes()).expect("the test's own file");
    }
}

impl<S: Subscriber> Layer<S> for SpansToFile {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
        self.write(&format!("span {}", attributes.metadata().name()));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        self.write(&format!("event {}", message.0));
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
