//! Facts in a SQLite file that all workers of the machine share.
//!
//! Owns: the schema, the statements, and the threads that keep SQLite off the worker's event loop. Refuses: to create
//! the file, and to keep a transaction open over several calls. Every write is one statement, so it is done completely
//! or not at all, even if the client leaves or the worker is killed at any moment.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, named_params, params};
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};

use super::{Draft, Fact, Millis, Page, StoreError};

/// How long a statement waits for the locks of other workers.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// For how long a worker tries again to open the file while other workers create or recover it.
const OPEN_PATIENCE: Duration = Duration::from_secs(15);

const SCHEMA_VERSION: i64 = 1;

/// The table `fact_tags` is an index of `facts.tags`. Only the triggers write to it.
const SCHEMA: &str = "
    CREATE TABLE facts (
        id TEXT PRIMARY KEY,
        text TEXT NOT NULL,
        source TEXT,
        tags TEXT NOT NULL, -- a JSON array
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE fact_tags (
        tag TEXT NOT NULL,
        fact_id TEXT NOT NULL,
        PRIMARY KEY (tag, fact_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER facts_inserted AFTER INSERT ON facts BEGIN
        INSERT OR IGNORE INTO fact_tags SELECT value, new.id FROM json_each(new.tags);
    END;
    CREATE TRIGGER facts_updated AFTER UPDATE OF tags ON facts BEGIN
        DELETE FROM fact_tags WHERE fact_id = old.id AND tag IN (SELECT value FROM json_each(old.tags));
        INSERT OR IGNORE INTO fact_tags SELECT value, new.id FROM json_each(new.tags);
    END;
    CREATE TRIGGER facts_deleted AFTER DELETE ON facts BEGIN
        DELETE FROM fact_tags WHERE fact_id = old.id AND tag IN (SELECT value FROM json_each(old.tags));
    END;
    PRAGMA user_version = 1;
";

const ALL_FACTS: &str = "SELECT * FROM facts WHERE id < ?1 ORDER BY id DESC LIMIT ?2";

const TAGGED_FACTS: &str = "
    SELECT facts.* FROM fact_tags JOIN facts ON id = fact_id
    WHERE tag = ?1 AND fact_id < ?2 ORDER BY fact_id DESC LIMIT ?3
";

/// The two connections of a worker. One writes and the other reads, so that a read never waits behind a write that
/// waits for the lock.
#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    writer: Handle,
    reader: Handle,
}

/// A connection to the file; `None` once it is closed.
type Handle = Arc<Mutex<Option<Connection>>>;

impl Sqlite {
    pub(super) async fn open(path: PathBuf) -> Result<Self, StoreError> {
        let (writer, reader) = spawn_blocking(move || {
            let (writer, _) = open_ready(&path)?;
            let reader = connect(&path)
                .and_then(|reader| reader.pragma_update(None, "query_only", true).map(|()| reader))
                .map_err(|source| StoreError::Sqlite { act: "open the file for reading", source })?;
            Ok((writer, reader))
        })
        .await
        .unwrap_or(Err(StoreError::Panicked))?;
        Ok(Self { writer: handle(writer), reader: handle(reader) })
    }

    /// Creates the tables if they are missing, as [`open`](Self::open) does too. Returns a line if they were missing.
    pub(super) async fn migrate(path: PathBuf) -> Result<Vec<String>, StoreError> {
        spawn_blocking(move || {
            let (_, created) = open_ready(&path)?;
            let line = || format!("created the tables of {}, version {SCHEMA_VERSION}", path.display());
            Ok(created.then(line).into_iter().collect())
        })
        .await
        .unwrap_or(Err(StoreError::Panicked))
    }

    pub(super) async fn insert(&self, fact: Fact) -> Result<Fact, StoreError> {
        run(&self.writer, "insert a fact", move |connection| {
            connection
                .prepare_cached("INSERT INTO facts VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    fact.id,
                    fact.text,
                    fact.source,
                    to_json(&fact.tags),
                    fact.created_at.0,
                    fact.updated_at.0
                ])
                .map(|_| fact)
        })
        .await
    }

    pub(super) async fn get(&self, id: String) -> Result<Option<Fact>, StoreError> {
        run(&self.reader, "read a fact", move |connection| {
            connection.prepare_cached("SELECT * FROM facts WHERE id = ?1")?.query_one([id], fact).optional()
        })
        .await
    }

    pub(super) async fn list(&self, page: Page) -> Result<Vec<Fact>, StoreError> {
        run(&self.reader, "list facts", move |connection| match page.tag {
            None => connection.prepare_cached(ALL_FACTS)?.query_map(params![page.before, page.limit], fact)?.collect(),
            Some(tag) => connection
                .prepare_cached(TAGGED_FACTS)?
                .query_map(params![tag, page.before, page.limit], fact)?
                .collect(),
        })
        .await
    }

    pub(super) async fn replace(&self, id: String, draft: Draft, now: Millis) -> Result<Option<Fact>, StoreError> {
        run(&self.writer, "replace a fact", move |connection| {
            // `query_one` steps to the end, so a commit that fails after the row was returned is still an error.
            connection
                .prepare_cached(
                    "UPDATE facts SET text = :text, source = :source, tags = :tags, updated_at = :now
                     WHERE id = :id RETURNING *",
                )?
                .query_one(
                    named_params! {
                        ":id": id,
                        ":text": draft.text,
                        ":source": draft.source,
                        ":tags": to_json(&draft.tags),
                        ":now": now.0,
                    },
                    fact,
                )
                .optional()
        })
        .await
    }

    pub(super) async fn delete(&self, id: String) -> Result<bool, StoreError> {
        run(&self.writer, "delete a fact", move |connection| {
            Ok(connection.prepare_cached("DELETE FROM facts WHERE id = ?1")?.execute([id])? > 0)
        })
        .await
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        // The query names a table, because a bare SELECT 1 does not touch the file.
        run(&self.reader, "answer a ping", |connection| {
            connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM facts)")?.query_one([], |_| Ok(()))
        })
        .await
    }

    /// Tries a write of the size of a small fact, and deletes what was written in the same transaction.
    pub(super) async fn try_write(&self) -> Result<(), StoreError> {
        run(&self.writer, "take a write that changes nothing", |connection| {
            let trial = connection.unchecked_transaction()?;
            let text = "x".repeat(2_000);
            trial.prepare_cached("INSERT INTO facts VALUES ('', ?1, NULL, '[\"\"]', 0, 0)")?.execute([text])?;
            trial.prepare_cached("DELETE FROM facts WHERE id = ''")?.execute([])?;
            trial.commit()
        })
        .await
    }

    /// Closes both connections. SQLite itself moves the write-ahead log into the file when the last worker closes.
    pub(super) async fn close(&self) {
        let connections = [self.reader.lock().await.take(), self.writer.lock().await.take()];
        let closed = spawn_blocking(|| {
            for connection in connections.into_iter().flatten() {
                if let Err((_, error)) = connection.close() {
                    let reason = error.to_string();
                    tracing::warn!(
                        reason,
                        "the store did not close cleanly; the next worker that opens it recovers its log"
                    );
                }
            }
        });
        if closed.await.is_err() {
            tracing::warn!("the store did not close cleanly; the next worker that opens it recovers its log");
        }
    }
}

fn handle(connection: Connection) -> Handle {
    Arc::new(Mutex::new(Some(connection)))
}

/// Runs `job` on a blocking thread, one at a time for each connection. If the caller is dropped while it waits for the
/// connection, the job does not run. If the caller is dropped later, the job runs to its end, because the job holds the
/// guard.
async fn run<T: Send + 'static>(
    connection: &Handle,
    act: &'static str,
    job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let held = Arc::clone(connection).lock_owned().await;
    spawn_blocking(move || match held.as_ref() {
        Some(connection) => job(connection).map_err(|source| StoreError::Sqlite { act, source }),
        None => Err(StoreError::Closed),
    })
    .await
    .unwrap_or(Err(StoreError::Panicked))
}

/// Opens the file without `SQLITE_OPEN_CREATE`, because a missing file must not be replaced by an empty one.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // SQLite's own handler sleeps up to 100 ms between tries, which is unfair when several workers write. `tries`
    // starts at 0 for each lock.
    let mut since = Instant::now();
    connection.busy_handler(Some(move |tries| {
        if tries == 0 {
            since = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
        since.elapsed() < LOCK_PATIENCE
    }))?;
    Ok(connection)
}

/// Opens the connection that writes. Returns the connection, and true if its tables are new.
fn open_ready(path: &Path) -> Result<(Connection, bool), StoreError> {
    let mut writer = connect(path).map_err(|source| StoreError::Sqlite { act: "open the file", source })?;
    let created = prepare_patiently(&mut writer)?;
    Ok((writer, created))
}

/// Prepares the file, and tries again while other workers do the same. Workers start at the same time. One of them
/// enters WAL mode and creates the tables. The others meet locks that SQLite reports at once, without a call of the
/// busy handler.
fn prepare_patiently(connection: &mut Connection) -> Result<bool, StoreError> {
    let deadline = Instant::now() + OPEN_PATIENCE;
    loop {
        match prepare(connection) {
            Err(StoreError::Sqlite { source, .. }) if is_contention(&source) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Enters WAL mode and creates the tables if they are missing. Returns true if it created them.
fn prepare(connection: &mut Connection) -> Result<bool, StoreError> {
    let enter_wal = |source| StoreError::Sqlite { act: "enter write-ahead logging", source };
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(enter_wal)?;
    if mode != "wal" {
        let reason = format!("its journal mode stays \"{mode}\", but workers can share it only in \"wal\"");
        return Err(StoreError::Unfit { reason });
    }
    // In WAL mode, `synchronous = normal` loses nothing when a process dies. Only a power cut may undo the last
    // commits.
    connection.pragma_update(None, "synchronous", "normal").map_err(enter_wal)?;
    let create = |source| StoreError::Sqlite { act: "create its tables", source };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(create)?;
    match transaction.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(create)? {
        0 => transaction.execute_batch(SCHEMA).and_then(|()| transaction.commit()).map(|()| true).map_err(create),
        SCHEMA_VERSION => Ok(false),
        version => {
            let reason =
                format!("its schema has version {version}, and this program knows only version {SCHEMA_VERSION}");
            Err(StoreError::Unfit { reason })
        }
    }
}

/// Returns true if the error means that another process holds the lock.
pub(super) fn is_contention(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed)
    )
}

fn fact(row: &Row<'_>) -> rusqlite::Result<Fact> {
    let tags: String = row.get("tags")?;
    Ok(Fact {
        id: row.get("id")?,
        text: row.get("text")?,
        source: row.get("source")?,
        tags: serde_json::from_str(&tags).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        })?,
        created_at: Millis(row.get("created_at")?),
        updated_at: Millis(row.get("updated_at")?),
    })
}

fn to_json(tags: &[String]) -> String {
    serde_json::Value::from(tags).to_string()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, future::Future, process::Command, task::Context};

    use super::*;
    use crate::store::{Health, Store};

    fn draft(text: &str) -> Draft {
        Draft { text: text.into(), source: None, tags: vec!["tag".into()] }
    }

    fn page(limit: u32) -> Page {
        Page { limit, before: "g".into(), tag: None }
    }

    /// Makes an empty file, as the master does at a start, and opens the store in it.
    async fn begin(path: &Path) -> Store {
        File::create_new(path).unwrap();
        Store::open_sqlite(path).await.unwrap()
    }

    async fn refusal(path: &Path) -> String {
        Sqlite::open(path.to_owned()).await.map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn facts_outlive_the_store_and_a_missing_file_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        assert!(refusal(&path).await.contains("could not open the file") && !path.exists());
        let store = begin(&path).await;
        let fact = store.insert(draft("kept")).await.unwrap();
        store.close().await;
        assert_eq!(store.ping().await, Health::Unavailable);

        let store = Store::open_sqlite(&path).await.unwrap();
        assert_eq!(store.get(fact.id.clone()).await.unwrap(), Some(fact));
    }

    /// Runs this test in eight processes, because within one process SQLite would not use the kernel's locks.
    #[tokio::test]
    async fn eight_processes_create_the_tables_at_once() {
        const DATABASE: &str = "OXICORN_TEST_DATABASE";
        const EACH: usize = 20;
        if let Some(path) = std::env::var_os(DATABASE) {
            let store = Store::open_sqlite(Path::new(&path)).await.unwrap();
            for i in 0..EACH {
                store.insert(draft(&format!("{} {i}", std::process::id()))).await.unwrap();
            }
            store.close().await;
            return;
        }
        for _ in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("facts.db");
            File::create_new(&path).unwrap();
            let start = || {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "store::sqlite::tests::eight_processes_create_the_tables_at_once"])
                    .env(DATABASE, &path)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            };
            let children: Vec<_> = (0..8).map(|_| start()).collect();
            for mut child in children {
                assert!(child.wait().unwrap().success());
            }
            let store = Store::open_sqlite(&path).await.unwrap();
            assert_eq!(store.list(page(500)).await.unwrap().items.len(), 8 * EACH);
        }
    }

    #[tokio::test]
    async fn a_write_waits_for_another_process_and_reads_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        let store = begin(&path).await;
        let old = store.insert(draft("old")).await.unwrap();

        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE; DELETE FROM facts;").unwrap();
        let mut write = Box::pin(store.insert(draft("new")));
        assert!(poll_once(write.as_mut()));
        assert_eq!(store.get(old.id.clone()).await.unwrap(), Some(old));
        other.execute_batch("COMMIT").unwrap();
        let new = write.await.unwrap();
        assert_eq!(store.list(page(10)).await.unwrap().items, [new]);
    }

    #[tokio::test]
    async fn a_caller_that_is_dropped_leaves_nothing_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        let store = begin(&path).await;
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..3 {
            assert!(poll_once(Box::pin(store.insert(draft("abandoned"))).as_mut()));
        }
        other.execute_batch("COMMIT").unwrap();
        store.insert(draft("after")).await.unwrap();
        other.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
        // The first write had begun and ran to its end. The two that waited behind it never ran, because their callers
        // were gone.
        let texts: Vec<String> = store.list(page(10)).await.unwrap().items.into_iter().map(|fact| fact.text).collect();
        assert_eq!(texts, ["after", "abandoned"]);
    }

    /// Polls a future once, and returns true if it is still pending.
    fn poll_once(future: std::pin::Pin<&mut impl Future>) -> bool {
        future.poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn a_failed_write_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        let store = begin(&path).await;
        let fact = store.insert(draft("whole")).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other
            .execute_batch(
                "CREATE TRIGGER sabotage BEFORE INSERT ON fact_tags BEGIN SELECT RAISE(ABORT, 'sabotage'); END",
            )
            .unwrap();
        for error in [
            store.insert(draft("half")).await.map(|_| ()).unwrap_err(),
            store.replace(fact.id.clone(), draft("half")).await.map(|_| ()).unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Sqlite { .. }), "{error}");
        }
        assert_eq!(store.list(page(10)).await.unwrap().items, [fact]);
        let tags: i64 = other.query_one("SELECT count(*) FROM fact_tags", [], |row| row.get(0)).unwrap();
        assert_eq!(tags, 1);
    }

    #[tokio::test]
    async fn a_file_that_takes_no_writes_is_still_read_and_a_trial_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        let store = begin(&path).await;
        let fact = store.insert(draft("kept")).await.unwrap();
        let other = Connection::open(&path).unwrap();
        let sabotage = "CREATE TRIGGER sabotage BEFORE INSERT ON facts BEGIN SELECT RAISE(ABORT, 'full'); END";
        other.execute_batch(sabotage).unwrap();
        store.insert(draft("lost")).await.unwrap_err();
        assert_eq!(
            (store.ping().await, store.get(fact.id.clone()).await.unwrap()),
            (Health::ReadOnly, Some(fact.clone()))
        );
        other.execute_batch("DROP TRIGGER sabotage").unwrap();
        assert_eq!(store.ping().await, Health::Well);
        assert_eq!(store.list(page(10)).await.unwrap().items, [fact]);
        let tags: i64 = other.query_one("SELECT count(*) FROM fact_tags", [], |row| row.get(0)).unwrap();
        assert_eq!(tags, 1);
    }

    #[tokio::test]
    async fn lists_are_read_from_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.db");
        begin(&path).await;
        let connection = Connection::open(&path).unwrap();
        for (list, tag) in [(ALL_FACTS, false), (TAGGED_FACTS, true)] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {list}")).unwrap();
            let steps: Vec<String> = if tag {
                plan.query_map(params!["a", "b", 1], |row| row.get(3)).unwrap().map(Result::unwrap).collect()
            } else {
                plan.query_map(params!["b", 1], |row| row.get(3)).unwrap().map(Result::unwrap).collect()
            };
            assert!(steps.iter().all(|step| step.starts_with("SEARCH")), "{steps:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_shared_or_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(Path::new(":memory:")).await.contains("journal mode stays \"memory\""));

        let newer = folder.path().join("newer.db");
        Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
        assert!(refusal(&newer).await.contains("version 2"));

        let text = folder.path().join("text.db");
        std::fs::write(&text, "not a database, but long enough to be looked at".repeat(20)).unwrap();
        assert!(refusal(&text).await.contains("could not enter write-ahead logging"));

        let below_a_file = text.join("facts.db");
        assert!(refusal(&below_a_file).await.contains("could not open the file"));
    }
}
