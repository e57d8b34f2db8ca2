//! The requests that a worker has in flight. They are in shared memory, so that the master can read them after the
//! worker's death.
//!
//! Owns: eight entries for each worker. An entry holds the start, method, path and `X-Request-Id` of a request; a text
//! that is too long for its place is cut. Only the worker's own loop writes the entries, with a few stores for each
//! request. If more than eight requests are in flight, the others are counted (`in_flight`) but have no entry. If the
//! master reads an entry that is half written, it gets a mixture of two requests. Refuses: to note the query of a URI
//! or any header except `X-Request-Id`, because they may hold secrets.

use std::{
    hash::{DefaultHasher, Hasher},
    ops::Range,
    sync::atomic::{
        AtomicU8, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use http::{HeaderName, HeaderValue, Request};

/// The number of entries for one worker. Each entry has one bit in [`InFlightTable::taken`].
const NOTES: usize = 8;

/// The constants from here to `ID` are the indexes of the words of an entry. If the word `STARTED` is 0, the entry is
/// free.
const STARTED: usize = 0;
const LENGTHS: usize = 1;
const METHOD: Range<usize> = 2..3;
const PATH: Range<usize> = 3..15;
const ID: Range<usize> = 15..20;
const NOTE_WORDS: usize = 20;

/// The number of words of all entries of one worker.
pub(super) const WORDS: usize = NOTES * NOTE_WORDS;

pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The table of one worker. Only this worker writes to it.
#[derive(Debug)]
pub(crate) struct InFlightTable {
    words: &'static [AtomicU64],
    taken: AtomicU8,
}

/// The index of an entry. [`InFlightTable::begin`] returns it, and [`InFlightTable::end`] needs it to free the entry.
#[derive(Debug)]
pub(crate) struct Entry(u8);

/// A request as a worker noted it. All texts are printable ASCII, because other bytes that the client sent are escaped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InFlightRequest {
    /// When the request began, in milliseconds of the monotonic clock. The time may be up to 4 ms too early.
    pub(crate) started: u64,
    /// Method and path of the request.
    pub(crate) request: String,
    /// A hash of method and path, which identifies the request in quarantine; `None` if method or path was cut.
    pub(crate) key: Option<u64>,
    pub(crate) id: Option<String>,
}

impl InFlightTable {
    pub(super) fn new(words: &'static [AtomicU64]) -> Self {
        Self { words, taken: AtomicU8::new(0) }
    }

    /// Notes a request that has begun. Returns `None`, and notes nothing, if all entries are taken.
    pub(crate) fn begin<B>(&self, now: u64, request: &Request<B>, id: &HeaderValue) -> Option<Entry> {
        // Only this worker writes `taken`, so a load and a store are enough.
        let taken = self.taken.load(Relaxed);
        let place = taken.trailing_ones() as usize;
        let note = self.words.chunks_exact(NOTE_WORDS).nth(place)?;
        self.taken.store(taken | 1 << place, Relaxed);
        let method = put(&note[METHOD], request.method().as_str().as_bytes());
        let path = put(&note[PATH], request.uri().path().as_bytes());
        note[LENGTHS].store(method | path << 16 | put(&note[ID], id.as_bytes()) << 32, Relaxed);
        note[STARTED].store(now.max(1), Release);
        Some(Entry(place as u8))
    }

    pub(crate) fn end(&self, place: &Entry) {
        self.words[usize::from(place.0) * NOTE_WORDS + STARTED].store(0, Relaxed);
        self.taken.store(self.taken.load(Relaxed) & !(1 << place.0), Relaxed);
    }
}

/// Stores as many of the bytes as fit into `words`. Returns the length of all bytes, at most `u16::MAX`, so that the
/// reading side knows if the text was cut.
fn put(words: &[AtomicU64], bytes: &[u8]) -> u64 {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*bytes), Relaxed);
    }
    if let Some(word) = words.get(whole.len()) {
        word.store(rest.iter().rev().fold(0, |packed, byte| packed << 8 | u64::from(*byte)), Relaxed);
    }
    bytes.len().min(usize::from(u16::MAX)) as u64
}

/// Returns the requests that a worker has noted in its `words`, the oldest first.
pub(super) fn read(words: &[AtomicU64]) -> Vec<InFlightRequest> {
    let mut notes: Vec<_> = words.chunks_exact(NOTE_WORDS).filter_map(read_note).collect();
    notes.sort_by_key(|note| note.started);
    notes
}

fn read_note(note: &[AtomicU64]) -> Option<InFlightRequest> {
    let started = note[STARTED].load(Acquire);
    if started == 0 {
        return None;
    }
    let lengths = note[LENGTHS].load(Relaxed);
    let [method, path, id] = [0, 16, 32].map(|shift| usize::from((lengths >> shift) as u16));
    let whole = method <= METHOD.len() * 8 && path <= PATH.len() * 8;
    Some(InFlightRequest {
        started,
        request: format!("{} {}", text(&note[METHOD], method), text(&note[PATH], path)),
        key: whole.then(|| key(&bytes(&note[METHOD], method), &bytes(&note[PATH], path))).flatten(),
        id: (id > 0).then(|| text(&note[ID], id)),
    })
}

/// Returns a hash of method and path; `None` if one of them does not fit into an entry. The hasher has a fixed key, so
/// master and workers get the same hash.
pub(super) fn key(method: &[u8], path: &[u8]) -> Option<u64> {
    if method.len() > METHOD.len() * 8 || path.len() > PATH.len() * 8 {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(method);
    hasher.write(b" ");
    hasher.write(path);
    Some(hasher.finish())
}

fn bytes(words: &[AtomicU64], len: usize) -> Vec<u8> {
    words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).take(len).collect()
}

fn text(words: &[AtomicU64], len: usize) -> String {
    let bytes = bytes(words, len);
    let cut = if bytes.len() < len { "..." } else { "" };
    format!("{}{cut}", bytes.escape_ascii())
}

/// Frees all entries of a worker. The master calls it when the worker is gone.
pub(super) fn clear(words: &[AtomicU64]) {
    for note in words.chunks_exact(NOTE_WORDS) {
        note[STARTED].store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> &'static [AtomicU64] {
        Box::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    fn note(pad: &InFlightTable, now: u64, path: &str, id: &[u8]) -> Option<Entry> {
        pad.begin(now, &Request::get(path).body(()).unwrap(), &HeaderValue::from_bytes(id).unwrap())
    }

    #[test]
    fn an_entry_has_method_path_and_id_and_no_query() {
        let words = words();
        let pad = InFlightTable::new(words);
        let place = note(&pad, 17, "/facts/1?token=secret", b"abc-1").unwrap();
        let key = key(b"GET", b"/facts/1");
        let expected =
            InFlightRequest { started: 17, request: "GET /facts/1".to_owned(), key, id: Some("abc-1".to_owned()) };
        assert_eq!(read(words), [expected]);
        pad.end(&place);
        assert_eq!(read(words), []);
        // If a short request takes the entry of a long one, nothing of the long one is shown.
        note(&pad, 0, "/", b"").unwrap();
        let key = super::key(b"GET", b"/");
        assert_eq!(read(words), [InFlightRequest { started: 1, request: "GET /".to_owned(), key, id: None }]);
    }

    #[test]
    fn a_long_path_is_cut_and_marked_and_control_characters_are_escaped() {
        let words = words();
        let pad = InFlightTable::new(words);
        note(&pad, 1, &format!("/{}", "x".repeat(100)), b"a\t\xff\"").unwrap();
        let read = &read(words)[0];
        assert_eq!(read.request, format!("GET /{}...", "x".repeat(95)));
        assert_eq!(read.id.as_deref(), Some(r#"a\t\xff\""#));
    }

    #[test]
    fn a_ninth_request_is_not_kept_until_an_entry_is_free() {
        let words = words();
        let pad = InFlightTable::new(words);
        let mut places: Vec<_> = (1..=8).map(|at| note(&pad, at, "/", b"").unwrap()).collect();
        assert!(note(&pad, 9, "/", b"").is_none());
        pad.end(&places.remove(3));
        note(&pad, 10, "/late", b"").unwrap();
        let started: Vec<_> = read(words).iter().map(|note| note.started).collect();
        assert_eq!(started, [1, 2, 3, 5, 6, 7, 8, 10]);
        clear(words);
        assert_eq!(read(words), []);
    }

    #[test]
    fn any_garbage_can_be_read() {
        let words = words();
        for word in words {
            word.store(u64::MAX, Relaxed);
        }
        let notes = read(words);
        assert!(notes.len() == NOTES && notes.iter().all(|note| note.request.is_ascii()));
    }
}
