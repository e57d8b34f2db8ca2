//! What a connection is doing, and how long it may do it.
//!
//! Owns: the state that decides when the time of `http.header_timeout`, `http.keep_alive`, `http.write_timeout` or, in
//! a drain, `workers.drain_idle` is over. This file has no timers. A request only stores times of the coarse clock, and
//! the connection's one timer reads these times when it fires. Refuses: the reaction when a deadline is over
//! (`connection`), and `http.body_timeout` (`body`).

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{settings::Http, sys::clock, worker::shared::Shared};

/// What one connection is doing. All times are milliseconds of the coarse clock.
#[derive(Debug)]
pub(super) struct Activity {
    accepted: u64,
    /// The number of requests that the app has or whose response is under way. With HTTP/2 it is 1 while any stream is
    /// open.
    busy: AtomicU32,
    /// When the first bytes of a head arrived, or bytes that may become a head; `NEVER` while no head is arriving.
    head_since: AtomicU64,
    /// When the last request ended, or when HTTP/2 began; `NEVER` before that.
    idle_since: AtomicU64,
    /// When a write first had to wait because the client did not read; `NEVER` while the client reads.
    blocked_since: AtomicU64,
    /// True once hyper was told to end the connection. From then on the connection has a deadline only for writing.
    leaves: AtomicBool,
    /// The value of `idle_since` when the connection was asked to give up its place; `NEVER` before. A later request
    /// changes `idle_since`, and then the connection may keep its place.
    asked_to_leave: AtomicU64,
    /// The number of requests that are answered while the rest of their bodies is still being read. There may be two
    /// such requests for a moment. The next request can begin before the task that reads the rest of the first body has
    /// seen the end of that body. The counter is changed atomically, because an app may drop a body on another thread.
    reads_on: AtomicU32,
}

const NEVER: u64 = u64::MAX;

/// Adds to a counter that only the worker's thread changes. A load and a store are enough for this, and avoid the bus
/// lock of `fetch_add`.
fn add(count: &AtomicU32, by: i32) {
    count.store(count.load(Relaxed).wrapping_add_signed(by), Relaxed);
}

/// The activity of a connection that has lasted too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The client has sent nothing since the connection was accepted.
    Silent,
    /// The head of a request has begun to arrive, and is not complete.
    Head,
    /// The connection has been idle for `http.keep_alive`, or for `workers.drain_idle` in a drain.
    Idle,
    /// The client does not read what the worker writes.
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

    /// Notes that a part of a head has arrived. The time of the first head counts from the accept of the connection.
    pub(super) fn head_begins(&self) {
        if self.busy.load(Relaxed) == 0 && self.head_since.load(Relaxed) == NEVER {
            let fresh = self.idle_since.load(Relaxed) == NEVER;
            self.head_since.store(if fresh { self.accepted } else { clock::coarse() }, Relaxed);
        }
    }

    /// Notes that the bytes that have arrived are complete but are not the head of a request. With HTTP/2 they are
    /// another frame.
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

    /// Notes that the connection is idle from now on, because the worker has answered a request itself or HTTP/2 has
    /// begun.
    pub(super) fn idles(&self) {
        self.head_since.store(NEVER, Relaxed);
        self.idle_since.store(clock::coarse(), Relaxed);
    }

    /// Notes that a request is answered, and that the rest of its body is read from now on.
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

    /// Returns when the last request ended. While the rest of a body is still read, it returns the present time,
    /// because the connection is not idle.
    fn idle_stamp(&self) -> u64 {
        if self.is_reading_on() { clock::coarse() } else { self.idle_since.load(Relaxed) }
    }

    /// Notes whether the last write had to wait for the client to read.
    pub(super) fn blocks(&self, blocked: bool) {
        let since = self.blocked_since.load(Relaxed);
        match (blocked, since) {
            (true, NEVER) => self.blocked_since.store(clock::coarse(), Relaxed),
            (false, NEVER) | (true, _) => {}
            (false, _) => {
                self.blocked_since.store(NEVER, Relaxed);
                // The client has taken the rest of its last response only now, so the connection is idle from now on.
                if !self.busy() && self.idle_since.load(Relaxed) != NEVER {
                    self.idle_since.store(clock::coarse(), Relaxed);
                }
            }
        }
    }

    pub(super) fn leaves(&self) {
        self.leaves.store(true, Relaxed);
    }

    /// Returns how long the present head has been arriving; zero if it came all at once.
    pub(super) fn head_took(&self) -> Duration {
        let since = self.head_since.load(Relaxed);
        Duration::from_millis(clock::coarse().saturating_sub(since))
    }

    /// Returns true if the app has a request of this connection, or if a response is under way.
    pub(super) fn busy(&self) -> bool {
        self.busy.load(Relaxed) > 0
    }

    /// Returns true if no request is under way, and no head has begun to arrive.
    pub(super) fn unoccupied(&self) -> bool {
        !self.busy() && self.head_since.load(Relaxed) == NEVER
    }

    /// Returns the moment since which the connection waits for a request. It is the moment at which the client took the
    /// last response, or the accept if there was no response. Returns `None` if the connection does not wait, or if
    /// hyper was told to end it.
    fn idle_since(&self) -> Option<u64> {
        let idles = self.unoccupied() && !self.leaves.load(Relaxed) && self.blocked_since.load(Relaxed) == NEVER;
        idles.then(|| match self.idle_stamp() {
            NEVER => self.accepted,
            since => since,
        })
    }

    /// Returns the moment since which the connection has been idle; `None` if the connection must not be asked to
    /// leave. A connection may be asked if it has had a response or speaks HTTP/2, and was not asked yet.
    pub(super) fn evictable_since(&self) -> Option<u64> {
        let has_answer = self.idle_since.load(Relaxed) != NEVER;
        self.idle_since().filter(|_| has_answer && !self.is_asked_to_leave())
    }

    /// Asks the connection to leave, because another connection needs its place. The call has no effect if the
    /// connection was active after `idle_since`.
    pub(super) fn ask_to_leave(&self, idle_since: u64) {
        self.asked_to_leave.store(idle_since, Relaxed);
    }

    /// Returns true if the connection was asked to leave, and has been idle since then.
    pub(super) fn is_asked_to_leave(&self) -> bool {
        let asked = self.asked_to_leave.load(Relaxed);
        asked != NEVER && asked == self.idle_since.load(Relaxed) && self.unoccupied()
    }

    /// Returns the time since the connection's last response; `Duration::MAX` if it has had none.
    pub(super) fn idle_for(&self) -> Duration {
        let since = self.idle_stamp();
        if since == NEVER { Duration::MAX } else { Duration::from_millis(clock::coarse().saturating_sub(since)) }
    }

    /// Returns the moment since which the connection has had nothing to do; `None` while it has something to do, and
    /// before its first request.
    pub(super) fn unoccupied_since(&self) -> Option<u64> {
        let since = self.idle_since.load(Relaxed);
        (self.unoccupied() && since != NEVER).then_some(since)
    }

    /// Returns the time, on the coarse clock, at which the present activity will have lasted too long, and which
    /// activity this is.
    pub(super) fn deadline(&self, shared: &Shared) -> Option<(u64, Overdue)> {
        sooner(self.blocked(&shared.http), self.waiting(shared))
    }

    /// Returns the time by which the client must read again; `None` while it reads.
    pub(super) fn blocked(&self, http: &Http) -> Option<(u64, Overdue)> {
        after(self.blocked_since.load(Relaxed), http.write_timeout, Overdue::Blocked)
    }

    /// Returns the time by which the client must send something; `None` if the client need not send anything now.
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

/// Returns the earlier of two deadlines. Each turn of a connection's task calls this function. It is a plain `match`,
/// because an iterator over both deadlines would cost 100 instructions for each request.
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
