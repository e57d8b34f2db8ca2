//! The state and the counts of every worker, in memory that the master and all workers share.
//!
//! Owns: the layout and its atomics. Refuses: to judge the numbers, for example whether a heartbeat is late (the core
//! does).
//!
//! The memory begins with a header, which the master writes. After the header comes one row for each worker. The master
//! writes the worker's identity into the row before the fork. From then on the worker writes its row, except the word
//! `TOLD`, which the master writes. After the rows come the durations of requests, and at the end the notes of requests
//! in progress, both in the order of the rows. There are no locks: if a process is killed in the middle of a write, the
//! word has the old number or the new one, never a mix of both.
//!
//! The counters of a row only increase. They are not reset when the row is given to the next worker. `REQUESTS_BASE`
//! keeps the value of `REQUESTS` at which that worker began. Therefore a total is the plain sum over all rows, includes
//! all dead workers, and never decreases.

mod in_flight_table;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

pub(crate) use self::in_flight_table::{Entry, InFlightRequest, InFlightTable, X_REQUEST_ID};
use crate::sys::{clock, shm::Mapping};

/// The version of the layout. A new field takes a word that was zero before, and needs no new version, because a
/// program that does not know the field does not touch its word. An upgrade between two programs with different
/// versions is not possible, because the new program cannot read the scoreboard.
const LAYOUT_VERSION: u64 = 1;
/// The length of a row in words. The header has the same length.
const ROW_WORDS: usize = 32;

/// The upper bounds of the buckets that count requests by their duration, in nanoseconds. One more bucket counts the
/// requests that took longer than the last bound.
pub(crate) const DURATION_BOUNDS: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];
const BUCKETS: usize = DURATION_BOUNDS.len() + 1;
/// The number of words for the durations of a row. There is one word for each bucket (a bucket does not count the
/// requests of smaller buckets), and one for the sum of all durations in nanoseconds. Together these words fill two
/// cache lines.
const DURATION_WORDS: usize = BUCKETS + 1;

/// The time for which a request stays in quarantine after a worker died while the request was in flight, in
/// milliseconds. The 503 answer to such a request has this time in Retry-After.
pub(crate) const QUARANTINE_MS: u64 = 60_000;

/// The indexes of the words of the header.
mod header {
    pub(super) const VERSION: usize = 0;
    pub(super) const ROWS: usize = 1;
    pub(super) const RECYCLED: usize = 2;
    pub(super) const CRASHED: usize = 3;
    pub(super) const HUNG: usize = 4;
    pub(super) const BOOT_FAILED: usize = 5;
    pub(super) const GENERATION: usize = 6;
    pub(super) const TARGET: usize = 7;
    pub(super) const MASTER_PID: usize = 8;
    /// When the master started, in milliseconds of CLOCK_BOOTTIME. The wall clock is not used, because it may be set to
    /// another time while the master runs.
    pub(super) const STARTED: usize = 9;
    /// When the last quarantine ends, in milliseconds of the monotonic clock; 0 if there was no quarantine yet.
    pub(super) const QUARANTINED_UNTIL: usize = 10;
    /// Four entries of two words: the key of a request, and the end of its quarantine in milliseconds of the monotonic
    /// clock.
    pub(super) const QUARANTINE: std::ops::Range<usize> = 11..19;
    /// A counter of the requests and connections that no worker could count, because they were lost with a dead worker
    /// or in a queue.
    pub(super) const CUT: usize = 19;
}

/// The indexes of the words of a row.
mod word {
    pub(super) const PID: usize = 0;
    pub(super) const SLOT: usize = 1;
    pub(super) const GENERATION: usize = 2;
    pub(super) const STATE: usize = 3;
    pub(super) const STARTED: usize = 4;
    pub(super) const DUE: usize = 5;
    pub(super) const RECYCLE_AT: usize = 6;
    pub(super) const IN_FLIGHT: usize = 7;
    pub(super) const CONNECTIONS: usize = 8;
    // The words from here to `CUT` are counters. They keep their values when the row is given to the next worker.
    pub(super) const REQUESTS: usize = 9;
    pub(super) const ACCEPTED: usize = 10;
    /// Five counters of responses, one for each class of status from 1xx to 5xx.
    pub(super) const RESPONSES: usize = 11;
    pub(super) const CUT: usize = 16;
    // The value of `REQUESTS` when this worker began.
    pub(super) const REQUESTS_BASE: usize = 17;
    /// A counter of the requests that were refused because too many were in flight.
    pub(super) const SHED: usize = 18;
    /// A counter of the connections that this worker accepted from the slots of other workers.
    pub(super) const RESCUED: usize = 19;
    /// A counter of the requests that were refused before the app got them, or whose answer from the app was replaced.
    pub(super) const REFUSED: usize = 20;
    /// 1 while the worker has as many connections as it may have; otherwise 0.
    pub(super) const FULL: usize = 21;
    /// A counter of the lines of the access log that were lost.
    pub(super) const ACCESS_LINES_DROPPED: usize = 22;
    /// A counter of the TLS handshakes that failed.
    pub(super) const HANDSHAKES_FAILED: usize = 23;
    /// A counter of the requests that were not handed to the app, because the client had gone before.
    pub(super) const ABANDONED: usize = 24;
    /// What the master has told the worker, as bits of the module `told`. A bit that is set stays set until the worker
    /// ends. Only the master writes this word.
    pub(super) const TOLD: usize = 25;
    /// A counter of the idle connections that were closed to make room for new ones.
    pub(super) const EVICTED: usize = 26;
}

/// The bits of the word `word::TOLD`.
mod told {
    pub(super) const STOPPING: u64 = 1;
    pub(super) const DRAIN: u64 = 2;
}

/// The state that a worker reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum RowState {
    Free = 0,
    Starting = 1,
    Serving = 2,
    Draining = 3,
}

/// The sums of all counters since the service started, over living and dead workers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) responses: [u64; 5],
    pub(crate) cut: u64,
    pub(crate) shed: u64,
    pub(crate) refused: u64,
    /// Requests that were not handed to the app, because the client had gone before.
    pub(crate) abandoned: u64,
    /// Connections that a worker accepted from the slot of another worker, which could not accept them.
    pub(crate) rescued: u64,
    pub(crate) access_lines_dropped: u64,
    /// TLS handshakes that failed.
    pub(crate) handshakes_failed: u64,
    pub(crate) evicted: u64,
    /// The number of ended requests in each bucket of duration: see [`DURATION_BOUNDS`].
    pub(crate) durations: [u64; BUCKETS],
    /// The sum of the durations of all requests that ended, in nanoseconds.
    pub(crate) duration_ns: u64,
}

/// The values that only the master knows and publishes for all processes. The last four fields count workers and only
/// increase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Overview {
    pub(crate) generation: u64,
    /// The number of workers that should run.
    pub(crate) target: u64,
    pub(crate) recycled: u64,
    pub(crate) crashed: u64,
    pub(crate) hung: u64,
    pub(crate) boot_failed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scoreboard {
    mapping: &'static Mapping,
    words: &'static [AtomicU64],
    rows_max: usize,
}

/// The reason why the scoreboard of the previous program cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    #[error("its scoreboard has layout {found}, and this program reads {LAYOUT_VERSION} only")]
    Layout { found: u64 },
    #[error("its scoreboard cannot be mapped")]
    Map(#[source] io::Error),
}

impl Scoreboard {
    /// Makes an empty scoreboard. The master calls this before the first fork. The uptime of the service counts from
    /// this call.
    pub(crate) fn create(rows: u32, rows_max: u32) -> io::Result<Self> {
        let scoreboard = Self::on(Mapping::create(words_of(rows_max as usize))?, rows_max as usize);
        let words = scoreboard.words;
        words[header::VERSION].store(LAYOUT_VERSION, Relaxed);
        words[header::ROWS].store(u64::from(rows), Relaxed);
        words[header::MASTER_PID].store(u64::from(std::process::id()), Relaxed);
        words[header::STARTED].store(clock::boottime(), Relaxed);
        Ok(scoreboard)
    }

    /// Continues the scoreboard of the previous program, with its counts and its start time.
    ///
    /// # Errors
    /// The scoreboard has a layout that this program does not know, or it cannot be mapped.
    pub(crate) fn adopt(memory: OwnedFd, rows_max: u32) -> Result<Self, AdoptError> {
        let rows_max = rows_max as usize;
        let mut first = [0; size_of::<u64>()];
        let memory = File::from(memory);
        memory.read_exact_at(&mut first, 0).map_err(AdoptError::Map)?;
        match u64::from_ne_bytes(first) {
            LAYOUT_VERSION => {}
            found => return Err(AdoptError::Layout { found }),
        }
        Ok(Self::on(Mapping::of(memory.into(), words_of(rows_max)).map_err(AdoptError::Map)?, rows_max))
    }

    /// Keeps the mapping until the process ends, so that rows can be plain references. Rows that are not used yet cost
    /// no memory, because no process has touched their pages.
    fn on(mapping: Mapping, rows_max: usize) -> Self {
        let mapping: &'static Mapping = Box::leak(Box::new(mapping));
        Self { mapping, words: &mapping.words()[..words_of(rows_max)], rows_max }
    }

    /// Returns what a new program needs in an upgrade to [`adopt`](Self::adopt) this scoreboard: its memory, and the
    /// largest number of rows.
    pub(crate) fn memory(&self) -> (BorrowedFd<'static>, u32) {
        (self.mapping.as_fd(), self.rows_max as u32)
    }

    /// Returns the index of a row in the scoreboard; it is the same in every program that maps this scoreboard.
    pub(crate) fn place_of(&self, row: Row) -> Option<usize> {
        self.rows().position(|other| std::ptr::eq(other.words, row.words))
    }

    /// Raises the number of rows in use to `rows`. Only the master calls it; rows are never removed.
    pub(crate) fn grow(&self, rows: u32) {
        self.set(header::ROWS, u64::from(rows));
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let rows = self.get(header::ROWS) as usize;
        let (words, rest) = self.words[ROW_WORDS..].split_at(self.rows_max * ROW_WORDS);
        let (durations, notes) = rest.split_at(self.rows_max * DURATION_WORDS);
        let durations = durations.chunks_exact(DURATION_WORDS);
        let notes = notes.chunks_exact(in_flight_table::WORDS);
        let rows = words.chunks_exact(ROW_WORDS).zip(durations).zip(notes).take(rows);
        rows.map(|((words, durations), notes)| Row { words, durations, notes })
    }

    /// Gives a free row to the next worker. The result is `None` if no row is free. The master calls it before it forks
    /// the worker.
    pub(crate) fn claim(&self, slot: u32, generation: u32, max_requests: u64, now: u64) -> Option<Row> {
        let row = self.rows().find(|row| row.state() == RowState::Free)?;
        let requests = row.get(word::REQUESTS);
        row.set(word::SLOT, u64::from(slot));
        row.set(word::GENERATION, u64::from(generation));
        row.set(word::STARTED, now);
        row.set(word::DUE, now);
        row.set(word::RECYCLE_AT, max_requests);
        row.set(word::REQUESTS_BASE, requests);
        row.set(word::TOLD, 0);
        row.set_state(RowState::Starting);
        Some(row)
    }

    /// Makes a row free again. The master calls it when it has reaped the worker, or when the fork of the worker has
    /// failed.
    pub(crate) fn release(&self, row: Row) {
        for gauge in [word::PID, word::IN_FLIGHT, word::CONNECTIONS, word::FULL] {
            row.set(gauge, 0);
        }
        in_flight_table::clear(row.notes);
        row.set_state(RowState::Free);
    }

    /// Counts requests that were lost with a dead worker, and connections that no worker accepted. Only the master
    /// calls it.
    pub(crate) fn cut(&self, lost: u64) {
        self.set(header::CUT, self.get(header::CUT) + lost);
    }

    /// Writes the values of `overview`, so that all processes can read them. Only the master calls it.
    pub(crate) fn publish(&self, overview: &Overview) {
        let Overview { generation, target, recycled, crashed, hung, boot_failed } = *overview;
        self.set(header::GENERATION, generation);
        self.set(header::TARGET, target);
        self.set(header::RECYCLED, recycled);
        self.set(header::CRASHED, crashed);
        self.set(header::HUNG, hung);
        self.set(header::BOOT_FAILED, boot_failed);
    }

    /// Returns the values that the master published last.
    pub(crate) fn overview(&self) -> Overview {
        Overview {
            generation: self.get(header::GENERATION),
            target: self.get(header::TARGET),
            recycled: self.get(header::RECYCLED),
            crashed: self.get(header::CRASHED),
            hung: self.get(header::HUNG),
            boot_failed: self.get(header::BOOT_FAILED),
        }
    }

    /// Puts the request with the key `key` in quarantine: all workers answer this request with 503 until the time
    /// `until`. Only the master calls it. There is room for four requests. A fifth request replaces the one whose
    /// quarantine ends first.
    pub(crate) fn quarantine(&self, key: u64, until: u64) {
        let entries = || header::QUARANTINE.step_by(2);
        let entry = entries().find(|at| self.get(*at) == key).or_else(|| entries().min_by_key(|at| self.get(at + 1)));
        let Some(at) = entry else { return };
        // Write 0 as the end first, so that no worker ever reads the old key together with the new end.
        self.set(at + 1, 0);
        self.set(at, key);
        self.set(at + 1, until);
        self.set(header::QUARANTINED_UNTIL, until.max(self.get(header::QUARANTINED_UNTIL)));
    }

    /// Returns true if this request is in quarantine. While no request is in quarantine, the call only reads one word.
    pub(crate) fn quarantined(&self, now: u64, method: &str, path: &str) -> bool {
        self.get(header::QUARANTINED_UNTIL) > now
            && in_flight_table::key(method.as_bytes(), path.as_bytes()).is_some_and(|key| {
                header::QUARANTINE.step_by(2).any(|at| self.get(at) == key && self.get(at + 1) > now)
            })
    }

    pub(crate) fn master_pid(&self) -> u64 {
        self.get(header::MASTER_PID)
    }

    /// Returns the milliseconds since the master started. They include the time for which the machine was suspended.
    pub(crate) fn uptime_ms(&self) -> u64 {
        clock::boottime().saturating_sub(self.get(header::STARTED))
    }

    pub(crate) fn totals(&self) -> Totals {
        let counted = Totals { cut: self.get(header::CUT), ..Totals::default() };
        self.rows().fold(counted, |mut sum, row| {
            sum.requests += row.get(word::REQUESTS);
            sum.connections += row.get(word::ACCEPTED);
            for (class, total) in sum.responses.iter_mut().enumerate() {
                *total += row.get(word::RESPONSES + class);
            }
            sum.cut += row.get(word::CUT);
            sum.shed += row.get(word::SHED);
            sum.refused += row.get(word::REFUSED);
            sum.abandoned += row.get(word::ABANDONED);
            sum.rescued += row.get(word::RESCUED);
            sum.access_lines_dropped += row.get(word::ACCESS_LINES_DROPPED);
            sum.handshakes_failed += row.get(word::HANDSHAKES_FAILED);
            sum.evicted += row.get(word::EVICTED);
            for (bucket, total) in row.durations.iter().zip(&mut sum.durations) {
                *total += bucket.load(Relaxed);
            }
            sum.duration_ns += row.durations[BUCKETS].load(Relaxed);
            sum
        })
    }

    fn get(&self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn set(&self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }
}

fn words_of(rows_max: usize) -> usize {
    ROW_WORDS + rows_max * (ROW_WORDS + DURATION_WORDS + in_flight_table::WORDS)
}

/// The words of one worker in the scoreboard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    words: &'static [AtomicU64],
    durations: &'static [AtomicU64],
    notes: &'static [AtomicU64],
}

impl Row {
    fn get(&self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn set(&self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    /// Adds `by` to a word. Each word has only one writer, so a load and a store give the same result as `fetch_add`,
    /// and they do not lock the bus.
    fn add(&self, word: usize, by: u64) {
        self.set(word, self.get(word).wrapping_add(by));
    }

    fn set_state(&self, state: RowState) {
        self.set(word::STATE, state as u64);
    }

    // ---- methods that only the master calls ------------------------------------------------------------------------

    /// Tells the worker, by a bit in its row, that the service stops. The worker sees the bit before it reads the
    /// master's message. So the next answers of the worker already tell clients that the service stops.
    pub(crate) fn tell_stopping(&self) {
        self.set(word::TOLD, self.get(word::TOLD) | told::STOPPING);
    }

    /// Tells the worker, by a bit in its row, to drain. As with [`tell_stopping`](Self::tell_stopping), the worker sees
    /// the bit before it reads the master's message.
    pub(crate) fn tell_drain(&self) {
        self.set(word::TOLD, self.get(word::TOLD) | told::DRAIN);
    }

    // ---- methods that only the worker calls ------------------------------------------------------------------------

    pub(crate) fn begin(&self, pid: u32) {
        self.set(word::PID, u64::from(pid));
    }

    /// Returns the table in which this worker notes its requests in flight. Call it only once in a worker, because two
    /// tables would write to the same entries.
    pub(crate) fn in_flight_table(&self) -> InFlightTable {
        InFlightTable::new(self.notes)
    }

    pub(crate) fn serving(&self) {
        self.set_state(RowState::Serving);
    }

    pub(crate) fn draining(&self) {
        self.set_state(RowState::Draining);
    }

    /// Records a heartbeat, and promises that the next one comes by `due`, a time in milliseconds of the monotonic
    /// clock.
    pub(crate) fn promise_heartbeat(&self, due: u64) {
        self.set(word::DUE, due);
    }

    pub(crate) fn connection_opened(&self) {
        self.add(word::ACCEPTED, 1);
        self.add(word::CONNECTIONS, 1);
    }

    pub(crate) fn connection_closed(&self) {
        self.add(word::CONNECTIONS, 1_u64.wrapping_neg());
    }

    pub(crate) fn rescued(&self, connections: u32) {
        self.add(word::RESCUED, u64::from(connections));
    }

    pub(crate) fn refused(&self) {
        self.add(word::REFUSED, 1);
    }

    pub(crate) fn abandoned(&self) {
        self.add(word::ABANDONED, 1);
    }

    pub(crate) fn shed(&self) {
        self.add(word::SHED, 1);
    }

    /// Publishes whether the worker has as many connections as it may have.
    pub(crate) fn set_full(&self, full: bool) {
        self.set(word::FULL, u64::from(full));
    }

    pub(crate) fn access_lines_dropped(&self, lines: u64) {
        self.add(word::ACCESS_LINES_DROPPED, lines);
    }

    pub(crate) fn connection_evicted(&self) {
        self.add(word::EVICTED, 1);
    }

    pub(crate) fn handshake_failed(&self) {
        self.add(word::HANDSHAKES_FAILED, 1);
    }

    /// Counts a request that the worker hands to the app. Returns how many requests this worker has handed to the app.
    pub(crate) fn request_begun(&self) -> u64 {
        self.add(word::REQUESTS, 1);
        self.add(word::IN_FLIGHT, 1);
        self.requests()
    }

    pub(crate) fn responded(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.add(word::RESPONSES + class - 1, 1);
    }

    pub(crate) fn request_ended(&self) {
        self.add(word::IN_FLIGHT, 1_u64.wrapping_neg());
    }

    /// Records the duration of a request that has ended, with or without an answer.
    pub(crate) fn took(&self, ns: u64) {
        let bucket = DURATION_BOUNDS.iter().position(|bound| ns <= *bound).unwrap_or(BUCKETS - 1);
        for (word, by) in [(bucket, 1), (BUCKETS, ns)] {
            let word = &self.durations[word];
            word.store(word.load(Relaxed).wrapping_add(by), Relaxed);
        }
    }

    pub(crate) fn cut(&self, requests: u64) {
        self.add(word::CUT, requests);
    }

    // ---- methods that all processes call ---------------------------------------------------------------------------

    pub(crate) fn state(&self) -> RowState {
        match self.get(word::STATE) {
            1 => RowState::Starting,
            // The worker may not have read the message to drain yet. It counts as draining all the same, because its
            // answers already tell clients that it drains.
            2 if self.told_drain() => RowState::Draining,
            2 => RowState::Serving,
            3 => RowState::Draining,
            _ => RowState::Free,
        }
    }

    pub(crate) fn slot(&self) -> u64 {
        self.get(word::SLOT)
    }

    pub(crate) fn told_stopping(&self) -> bool {
        self.get(word::TOLD) & told::STOPPING != 0
    }

    pub(crate) fn told_drain(&self) -> bool {
        self.get(word::TOLD) & told::DRAIN != 0
    }

    /// Returns the pid of the worker; 0 until the worker has begun.
    pub(crate) fn pid(&self) -> u64 {
        self.get(word::PID)
    }

    /// Returns when the next heartbeat is due, in milliseconds of the monotonic clock.
    pub(crate) fn due(&self) -> u64 {
        self.get(word::DUE)
    }

    /// Returns how many requests this worker has handed to the app, without the requests of earlier workers in the same
    /// row.
    pub(crate) fn requests(&self) -> u64 {
        self.get(word::REQUESTS).wrapping_sub(self.get(word::REQUESTS_BASE))
    }

    /// Returns the number of requests at which this worker asks the master to recycle it; 0 means never.
    pub(crate) fn recycle_at(&self) -> u64 {
        self.get(word::RECYCLE_AT)
    }

    /// Returns true if at least one request of this worker has ended.
    pub(crate) fn answered(&self) -> bool {
        self.requests() > self.in_flight()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.get(word::IN_FLIGHT)
    }

    /// Returns the requests that this worker has in flight, at most eight of them, the oldest first.
    pub(crate) fn requests_in_flight(&self) -> Vec<InFlightRequest> {
        in_flight_table::read(self.notes)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.get(word::CONNECTIONS)
    }

    /// Returns how many connections this worker and the earlier workers in the same row have accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.get(word::ACCEPTED)
    }

    /// Returns true if the worker is full. A full worker accepts no connection until one of its connections ends.
    pub(crate) fn full(&self) -> bool {
        self.get(word::FULL) != 0
    }

    /// Returns a number that increases with each connection that the worker accepts and each request that it begins.
    pub(crate) fn activity(&self) -> u64 {
        self.get(word::ACCEPTED).wrapping_add(self.get(word::REQUESTS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_outlive_the_worker_and_its_own_count_begins_at_zero() {
        let board = Scoreboard::create(2, 2).unwrap();
        let first = board.claim(0, 1, 10, 5).unwrap();
        first.connection_opened();
        assert_eq!(first.request_begun(), 1);
        assert_eq!(first.request_begun(), 2);
        first.responded(http::StatusCode::NOT_FOUND);
        first.request_ended();
        let id = http::HeaderValue::from_static("7");
        first.in_flight_table().begin(7, &http::Request::get("/").body(()).unwrap(), &id).unwrap();
        assert_eq!(first.requests_in_flight().len(), 1);
        board.release(first);
        let next = board.claim(3, 2, 0, 9).unwrap();
        assert_eq!((next.requests(), next.in_flight(), next.connections()), (0, 0, 0));
        assert_eq!(next.requests_in_flight(), []);
        assert_eq!(next.request_begun(), 1);
        let totals = board.totals();
        assert_eq!((totals.requests, totals.connections, totals.responses), (3, 1, [0, 0, 0, 1, 0]));
    }

    #[test]
    fn the_next_program_adopts_the_scoreboard_only_in_the_same_layout() {
        let board = Scoreboard::create(2, 3).unwrap();
        let row = board.claim(1, 1, 0, 5).unwrap();
        row.request_begun();
        let again = || board.memory().0.try_clone_to_owned().unwrap();
        let adopted = Scoreboard::adopt(again(), 3).unwrap();
        assert_eq!((adopted.totals(), adopted.uptime_ms()), (board.totals(), board.uptime_ms()));
        let same = adopted.rows().nth(board.place_of(row).unwrap()).unwrap();
        same.request_begun();
        assert_eq!((row.requests(), adopted.claim(0, 2, 0, 0).unwrap().requests()), (2, 0));
        assert!(matches!(Scoreboard::adopt(again(), 4), Err(AdoptError::Map(_))));
        board.set(header::VERSION, LAYOUT_VERSION + 1);
        let refused = Scoreboard::adopt(again(), 3).unwrap_err().to_string();
        assert!(refused.contains("layout 2, and this program reads 1 only"), "{refused}");
    }

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it_and_outlives_the_worker() {
        let board = Scoreboard::create(3, 3).unwrap();
        let untouched = board.claim(0, 1, 0, 0).unwrap();
        let row = board.claim(1, 1, 0, 0).unwrap();
        let last = DURATION_BOUNDS[13];
        for ns in [0, 500_000, 500_001, last, last + 1, 60 * last] {
            row.took(ns);
        }
        board.release(row);
        board.claim(5, 2, 0, 0).unwrap().took(1_000_001);
        let totals = board.totals();
        assert_eq!(totals.durations, [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(totals.duration_ns, 2_000_002 + 62 * last + 1);
        assert_eq!((untouched.slot(), untouched.requests()), (0, 0));
        assert!(DURATION_BOUNDS.is_sorted());
    }

    #[test]
    fn all_processes_read_what_the_master_publishes() {
        let board = Scoreboard::create(1, 1).unwrap();
        let told = Overview { generation: 3, target: 4, recycled: 5, crashed: 6, hung: 7, boot_failed: 8 };
        board.publish(&told);
        assert_eq!(board.overview(), told);
        assert_eq!(board.master_pid(), u64::from(std::process::id()));
        assert_eq!((board.rows().count(), board.totals()), (1, Totals::default()));
    }

    #[test]
    fn a_quarantine_ends_at_its_time_and_a_fifth_replaces_the_first() {
        let board = Scoreboard::create(1, 1).unwrap();
        let row = board.claim(0, 1, 0, 0).unwrap();
        let pad = row.in_flight_table();
        let key = |path: &str| {
            let place = pad.begin(1, &http::Request::get(path).body(()).unwrap(), &http::HeaderValue::from_static("i"));
            let key = row.requests_in_flight()[0].key;
            pad.end(&place.unwrap());
            key
        };
        assert!(!board.quarantined(0, "GET", "/1"));
        for (until, path) in [(110, "/1"), (120, "/2"), (130, "/3"), (140, "/4")] {
            board.quarantine(key(path).unwrap(), until);
        }
        assert!(board.quarantined(109, "GET", "/1") && !board.quarantined(110, "GET", "/1"));
        assert!(!board.quarantined(0, "POST", "/1") && !board.quarantined(0, "GET", "/11"));
        board.quarantine(key("/1?secret").unwrap(), 150);
        board.quarantine(key("/5").unwrap(), 160);
        let held = ["/1", "/2", "/3", "/4", "/5"].map(|path| board.quarantined(125, "GET", path));
        assert_eq!(held, [true, false, true, true, true]);
        assert_eq!(key(&format!("/{}", "x".repeat(100))), None, "noted in part");
        assert!(!board.quarantined(160, "GET", "/5"));
    }

    #[test]
    fn a_worker_has_answered_once_a_request_has_ended() {
        let board = Scoreboard::create(1, 1).unwrap();
        let row = board.claim(0, 1, 0, 0).unwrap();
        row.request_begun();
        assert!(!row.answered());
        row.request_ended();
        assert!(row.answered());
        board.release(row);
        assert!(!board.claim(0, 2, 0, 0).unwrap().answered(), "what the worker before it answered");
    }

    #[test]
    fn the_next_worker_of_a_row_does_not_get_the_orders_of_the_last() {
        let board = Scoreboard::create(1, 1).unwrap();
        let row = board.claim(0, 1, 0, 0).unwrap();
        assert!(!row.told_stopping() && !row.told_drain());
        row.tell_drain();
        assert!(!row.told_stopping() && row.told_drain());
        row.serving();
        assert_eq!(row.state(), RowState::Draining);
        row.tell_stopping();
        assert!(row.told_stopping() && row.told_drain());
        board.release(row);
        let next = board.claim(0, 1, 0, 0).unwrap();
        assert!(!next.told_stopping() && !next.told_drain());
    }

    #[test]
    fn a_full_board_has_no_row_until_one_is_released() {
        let board = Scoreboard::create(2, 2).unwrap();
        let a = board.claim(0, 1, 0, 0).unwrap();
        let _b = board.claim(1, 1, 0, 0).unwrap();
        assert!(board.claim(2, 1, 0, 0).is_none());
        board.release(a);
        assert!(board.claim(2, 1, 0, 0).is_some());
    }
}
