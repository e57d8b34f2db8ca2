//! Promise: a worker that runs out of file descriptors closes idle connections to make room for new connections. If it
//! has no idle connection, it still serves its open connections, does not spin and is not killed. It accepts again once
//! it has free descriptors.

use std::time::Duration;

use crate::common::{Connection, Launch, PATIENCE, Process, eventually, observe_for, request};

#[test]
fn a_worker_without_descriptors_waits_reports_it_once_a_second_and_recovers() {
    let supervisor = Launch::new()
        .through(&["prlimit", "--nofile=64:64"])
        .set("workers.count", "2")
        .set("workers.timeout", r#""2s""#)
        .set("http.keep_alive", r#""1h""#)
        .set("http.header_timeout", r#""1h""#)
        .serving(2);
    let pids = supervisor.serving_pids();
    // Opens more connections than both workers together can hold, so some of the connections wait in the queues.
    let mut open: Vec<_> =
        (0..150).map(|_| Connection::open(supervisor.address()).expect("the queue has room")).collect();
    supervisor.wait_log("accept_exhausted", 1, PATIENCE);
    let before: Vec<_> = pids.iter().map(|pid| Process(*pid).cpu_time()).collect();
    observe_for(Duration::from_secs(3));
    for (pid, before) in pids.iter().zip(before) {
        let spent = Process(*pid).cpu_time() - before;
        assert!(spent < Duration::from_secs(1), "worker {pid} spins: {spent:?} in three seconds");
    }
    let lines = supervisor.log().count("accept_exhausted");
    assert!(lines <= 2 * 8, "{lines} lines of two workers in some seconds");
    let mut served = 0;
    for connection in &mut open {
        connection.patience(Duration::from_millis(50));
        let health = connection.send(&request("GET", "/health", &[], b"")).and_then(|()| connection.answer());
        served += u32::from(health.is_ok_and(|answer| answer.status == 200));
    }
    assert!((20..150).contains(&served), "{served} of 150 are served while descriptors lack");
    drop(open);
    eventually("new connections are served again", PATIENCE, || {
        let mut connection = Connection::open(supervisor.address()).ok()?;
        connection.patience(Duration::from_secs(1));
        (connection.get("/health").ok()?.status == 200).then_some(())
    });
    assert_eq!(supervisor.serving_pids(), pids, "no worker was killed for it");
}

#[test]
fn idle_connections_give_their_descriptors_to_new_ones() {
    let supervisor = Launch::new()
        .through(&["prlimit", "--nofile=64:64"])
        .set("workers.count", "1")
        .set("http.keep_alive", r#""1h""#)
        .serving(1);
    let mut open = Vec::new();
    for _ in 0..3 {
        // Opens 30 connections. The worker can hold more than 30, but fewer than 60.
        for _ in 0..30 {
            let mut connection = Connection::open(supervisor.address()).expect("the queue has room");
            assert_eq!(connection.get("/health").expect("an answer").status, 200);
            open.push(connection);
        }
        observe_for(Duration::from_millis(1_100));
    }
    supervisor.wait_log("connection_evicted", 1, PATIENCE);
    let kept = open.iter().filter(|connection| !connection.is_over()).count();
    assert!((30..64).contains(&kept), "{kept} of {} are open", open.len());
    assert_eq!(supervisor.log().count("accept_exhausted"), 0, "no connection had to wait");
}
