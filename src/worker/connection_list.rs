//! Lists the connections of a worker, and chooses the connection that gives up its place for a new one.
//!
//! Owns: the rule for this choice: the connection that has been idle longest leaves, if it has been idle for at least a
//! second. Refuses: the decision that a place is needed (`accept`, `shared`), and the close of a connection
//! (`connection`).

use std::{
    fmt::Debug,
    os::fd::RawFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use crate::sys::{clock, fd};

/// How long a connection must have been idle before it can be closed for a new one. A client that sends its next
/// request within this time keeps its connection. After this time a client has also read its last response.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct ConnectionList(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    all: Vec<Arc<dyn Listed>>,
    /// The connections that were idle when this list was last made from `all`, each with the time since which it was
    /// idle. The last entry is the connection that was idle longest. Entries that have not been active since then are
    /// still the connections that have been idle longest. So the next connection to close is found without a search
    /// through `all`.
    idle: Vec<(u64, Weak<dyn Listed>)>,
}

/// What the list needs to know and to do about a connection.
pub(super) trait Listed: Debug + Send + Sync + 'static {
    /// Returns the data that the list stores in the connection.
    fn position(&self) -> &ListPosition;

    /// Returns the descriptor of the connection's stream.
    fn socket(&self) -> RawFd;

    /// Returns the moment since which the connection has been idle, or `None` if it must not be asked to leave now.
    fn evictable_since(&self) -> Option<u64>;

    /// Ends the connection at the next turn of its task, unless it was active after `idle_since`. Another connection
    /// then takes its place.
    fn ask_to_leave(&self, idle_since: u64);
}

/// The data that the list stores in a connection.
#[derive(Debug, Default)]
pub(super) struct ListPosition {
    /// The index of the connection in `Connections::all`.
    at: AtomicUsize,
    /// The waker of the connection's task.
    waker: OnceLock<Waker>,
}

/// Keeps a connection in the list. The connection leaves the list when this is dropped.
#[derive(Debug)]
pub(super) struct ListMembership<'a> {
    list: &'a ConnectionList,
    connection: &'a dyn Listed,
}

impl ConnectionList {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection to the list until the returned membership is dropped. `waker` wakes the connection's task.
    pub(super) fn enter<'a, C: Listed>(&'a self, connection: &'a Arc<C>, waker: &Waker) -> ListMembership<'a> {
        let mut list = self.lock();
        connection.position().at.store(list.all.len(), Relaxed);
        connection.position().waker.get_or_init(|| waker.clone());
        let shared: Arc<dyn Listed> = Arc::<C>::clone(connection);
        list.all.push(shared);
        ListMembership { list: self, connection: &**connection }
    }

    /// Returns the time until a connection may have been idle long enough to leave; zero if a connection has already
    /// been idle long enough.
    pub(super) fn next_leaves_in(&self) -> Duration {
        // If no connection is idle now, none can have been idle for `IDLE` before that time has passed.
        self.lock().oldest().map_or(IDLE, |(since, _)| IDLE.saturating_sub(idle_for(since)))
    }

    /// Asks the connection that has been idle longest to leave, and wakes it. Returns how long it was idle, or `None`
    /// if no connection may leave.
    pub(super) fn ask_to_leave(&self) -> Option<Duration> {
        let mut list = self.lock();
        while let Some((since, connection)) = list.oldest() {
            if idle_for(since) < IDLE {
                return None;
            }
            list.idle.pop();
            // If the connection has unread bytes, they may be the client's next request, which arrived since the event
            // loop last turned. In this case the connection stays.
            if !fd::has_unread(connection.socket()) {
                connection.ask_to_leave(since);
                connection.position().waker.get().inspect(|waker| waker.wake_by_ref());
                return Some(idle_for(since));
            }
        }
        None
    }
}

impl Connections {
    /// Returns the connection that has been idle longest, and the moment since which it has been idle. After the call,
    /// this connection is the last entry in `idle`.
    fn oldest(&mut self) -> Option<(u64, Arc<dyn Listed>)> {
        self.last_idle().or_else(|| {
            let idle = self.all.iter().filter_map(|one| Some((one.evictable_since()?, Arc::downgrade(one))));
            self.idle = idle.collect();
            self.idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
            self.last_idle()
        })
    }

    /// Returns the last connection of `idle` that has not been active since `idle` was made. Removes the entries behind
    /// it.
    fn last_idle(&mut self) -> Option<(u64, Arc<dyn Listed>)> {
        while let Some((since, connection)) = self.idle.last() {
            match connection.upgrade().filter(|connection| connection.evictable_since() == Some(*since)) {
                Some(connection) => return Some((*since, connection)),
                None => _ = self.idle.pop(),
            }
        }
        None
    }
}

impl Drop for ListMembership<'_> {
    fn drop(&mut self) {
        let mut list = self.list.lock();
        let at = self.connection.position().at.load(Relaxed);
        list.all.swap_remove(at);
        if let Some(moved) = list.all.get(at) {
            moved.position().at.store(at, Relaxed);
        }
    }
}

fn idle_for(since: u64) -> Duration {
    Duration::from_millis(clock::coarse().saturating_sub(since))
}
