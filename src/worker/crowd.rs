//! The connections of a worker, and which of them gives its place to a newcomer.
//!
//! Owns: that only a connection leaves that has been idle for a second, and that it is the one that has been idle
//! longest. Refuses: when a place is needed (`accept`, `shared`), and how a connection leaves (`connection`).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use super::connection::Connection;
use crate::sys::{clock, fd};

/// A client that asks again within this time keeps its connection. Also it has read its last answer by then.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Members>);

#[derive(Debug, Default)]
struct Members {
    all: Vec<Arc<Connection>>,
    /// The connections that were idle when all were last looked at, and since when, the longest last. Without those
    /// that were active since, they are still the ones idle longest: so the next is found without looking at all
    /// connections.
    idle: Vec<(u64, Weak<Connection>)>,
}

/// What a connection keeps for the crowd.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Its index among all.
    at: AtomicUsize,
    /// Of its task.
    waker: OnceLock<Waker>,
}

/// A connection is known to the crowd as long as this lives.
#[derive(Debug)]
pub(super) struct Member<'a>(&'a Connection);

impl Crowd {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `waker`: of the connection's task.
    pub(super) fn enter<'a>(&self, connection: &'a Arc<Connection>, waker: &Waker) -> Member<'a> {
        let mut members = self.members();
        connection.seat.at.store(members.all.len(), Relaxed);
        connection.seat.waker.get_or_init(|| waker.clone());
        members.all.push(Arc::clone(connection));
        Member(connection)
    }

    /// How long until a connection may be idle long enough to leave; zero if one is.
    pub(super) fn next_leaves_in(&self) -> Duration {
        // A connection that becomes idle now may leave after `IDLE`.
        self.members().oldest().map_or(IDLE, |(since, _)| IDLE.saturating_sub(idle_for(since)))
    }

    /// Asks the connection that has been idle longest to leave, and wakes it. How long it was idle; `None`: there is
    /// none.
    pub(super) fn ask_to_leave(&self) -> Option<Duration> {
        let mut members = self.members();
        while let Some((since, connection)) = members.oldest() {
            if idle_for(since) < IDLE {
                return None;
            }
            members.idle.pop();
            // Its next request may have come since the event loop last turned.
            if !fd::has_unread(connection.socket) {
                connection.ask_to_leave(since);
                connection.seat.waker.get().inspect(|waker| waker.wake_by_ref());
                return Some(idle_for(since));
            }
        }
        None
    }
}

impl Members {
    /// The connection that has been idle longest, and since when; it is the last of `idle`.
    fn oldest(&mut self) -> Option<(u64, Arc<Connection>)> {
        self.last_idle().or_else(|| {
            let idle = self.all.iter().filter_map(|one| Some((one.may_leave_since()?, Arc::downgrade(one))));
            self.idle = idle.collect();
            self.idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
            self.last_idle()
        })
    }

    /// The last of `idle` that has not been active since; those behind it are removed.
    fn last_idle(&mut self) -> Option<(u64, Arc<Connection>)> {
        while let Some((since, connection)) = self.idle.last() {
            match connection.upgrade().filter(|connection| connection.may_leave_since() == Some(*since)) {
                Some(connection) => return Some((*since, connection)),
                None => _ = self.idle.pop(),
            }
        }
        None
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut members = self.0.shared.crowd.members();
        let at = self.0.seat.at.load(Relaxed);
        members.all.swap_remove(at);
        if let Some(moved) = members.all.get(at) {
            moved.seat.at.store(at, Relaxed);
        }
    }
}

fn idle_for(since: u64) -> Duration {
    Duration::from_millis(clock::coarse().saturating_sub(since))
}
