//! The connections of a worker, and which of them gives up its place for a new one.
//!
//! Owns: the rule that only a connection leaves that has been idle for a second, and the longest of all. Refuses: when
//! a place is needed (`accept`, `shared`), and how a connection leaves (`connection`).

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

/// A client that sends its next request within this time keeps its connection. By then it has also read its last
/// response.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct ConnectionList(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    all: Vec<Arc<dyn Listed>>,
    /// The connections that were idle when all were last looked at, and since when; the longest idle is the last. Those
    /// of them that were not active since are still the longest idle ones, so the next one is found without looking at
    /// all connections.
    idle: Vec<(u64, Weak<dyn Listed>)>,
}

/// A connection, as the list sees it.
pub(super) trait Listed: Debug + Send + Sync + 'static {
    /// What the connection keeps for the list.
    fn position(&self) -> &ListPosition;

    /// The descriptor of its stream.
    fn socket(&self) -> RawFd;

    /// Since when it has been idle, if it may be asked to leave.
    fn evictable_since(&self) -> Option<u64>;

    /// Ends the connection at the next turn of its task, so that another takes its place, unless it was active after
    /// `idle_since`.
    fn ask_to_leave(&self, idle_since: u64);
}

/// What a connection keeps for the list.
#[derive(Debug, Default)]
pub(super) struct ListPosition {
    /// Its index among all.
    at: AtomicUsize,
    /// The waker of its task.
    waker: OnceLock<Waker>,
}

/// Keeps a connection in the list until it is dropped.
#[derive(Debug)]
pub(super) struct ListMembership<'a> {
    list: &'a ConnectionList,
    connection: &'a dyn Listed,
}

impl ConnectionList {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. `waker` is that of the connection's task.
    pub(super) fn enter<'a, C: Listed>(&'a self, connection: &'a Arc<C>, waker: &Waker) -> ListMembership<'a> {
        let mut list = self.lock();
        connection.position().at.store(list.all.len(), Relaxed);
        connection.position().waker.get_or_init(|| waker.clone());
        let shared: Arc<dyn Listed> = Arc::<C>::clone(connection);
        list.all.push(shared);
        ListMembership { list: self, connection: &**connection }
    }

    /// Returns how long until a connection may have been idle long enough to leave; zero if one has.
    pub(super) fn next_leaves_in(&self) -> Duration {
        // A connection that becomes idle now may leave after `IDLE`.
        self.lock().oldest().map_or(IDLE, |(since, _)| IDLE.saturating_sub(idle_for(since)))
    }

    /// Asks the connection that has been idle longest to leave, and wakes it. Returns how long it was idle, or `None`
    /// if there is none.
    pub(super) fn ask_to_leave(&self) -> Option<Duration> {
        let mut list = self.lock();
        while let Some((since, connection)) = list.oldest() {
            if idle_for(since) < IDLE {
                return None;
            }
            list.idle.pop();
            // Its next request may have arrived since the event loop last turned.
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
    /// Returns the connection that has been idle longest, and since when. It is the last of `idle`.
    fn oldest(&mut self) -> Option<(u64, Arc<dyn Listed>)> {
        self.last_idle().or_else(|| {
            let idle = self.all.iter().filter_map(|one| Some((one.evictable_since()?, Arc::downgrade(one))));
            self.idle = idle.collect();
            self.idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
            self.last_idle()
        })
    }

    /// Returns the last of `idle` that has not been active since. Removes those behind it.
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
