//! Promise: a crash costs only the requests that the worker had accepted and not yet answered. No request that still
//! waits in a queue is lost. The worker is replaced at once.

use std::time::Duration;

use crate::common::{
    Connection, Failure, Launch, Load, Mode, PATIENCE, Signal, events, eventually, field, get, request,
};

#[test]
fn a_killed_worker_costs_at_most_its_requests_in_flight() {
    const CLIENTS: u64 = 8;
    let supervisor = Launch::new().serving(2);
    for mode in [Mode::KeepAlive { think_ms: 2 }, Mode::PerRequest { think_ms: 2 }] {
        let load = Load::start(supervisor.address(), "/debug/connections", CLIENTS, mode);
        eventually("the load runs", PATIENCE, || (load.answered() >= 200).then_some(()));
        let victim = supervisor.wait_serving(2)[0];
        supervisor.signal_worker(victim, Signal::SIGKILL);
        supervisor.wait_gone(victim);
        let replaced = supervisor.wait_serving(2);
        assert!(!replaced.contains(&victim));
        let before = load.answered();
        eventually("the load continues", PATIENCE, || (load.answered() >= before + 200).then_some(()));
        let tally = load.finish();
        eprintln!("{mode:?}: {} of {} lost: {:?}", tally.lost(), tally.ok, tally.failures);
        assert!(tally.lost() <= CLIENTS, "more was lost than clients could have had in flight: {:?}", tally.failures);
        for impossible in [Failure::Refused, Failure::Timeout] {
            assert_eq!(tally.of(impossible), 0, "{:?}", tally.failures);
        }
    }
    assert!(supervisor.log().count(events::EXITED) >= 2);
}

#[test]
fn killing_an_idle_worker_costs_no_request() {
    let supervisor = Launch::new().serving(2);
    for round in 0..5 {
        let victim = supervisor.wait_serving(2)[round % 2];
        supervisor.signal_worker(victim, Signal::SIGKILL);
        // There is no pause after the kill. These connections may go to a slot whose worker is dead, and must be
        // answered too.
        for _ in 0..20 {
            let mut connection = Connection::open(supervisor.address()).expect("a connection");
            match connection.get("/debug/connections") {
                Ok(answer) => assert_eq!(answer.status, 200),
                // SIGKILL does not act at once, so the killed worker may have accepted this connection before it died.
                Err(Failure::ResetBeforeFirstByte | Failure::EofBeforeResponse)
                    if supervisor.worker_pids().len() < 2 => {}
                Err(failure) => panic!("round {round}: {failure}"),
            }
        }
        supervisor.wait_gone(victim);
    }
}

#[test]
fn an_abort_is_named_in_the_log_and_the_slot_is_filled_again() {
    let supervisor = Launch::new().set("workers.count", "1").serving(1);
    let victim = supervisor.worker_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let failure = connection.get("/debug/abort").expect_err("a crash gives no answer");
    assert!(matches!(failure, Failure::ResetBeforeFirstByte | Failure::EofBeforeResponse), "{failure}");
    let lines = supervisor.wait_log(events::EXITED, 1, PATIENCE);
    assert!(lines[0].contains("SIGABRT"), "{}", lines[0]);
    assert_eq!(field(&lines[0], "pid"), Some(victim.to_string().as_str()));
    assert_eq!(field(&lines[0], "slot"), Some("0"));
    let heir = supervisor.wait_serving(1)[0];
    assert_ne!(heir, victim);
    assert_eq!(get(supervisor.address(), "/debug/connections").json()["slot"], 0);
}

/// The queue of waiting connections belongs to the slot, so the queue survives when the slot's worker dies.
#[test]
fn the_queue_survives_its_worker() {
    let supervisor = Launch::new().set("workers.count", "1").serving(1);
    let victim = supervisor.worker_pids()[0];
    let mut blocker = Connection::open(supervisor.address()).expect("a connection");
    blocker.send(&request("GET", "/debug/block/60000", &[], b"")).expect("sent");
    let probe = || {
        let mut probe = Connection::open(supervisor.address())?;
        probe.patience(Duration::from_millis(500));
        probe.get("/health")
    };
    eventually("the worker is blocked", PATIENCE, || probe().is_err().then_some(()));
    let mut queued: Vec<_> = (0..50).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    for connection in &mut queued {
        connection.send(&request("GET", "/debug/connections", &[], b"")).expect("the kernel takes it");
    }
    supervisor.signal_worker(victim, Signal::SIGKILL);
    for (number, connection) in queued.iter_mut().enumerate() {
        let answer = connection.answer().unwrap_or_else(|failure| panic!("queued connection {number}: {failure}"));
        assert_eq!(answer.status, 200);
        assert_ne!(answer.pid().expect("the route tells the pid"), victim);
    }
}
