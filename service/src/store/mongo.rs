//! Facts in a MongoDB collection.
//!
//! Owns: the client of one worker, the shape of a document, indexes, and a time limit on every operation. Refuses: to
//! retry (the driver does this, as the connection string says), and to pass on messages of the driver that could hold a
//! secret or a document.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use mongodb::{
    Client, Collection, Database,
    bson::{DateTime, Document, doc},
    error::{Error, ErrorKind},
    options::{ClientOptions, ConnectionString, ReturnDocument},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::OnceCell, time::timeout};

use super::{Draft, Fact, Millis, Page, StoreError};

/// The defaults for the options that the connection string does not set. A worker has one thread, so a few connections
/// keep it busy. The times are short, because a request should not wait long for a server that does not exist.
const MAX_POOL_SIZE: u32 = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const SERVER_SELECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The default time limit of an operation once a server is selected. `socketTimeoutMS` of the connection string changes
/// it; the driver itself ignores that option.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

const SCHEMA_VERSION: i32 = 1;

const FACTS: &str = "facts";

/// The name of the index for a list by tag. For a list without a tag the index of `_id` is enough.
const INDEX: &str = "tags_newest_first";

/// One worker's client of the MongoDB. The driver's client is made only at its first use, because the driver must first
/// look up the name in a `mongodb+srv://` string. This look-up may fail for a while, like any request to the server.
#[derive(Clone)]
pub(super) struct Mongo {
    uri: Arc<ConnectionString>,
    name: Arc<str>,
    database: Arc<OnceCell<Database>>,
    within: Duration,
}

impl fmt::Debug for Mongo {
    /// Leaves out the connection string, because it holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mongo").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Stored {
    #[serde(rename = "_id")]
    id: String,
    text: String,
    source: Option<String>,
    tags: Vec<String>,
    created_at: DateTime,
    updated_at: DateTime,
}

impl From<Fact> for Stored {
    fn from(fact: Fact) -> Self {
        let Fact { id, text, source, tags, created_at, updated_at } = fact;
        Self { id, text, source, tags, created_at: created_at.into(), updated_at: updated_at.into() }
    }
}

impl From<Stored> for Fact {
    fn from(stored: Stored) -> Self {
        let Stored { id, text, source, tags, created_at, updated_at } = stored;
        Self { id, text, source, tags, created_at: created_at.into(), updated_at: updated_at.into() }
    }
}

impl From<Millis> for DateTime {
    fn from(time: Millis) -> Self {
        Self::from_millis(time.0)
    }
}

impl From<DateTime> for Millis {
    fn from(time: DateTime) -> Self {
        Self(time.timestamp_millis())
    }
}

impl Mongo {
    /// Makes a client that connects later. The server sees `process` as its `appName`, unless the connection string has
    /// another name.
    pub(super) fn new(uri: &str, database: &str, process: &str) -> Result<Self, StoreError> {
        let mut uri = ConnectionString::parse(uri).map_err(|error| failure("use its connection string", error))?;
        uri.app_name.get_or_insert_with(|| process.to_owned());
        uri.max_pool_size.get_or_insert(MAX_POOL_SIZE);
        uri.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        let selection = *uri.server_selection_timeout.get_or_insert(SERVER_SELECTION_TIMEOUT);
        #[expect(deprecated, reason = "the driver does not apply it, so this module does")]
        let answer = uri.socket_timeout.take().filter(|limit| !limit.is_zero()).unwrap_or(ANSWER_TIMEOUT);
        let within = selection.saturating_add(answer);
        Ok(Self { uri: Arc::new(uri), name: database.into(), database: Arc::default(), within })
    }

    pub(super) async fn insert(&self, fact: Fact) -> Result<Fact, StoreError> {
        let stored = Stored::from(fact);
        self.bounded("insert a fact", async { self.facts().await?.insert_one(&stored).await }).await?;
        Ok(stored.into())
    }

    pub(super) async fn get(&self, id: String) -> Result<Option<Fact>, StoreError> {
        let found = self.bounded("read a fact", async { self.facts().await?.find_one(doc! {"_id": id}).await });
        Ok(found.await?.map(Fact::from))
    }

    pub(super) async fn list(&self, page: Page) -> Result<Vec<Fact>, StoreError> {
        let mut filter = doc! {"_id": {"$lt": page.before}};
        if let Some(tag) = page.tag {
            filter.insert("tags", tag);
        }
        self.bounded("list facts", async {
            let facts = self.facts().await?;
            // `max_time` makes the server give up at the same time as this client. If the index is missing, a query
            // reads the whole collection.
            let found = facts.find(filter).sort(doc! {"_id": -1}).limit(page.limit.into()).max_time(self.within);
            let mut cursor = found.await?;
            let mut facts = Vec::new();
            while cursor.advance().await? {
                facts.push(cursor.deserialize_current()?.into());
            }
            Ok(facts)
        })
        .await
    }

    pub(super) async fn replace(&self, id: String, draft: Draft, now: Millis) -> Result<Option<Fact>, StoreError> {
        let Draft { text, source, tags } = draft;
        let change = doc! {"$set": {"text": text, "source": source, "tags": tags, "updated_at": DateTime::from(now)}};
        let replaced = self.bounded("replace a fact", async {
            let facts = self.facts().await?;
            facts.find_one_and_update(doc! {"_id": id}, change).return_document(ReturnDocument::After).await
        });
        Ok(replaced.await?.map(Fact::from))
    }

    pub(super) async fn delete(&self, id: String) -> Result<bool, StoreError> {
        let deleted = self.bounded("delete a fact", async { self.facts().await?.delete_one(doc! {"_id": id}).await });
        Ok(deleted.await?.deleted_count > 0)
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        // The ping reads the collection, because the command "ping" succeeds even for a user without any rights.
        let id = doc! {"_id": ""};
        self.bounded("answer a ping", async { self.facts().await?.find_one(id).await }).await.map(drop)
    }

    /// Tries a write that changes nothing, by asking the primary to delete a fact that does not exist.
    pub(super) async fn try_write(&self) -> Result<(), StoreError> {
        let id = doc! {"_id": ""};
        let tried =
            self.bounded("take a write that changes nothing", async { self.facts().await?.delete_one(id).await });
        tried.await.map(drop)
    }

    pub(super) async fn missing(&self) -> Result<Option<String>, StoreError> {
        let found = self.version().await?;
        Ok((found < SCHEMA_VERSION).then(|| {
            format!(
                "the database {} has no index for lists by tag, which read the whole collection until the command \
                 \"migrate\" was run",
                self.name
            )
        }))
    }

    /// Makes the index and notes the schema version. Each step is idempotent, so two runs at the same time do no harm.
    pub(super) async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.version().await?;
        let mut done = Vec::new();
        let index = doc! {
            "createIndexes": FACTS,
            "indexes": [{"name": INDEX, "key": {"tags": 1, "_id": -1}}],
        };
        // This step has no time limit, because a large collection may take long.
        let told = async { self.database().await?.run_command(index).await };
        let told = told.await.map_err(|error| failure("create an index", error))?;
        if told.get("numIndexesBefore") != told.get("numIndexesAfter") {
            done.push(format!("created the index {INDEX} of {}.{FACTS}", self.name));
        }
        let version = doc! {"$max": {"version": SCHEMA_VERSION}};
        let noted = self.bounded("note its schema version", async {
            self.schema().await?.update_one(doc! {"_id": FACTS}, version).upsert(true).await
        });
        let noted = noted.await?;
        if noted.upserted_id.is_some() || noted.modified_count > 0 {
            done.push(format!("{}.{FACTS} has schema version {SCHEMA_VERSION}", self.name));
        }
        Ok(done)
    }

    /// Returns the version of the schema in the database; 0 when `migrate` never ran there.
    async fn version(&self) -> Result<i32, StoreError> {
        let found =
            self.bounded("read its schema version", async { self.schema().await?.find_one(doc! {"_id": FACTS}).await });
        match found.await?.and_then(|schema| schema.get_i32("version").ok()).unwrap_or(0) {
            newer if newer > SCHEMA_VERSION => Err(StoreError::Unfit {
                reason: format!("its schema has version {newer}, and this program knows only version {SCHEMA_VERSION}"),
            }),
            version => Ok(version),
        }
    }

    pub(super) async fn close(&self) {
        if let Some(database) = self.database.get() {
            // Without `immediate`, the shutdown would wait for operations that have no answer yet. The requests that
            // need these answers were cut already.
            database.client().clone().shutdown().immediate(true).await;
        }
    }

    async fn database(&self) -> Result<&Database, Error> {
        let connect = async || {
            let options = ClientOptions::parse(ConnectionString::clone(&self.uri)).await?;
            Client::with_options(options).map(|client| client.database(&self.name))
        };
        self.database.get_or_try_init(connect).await
    }

    async fn facts(&self) -> Result<Collection<Stored>, Error> {
        Ok(self.database().await?.collection(FACTS))
    }

    async fn schema(&self) -> Result<Collection<Document>, Error> {
        Ok(self.database().await?.collection("schema"))
    }

    /// Limits the time of an operation, because the driver itself waits for an answer as long as the connection lives.
    /// An operation that takes too long is dropped, which closes its connection.
    async fn bounded<T>(
        &self,
        act: &'static str,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match timeout(self.within, operation).await {
            Ok(result) => result.map_err(|error| failure(act, error)),
            Err(_) => Err(StoreError::Late { act, within: self.within }),
        }
    }
}

fn failure(act: &'static str, error: Error) -> StoreError {
    match *error.kind {
        ErrorKind::Shutdown => StoreError::Closed,
        kind => StoreError::Mongo { act, source: Box::new(kind) },
    }
}

/// Returns true if no server was found, or if the connection to it broke.
pub(super) fn is_out_of_reach(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ServerSelection { .. }
            | ErrorKind::Io(_)
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
    )
}

#[cfg(test)]
mod tests {
    use mongodb::options::Acknowledgment;

    use super::*;

    #[test]
    fn defaults_of_the_connection_string_suit_a_worker() {
        let mongo = Mongo::new("mongodb://db", "facts", "shop").unwrap();
        assert_eq!(mongo.uri.app_name.as_deref(), Some("shop"));
        assert_eq!(mongo.uri.max_pool_size, Some(10));
        assert_eq!(mongo.uri.connect_timeout, Some(Duration::from_secs(2)));
        assert_eq!(mongo.within, Duration::from_secs(5));
    }

    #[tokio::test]
    async fn what_the_connection_string_sets_is_kept() {
        let uri = "mongodb://me:hush@db/?appName=x&maxPoolSize=50&minPoolSize=1&connectTimeoutMS=100&w=majority&\
                   serverSelectionTimeoutMS=500&socketTimeoutMS=700&retryWrites=false&tls=true&replicaSet=rs";
        let mongo = Mongo::new(uri, "facts", "shop").unwrap();
        assert_eq!(mongo.within, Duration::from_millis(1200), "server selection and socketTimeoutMS");
        assert!(!format!("{mongo:?}").contains("hush"), "{mongo:?}");
        let options = ClientOptions::parse(ConnectionString::clone(&mongo.uri)).await.unwrap();
        assert_eq!((options.app_name.as_deref(), options.max_pool_size), (Some("x"), Some(50)));
        assert_eq!((options.min_pool_size, options.retry_writes), (Some(1), Some(false)));
        assert_eq!(options.connect_timeout, Some(Duration::from_millis(100)));
        assert_eq!(options.write_concern.and_then(|concern| concern.w), Some(Acknowledgment::Majority));
        assert!(options.tls.is_some() && options.credential.is_some() && options.repl_set_name.is_some());
    }
}
