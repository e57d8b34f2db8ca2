//! Where facts are kept.
//!
//! Owns: what a fact is, its id and times, and the choice of a database. Refuses: HTTP, and anything about processes.

mod sqlite;

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use self::sqlite::Sqlite;

/// A fact as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Fact {
    /// A version 7 UUID: its order is the order of creation.
    #[schema(format = Uuid, example = "01a20155-6968-7621-88be-ae16c701f5b1")]
    pub(super) id: String,
    #[schema(example = "Otters hold hands")]
    pub(super) text: String,
    #[schema(required, example = "a zoo keeper")]
    pub(super) source: Option<String>,
    #[schema(example = json!(["otter"]))]
    pub(super) tags: Vec<String>,
    pub(super) created_at: Millis,
    pub(super) updated_at: Millis,
}

/// A point in time, in milliseconds since 1970 UTC; written as RFC 3339 with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-11-22T03:38:24.488Z")]
pub(super) struct Millis(i64);

impl Millis {
    fn now() -> Self {
        Self(Timestamp::now().as_millisecond())
    }

    /// When a version 7 UUID was made: its first 48 bits. So `created_at` and the order of ids never disagree.
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

/// What a client decides about a fact; valid.
#[derive(Debug, PartialEq)]
pub(super) struct Draft {
    pub(super) text: String,
    pub(super) source: Option<String>,
    pub(super) tags: Vec<String>,
}

/// Which facts to list: those with `tag`, older than the one with the id `before`, newest first, at most `limit`.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) limit: u32,
    pub(super) before: String,
    pub(super) tag: Option<String>,
}

/// `next_cursor` is the id of the last item: inserts come before it and deletes leave it valid, so pages never shift.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listing {
    pub(super) items: Vec<Fact>,
    #[schema(required, format = Uuid)]
    pub(super) next_cursor: Option<String>,
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot make the folder {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the store is no use as it is: {reason}")]
    Unfit { reason: String },
    #[error("the store could not {act}")]
    Sqlite { act: &'static str, source: rusqlite::Error },
    #[error("the store is closed already")]
    Closed,
    #[error("the store's thread panicked")]
    Panicked,
}

/// The databases to choose from. Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub(super) enum Store {
    Sqlite(Sqlite),
}

impl Store {
    pub(super) async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        Sqlite::open(path.to_owned()).await.map(Self::Sqlite)
    }

    pub(super) async fn insert(&self, draft: Draft) -> Result<Fact, StoreError> {
        let id = Uuid::now_v7();
        let now = Millis::of(id);
        let Draft { text, source, tags } = draft;
        let fact = Fact { id: id.to_string(), text, source, tags, created_at: now, updated_at: now };
        match self {
            Self::Sqlite(store) => store.insert(fact).await,
        }
    }

    pub(super) async fn get(&self, id: String) -> Result<Option<Fact>, StoreError> {
        match self {
            Self::Sqlite(store) => store.get(id).await,
        }
    }

    pub(super) async fn list(&self, page: Page) -> Result<Listing, StoreError> {
        let limit = page.limit as usize;
        let mut items = match self {
            Self::Sqlite(store) => store.list(Page { limit: page.limit + 1, ..page }).await?,
        };
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = if more { items.last().map(|fact| fact.id.clone()) } else { None };
        Ok(Listing { items, next_cursor })
    }

    /// The fact as it now is; none when there is no such id.
    pub(super) async fn replace(&self, id: String, draft: Draft) -> Result<Option<Fact>, StoreError> {
        match self {
            Self::Sqlite(store) => store.replace(id, draft, Millis::now()).await,
        }
    }

    /// Whether there was such a fact.
    pub(super) async fn delete(&self, id: String) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(store) => store.delete(id).await,
        }
    }

    /// Asks the database for the least it can answer.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.ping().await,
        }
    }

    /// Waits for what is under way, then lets go of the database. Later calls fail with [`StoreError::Closed`].
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
        }
    }
}
