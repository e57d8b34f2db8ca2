//! What a connection is doing, and how long it may take.
//!
//! Owns: the state from which `http.header_timeout`, `http.keep_alive`, `http.write_timeout` and, in a drain,
//! `workers.drain_idle` are derived. There are no timers here: a request only leaves stamps of the coarse clock, and
//! the connection's one timer reads them when it fires. Refuses: what is done when a time is over (`connection`), and
//! `http.body_timeout` (`body`).

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{settings::Http, sys::clock, worker::shared::Shared};

/// The times are milliseconds of the coarse clock.
#[derive(Debug)]
pub(super) struct Activity {
    accepted: u64,
    /// Requests with the app, and responses under way. With HTTP/2 it is one while any stream is open on the wire.
    busy: AtomicU32,
    /// Since when a head, or what may become one, has been arriving; `NEVER` while none is.
    head_since: AtomicU64,
    /// Since when nothing has been under way; `NEVER` before the first request.
    idle_since: AtomicU64,
    /// Since when the client has not taken what is written; `NEVER` while it does.
    blocked_since: AtomicU64,
    /// hyper was told to end the connection, and needs nothing more.
    leaves: AtomicBool,
    /// The `idle_since` it had when it was asked to give up its place; `NEVER` before. A later request cancels this.
    asked_to_leave: AtomicU64,
    /// Requests that are answered and whose rest is still being read. There may be two: the next request can begin
    /// before the task that reads the rest has seen its end. This is a true atomic counter, because an app may drop a
    /// body on another thread.
    reads_on: AtomicU32,
}

const NEVER: u64 = u64::MAX;

/// Adds to a counter that only the worker's thread changes: a load and a store do what `fetch_add` would do, without
/// the bus lock.
fn add(count: &AtomicU32, by: i32) {
    count.store(count.load(Relaxed).wrapping_add_signed(by), Relaxed);
}

/// What has lasted too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Nothing has come since the connection was accepted.
    Silent,
    /// A head has begun and has not ended.
    Head,
    /// Keep-alive.
    Idle,
    /// The client does not read.
    Blocked,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            accepted: clock::coarse(),
            busy: AtomicU32::new(0),
            head_since: AtomicU64::new(NEVER),
            idle_since: AtomicU64::new(NEVER),
            blocked_since: AtomicU64::new(NEVER),
            leaves: AtomicBool::new(false),
            asked_to_leave: AtomicU64::new(NEVER),
            reads_on: AtomicU32::new(0),
        }
    }

    /// Notes that a part of a head has arrived. The first head has been awaited since the connection was accepted.
    pub(super) fn head_begins(&self) {
        if self.busy.load(Relaxed) == 0 && self.head_since.load(Relaxed) == NEVER {
            let fresh = self.idle_since.load(Relaxed) == NEVER;
            self.head_since.store(if fresh { self.accepted } else { clock::coarse() }, Relaxed);
        }
    }

    /// Notes that the head is complete and begins no request of the app: a frame of HTTP/2.
    pub(super) fn head_ends(&self) {
        self.head_since.store(NEVER, Relaxed);
    }

    pub(super) fn request_begins(&self) {
        add(&self.busy, 1);
        self.head_since.store(NEVER, Relaxed);
    }

    pub(super) fn request_ends(&self, now: u64) {
        add(&self.busy, -1);
        self.idle_since.store(now, Relaxed);
    }

    /// Notes that the worker answered by itself, at once; or that an HTTP/2 connection begins.
    pub(super) fn idles(&self) {
        self.head_since.store(NEVER, Relaxed);
        self.idle_since.store(clock::coarse(), Relaxed);
    }

    /// Notes that the rest of an answered request is read from now on.
    pub(super) fn rest_begins(&self) {
        self.reads_on.fetch_add(1, Relaxed);
    }

    pub(super) fn rest_ends(&self) {
        self.reads_on.fetch_sub(1, Relaxed);
        self.idle_since.store(clock::coarse(), Relaxed);
    }

    pub(super) fn is_reading_on(&self) -> bool {
        self.reads_on.load(Relaxed) > 0
    }

    /// Since when nothing has been under way. While a rest is read, that is now.
    fn idle_stamp(&self) -> u64 {
        if self.is_reading_on() { clock::coarse() } else { self.idle_since.load(Relaxed) }
    }

    /// Notes whether a write had to wait.
    pub(super) fn blocks(&self, blocked: bool) {
        let since = self.blocked_since.load(Relaxed);
        match (blocked, since) {
            (true, NEVER) => self.blocked_since.store(clock::coarse(), Relaxed),
            (false, NEVER) | (true, _) => {}
            (false, _) => {
                self.blocked_since.store(NEVER, Relaxed);
                // Only now has the client taken the rest of its last response.
                if !self.busy() && self.idle_since.load(Relaxed) != NEVER {
                    self.idle_since.store(clock::coarse(), Relaxed);
                }
            }
        }
    }

    pub(super) fn leaves(&self) {
        self.leaves.store(true, Relaxed);
    }

    /// Returns how long the present head has been arriving; zero if it came at once.
    pub(super) fn head_took(&self) -> Duration {
        let since = self.head_since.load(Relaxed);
        Duration::from_millis(clock::coarse().saturating_sub(since))
    }

    /// Whether a request is with the app, or a response under way.
    pub(super) fn busy(&self) -> bool {
        self.busy.load(Relaxed) > 0
    }

    /// Whether no request is under way, and none has begun to arrive.
    pub(super) fn unoccupied(&self) -> bool {
        !self.busy() && self.head_since.load(Relaxed) == NEVER
    }

    /// Since when it waits for a request: since its last response was taken, or since its accept if it had none. `None`
    /// if it does not wait, or was told to end.
    fn idle_since(&self) -> Option<u64> {
        let idles = self.unoccupied() && !self.leaves.load(Relaxed) && self.blocked_since.load(Relaxed) == NEVER;
        idles.then(|| match self.idle_stamp() {
            NEVER => self.accepted,
            since => since,
        })
    }

    /// Since when it has been idle, if it may be asked to leave: it has had a response (or speaks HTTP/2), and was not
    /// asked yet.
    pub(super) fn evictable_since(&self) -> Option<u64> {
        let has_answer = self.idle_since.load(Relaxed) != NEVER;
        self.idle_since().filter(|_| has_answer && !self.is_asked_to_leave())
    }

    /// Asks it to leave, because another connection needs its place. Void if it was active after `idle_since`.
    pub(super) fn ask_to_leave(&self, idle_since: u64) {
        self.asked_to_leave.store(idle_since, Relaxed);
    }

    /// Whether it was asked to leave, and has been idle since.
    pub(super) fn is_asked_to_leave(&self) -> bool {
        let asked = self.asked_to_leave.load(Relaxed);
        asked != NEVER && asked == self.idle_since.load(Relaxed) && self.unoccupied()
    }

    /// Returns the time since its last response; `Duration::MAX` if it has had none.
    pub(super) fn idle_for(&self) -> Duration {
        let since = self.idle_stamp();
        if since == NEVER { Duration::MAX } else { Duration::from_millis(clock::coarse().saturating_sub(since)) }
    }

    /// Since when it has had nothing to do; `None` while it has, and before its first request.
    pub(super) fn unoccupied_since(&self) -> Option<u64> {
        let since = self.idle_since.load(Relaxed);
        (self.unoccupied() && since != NEVER).then_some(since)
    }

    /// When what it does now has lasted too long, on the coarse clock.
    pub(super) fn deadline(&self, shared: &Shared) -> Option<(u64, Overdue)> {
        sooner(self.blocked(&shared.http), self.waiting(shared))
    }

    /// When the client has not read for too long.
    pub(super) fn blocked(&self, http: &Http) -> Option<(u64, Overdue)> {
        after(self.blocked_since.load(Relaxed), http.write_timeout, Overdue::Blocked)
    }

    /// When the client has sent nothing for too long.
    pub(super) fn waiting(&self, shared: &Shared) -> Option<(u64, Overdue)> {
        let http = &shared.http;
        let waiting = match (self.busy(), self.head_since.load(Relaxed), self.idle_since.load(Relaxed)) {
            (true, _, _) => None,
            _ if self.leaves.load(Relaxed) => None,
            (false, NEVER, NEVER) => after(self.accepted, http.header_timeout, Overdue::Silent),
            (false, NEVER, _) => self.idle_since().and_then(|since| after(since, http.keep_alive, Overdue::Idle)),
            (false, since, _) => after(since, http.header_timeout, Overdue::Head),
        };
        if !shared.has_begun_drain() {
            return waiting;
        }
        let drained = self.idle_since().and_then(|since| shared.drain_closes(since)).map(|at| (at, Overdue::Idle));
        sooner(waiting, drained)
    }
}

/// Called at each turn of a connection's task: an iterator over both would cost a request 100 instructions.
fn sooner(one: Option<(u64, Overdue)>, other: Option<(u64, Overdue)>) -> Option<(u64, Overdue)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}

fn after(since: u64, limit: Duration, overdue: Overdue) -> Option<(u64, Overdue)> {
    let off = since == NEVER || limit.is_zero();
    (!off).then(|| (since.saturating_add(limit.as_millis() as u64), overdue))
}
