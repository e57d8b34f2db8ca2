//! Promise: an idle connection holds a draining worker for exactly `workers.drain_idle`, however long `http.keep_alive`
//! is. The connection does not end sooner, so that a client that pauses between two requests gets one more answer.

use std::time::{Duration, Instant};

use crate::common::{Canary, Connection, Launch, PATIENCE, Signal, Supervisor, events, now, observe_for, request};

/// Starts one worker on which a connection may be idle for an hour. Returns the service with three idle connections.
/// The first never sent a request, the second got an answer from the app, and the third got an answer from the worker
/// itself.
fn with_idle_connections(launch: Launch) -> (Supervisor, Vec<Connection>) {
    let supervisor = ["keep_alive", "header_timeout"]
        .iter()
        .fold(launch.set("workers.count", "1"), |launch, key| launch.set(&format!("http.{key}"), r#""1h""#))
        .set("http.metrics_path", r#""/metrics""#)
        .serving(1);
    let open = || Connection::open(supervisor.address()).expect("a connection");
    let connections = [None, Some("/health"), Some("/metrics")].map(|path| {
        let mut connection = open();
        if let Some(path) = path {
            assert_eq!(connection.get(path).expect("an answer").status, 200);
        }
        connection
    });
    (supervisor, connections.into())
}

/// Asserts that each connection ends between `from` and `to`, counted from `begun`. The time for which the machine
/// stalled is added to `to`.
#[track_caller]
fn all_end_between(connections: &mut [Connection], begun: Instant, from: Duration, to: Duration) {
    let canary = Canary::start();
    let took: Vec<_> = connections
        .iter_mut()
        .map(|connection| {
            connection.patience(PATIENCE);
            assert_eq!(connection.read_to_end().expect("a clean end"), b"");
            begun.elapsed()
        })
        .collect();
    let to = to + canary.longest();
    assert!(took.iter().all(|took| (from..=to).contains(took)), "{took:?}, wanted between {from:?} and {to:?}");
}

#[test]
fn a_reload_and_a_stop_close_idle_connections_after_drain_idle_and_not_before() {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let (supervisor, mut idle) = with_idle_connections(Launch::new().set("workers.drain_idle", r#""2s""#));
        let (old, begun) = (supervisor.serving_pids()[0], now());
        supervisor.signal(signal);
        supervisor.wait_log(events::DRAINING, 1, PATIENCE);
        let drains = begun.elapsed();
        all_end_between(&mut idle, begun, Duration::from_millis(1_990), drains + Duration::from_millis(2_500));
        // The clients got their answers long ago, so the worker exits without waiting until they close their side.
        let (canary, ended) = (Canary::start(), now());
        supervisor.wait_gone(old);
        let (took, stalled) = (ended.elapsed(), canary.longest());
        assert!(took < Duration::from_millis(1_500) + stalled, "{took:?} after the last end, stalled {stalled:?}");
    }
}

#[test]
fn a_client_that_asks_before_drain_idle_is_over_is_answered_with_close() {
    let (supervisor, mut idle) = with_idle_connections(Launch::new().set("workers.drain_idle", r#""30s""#));
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
    for connection in &mut idle {
        let answer = connection.get("/health").expect("an answer");
        assert!(answer.status == 200 && answer.closes(), "{answer:?}");
        connection.wait_eof().expect("and then a clean end");
    }
}

#[test]
fn without_drain_idle_idle_connections_stay_until_the_grace_ends() {
    let launch = Launch::new().set("workers.drain_idle", "0").set("workers.graceful_timeout", r#""2s""#);
    let (mut supervisor, mut idle) = with_idle_connections(launch);
    let begun = now();
    supervisor.signal(Signal::SIGTERM);
    all_end_between(&mut idle, begun, Duration::from_millis(1_400), Duration::from_millis(2_500));
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn a_thousand_idle_connections_hold_a_reload_and_a_stop_for_seven_seconds_at_most() {
    const MOST: Duration = Duration::from_secs(7);
    let mut supervisor = Launch::new().set("workers.count", "2").serving(2);
    let fill = || {
        let mut idle: Vec<_> =
            (0..1_000).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
        for connection in &mut idle {
            assert_eq!(connection.get("/health").expect("an answer").status, 200);
        }
        idle
    };
    let (old, idle, canary) = (supervisor.serving_pids(), fill(), Canary::start());
    let begun = now();
    supervisor.signal(Signal::SIGHUP);
    old.iter().for_each(|pid| supervisor.wait_gone(*pid));
    let (reload, stalled) = (begun.elapsed(), canary.longest());
    assert!(reload <= MOST + stalled, "the old workers were gone after {reload:?}, stalled {stalled:?}");
    drop(idle);

    let (_idle, canary, begun) = (fill(), Canary::start(), now());
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    let (took, stalled) = (begun.elapsed(), canary.longest());
    eprintln!("reload {reload:?}, stop {took:?}");
    assert!(took <= MOST + stalled, "the stop took {took:?}, stalled {stalled:?}");
}

/// The worker sent the head of this answer before the drain, so the answer could not say `Connection: close`.
#[test]
fn an_answer_that_ends_during_the_drain_starts_drain_idle_again() {
    let supervisor = Launch::new().set("workers.count", "1").set("workers.drain_idle", r#""2s""#).serving(1);
    let body = vec![b'a'; 16 << 20];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("POST", "/debug/echo", &[], &body)).expect("sent");
    assert_eq!(connection.read(12).expect("it has begun"), b"HTTP/1.1 200");
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
    observe_for(Duration::from_secs(1));
    // The worker has not yet written most of the answer at this moment.
    let begun = now();
    let rest = connection.read(body.len()).expect("nearly all");
    assert!(!String::from_utf8_lossy(&rest[..1_000]).to_ascii_lowercase().contains("connection: close"));
    connection.read_to_end().expect("a clean end");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1_950), "the connection was closed after {took:?}");
}
