//! Promise: the end of an HTTP/2 connection costs no request. An idle connection gets one GOAWAY, which names its last
//! stream. A busy connection first gets a GOAWAY as a warning. A silent client holds a drain no longer than a silent
//! client of HTTP/1.1 does.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::common::{Canary, Launch, PATIENCE, Signal, Supervisor, events, eventually, now, observe_for};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// The flags of frames. END_STREAM belongs to DATA and HEADERS, and ACK belongs to SETTINGS and PING. Both have the
/// number 1.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const MAX: u32 = 0x7fff_ffff;
const CANCEL: u32 = 8;

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    fn ends(&self, stream: u32) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.stream == stream && self.flags & END_STREAM != 0
    }
}

/// A client that sends exactly what the test tells it to send.
struct Client {
    stream: TcpStream,
    /// All frames that the server has sent since the connection was opened.
    read: Vec<Frame>,
}

impl Client {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut client = Self { stream, read: Vec::new() };
        client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        client.send(SETTINGS, 0, 0, &[]);
        client.send(SETTINGS, ACK, 0, &[]);
        // Waits for the WINDOW_UPDATE of the connection, because it is the last frame that the server sends by itself
        // after the handshake.
        client.wait(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0);
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        let frame = [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.stream.write_all(&frame).expect("sent");
    }

    /// Sends the HEADERS of a request. The HEADERS use only the static table and literals without an index, so the
    /// client needs no HPACK state.
    fn begin(&mut self, stream: u32, path: &str, with_body: bool) {
        let method = if with_body { 0x83 } else { 0x82 };
        let literal = |index: u8, value: &str| [&[index, value.len() as u8], value.as_bytes()].concat();
        let block = [vec![method, 0x86], literal(4, path), literal(1, "localhost")].concat();
        let flags = END_HEADERS | if with_body { 0 } else { END_STREAM };
        self.send(HEADERS, flags, stream, &block);
    }

    fn widen(&mut self, stream: u32, by: u32) {
        self.send(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    }

    /// Reads the next frame. Returns `None` at the end of the connection.
    fn next(&mut self) -> Option<&Frame> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            read => read.expect("a frame, or the end"),
        }
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).expect("a complete frame");
        let frame = Frame { kind, flags, stream: u32::from_be_bytes(stream), payload };
        self.read.push(frame);
        self.read.last()
    }

    fn wait(&mut self, wanted: impl Fn(&Frame) -> bool) -> &Frame {
        while !wanted(self.next().expect("the connection continues")) {}
        self.read.last().expect("read")
    }

    fn get(&mut self, stream: u32, path: &str) {
        self.begin(stream, path, false);
        self.wait(|frame| frame.ends(stream));
    }

    /// Reads to the end of the connection. Returns the kind and stream of each frame after the first `from`, without
    /// acknowledgements of SETTINGS. For a GOAWAY, the stream is the last stream that the GOAWAY names.
    fn rest(&mut self, from: usize) -> Vec<(u8, u32)> {
        while self.next().is_some() {}
        let told = |frame: &Frame| if frame.kind == GOAWAY { frame.number(0) } else { frame.stream };
        let frames = self.read[from..].iter().filter(|frame| !(frame.kind == SETTINGS && frame.flags == ACK));
        frames.map(|frame| (frame.kind, told(frame))).collect()
    }

    fn body(&self, stream: u32) -> usize {
        let data = self.read.iter().filter(|frame| frame.kind == DATA && frame.stream == stream);
        data.map(|frame| frame.payload.len()).sum()
    }
}

fn launch() -> Launch {
    Launch::new().set("workers.count", "1").set("http.keep_alive", r#""1h""#)
}

fn in_flight(supervisor: &Supervisor, count: u64) {
    eventually("the requests are in flight", PATIENCE, || {
        (supervisor.status()["workers"][0]["in_flight"] == count).then_some(())
    });
}

/// Sends `signal`, waits until the worker has begun to drain, and returns the time after this wait.
fn drain(supervisor: &Supervisor, signal: Signal) -> Instant {
    supervisor.signal(signal);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
    now()
}

#[test]
fn a_drain_tells_an_idle_connection_its_last_stream_and_ends_it() {
    for (path, signal) in
        [(Some("/health"), Signal::SIGHUP), (Some("/health"), Signal::SIGTERM), (None, Signal::SIGHUP)]
    {
        let supervisor = launch().serving(1);
        let mut client = Client::open(supervisor.address());
        if let Some(path) = path {
            client.get(1, path);
        }
        let from = client.read.len();
        let (canary, begun) = (Canary::start(), drain(&supervisor, signal));
        assert_eq!(client.rest(from), [(GOAWAY, u32::from(path.is_some()))], "once, without a PING");
        assert_eq!(client.read.last().map(|frame| frame.number(4)), Some(0), "NO_ERROR");
        let took = begun.elapsed();
        // The FIN comes two seconds after the GOAWAY.
        assert!(took < Duration::from_secs(3) + canary.longest(), "{took:?}");
    }
}

#[test]
fn the_end_of_keep_alive_ends_a_connection_as_a_drain_does() {
    let supervisor = launch().set("http.keep_alive", r#""500ms""#).serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/debug/sleep/700");
    client.get(3, "/health");
    let from = client.read.len();
    assert_eq!(client.rest(from), [(GOAWAY, 3)]);
}

#[test]
fn a_busy_connection_is_warned_and_requests_that_cross_the_warning_are_served() {
    let supervisor = launch().set("workers.drain_idle", r#""500ms""#).serving(1);
    let mut client = Client::open(supervisor.address());
    client.begin(1, "/debug/sleep/3000", false);
    in_flight(&supervisor, 1);
    let begun = drain(&supervisor, Signal::SIGHUP);
    // The warning comes only after `drain_idle`. Before that moment the connection might become idle and need no
    // warning.
    assert_eq!(client.wait(|frame| frame.kind == GOAWAY).number(0), MAX);
    assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
    let ping = client.wait(|frame| frame.kind == PING).payload.clone();
    client.send(PING, ACK, 0, &ping);
    client.get(3, "/health");
    assert_eq!(client.wait(|frame| frame.kind == GOAWAY).number(0), 3, "the final GOAWAY");
    // The client sends these frames after the final GOAWAY, which it gets again. h2 0.4.20 would treat the third frame, a WINDOW_UPDATE, as
    // an error of the connection.
    client.begin(5, "/debug/echo", true);
    client.send(DATA, 0, 5, b"half");
    client.widen(5, 1_000);
    client.widen(0, 1_000);
    client.send(RST_STREAM, 0, 5, &CANCEL.to_be_bytes());
    client.wait(|frame| frame.kind == GOAWAY && frame.number(0) == 3);
    client.wait(|frame| frame.ends(1));
    let from = client.read.len();
    assert_eq!(client.rest(from), [], "no other frame");
    supervisor.wait_log(events::DRAINED, 1, PATIENCE);
}

#[test]
fn a_connection_that_becomes_idle_after_the_warning_is_ended_at_once() {
    let supervisor = launch().set("workers.drain_idle", r#""500ms""#).serving(1);
    let mut client = Client::open(supervisor.address());
    client.begin(1, "/debug/sleep/2000", false);
    in_flight(&supervisor, 1);
    drain(&supervisor, Signal::SIGHUP);
    client.wait(|frame| frame.kind == PING);
    // The client never answers the PING that came with the warning.
    client.wait(|frame| frame.ends(1));
    let (canary, ended) = (Canary::start(), now());
    assert_eq!(client.wait(|_| true).number(0), 1, "the GOAWAY");
    assert!(ended.elapsed() < Duration::from_secs(1) + canary.longest(), "{:?}", ended.elapsed());
    let from = client.read.len();
    assert_eq!(client.rest(from), []);
}

#[test]
fn a_connection_that_pauses_during_a_drain_is_not_warned() {
    let supervisor = launch().serving(1);
    let mut client = Client::open(supervisor.address());
    client.begin(1, "/debug/sleep/1500", false);
    in_flight(&supervisor, 1);
    drain(&supervisor, Signal::SIGHUP);
    client.wait(|frame| frame.ends(1));
    let from = client.read.len();
    assert_eq!(client.rest(from), [(GOAWAY, 1)]);
}

/// The machine of a proxy may stall under load, and the proxy then sends the requests of all its clients at once. The
/// drain must not end the proxy's connection during this pause.
#[test]
fn a_busy_connection_is_not_ended_at_its_first_short_pause() {
    let supervisor = launch().serving(1);
    let mut client = Client::open(supervisor.address());
    client.begin(1, "/debug/sleep/1500", false);
    in_flight(&supervisor, 1);
    drain(&supervisor, Signal::SIGHUP);
    (3..123).step_by(2).for_each(|stream| client.begin(stream, "/health", false));
    client.wait(|frame| frame.ends(1));
    (3..123).step_by(2).for_each(|stream| client.begin(stream + 120, "/health", false));
    client.wait(|frame| frame.ends(241));
    observe_for(Duration::from_millis(200));
    client.get(243, "/health");
    let from = client.read.len();
    assert_eq!(client.rest(from), [(GOAWAY, 243)]);
}

/// The client's requests are too short to be in flight when the warning is due, and its pauses are too short for the
/// worker to end the connection.
#[test]
fn a_connection_with_short_requests_and_short_pauses_is_warned() {
    let launch = launch().set("workers.drain_idle", r#""500ms""#).set("workers.graceful_timeout", r#""30s""#);
    let supervisor = launch.serving(1);
    let mut client = Client::open(supervisor.address());
    supervisor.signal(Signal::SIGHUP);
    let begun = now();
    for stream in (1..).step_by(2) {
        client.get(stream, "/health");
        if let Some(goaway) = client.read.iter().find(|frame| frame.kind == GOAWAY) {
            assert_eq!(goaway.number(0), MAX);
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no GOAWAY long before the grace of 30 s ends");
        observe_for(Duration::from_millis(8));
    }
}

/// The app handed over the whole answer long ago. Only the flow-control windows show that a part of the answer still
/// waits for the client.
#[test]
fn an_answer_that_waits_for_its_client_is_not_cut() {
    let supervisor = launch().set("workers.drain_idle", r#""200ms""#).serving(1);
    let mut client = Client::open(supervisor.address());
    let body = vec![b'a'; 16_384];
    client.begin(1, "/debug/echo", true);
    for _ in 0..20 {
        client.send(DATA, 0, 1, &body);
    }
    client.send(DATA, END_STREAM, 1, &[]);
    in_flight(&supervisor, 0);
    drain(&supervisor, Signal::SIGHUP);
    let ping = client.wait(|frame| frame.kind == PING).payload.clone();
    client.send(PING, ACK, 0, &ping);
    client.wait(|frame| frame.kind == GOAWAY && frame.number(0) == 1);
    assert!(client.body(1) <= 65_535);
    client.widen(0, 1 << 20);
    client.widen(1, 1 << 20);
    client.wait(|frame| frame.ends(1));
    assert_eq!(client.body(1), 20 * 16_384);
}

#[test]
fn a_drain_waits_for_the_rest_of_a_header_block() {
    let supervisor = launch().serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/health");
    let literal = |index: u8, value: &str| [&[index, value.len() as u8], value.as_bytes()].concat();
    let block = [vec![0x82, 0x86], literal(4, "/health"), literal(1, "localhost")].concat();
    let (first, second) = block.split_at(5);
    client.send(HEADERS, END_STREAM, 3, first);
    observe_for(Duration::from_millis(200));
    drain(&supervisor, Signal::SIGHUP);
    observe_for(Duration::from_millis(500));
    client.send(9, END_HEADERS, 3, second);
    client.wait(|frame| frame.ends(3));
    let from = client.read.len();
    assert_eq!(client.rest(from), [(GOAWAY, 3)]);
}

#[test]
fn a_header_block_that_never_ends_is_cut_at_header_timeout() {
    let supervisor = launch().set("http.header_timeout", r#""500ms""#).serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/health");
    client.send(HEADERS, END_STREAM, 3, &[0x82]);
    let from = client.read.len();
    assert_eq!(client.rest(from), [(GOAWAY, 1)]);
}

/// None of the hundred clients reads anything or closes its connection.
#[test]
fn silent_clients_hold_a_reload_and_a_stop_for_seven_seconds_at_most() {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let mut supervisor = launch().set("workers.graceful_timeout", r#""30s""#).serving(1);
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let mut client = Client::open(supervisor.address());
                client.get(1, "/health");
                client
            })
            .collect();
        let (old, canary, begun) = (supervisor.serving_pids()[0], Canary::start(), now());
        supervisor.signal(signal);
        match signal {
            Signal::SIGHUP => supervisor.wait_gone(old),
            _ => assert_eq!(supervisor.wait_exit(PATIENCE), 0),
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(7) + canary.longest(), "{signal}: {took:?}");
        drop(clients);
    }
}

/// This client reads the GOAWAY only when it sends its next request. The bytes of this late request must not cause a
/// reset that destroys the GOAWAY.
#[test]
fn bytes_that_a_client_sends_after_the_end_do_not_destroy_the_goaway() {
    let supervisor = launch().serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/health");
    let from = client.read.len();
    drain(&supervisor, Signal::SIGHUP);
    observe_for(Duration::from_millis(2_500));
    client.begin(3, "/debug/echo", true);
    client.send(DATA, END_STREAM, 3, &[b'a'; 10_000]);
    observe_for(Duration::from_millis(200));
    assert_eq!(client.rest(from), [(GOAWAY, 1)]);
    client.stream.shutdown(Shutdown::Both).expect("it is still there");
    supervisor.wait_log(events::DRAINED, 1, Duration::from_secs(3));
}

/// This client has chosen the connection for its request just before it read the GOAWAY. Java's HttpClient does this.
#[test]
fn a_request_that_crosses_the_goaway_gets_the_goaway_again() {
    let supervisor = launch().serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/health");
    drain(&supervisor, Signal::SIGHUP);
    client.wait(|frame| frame.kind == GOAWAY);
    for stream in [3, 5] {
        client.begin(stream, "/debug/echo", true);
        client.send(DATA, END_STREAM, stream, &[b'a'; 10_000]);
        assert_eq!(client.wait(|_| true).number(0), 1, "for stream {stream}");
    }
    let from = client.read.len();
    assert_eq!(client.rest(from), []);
    client.stream.shutdown(Shutdown::Both).expect("it is still there");
    supervisor.wait_log(events::DRAINED, 1, Duration::from_secs(3));
}

#[test]
fn a_stream_that_the_client_does_not_read_is_reset_and_the_other_streams_continue() {
    let supervisor = Launch::misbehave()
        .set("workers.count", "1")
        .set("http.keep_alive", r#""1h""#)
        .set("http.write_timeout", r#""700ms""#)
        .serving(1);
    let mut client = Client::open(supervisor.address());
    client.widen(0, 1 << 30);
    client.begin(1, "/endless", false);
    client.begin(3, "/endless", false);
    in_flight(&supervisor, 2);
    let mut cut = None;
    for _ in 0..10_000 {
        let frame = client.next().expect("the connection continues");
        let (kind, stream, length) = (frame.kind, frame.stream, frame.payload.len());
        if kind == RST_STREAM {
            cut = Some((stream, frame.number(0)));
            break;
        }
        if kind == DATA && stream == 3 && length > 0 {
            client.widen(3, length as u32);
            observe_for(Duration::from_millis(5));
        }
    }
    assert_eq!(cut, Some((1, CANCEL)));
    // The app learns of the reset too, so the request of the reset stream is no longer in flight.
    in_flight(&supervisor, 1);
    assert_eq!(supervisor.log().count("client_stalled"), 1);
    client.widen(3, 100_000);
    client.wait(|frame| frame.kind == DATA && frame.stream == 3);
    client.begin(5, "/client", false);
    client.wait(|frame| frame.ends(5));
}

#[test]
fn a_full_worker_ends_an_idle_connection_with_goaway_and_does_not_linger() {
    let supervisor = launch().set("http.worker_connections", "1").serving(1);
    let mut client = Client::open(supervisor.address());
    client.get(1, "/health");
    observe_for(Duration::from_millis(1_100));
    let from = client.read.len();
    let (canary, begun) = (Canary::start(), now());
    assert_eq!(crate::common::get(supervisor.address(), "/health").status, 200);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(500) + canary.longest(), "{took:?}");
    assert_eq!(client.rest(from), [(GOAWAY, 1)]);
}

/// The client acts like a proxy. It uses one connection, and opens a new connection as soon as a GOAWAY says that the
/// present one ends.
#[test]
fn with_rebalance_the_requests_of_one_connection_reach_all_workers() {
    let supervisor = Launch::new().set("workers.count", "4").set("http.http2_rebalance", "true").serving(4);
    let (mut old, mut client, mut stream) = (Vec::new(), Client::open(supervisor.address()), 1);
    let (begun, mut asked) = (now(), 0);
    let requests = || -> Vec<u64> {
        let status = supervisor.status();
        let workers = status["workers"].as_array().expect("a list");
        workers.iter().map(|worker| worker["requests"].as_u64().expect("a count")).collect()
    };
    loop {
        client.begin(stream, "/debug/sleep/1", false);
        let (mut goes_on, mut read) = (true, true);
        while read && !client.wait(|frame| frame.kind == GOAWAY || frame.ends(stream)).ends(stream) {
            // The GOAWAY names the last stream that the server has read. The server has not read a request with a
            // higher stream number, so the client may send this request again.
            read = client.read.last().is_some_and(|frame| frame.number(0) >= stream);
            goes_on = false;
        }
        asked += u64::from(read);
        stream += 2;
        if !goes_on {
            old.push(std::mem::replace(&mut client, Client::open(supervisor.address())));
            stream = 1;
        }
        if asked % 500 == 0 && begun.elapsed() > Duration::from_secs(3) {
            let requests = requests();
            let (most, sum) = (requests.iter().max().copied().unwrap_or(0), requests.iter().sum::<u64>());
            assert_eq!(sum, asked, "each request is served once");
            if most * 4 * 2 <= sum * 3 {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{requests:?}");
        }
    }
}

/// A PING must not end the connection of a client that is idle and reads nothing. While a stream is open, the worker
/// sends a PING to find out whether the client is gone.
#[test]
fn a_silent_client_gets_a_ping_only_while_a_stream_is_open() {
    let supervisor = launch().serving(1);
    let (mut idle, mut busy) = (Client::open(supervisor.address()), Client::open(supervisor.address()));
    idle.get(1, "/health");
    busy.stream.set_read_timeout(Some(Duration::from_secs(45))).expect("a timeout");
    busy.begin(1, "/debug/sleep/33000", false);
    let begun = now();
    let ping = busy.wait(|frame| frame.kind == PING).payload.clone();
    assert!(begun.elapsed() > Duration::from_secs(29), "{:?}", begun.elapsed());
    busy.send(PING, ACK, 0, &ping);
    busy.wait(|frame| frame.ends(1));
    let from = idle.read.len();
    drain(&supervisor, Signal::SIGHUP);
    assert_eq!(idle.rest(from), [(GOAWAY, 1)], "no frame was sent meanwhile");
}
