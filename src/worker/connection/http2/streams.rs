//! The streams of one connection, as the passing frames show them (RFC 9113, sections 5.1 and 5.2).
//!
//! Owns: the list of open streams, and for each stream the moment since which a window of the client is shut, so that
//! no byte can be sent. Refuses: IO, clocks (the caller passes the time), and the reaction to a blocked stream.

/// The size of a window, in bytes, until the client changes it.
const WINDOW: i64 = 65_535;

/// A client is busy if it begins at least this many streams within a second.
const BUSY: u32 = 50;
/// One second in milliseconds, the unit of all times in this file.
const SECOND: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Streams {
    /// The highest stream number that the client has used.
    highest: u32,
    open: Vec<OpenStream>,
    /// The number of bytes that the client accepts at first on a new stream.
    initial: i64,
    connection: Window,
    pace: Pace,
}

/// How fast the client begins streams: `begun` streams in the second that started at `since`, and `before` streams in
/// the second before that one.
#[derive(Debug, Default)]
struct Pace {
    since: u64,
    begun: u32,
    before: u32,
}

impl Pace {
    fn begins(&mut self, now: u64) {
        let passed = now.saturating_sub(self.since);
        if passed >= SECOND {
            *self = Self { since: now, begun: 0, before: if passed < 2 * SECOND { self.begun } else { 0 } };
        }
        self.begun += 1;
    }
}

#[derive(Debug)]
struct OpenStream {
    id: u32,
    client_ended: bool,
    server_ended: bool,
    /// When the response of the stream began; `None` before.
    answered: Option<u64>,
    window: Window,
}

/// A window: how many bytes the client accepts now, on one stream or on the whole connection.
#[derive(Clone, Copy, Debug)]
struct Window {
    size: i64,
    /// When the window became shut; `None` while it is open.
    shut: Option<u64>,
}

impl Window {
    fn add(&mut self, by: i64, now: u64) {
        self.size = self.size.saturating_add(by);
        self.shut = (self.size <= 0).then(|| self.shut.unwrap_or(now));
    }
}

impl Streams {
    pub(super) fn new() -> Self {
        let connection = Window { size: WINDOW, shut: None };
        Self { highest: 0, open: Vec::new(), initial: WINDOW, connection, pace: Pace::default() }
    }

    pub(super) fn highest(&self) -> u32 {
        self.highest
    }

    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns true if the client was busy when the last stream began.
    pub(super) fn are_busy(&self) -> bool {
        self.pace.begun.max(self.pace.before) >= BUSY
    }

    fn find(&mut self, id: u32) -> Option<&mut OpenStream> {
        self.open.iter_mut().find(|stream| stream.id == id)
    }

    /// Notes that the client has sent the head of a request, which opens a stream, or trailers.
    pub(super) fn client_sends_headers(&mut self, id: u32, ends: bool, now: u64) {
        if id > self.highest {
            self.highest = id;
            self.pace.begins(now);
            let mut window = Window { size: self.initial, shut: None };
            window.add(0, now);
            self.open.push(OpenStream { id, client_ended: ends, server_ended: false, answered: None, window });
        } else if ends {
            self.client_ends(id);
        }
    }

    /// Calls `change` with the stream `id`. If both sides have then ended the stream, removes it from the list.
    fn change(&mut self, id: u32, change: impl FnOnce(&mut OpenStream)) {
        if let Some(stream) = self.find(id) {
            change(stream);
            self.open.retain(|stream| !(stream.client_ended && stream.server_ended));
        }
    }

    pub(super) fn client_ends(&mut self, id: u32) {
        self.change(id, |stream| stream.client_ended = true);
    }

    pub(super) fn server_sends_headers(&mut self, id: u32, ends: bool, now: u64) {
        self.change(id, |stream| {
            stream.answered.get_or_insert(now);
            stream.server_ended |= ends;
        });
    }

    pub(super) fn server_sends_data(&mut self, id: u32, length: u32, ends: bool, now: u64) {
        self.connection.add(-i64::from(length), now);
        self.change(id, |stream| {
            stream.window.add(-i64::from(length), now);
            stream.server_ended |= ends;
        });
    }

    /// Notes that the client or the server has reset the stream.
    pub(super) fn reset(&mut self, id: u32) {
        self.open.retain(|stream| stream.id != id);
    }

    /// Adds `by` bytes to the client's window of the stream `id`. The id 0 means the window of the whole connection.
    pub(super) fn window_opens(&mut self, id: u32, by: u32, now: u64) {
        if id == 0 {
            self.connection.add(by.into(), now);
        } else if let Some(stream) = self.find(id) {
            stream.window.add(by.into(), now);
        }
    }

    pub(super) fn initial_window_becomes(&mut self, size: u32, now: u64) {
        let by = i64::from(size) - self.initial;
        self.initial = size.into();
        for stream in &mut self.open {
            stream.window.add(by, now);
        }
    }

    /// Returns the moment since which a response has been blocked because a window of the client is shut. If several
    /// responses are blocked, this is the earliest moment; `None` if no response is blocked.
    pub(super) fn stalled_since(&self) -> Option<u64> {
        self.open.iter().filter_map(|stream| self.stalls(stream)).min()
    }

    /// Removes the streams whose responses have been blocked by their windows since the time `before` or longer, and
    /// returns their ids. If no other stream is open, removes nothing and returns `None`.
    pub(super) fn take_stalled(&mut self, before: u64) -> Option<Vec<u32>> {
        let stalls = |stream: &OpenStream| self.stalls(stream).is_some_and(|since| since <= before);
        let ids: Vec<_> = self.open.iter().filter(|stream| stalls(stream)).map(|stream| stream.id).collect();
        if ids.len() == self.open.len() {
            return None;
        }
        self.open.retain(|stream| !ids.contains(&stream.id));
        Some(ids)
    }

    /// Returns the moment since which the response of `stream` has been blocked because a window is shut; `None` if the
    /// response is not blocked. If the window was shut before the response began, this is the moment at which the
    /// response began.
    fn stalls(&self, stream: &OpenStream) -> Option<u64> {
        let shut = [stream.window.shut, self.connection.shut].into_iter().flatten().min()?;
        stream.answered.filter(|_| !stream.server_ended).map(|answered| answered.max(shut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_open_until_both_sides_have_ended_it_or_one_resets_it() {
        let mut streams = Streams::new();
        streams.client_sends_headers(1, true, 0);
        streams.server_sends_headers(1, false, 0);
        streams.server_sends_data(1, 10, false, 0);
        assert!(streams.are_open());
        streams.server_sends_data(1, 0, true, 0);
        assert!(!streams.are_open());

        streams.client_sends_headers(3, false, 0);
        streams.server_sends_headers(3, true, 0);
        assert!(streams.are_open(), "the client's body is to come");
        streams.client_sends_headers(3, true, 0);
        assert!(!streams.are_open(), "trailers end it");

        streams.client_sends_headers(7, false, 0);
        streams.reset(7);
        streams.client_sends_headers(5, false, 0);
        assert!(!streams.are_open(), "a stream below another begins no more");
        assert_eq!(streams.highest(), 7);
    }

    #[test]
    fn a_response_stalls_if_its_window_is_shut_and_it_has_begun() {
        let mut streams = Streams::new();
        for id in [1, 3] {
            streams.client_sends_headers(id, true, 5);
        }
        streams.initial_window_becomes(0, 10);
        assert_eq!(streams.stalled_since(), None);
        streams.server_sends_headers(1, false, 20);
        assert_eq!(streams.stalled_since(), Some(20));
        streams.window_opens(1, 8, 30);
        assert_eq!(streams.stalled_since(), None);
        streams.server_sends_data(1, 8, false, 40);
        assert_eq!((streams.stalled_since(), streams.take_stalled(39)), (Some(40), Some(vec![])));
        assert_eq!(streams.take_stalled(40), Some(vec![1]), "beside another");
        streams.server_sends_headers(3, false, 50);
        assert_eq!(streams.take_stalled(50), None, "it is the only one");
    }

    #[test]
    fn the_window_of_the_connection_stalls_responses_too() {
        let mut streams = Streams::new();
        streams.client_sends_headers(1, true, 0);
        streams.initial_window_becomes(1_000_000, 0);
        streams.server_sends_headers(1, false, 0);
        streams.server_sends_data(1, 65_535, false, 7);
        assert_eq!(streams.stalled_since(), Some(7));
        streams.window_opens(0, 1, 8);
        assert_eq!(streams.stalled_since(), None);
    }
}
