//! The reference service, which has small facts over JSON, routes for its health, and routes that misbehave on purpose.
//!
//! Owns: the assembly of routes, settings and store in a worker. Refuses: to do anything that a user's own service
//! could not do. The service sees the supervisor only through `WorkerContext`, `SetupContext` and `Lifespan`, like
//! every other app.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{
        HeaderName, HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS},
    },
    middleware,
    response::Response,
};
use oxicorn::{Lifespan, SetupContext, TableSpec, WorkerContext};
use tower::util::MapResponseLayer;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    auth::{Token, TokenUnread},
    cors::{self, Cors},
    debug, docs,
    error::ApiError,
    facts, health,
    settings::ServiceSettings,
    store::{self, Store, StoreError},
};

/// The service could not be built. A worker that gets this error does not become ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("cannot make the folder {} of service.sqlite_path", folder.display())]
    MakeFolder { folder: PathBuf, source: io::Error },
    #[error("cannot make the store at service.sqlite_path = {}", path.display())]
    MakeStore { path: PathBuf, source: io::Error },
    #[error("the store at service.sqlite_path is gone: {}; put it back, or restart the service to begin with an empty one", path.display())]
    StoreGone { path: PathBuf },
    #[error("cannot open the store at service.sqlite_path = {}", path.display())]
    OpenStore { path: PathBuf, source: StoreError },
    #[error("cannot use service.mongodb_uri")]
    UseMongo { source: StoreError },
    #[error(transparent)]
    TokenUnread(#[from] TokenUnread),
}

/// Declares the table `[service]`, with the files and the environment variables that its keys may come from.
#[must_use]
pub(crate) fn table() -> TableSpec {
    TableSpec::new::<ServiceSettings>("service")
        .file("mongodb_uri_file", "mongodb_uri")
        .file_instead("bearer_token_file", "bearer_token")
        .env("MONGODB_URI_FILE", "mongodb_uri_file")
        .env("MONGODB_URI", "mongodb_uri")
        .env("MONGODB_DATABASE", "mongodb_database")
}

/// Builds the store and the routes of the reference service in a worker.
///
/// # Errors
/// The SQLite file does not exist or cannot be opened. A MongoDB that cannot be reached is not an error, because it may
/// come back.
pub(crate) async fn build(worker: WorkerContext) -> Result<Lifespan<Router>, BuildError> {
    let settings = worker.table::<ServiceSettings>();
    let token = Token::of(&settings)?;
    let store = open(&worker, &settings).await?;
    if worker.slot() == 0 {
        tokio::spawn(warn_of_what_is_missing(store.clone()));
    }
    let service = routes(&worker, &settings, token, store.clone());
    Ok(Lifespan::new(service).on_shutdown(async move { store.close().await }))
}

/// Makes the folder of the database and an empty file for it. The master does this with its own rights, because workers
/// make no file, and then gives both to the user of the workers. The database of a running service is never made again,
/// because the new one would be empty.
///
/// # Errors
/// The database of the running service is gone or was emptied, or the file system refuses. The error names the path.
pub(crate) fn prepare(setup: &SetupContext<'_>) -> Result<(), BuildError> {
    let Some(path) = sqlite_path(setup) else { return Ok(()) };
    let served = setup.running().and_then(|running| sqlite_path(&running));
    if served.as_ref() == Some(&path) {
        return if has_content(&path) { Ok(()) } else { Err(BuildError::StoreGone { path }) };
    }
    if let Some(folder) = path.parent() {
        setup.make_folder(folder).map_err(|source| BuildError::MakeFolder { folder: folder.to_owned(), source })?;
    }
    setup.make_file(&path).map_err(|source| BuildError::MakeStore { path, source })
}

fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

fn sqlite_path(setup: &SetupContext<'_>) -> Option<PathBuf> {
    let settings = setup.table::<ServiceSettings>();
    settings.wants_sqlite().then(|| setup.state_path(&settings.sqlite_path))
}

/// Makes the tables or indexes of the database, and notes the version of its schema. Returns a line for each step that
/// was done.
///
/// # Errors
/// The database refuses, cannot be reached, or has the schema of a newer program.
pub(crate) async fn migrate(setup: &SetupContext<'_>) -> Result<Vec<String>, StoreError> {
    let settings = setup.table::<ServiceSettings>();
    let path = setup.state_path(&settings.sqlite_path);
    store::migrate(&settings, path, &setup.settings().process.name).await
}

async fn open(worker: &WorkerContext, settings: &ServiceSettings) -> Result<Store, BuildError> {
    if !settings.wants_sqlite() {
        let process = &worker.settings().process.name;
        return Store::open_mongo(settings, process).map_err(|source| BuildError::UseMongo { source });
    }
    let path = worker.state_path(&settings.sqlite_path);
    match Store::open_sqlite(&path).await {
        Err(_) if matches!(path.try_exists(), Ok(false)) => Err(BuildError::StoreGone { path }),
        opened => opened.map_err(|source| BuildError::OpenStore { path, source }),
    }
}

/// Warns once if the database needs a migration, as soon as the database answers. The worker serves meanwhile.
async fn warn_of_what_is_missing(store: Store) {
    loop {
        match store.missing().await {
            Ok(None) => return,
            Ok(Some(missing)) => return tracing::warn!(event = "migration_needed", "{missing}"),
            Err(StoreError::Unfit { reason }) => {
                return tracing::error!(
                    event = "migration_needed",
                    reason,
                    "the database has the schema of a newer program"
                );
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(5)).await,
        }
    }
}

fn routes(worker: &WorkerContext, settings: &ServiceSettings, token: Token, store: Store) -> Router {
    let body_limit = match usize::try_from(worker.settings().http.limit_request_body) {
        Ok(0) | Err(_) => DefaultBodyLimit::disable(),
        Ok(limit) => DefaultBodyLimit::max(limit),
    };
    let with_bodies = OpenApiRouter::new()
        .merge(facts::routes(store.clone(), token.clone()))
        .merge(debug::routes(worker.clone(), settings.debug))
        .layer(body_limit);
    let (mut router, document) = OpenApiRouter::with_openapi(docs::frame())
        .merge(health::routes(worker.clone(), store, &settings.check))
        .merge(with_bodies)
        .split_for_parts();
    if settings.docs {
        router = router.merge(docs::routes(document, &token));
    }
    router = router
        .fallback(async || ApiError::not_found("there is no such route"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed());
    // All layers are added in one call, the outermost first, because each call of `layer` costs every request the
    // allocation of a box.
    let security = MapResponseLayer::new(secured);
    if settings.cors_origins.is_empty() {
        return router.layer(security);
    }
    let cors = middleware::from_fn_with_state(Cors::of(&settings.cors_origins), cors::cors);
    router.layer((security, cors))
}

/// The headers of every answer. They tell a browser to trust the content type, to send no referrer, to load nothing,
/// and to show the answer in no frame.
const SECURITY: [(HeaderName, HeaderValue); 4] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// Adds each header of [`SECURITY`] that an answer does not have. Four layers of tower-http's `SetResponseHeader` would
/// do the same, but they take 3,081 instructions for an answer with two headers, and this function takes 3,043
/// (callgrind).
fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    // There must be room for one more header, `X-Request-Id`.
    headers.reserve(SECURITY.len() + 1);
    for (name, value) in SECURITY {
        // A comparison with each of a few headers costs less than the hash of a name.
        if !headers.keys().any(|known| *known == name) {
            headers.append(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests;
