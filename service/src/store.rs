//! The storage of facts.
//!
//! Owns: what a fact is, its id and times, and the choice of a database. Refuses: HTTP, and everything about processes.

mod mongo;
mod sqlite;

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use self::{mongo::Mongo, sqlite::Sqlite};
use crate::{
    dependency::{DependencyHealth, PATIENCE, Telling},
    settings::ServiceSettings,
};

/// A fact as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Fact {
    /// A version 7 UUID. Ids sort by time of creation: exactly within one worker, to the millisecond between workers.
    #[schema(format = Uuid, example = "01a20155-6968-7621-88be-ae16c701f5b1")]
    pub(crate) id: String,
    #[schema(example = "Otters hold hands")]
    pub(crate) text: String,
    #[schema(required, example = "a zoo keeper")]
    pub(crate) source: Option<String>,
    #[schema(example = json!(["otter"]))]
    pub(crate) tags: Vec<String>,
    pub(crate) created_at: Millis,
    pub(crate) updated_at: Millis,
}

/// A point in time, in milliseconds since 1970 UTC; written as RFC 3339 with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-11-22T03:38:24.488Z")]
pub(crate) struct Millis(i64);

impl Millis {
    fn now() -> Self {
        Self(Timestamp::now().as_millisecond())
    }

    /// Returns the time in the first 48 bits of a version 7 UUID, so that `created_at` always agrees with the order of
    /// ids.
    fn of(id: Uuid) -> Self {
        Self((id.as_u128() >> 80) as i64)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = Timestamp::from_millisecond(self.0).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&format_args!("{time:.3}"))
    }
}

/// The part of a fact that a client decides, after the service has checked it.
#[derive(Debug, PartialEq)]
pub(crate) struct Draft {
    pub(crate) text: String,
    pub(crate) source: Option<String>,
    pub(crate) tags: Vec<String>,
}

/// Selects the facts of a list. These are the newest facts that have `tag` and are older than the fact with the id
/// `before`, at most `limit` of them, newest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) limit: u32,
    pub(crate) before: String,
    pub(crate) tag: Option<String>,
}

/// One page. `next_cursor` is the id of the last item. Inserts come before it and deletes leave it valid, so pages
/// never shift.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Listing {
    pub(crate) items: Vec<Fact>,
    #[schema(required, format = Uuid)]
    pub(crate) next_cursor: Option<String>,
}

/// The reason why the store did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store cannot be used: {reason}")]
    Unfit { reason: String },
    #[error("the store could not {act}")]
    Sqlite { act: &'static str, source: rusqlite::Error },
    /// Holds only the kind of the driver's error, because the full error quotes the server's answer, which may hold
    /// documents.
    #[error("the store could not {act}")]
    Mongo { act: &'static str, source: Box<mongodb::error::ErrorKind> },
    #[error("the store did not {act} within {within:?}")]
    Late { act: &'static str, within: Duration },
    #[error("the store is closed already")]
    Closed,
    #[error("the store's thread panicked")]
    Panicked,
}

/// A handle to the store. It is cheap to clone, and every clone is the same store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
    reading: Arc<DependencyHealth>,
    writing: Arc<DependencyHealth>,
}

/// What the store can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// The store can be read but not written, because its disk is full or its primary is gone.
    ReadOnly,
    Unavailable,
}

/// The database that the store uses.
#[derive(Clone, Debug)]
enum Database {
    Sqlite(Sqlite),
    Mongo(Mongo),
}

impl Store {
    pub(crate) async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        Sqlite::open(path.to_owned()).await.map(Database::Sqlite).map(Self::of)
    }

    /// Makes the client of a MongoDB. This does not ask the database, because the database may be down when the worker
    /// starts.
    pub(crate) fn open_mongo(settings: &ServiceSettings, process: &str) -> Result<Self, StoreError> {
        Mongo::new(settings.mongodb_uri.expose(), &settings.mongodb_database, process)
            .map(Database::Mongo)
            .map(Self::of)
    }

    fn of(database: Database) -> Self {
        let health = |name| Arc::new(DependencyHealth::new(name));
        Self { database, reading: health("database"), writing: health("writing to the database") }
    }

    pub(crate) async fn insert(&self, draft: Draft) -> Result<Fact, StoreError> {
        let id = Uuid::now_v7();
        let now = Millis::of(id);
        let Draft { text, source, tags } = draft;
        let fact = Fact { id: id.to_string(), text, source, tags, created_at: now, updated_at: now };
        let done = match &self.database {
            Database::Sqlite(database) => database.insert(fact).await,
            Database::Mongo(database) => database.insert(fact).await,
        };
        noted(&self.writing, done, |_| true)
    }

    pub(crate) async fn get(&self, id: String) -> Result<Option<Fact>, StoreError> {
        let done = match &self.database {
            Database::Sqlite(database) => database.get(id).await,
            Database::Mongo(database) => database.get(id).await,
        };
        noted(&self.reading, done, |_| true)
    }

    pub(crate) async fn list(&self, page: Page) -> Result<Listing, StoreError> {
        let limit = page.limit as usize;
        let page = Page { limit: page.limit + 1, ..page };
        let done = match &self.database {
            Database::Sqlite(database) => database.list(page).await,
            Database::Mongo(database) => database.list(page).await,
        };
        let mut items = noted(&self.reading, done, |_| true)?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = if more { items.last().map(|fact| fact.id.clone()) } else { None };
        Ok(Listing { items, next_cursor })
    }

    /// Replaces the content of a fact and returns the fact; `None` if the id does not exist.
    pub(crate) async fn replace(&self, id: String, draft: Draft) -> Result<Option<Fact>, StoreError> {
        let done = match &self.database {
            Database::Sqlite(database) => database.replace(id, draft, Millis::now()).await,
            Database::Mongo(database) => database.replace(id, draft, Millis::now()).await,
        };
        noted(&self.writing, done, Option::is_some)
    }

    /// Deletes a fact, and returns true if it existed.
    pub(crate) async fn delete(&self, id: String) -> Result<bool, StoreError> {
        let done = match &self.database {
            Database::Sqlite(database) => database.delete(id).await,
            Database::Mongo(database) => database.delete(id).await,
        };
        noted(&self.writing, done, |deleted| *deleted)
    }

    /// Pings the database. While writes fail, this function also tries a write. Otherwise the service would not notice
    /// that writes work again, if a balancer sends no requests to the service meanwhile.
    pub(crate) async fn ping(&self) -> Health {
        let (reads, writes) = join(self.ping_reading(), self.ping_writing()).await;
        match (reads, writes) {
            (Err(_), _) => Health::Unavailable,
            (Ok(()), Err(_)) => Health::ReadOnly,
            (Ok(()), Ok(())) => Health::Well,
        }
    }

    async fn ping_reading(&self) -> Result<(), StoreError> {
        let pinged = in_time("answer a ping", async {
            match &self.database {
                Database::Sqlite(database) => database.ping().await,
                Database::Mongo(database) => database.ping().await,
            }
        });
        noted(&self.reading, pinged.await, |()| true)
    }

    async fn ping_writing(&self) -> Result<(), StoreError> {
        if !self.writing.fails() {
            return Ok(());
        }
        let tried = in_time("take a write that changes nothing", async {
            match &self.database {
                Database::Sqlite(database) => database.try_write().await,
                Database::Mongo(database) => database.try_write().await,
            }
        });
        noted(&self.writing, tried.await, |()| true)
    }

    /// Returns a sentence that says what `migrate` would do, or `None` if nothing is missing. In SQLite
    /// nothing is ever missing, because opening the file creates the tables.
    pub(crate) async fn missing(&self) -> Result<Option<String>, StoreError> {
        match &self.database {
            Database::Sqlite(_) => Ok(None),
            Database::Mongo(database) => database.missing().await,
        }
    }

    /// Waits for operations under way, then closes the database. Later calls fail with [`StoreError::Closed`].
    pub(crate) async fn close(&self) {
        match &self.database {
            Database::Sqlite(database) => database.close().await,
            Database::Mongo(database) => database.close().await,
        }
    }
}

async fn in_time<T>(
    act: &'static str,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(PATIENCE, operation).await.unwrap_or(Err(StoreError::Late { act, within: PATIENCE }))
}

/// Notes the result in `health`. `shows` returns true if a success proves that the database works. A write that changed
/// nothing does not prove it.
fn noted<T>(
    health: &DependencyHealth,
    result: Result<T, StoreError>,
    shows: impl FnOnce(&T) -> bool,
) -> Result<T, StoreError> {
    match &result {
        Ok(done) if shows(done) => health.works(),
        Ok(_) => {}
        Err(error) => health.failed(error.telling(), error),
    }
    result
}

impl StoreError {
    fn telling(&self) -> Telling {
        match self {
            Self::Late { .. } | Self::Closed | Self::Panicked => Telling::Nothing,
            Self::Sqlite { source, .. } if sqlite::is_contention(source) => Telling::Nothing,
            Self::Mongo { source, .. } if mongo::is_out_of_reach(source) => Telling::Unreached,
            Self::Unfit { .. } | Self::Sqlite { .. } | Self::Mongo { .. } => Telling::Cause,
        }
    }
}

/// Makes the database ready for workers. Returns a line for each step that was done. This function may run in several
/// processes at once.
///
/// # Errors
/// The database refuses, cannot be reached, or has the schema of a newer program.
pub(crate) async fn migrate(
    settings: &ServiceSettings,
    path: PathBuf,
    process: &str,
) -> Result<Vec<String>, StoreError> {
    if settings.wants_sqlite() {
        return Sqlite::migrate(path).await;
    }
    Mongo::new(settings.mongodb_uri.expose(), &settings.mongodb_database, process)?.migrate().await
}
