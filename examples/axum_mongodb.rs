//! A service that stores notes in MongoDB. It shows a table of settings of the app, the state of an axum router, a
//! migration and a shutdown hook.
//!
//! ```toml
//! [notes]
//! mongodb_uri = "mongodb://127.0.0.1:27017" # or MONGODB_URI
//! database = "notes"
//! ```
//!
//! Run `cargo run --example axum_mongodb -- migrate`, then `cargo run --example axum_mongodb`, then `curl
//! http://127.0.0.1:8000/notes -H 'content-type: application/json' -d '{"text":"milk"}'`.

use std::{process::ExitCode, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use futures_util::TryStreamExt;
use mongodb::{Client, Collection, IndexModel, bson::doc, error::Error, options::ClientOptions};
use oxicorn::{App, Lifespan, SetupContext, TableSpec, WorkerContext};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    mongodb_uri: String,
    database: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mongodb_uri: "mongodb://127.0.0.1:27017".into(), database: "notes".into() }
    }
}

#[derive(Deserialize, Serialize)]
struct Note {
    text: String,
}

fn main() -> ExitCode {
    let table = TableSpec::new::<Settings>("notes").env("MONGODB_URI", "mongodb_uri");
    App::new(factory).table_spec(table).migrate(migrate).run()
}

/// Runs in each worker after the fork, because a client of MongoDB has sockets and tasks, which a fork would break.
async fn factory(worker: WorkerContext) -> Result<Lifespan<Router>, Error> {
    let notes = open(&worker.table()).await?;
    let client = notes.client().clone();
    let service = Router::new().route("/notes", get(list).post(create)).with_state(notes);
    Ok(Lifespan::new(service).on_shutdown(async { client.shutdown().await }))
}

/// Runs for the command `migrate`, which prints the lines that this function returns.
async fn migrate(setup: &SetupContext<'_>) -> Result<Vec<String>, Error> {
    let notes = open(&setup.table()).await?;
    let index = notes.create_index(IndexModel::builder().keys(doc! {"text": 1}).build()).await?;
    Ok(vec![format!("the index {} is there", index.index_name)])
}

/// Makes a client. It sends nothing to the server yet, so a worker can start while the server is down.
async fn open(settings: &Settings) -> Result<Collection<Note>, Error> {
    let mut options = ClientOptions::parse(&settings.mongodb_uri).await?;
    options.max_pool_size.get_or_insert(10);
    options.server_selection_timeout.get_or_insert(Duration::from_secs(2));
    Ok(Client::with_options(options)?.database(&settings.database).collection("notes"))
}

async fn create(State(notes): State<Collection<Note>>, Json(note): Json<Note>) -> Result<StatusCode, StatusCode> {
    notes.insert_one(&note).await.map_err(unavailable)?;
    Ok(StatusCode::CREATED)
}

async fn list(State(notes): State<Collection<Note>>) -> Result<Json<Vec<Note>>, StatusCode> {
    let newest = notes.find(doc! {}).sort(doc! {"_id": -1}).limit(20).await.map_err(unavailable)?;
    newest.try_collect().await.map(Json).map_err(unavailable)
}

fn unavailable(error: Error) -> StatusCode {
    eprintln!("the database: {}", error.kind);
    StatusCode::SERVICE_UNAVAILABLE
}
