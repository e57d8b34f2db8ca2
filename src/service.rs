//! The reference service: small facts over JSON, health, and a few ways to misbehave on purpose.
//!
//! Owns: putting routes, settings and the store together in a worker. Refuses: anything a user's own service could not
//! do. It sees the supervisor only through `WorkerContext` and `Lifespan`, like every other app.

mod condition;
mod debug;
mod error;
mod facts;
mod health;
mod settings;
mod store;

use std::{io, path::PathBuf, time::Duration};

use axum::{Router, extract::DefaultBodyLimit};

pub use settings::{Check, Probe, Secret, Settings, StoreKind};
pub use store::StoreError;

use self::{error::ApiError, store::Store};
use crate::{Lifespan, Preparation, WorkerContext};

/// Why the service could not be built; the worker that met it is not ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error("cannot make the folder {} of service.sqlite_path", folder.display())]
    MakeFolder { folder: PathBuf, source: io::Error },
    #[error("cannot open the store at service.sqlite_path = {}", path.display())]
    OpenStore { path: PathBuf, source: StoreError },
    #[error("cannot use service.mongodb_uri")]
    UseMongo { source: StoreError },
}

/// The factory of the reference service: `oxicorn::App::new(service::build).table::<service::Settings>("service")`.
///
/// # Errors
/// When the SQLite file cannot be opened. A MongoDB that cannot be reached is no error: it may come back.
pub async fn build(worker: WorkerContext) -> Result<Lifespan<Router>, BuildError> {
    let settings = worker.table::<Settings>();
    let store = open(&worker, &settings).await?;
    if worker.slot() == 0 {
        for sentence in settings.not_yet() {
            tracing::warn!("{sentence}");
        }
        tokio::spawn(warn_of_what_is_missing(store.clone()));
    }
    let service = routes(&worker, &settings, store.clone());
    Ok(Lifespan::new(service).on_shutdown(async move { store.close().await }))
}

/// Makes the database's folder with the master's rights, and gives it to the user the workers will be.
///
/// # Errors
/// The file system's, with the folder's name.
pub fn prepare(preparation: &Preparation<'_>) -> Result<(), BuildError> {
    let settings = preparation.table::<Settings>();
    let path = preparation.path(&settings.sqlite_path);
    match path.parent() {
        Some(folder) if settings.wants_sqlite() => preparation
            .make_folder(folder)
            .map_err(|source| BuildError::MakeFolder { folder: folder.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Makes the database ready: tables or indexes, and the version of its schema. A line for each thing that was done.
///
/// # Errors
/// When the database refuses, cannot be reached, or is of a newer program.
pub async fn migrate(preparation: &Preparation<'_>) -> Result<Vec<String>, StoreError> {
    let settings = preparation.table::<Settings>();
    let path = preparation.path(&settings.sqlite_path);
    store::migrate(&settings, path, &preparation.settings().process.name).await
}

async fn open(worker: &WorkerContext, settings: &Settings) -> Result<Store, BuildError> {
    if !settings.wants_sqlite() {
        let process = &worker.settings().process.name;
        return Store::open_mongo(settings, process).map_err(|source| BuildError::UseMongo { source });
    }
    let path = worker.path(&settings.sqlite_path);
    Store::open_sqlite(&path).await.map_err(|source| BuildError::OpenStore { path, source })
}

/// Once, as soon as the database answers; a worker serves without.
async fn warn_of_what_is_missing(store: Store) {
    loop {
        match store.missing().await {
            Ok(None) => return,
            Ok(Some(missing)) => return tracing::warn!(event = "not_migrated", "{missing}"),
            Err(StoreError::Unfit { reason }) => {
                return tracing::error!(event = "not_migrated", reason, "the database is of a newer program");
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(5)).await,
        }
    }
}

fn routes(worker: &WorkerContext, settings: &Settings, store: Store) -> Router {
    let body_limit = match usize::try_from(worker.settings().http.limit_request_body) {
        Ok(0) | Err(_) => DefaultBodyLimit::disable(),
        Ok(limit) => DefaultBodyLimit::max(limit),
    };
    Router::new()
        .merge(health::routes(worker.clone(), store.clone(), &settings.check))
        .merge(facts::routes(store))
        .merge(debug::routes(worker.clone(), settings.debug))
        .fallback(async || ApiError::not_found("there is no such route"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(body_limit)
}

#[cfg(test)]
mod tests;
