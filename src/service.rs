//! The reference service: small facts over JSON, health, and a few ways to misbehave on purpose.
//!
//! Owns: putting routes, settings and the store together in a worker. Refuses: anything a user's own service could not
//! do. It sees the supervisor only through `WorkerContext` and `Lifespan`, like every other app.

mod debug;
mod error;
mod facts;
mod health;
mod settings;
mod store;

use std::{io, path::PathBuf};

use axum::{Router, extract::DefaultBodyLimit};

pub use settings::{Check, Secret, Settings, StoreKind};
pub use store::StoreError;

use self::{error::ApiError, store::Store};
use crate::{Lifespan, Preparation, WorkerContext};

/// Why the service could not be built; the worker that met it is not ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error("service.store = \"mongodb\" is not supported yet; set it to \"sqlite\"")]
    MongoAsked,
    #[error(
        "service.mongodb_uri is set and service.store is \"auto\", which means MongoDB; that is not supported yet: \
         unset mongodb_uri (or MONGODB_URI), or set service.store to \"sqlite\""
    )]
    MongoImplied,
    #[error("cannot make the folder {} of service.sqlite_path", folder.display())]
    MakeFolder { folder: PathBuf, source: io::Error },
    #[error("cannot open the store at service.sqlite_path = {}", path.display())]
    OpenStore { path: PathBuf, source: StoreError },
}

/// The factory of the reference service: `oxicorn::App::new(service::build).table::<service::Settings>("service")`.
///
/// # Errors
/// When the settings ask for a store that is not there yet, or the store cannot be opened.
pub async fn build(worker: WorkerContext) -> Result<Lifespan<Router>, BuildError> {
    let settings = worker.table::<Settings>();
    let store = open(&worker, &settings).await?;
    if worker.slot() == 0 {
        for sentence in settings.not_yet() {
            tracing::warn!("{sentence}");
        }
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

async fn open(worker: &WorkerContext, settings: &Settings) -> Result<Store, BuildError> {
    match settings.store {
        StoreKind::Mongodb => return Err(BuildError::MongoAsked),
        StoreKind::Auto if !settings.wants_sqlite() => return Err(BuildError::MongoImplied),
        StoreKind::Auto | StoreKind::Sqlite => {}
    }
    let path = worker.path(&settings.sqlite_path);
    Store::open_sqlite(&path).await.map_err(|source| BuildError::OpenStore { path, source })
}

fn routes(worker: &WorkerContext, settings: &Settings, store: Store) -> Router {
    let body_limit = match usize::try_from(worker.settings().http.limit_request_body) {
        Ok(0) | Err(_) => DefaultBodyLimit::disable(),
        Ok(limit) => DefaultBodyLimit::max(limit),
    };
    Router::new()
        .merge(health::routes(worker.clone(), store.clone()))
        .merge(facts::routes(store))
        .merge(debug::routes(worker.clone(), settings.debug))
        .fallback(async || ApiError::not_found("there is no such route"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(body_limit)
}

#[cfg(test)]
mod tests;
