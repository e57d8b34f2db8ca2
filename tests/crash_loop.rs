//! Promise: when a worker dies young, its slot waits before it gets a new worker. The wait grows with each young death.
//! At most half of the slots wait at the same time. A worker that has answered is replaced at once. The master neither
//! spins nor ends, and names the request that is in flight when the workers die.

use std::time::Duration;

use crate::common::{
    Connection, Launch, PATIENCE, Signal, Supervisor, events, eventually, field, get, now, observe_for,
};

#[test]
fn crashes_after_ready_do_not_make_the_master_spin() {
    let mut supervisor = Launch::misbehave().set("workers.count", "2").set("misbehave.abort_after_ms", "50").start();
    supervisor.wait_listening();
    supervisor.wait_log(events::READY, 1, PATIENCE);
    observe_for(Duration::from_secs(5));
    let log = supervisor.log();
    let forks = log.count(events::FORKED);
    // In one of the two slots the master waits before it forks again. In the other slot it forks a new worker at most
    // once in 100 ms.
    assert!((5..=60).contains(&forks), "{forks} forks in five seconds");
    assert!(log.count(events::BACKOFF) >= 2, "each pause is in the log");
    assert_eq!(log.count(events::SERVICE_BOOT_FAILED), 0, "it was ready once: the master never gives up");
    assert!(supervisor.is_running());

    let started = now();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(started.elapsed() < Duration::from_secs(4), "a stop does not wait for a backoff: {:?}", started.elapsed());
}

/// When all workers die at one moment, the master treats these deaths as one accident and fills all slots again at
/// once.
#[test]
fn four_deaths_at_one_moment_are_not_a_crash_loop() {
    let supervisor = Launch::new().set("workers.count", "4").serving(4);
    let first = supervisor.worker_pids();
    for pid in &first {
        supervisor.signal_worker(*pid, Signal::SIGKILL);
    }
    supervisor.wait_log(events::EXITED, 4, PATIENCE);
    let second = supervisor.wait_serving(4);
    assert!(second.iter().all(|pid| !first.contains(pid)));
    assert_eq!(supervisor.log().count(events::FORKED), 8);
}

/// Sends a request that crashes the worker which reads it, and waits for the crash.
fn crash(supervisor: &Supervisor, request: &str) {
    let exits = supervisor.log().count(events::EXITED);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.get(request).expect_err("a crash gives no answer");
    supervisor.wait_log(events::EXITED, exits + 1, PATIENCE);
}

/// One client repeats one request that crashes its worker. Between these crashes, requests of other clients are
/// answered.
#[test]
fn one_bad_request_repeated_leaves_every_slot_served() {
    let supervisor = Launch::new().serving(2);
    for _ in 0..8 {
        let workers = supervisor.wait_serving(2);
        eventually("both workers have answered", PATIENCE, || {
            get(supervisor.address(), "/health");
            let status = supervisor.status();
            let answered = |w: &serde_json::Value| w["requests"].as_u64() > Some(0);
            status["workers"].as_array()?.iter().all(answered).then_some(())
        });
        crash(&supervisor, "/debug/abort");
        let replaced = supervisor.wait_serving(2);
        assert_ne!(replaced, workers);
    }
    let log = supervisor.log();
    assert_eq!(log.count(events::BACKOFF), 0, "a worker that answered is replaced at once");
    let named = log.lines_of(events::CRASH_SUSPECT).last().expect("the request is named");
    assert!(named.contains("GET /debug/abort was in flight in 8 of the last 8 deaths"), "{named}");
    assert_eq!(log.count(events::CRASH_SUSPECT), 6, "the suspect is named from the third death on");
    let table = supervisor.ctl(&["status"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("GET /debug/abort was in flight in 8 of the last 8 deaths"), "{table}");
    let suspect = &supervisor.status()["crash_suspect"];
    assert_eq!(
        (&suspect["request"], &suspect["deaths"], &suspect["of"]),
        (&"GET /debug/abort".into(), &8.into(), &8.into())
    );
    assert_eq!(supervisor.status()["quarantined"], serde_json::json!([]), "http.quarantine is off by default");
}

/// Until a slot waits, the test sends only requests that crash, so each worker dies at its first request. Even in this
/// case, half of the slots never wait.
#[test]
fn half_of_the_slots_never_wait_however_young_their_workers_die() {
    let supervisor = Launch::new().serving(2);
    let (code, table, status) = eventually("a slot waits", PATIENCE, || {
        supervisor.wait_serving_at_least(1);
        crash(&supervisor, "/debug/abort");
        let (output, status) = (supervisor.ctl(&["status"]), supervisor.status());
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let waits = table.contains("backing off") && !status["empty_slots"][0]["next_try_s"].is_null();
        waits.then_some((output.status.code(), table, status))
    });
    assert!(table.contains(": backing off, next try in "), "{table}");
    assert_eq!(code, Some(1), "not all workers serve");
    let next_try = status["empty_slots"][0]["next_try_s"].as_f64();
    assert!(next_try.is_some_and(|seconds| (0.0..=30.0).contains(&seconds)), "{status}");
    assert!(supervisor.log().count(events::BACKOFF) >= 1);
    let started = now();
    supervisor.wait_serving_at_least(1);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// A single worker has no sibling that could serve while its slot waits, so its slot never waits.
#[test]
fn the_last_slot_is_retried_at_once() {
    let supervisor = Launch::new().set("workers.count", "1").serving(1);
    for _ in 0..6 {
        supervisor.wait_serving(1);
        crash(&supervisor, "/debug/abort");
    }
    supervisor.wait_serving(1);
    assert_eq!(supervisor.log().count(events::BACKOFF), 0);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
}

#[test]
fn quarantine_answers_503_to_the_bad_request_on_all_workers_and_to_no_other() {
    let supervisor = Launch::new().set("http.quarantine", "true").serving(2);
    for _ in 0..3 {
        supervisor.wait_serving(2);
        crash(&supervisor, "/debug/abort?again");
    }
    let line = supervisor.wait_log(events::QUARANTINE_STARTED, 1, PATIENCE).swap_remove(0);
    assert_eq!(field(&line, "request"), Some("GET /debug/abort"), "{line}");
    let workers = supervisor.wait_serving(2);
    for _ in 0..20 {
        let answer = get(supervisor.address(), "/debug/abort");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("60")));
        assert_eq!(get(supervisor.address(), "/health").status, 200);
        assert_eq!(get(supervisor.address(), "/debug/connections").status, 200);
    }
    assert_eq!(supervisor.wait_serving(2), workers, "no worker died");
    assert!(supervisor.log().count(events::REQUEST_QUARANTINED) >= 1);
    let status = supervisor.status();
    assert_eq!(status["totals"]["shed"], 20, "{status}");
    assert_eq!(status["quarantined"][0]["request"], "GET /debug/abort", "{status}");
    let table = supervisor.ctl(&["status"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("GET /debug/abort is answered 503 for "), "{table}");
}

/// No request is to blame when an operator sends SIGKILL to a worker.
#[test]
fn a_request_in_flight_at_an_operators_sigkill_is_not_put_in_quarantine() {
    let supervisor = Launch::new().set("http.quarantine", "true").set("workers.count", "1").serving(1);
    for _ in 0..4 {
        let victim = supervisor.wait_serving(1)[0];
        let mut waiting = Connection::open(supervisor.address()).expect("a connection");
        waiting.send(&crate::common::request("GET", "/debug/sleep/60000", &[], b"")).expect("sent");
        eventually("it is in flight", PATIENCE, || {
            (supervisor.status()["workers"][0]["in_flight"].as_u64() == Some(1)).then_some(())
        });
        supervisor.signal_worker(victim, Signal::SIGKILL);
        supervisor.wait_gone(victim);
    }
    let named = supervisor.wait_log(events::CRASH_SUSPECT, 2, PATIENCE);
    assert_eq!((named.len(), supervisor.log().count(events::QUARANTINE_STARTED)), (2, 0));
}
