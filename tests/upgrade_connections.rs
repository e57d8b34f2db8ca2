//! Promise: a connection that was upgraded to another protocol belongs to the app until the connection ends, or until
//! the grace of a drain ends.

use std::time::Duration;

use crate::common::{Connection, Launch, PATIENCE, Signal, Supervisor, eventually, now};

const ASK: &str = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

fn launch() -> Launch {
    Launch::misbehave().set("workers.count", "1").set("workers.graceful_timeout", r#""2s""#)
}

/// Sends the bytes, which must ask for another protocol, and reads the 101 answer to the end of its headers.
fn upgrade(supervisor: &Supervisor, bytes: &str) -> Connection {
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(bytes.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(connection.read(1).expect("the head of the answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    connection
}

#[track_caller]
fn echoes(connection: &mut Connection, bytes: &[u8]) {
    connection.send(bytes).expect("sent");
    assert_eq!(connection.read(bytes.len()).expect("echoed"), bytes);
}

#[test]
fn an_upgraded_connection_passes_all_bytes_and_has_no_time_limit() {
    let supervisor = launch()
        .set("http.keep_alive", r#""300ms""#)
        .set("http.header_timeout", r#""300ms""#)
        .set("http.limit_request_body", "100")
        .serving(1);
    // Bytes that the client sends together with its request belong to the new protocol, even if they look like a
    // request.
    let mut connection = upgrade(&supervisor, &format!("{ASK}GET / HTTP/9.9\n\0"));
    assert_eq!(connection.read(16).expect("echoed"), b"GET / HTTP/9.9\n\0");
    echoes(&mut connection, b"\r\n\0not HTTP at all");
    crate::common::observe_for(Duration::from_secs(1));
    let large: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    echoes(&mut connection, &large);
    assert_eq!(supervisor.status()["totals"]["refused"], 0);
    assert_eq!(supervisor.status()["workers"][0]["connections"], 1, "it counts as open");
    assert_eq!(supervisor.status()["workers"][0]["in_flight"], 0, "and not as a request");
    // The client ends its sending side. The app then ends its side too, so the connection ends.
    connection.finish_sending();
    connection.wait_eof().expect("the end");
    eventually("it no longer counts", PATIENCE, || {
        (supervisor.status()["workers"][0]["connections"] == 0).then_some(())
    });
}

#[test]
fn an_upgrade_that_the_app_does_not_grant_leaves_the_connection_as_it_was() {
    let supervisor = launch().serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let asks = "GET /pid HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    // The second request waits until the worker knows that the answer to the first request does not upgrade the
    // connection.
    connection.send(format!("{asks}{asks}").as_bytes()).expect("sent");
    for _ in 0..2 {
        assert_eq!(connection.answer().expect("an answer").status, 200);
    }
    assert_eq!(connection.get("/pid").expect("an answer").status, 200);
}

#[test]
fn a_drain_informs_the_app_and_waits_for_the_client_to_close() {
    let mut supervisor = launch().serving(1);
    let mut connection = upgrade(&supervisor, &ASK.replace("/upgrade", "/upgrade/polite"));
    echoes(&mut connection, b"hello");
    let begun = now();
    supervisor.signal(Signal::SIGTERM);
    // The app sends "draining" as soon as WorkerContext::draining() completes.
    assert_eq!(connection.read(8).expect("a goodbye"), b"draining");
    connection.finish_sending();
    connection.wait_eof().expect("a clean end");
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn the_end_of_the_grace_cuts_an_upgraded_connection() {
    let mut supervisor = launch().serving(1);
    let mut connection = upgrade(&supervisor, ASK);
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log("stopping", 1, PATIENCE);
    // Until `graceful_timeout` ends, the connection is still served.
    echoes(&mut connection, b"still here");
    assert_eq!(supervisor.wait_exit(PATIENCE), 0, "graceful_timeout ends it");
    assert!(connection.read(1).is_err(), "the stream is cut");
}
