//! Promise: the master finds a worker whose loop stands still, kills it and replaces it, while the other workers serve.
//! The log distinguishes a hang from a crash.

use std::time::Duration;

use crate::common::{
    Canary, Connection, Launch, Load, Mode, PATIENCE, Process, Signal, Supervisor, events, eventually, field, get,
    request,
};

fn two_workers() -> Supervisor {
    Launch::new().set("workers.timeout", r#""1s""#).serving(2)
}

#[track_caller]
fn assert_told_as_a_hang(supervisor: &Supervisor, victim: u32) -> String {
    let log = supervisor.log();
    let lines: Vec<_> = log.lines_of(events::HUNG).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(field(lines[0], "pid"), Some(victim.to_string().as_str()), "{}", lines[0]);
    assert!(!log.0.to_lowercase().contains("out of memory"), "the master's SIGKILL is not reported as the kernel's");
    lines[0].to_owned()
}

#[test]
fn a_blocked_worker_is_replaced() {
    let supervisor = two_workers();
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let victim = connection.get("/debug/connections").expect("an answer").pid().expect("the route tells the pid");
    connection.send(&request("GET", "/debug/block/60000", &[], b"")).expect("sent");
    supervisor.wait_log(events::HUNG, 1, PATIENCE);
    supervisor.wait_gone(victim);
    connection.answer().expect_err("the request is lost with its worker");
    let replaced = supervisor.wait_serving(2);
    assert!(!replaced.contains(&victim));
    let line = assert_told_as_a_hang(&supervisor, victim);
    assert!(line.contains("in_flight=1") || line.contains("/debug/block"), "the request in flight is named: {line}");
    let log = supervisor.log();
    let exited = log.lines_of(events::EXITED).next().expect("the exit is in the log");
    assert!(exited.contains("SIGABRT"), "SIGABRT lets it leave a core: {exited}");
}

/// A worker stopped by SIGSTOP does not handle SIGABRT, so the master sends SIGKILL two seconds later.
#[test]
fn a_stopped_worker_is_killed_and_no_client_waits_long() {
    let supervisor = two_workers();
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGSTOP);
    eventually("the worker stands still", PATIENCE, || (Process(victim).state() == Some('T')).then_some(()));

    let canary = Canary::start();
    let load = Load::start(supervisor.address(), "/debug/connections", 6, Mode::PerRequest { think_ms: 5 });
    supervisor.wait_log(events::HUNG, 1, PATIENCE);
    supervisor.wait_gone(victim);
    supervisor.wait_serving(2);
    let (tally, stall) = (load.finish(), canary.longest());
    tally.assert_nothing_lost();
    let wait = tally.max_wait().saturating_sub(stall);
    assert!(wait < Duration::from_millis(500), "a client waited {wait:?}: its slot was not rescued");

    assert_told_as_a_hang(&supervisor, victim);
    let exited = supervisor.wait_log(events::EXITED, 1, PATIENCE);
    assert!(exited[0].contains("SIGKILL"), "{}", exited[0]);
}

/// There is only one worker, so no other worker can serve the clients in the queue. The replacement must serve them.
#[test]
fn the_replacement_serves_the_queue_of_a_lone_hung_worker() {
    let supervisor = Launch::new().set("workers.count", "1").set("workers.timeout", r#""1s""#).serving(1);
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGSTOP);
    eventually("the worker stands still", PATIENCE, || (Process(victim).state() == Some('T')).then_some(()));
    let mut queued: Vec<_> = (0..20).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    for connection in &mut queued {
        connection.send(&request("GET", "/debug/connections", &[], b"")).expect("the kernel takes it");
    }
    for connection in &mut queued {
        let answer = connection.answer().expect("an answer, late");
        assert_ne!(answer.pid().expect("the route tells the pid"), victim);
    }
}

#[test]
fn a_slow_request_is_not_a_hang() {
    let supervisor = two_workers();
    assert_eq!(get(supervisor.address(), "/debug/sleep/3000").status, 200);
    let log = supervisor.log();
    assert_eq!((log.count(events::HUNG), log.count(events::EXITED)), (0, 0));
}
