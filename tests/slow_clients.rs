//! Promise: a slow client cannot hold a worker. Each kind of silence has a time limit. After this limit the worker ends
//! the connection, with an answer if HTTP has an answer for this case.

use std::{thread::sleep, time::Duration};

use crate::common::{Canary, Connection, Failure, Launch, PATIENCE, Supervisor, eventually, now, request};

fn connections(supervisor: &Supervisor) -> u64 {
    supervisor.status()["workers"][0]["connections"].as_u64().expect("a count")
}

/// Launches one worker. The setting `key` gets the value `limit`, and all other time limits are an hour.
fn launch(key: &str, limit: &str) -> Launch {
    let hour = ["header_timeout", "keep_alive", "body_timeout", "write_timeout"]
        .iter()
        .fold(Launch::new().set("workers.count", "1"), |launch, key| launch.set(&format!("http.{key}"), r#""1h""#));
    hour.set(&format!("http.{key}"), limit)
}

/// Waits for the end of the connection and returns the bytes that came before the end. Asserts that the end does not
/// come before `limit`, and comes at most a second later. If the machine stalls, the test allows more time.
#[track_caller]
fn ends_after(connection: &mut Connection, limit: Duration) -> Vec<u8> {
    let (canary, begun) = (Canary::start(), now());
    let last = connection.read_to_end().expect("a clean end");
    let took = begun.elapsed();
    let stalled = canary.longest();
    assert!(took + Duration::from_millis(50) >= limit, "it ended too early, after {took:?}");
    assert!(took <= limit + Duration::from_secs(1) + stalled, "it ended after {took:?}, stalled {stalled:?}");
    last
}

#[test]
fn a_client_that_never_sends_is_closed_without_an_answer() {
    for http2 in ["true", "false"] {
        let supervisor = launch("header_timeout", r#""500ms""#).set("http.http2", http2).serving(1);
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        assert_eq!(ends_after(&mut connection, Duration::from_millis(500)), b"");
        assert_eq!(supervisor.total("refused"), 0);
    }
}

#[test]
fn a_head_that_does_not_end_is_answered_408() {
    for (http2, begun) in [("true", "GET /health HTTP/1.1\r\nHost: a\r\n"), ("true", "PRI"), ("false", "G")] {
        let supervisor = launch("header_timeout", r#""500ms""#).set("http.http2", http2).serving(1);
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        connection.send(begun.as_bytes()).expect("sent");
        let last = String::from_utf8(ends_after(&mut connection, Duration::from_millis(500))).expect("text");
        assert!(last.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{begun:?}: {last}");
        assert!(last.contains("\r\nConnection: close\r\n") && last.contains("header_timeout"), "{last}");
        assert_eq!((supervisor.total("refused"), supervisor.total("requests")), (1, 0));
    }
}

#[test]
fn a_head_that_drips_gets_no_more_time_than_one_that_stands_still() {
    let supervisor = launch("header_timeout", r#""1s""#).serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    // On a connection that has already had an answer, the time limit counts from the first byte of the next request.
    assert_eq!(connection.get("/health").expect("an answer").status, 200);
    connection.patience(Duration::from_millis(50));
    let begun = now();
    let head = format!("GET /health HTTP/1.1\r\nX: {}", "a".repeat(4_000));
    let answer = head.bytes().find_map(|byte| {
        // If this fails, the worker has closed the connection. The client can still read the answer that the worker
        // sent before the close.
        let _ = connection.send(&[byte]);
        match connection.read(12) {
            Err(Failure::Timeout) => None,
            answer => Some(answer),
        }
    });
    let took = begun.elapsed();
    assert_eq!(answer.expect("an answer before the head ends").expect("a complete answer"), b"HTTP/1.1 408");
    assert!(took >= Duration::from_millis(900), "{took:?}");
}

#[test]
fn an_idle_connection_is_closed_after_keep_alive_and_not_before() {
    let supervisor = launch("keep_alive", r#""500ms""#).serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..5 {
        assert_eq!(connection.get("/debug/sleep/200").expect("an answer").status, 200);
    }
    assert_eq!(ends_after(&mut connection, Duration::from_millis(500)), b"");
}

/// If the worker closed a connection with unread bytes, the kernel would send an RST, which could destroy the answer.
/// The worker therefore closes at once only if the client announced its last request and sent nothing after it.
#[test]
fn the_worker_lingers_unless_a_client_announced_its_last_request_and_kept_to_it() {
    let supervisor = launch("keep_alive", r#""1h""#).serving(1);
    for (behind, later, waits) in [("", "", false), ("G", "", true), ("", "G", true)] {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        let request = format!("GET /debug/sleep/300 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{behind}");
        connection.send(request.as_bytes()).expect("sent");
        sleep(Duration::from_millis(100));
        connection.send(later.as_bytes()).expect("sent");
        assert!(connection.read_to_end().expect("a clean end").starts_with(b"HTTP/1.1 200 OK\r\n"));
        let is_closed = (0..20).any(|_| {
            sleep(Duration::from_millis(50));
            connection.send(b"x").is_err()
        });
        assert_eq!(is_closed, !waits, "{behind:?} with the request, {later:?} after it");
    }
}

/// Many clients begin to read only after they have written the whole body. The worker must keep the connection open
/// until such a client can read the answer.
#[test]
fn a_client_that_reads_only_after_its_body_finds_its_answer() {
    let supervisor = launch("keep_alive", r#""1h""#).serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").expect("sent");
    // The client goes on sending for four seconds, which is longer than the worker waits for a silent client.
    for _ in 0..40 {
        crate::common::observe_for(Duration::from_millis(100));
        connection.send(&[b'a'; 250_000]).expect("the rest is taken");
    }
    assert_eq!(connection.answer().expect("the answer").status, 404);
    connection.wait_eof().expect("and a clean end");
}

#[test]
fn a_body_that_stops_is_answered_408_and_one_that_comes_slowly_is_not() {
    let supervisor = launch("body_timeout", r#""700ms""#).serving(1);
    let head = b"POST /debug/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345";
    let mut stops = Connection::open(supervisor.address()).expect("a connection");
    stops.send(head).expect("sent");
    let last = String::from_utf8(ends_after(&mut stops, Duration::from_millis(700))).expect("text");
    assert!(last.starts_with("HTTP/1.1 408 ") && last.contains("body_timeout"), "{last}");
    assert_eq!(supervisor.total("refused"), 1);

    let mut slow = Connection::open(supervisor.address()).expect("a connection");
    slow.send(head).expect("sent");
    for byte in b"67890" {
        // Each pause is shorter than the limit, but all pauses together are longer.
        crate::common::observe_for(Duration::from_millis(250));
        slow.send(&[*byte]).expect("sent");
    }
    assert_eq!(slow.answer().expect("an answer").text(), "1234567890");
    assert_eq!(slow.get("/health").expect("the connection continues").status, 200);
}

#[test]
fn a_client_that_does_not_read_loses_its_connection() {
    let supervisor = launch("write_timeout", r#""700ms""#).serving(1);
    let body = vec![b'a'; 12 << 20];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("POST", "/debug/echo", &[], &body)).expect("sent");
    // The client reads no byte of the answer, so the worker drops its connection.
    eventually("the connection is dropped", PATIENCE, || (connections(&supervisor) == 0).then_some(()));
    assert_eq!(supervisor.log().count("client_stalled"), 1);
    let mut reader = Connection::open(supervisor.address()).expect("a connection");
    assert_eq!(reader.ask(&request("POST", "/debug/echo", &[], &body)).expect("an answer").body, body);
}

#[test]
fn a_thousand_slow_clients_do_not_disturb_other_clients() {
    let supervisor = launch("header_timeout", r#""2s""#).set("http.worker_connections", "2000").serving(1);
    let slow: Vec<_> = (0..1000)
        .map(|_| {
            let mut connection = Connection::open(supervisor.address()).expect("a connection");
            connection.send(b"GET / HTTP/1.1\r\nX-A: b\r\n").expect("sent");
            connection
        })
        .collect();
    let mut brisk = Connection::open(supervisor.address()).expect("a connection");
    let begun = now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(brisk.get("/health").expect("an answer").status, 200);
    }
    for mut connection in slow {
        assert!(connection.read_to_end().expect("an end").starts_with(b"HTTP/1.1 408 "));
    }
    assert_eq!(supervisor.total("refused"), 1000);
    let lines = supervisor.log().count("request_refused");
    assert!(lines <= 10, "{lines} lines");
}
