//! Promise: a worker that has its maximum of connections still accepts if some of them are idle. For each new
//! connection it closes the connection that has been idle longest, in the same way as a drain does. It never closes a
//! connection that has a request, was active in the last second, or has had no answer yet.

use std::{os::unix::net::UnixStream, time::Duration};

use crate::common::{Canary, Connection, Launch, PATIENCE, Supervisor, now, observe_for, request};

/// A pause longer than the time that a connection must be idle before the worker may close it.
const LONG_IDLE: Duration = Duration::from_millis(1_100);

fn launch(workers: &str, connections: &str) -> Launch {
    Launch::new()
        .set("workers.count", workers)
        .set("http.worker_connections", connections)
        .set("http.keep_alive", r#""1h""#)
        .set("http.header_timeout", r#""1h""#)
}

/// Opens a connection that asks once and then stays open.
fn asks_once(supervisor: &Supervisor) -> Connection {
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    assert_eq!(connection.get("/health").expect("an answer").status, 200);
    connection
}

#[test]
fn only_the_connection_idle_longest_is_closed_for_a_new_one() {
    let supervisor = launch("1", "4").serving(1);
    let mut busy = Connection::open(supervisor.address()).expect("a connection");
    busy.send(&request("GET", "/debug/sleep/3000", &[], b"")).expect("sent");
    let mut silent = Connection::open(supervisor.address()).expect("a connection");
    let (mut first, mut second) = (asks_once(&supervisor), asks_once(&supervisor));
    // After this pause, the second connection has clearly been idle longest, even on a clock with steps of 10 ms.
    observe_for(Duration::from_millis(30));
    assert_eq!(first.get("/health").expect("an answer").status, 200);
    observe_for(LONG_IDLE);
    let canary = Canary::start();
    let begun = now();
    let mut third = asks_once(&supervisor);
    let (took, stalled) = (begun.elapsed(), canary.longest());
    assert!(took < Duration::from_millis(100) + stalled, "{took:?}, stalled {stalled:?}");
    second.wait_eof().expect("a clean end");
    assert_eq!(supervisor.status()["workers"][0]["connections"], 4, "the worker does not wait for the client to close");
    for one in [&mut first, &mut silent, &mut third] {
        assert_eq!(one.get("/health").expect("it has kept its place").status, 200);
    }
    assert_eq!(busy.answer().expect("it had a request in flight").status, 200);
    assert_eq!(supervisor.log().count("connection_evicted"), 1);
}

#[test]
fn a_client_active_within_a_second_keeps_its_place_and_a_new_one_waits_no_longer() {
    let supervisor = launch("1", "2").serving(1);
    let (_first, begun) = (asks_once(&supervisor), now());
    // The pause makes the first connection idle longer than the second, even on a clock with steps of 10 ms.
    observe_for(Duration::from_millis(30));
    let mut second = asks_once(&supervisor);
    let canary = Canary::start();
    let _third = asks_once(&supervisor);
    let (took, stalled) = (begun.elapsed(), canary.longest());
    assert!(took >= Duration::from_millis(980), "{took:?} after an answer a connection was closed");
    assert!(took < Duration::from_millis(1_200) + stalled, "{took:?}, stalled {stalled:?}");
    assert_eq!(second.get("/health").expect("it has kept its place").status, 200);
}

#[test]
fn a_full_worker_evicts_no_connection_while_a_sibling_has_room() {
    for reuse_port in ["true", "false"] {
        let supervisor = launch("2", "10").set("server.reuse_port", reuse_port).serving(2);
        let mut all: Vec<_> = (0..12).map(|_| asks_once(&supervisor)).collect();
        observe_for(LONG_IDLE);
        all.extend((0..8).map(|_| asks_once(&supervisor)));
        for connection in &mut all {
            assert_eq!(connection.get("/health").expect("there was room for all").status, 200);
        }
        assert_eq!(supervisor.log().count("connection_evicted"), 0);
        observe_for(LONG_IDLE);
        asks_once(&supervisor);
        supervisor.wait_log("connection_evicted", 1, PATIENCE);
    }
}

/// The workers may have 2,000 connections together, and 3,000 clients come.
#[test]
fn three_thousand_clients_that_ask_once_and_stay_are_each_answered_within_100_ms() {
    let supervisor = launch("2", "1000").serving(2);
    let (canary, begun) = (Canary::start(), now());
    let (mut all, mut slowest) = (Vec::new(), Duration::ZERO);
    for number in 0..3_000 {
        // The clients come one by one, spread over six seconds.
        let due = Duration::from_millis(2 * number);
        observe_for(due.saturating_sub(begun.elapsed()));
        let asked = now();
        all.push(asks_once(&supervisor));
        slowest = slowest.max(asked.elapsed());
    }
    let stalled = canary.longest();
    eprintln!("slowest answer {slowest:?}, stalled {stalled:?}");
    // The limit includes the machine's stall twice, because the stall may have delayed the client and the worker.
    assert!(slowest < Duration::from_millis(100) + 2 * stalled, "{slowest:?}, stalled {stalled:?}");
    let mut ended = Vec::new();
    for (number, connection) in all.iter_mut().enumerate() {
        if connection.is_over() {
            ended.push(number);
        } else {
            assert_eq!(connection.get("/health").expect("it has kept its place").status, 200);
        }
    }
    assert!((1_000..1_100).contains(&ended.len()), "{} were closed for the 1000 newcomers", ended.len());
    assert!(ended.iter().all(|number| *number < 1_500), "the connections that came first were closed first: {ended:?}");
}

/// A worker's maximum of connections counts for its TCP and Unix listeners together. The worker notices at each
/// listener when a client waits in the queue.
#[test]
fn a_unix_socket_and_a_port_share_the_places() {
    let supervisor = launch("1", "2").set("server.bind", r#"["127.0.0.1:0", "unix:{dir}/app.sock"]"#).serving(1);
    let by_unix = || {
        let stream = UnixStream::connect(supervisor.path("app.sock")).expect("the queue has room");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut connection = Connection::over(stream);
        assert_eq!(connection.get("/health").expect("an answer").status, 200);
        connection
    };
    let mut ports = vec![asks_once(&supervisor), asks_once(&supervisor)];
    observe_for(LONG_IDLE);
    let mut unix = vec![by_unix(), by_unix()];
    for connection in &mut ports {
        connection.wait_eof().expect("a clean end");
    }
    observe_for(LONG_IDLE);
    ports = vec![asks_once(&supervisor), asks_once(&supervisor)];
    for connection in &mut unix {
        connection.wait_eof().expect("a clean end");
    }
    assert_eq!(supervisor.status()["workers"][0]["connections"], 2);
    drop(ports);
}

/// Both workers are full, so the master steers new connections to both of them. Some of these connections wait in the
/// queue of the busy worker, and the worker with idle connections must accept them.
#[test]
fn a_worker_with_idle_connections_takes_what_waits_for_a_worker_without_any() {
    let supervisor = launch("2", "10").serving(2);
    let (mut busy, mut idle) = (Vec::new(), Vec::new());
    let mut first = None;
    for _ in 0..20 {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        let pid = connection.get("/debug/connections").expect("an answer").json()["pid"].as_u64();
        if *first.get_or_insert(pid) == pid { busy.push(connection) } else { idle.push(connection) }
    }
    assert_eq!((busy.len(), idle.len()), (10, 10));
    for connection in &mut busy {
        connection.send(&request("GET", "/debug/sleep/6000", &[], b"")).expect("sent");
    }
    observe_for(LONG_IDLE);
    let (canary, begun) = (Canary::start(), now());
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = Connection::open(supervisor.address()).expect("a connection");
            connection.send(&request("GET", "/health", &[], b"")).expect("sent");
            connection
        })
        .collect();
    for mut connection in asked {
        assert_eq!(connection.answer().expect("an answer").status, 200);
    }
    let (took, stalled) = (begun.elapsed(), canary.longest());
    assert!(took < Duration::from_secs(2) + stalled, "{took:?}, stalled {stalled:?}");
    for mut connection in busy {
        assert_eq!(connection.answer().expect("it had a request in flight").status, 200);
    }
}
