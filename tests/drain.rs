//! Promise: a graceful stop answers every request that had arrived before the stop. The answer says `Connection:
//! close`, and the connection is not cut.

use std::{process::Command, time::Duration};

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Signal, Supervisor, events, eventually, field, get, request,
};

fn one_worker() -> Supervisor {
    Launch::new().set("workers.count", "1").serving(1)
}

fn count_of(supervisor: &Supervisor, name: &str) -> u64 {
    get(supervisor.address(), "/debug/connections").json()[name].as_u64().expect("a count")
}

/// Sends SIGTERM and returns once the worker drains.
fn begin_stop(supervisor: &Supervisor) {
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
}

#[track_caller]
fn assert_clean_end(mut supervisor: Supervisor) {
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    let log = supervisor.log();
    assert_eq!(log.count(events::KILLED), 0, "no worker had to be killed");
    assert_eq!(log.count(events::DRAINED), 1);
}

#[test]
fn a_request_in_flight_is_answered() {
    let supervisor = one_worker();
    let before = count_of(&supervisor, "active_requests");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/debug/sleep/2000", &[], b"")).expect("sent");
    eventually("it is being handled", PATIENCE, || (count_of(&supervisor, "active_requests") > before).then_some(()));
    begin_stop(&supervisor);
    let answer = connection.answer().expect("the answer");
    assert_eq!(answer.status, 200);
    assert!(answer.closes(), "{:?}", answer.headers);
    connection.wait_eof().expect("and then a clean end");
    assert_clean_end(supervisor);
}

/// Once the log says that the worker drains, each later answer says `Connection: close`. This is true even if the
/// master's message takes long to reach the worker.
#[test]
fn every_answer_says_close_once_the_log_shows_the_drain() {
    let supervisor = one_worker();
    let mut idle: Vec<_> = (0..20).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    for connection in &mut idle {
        assert!(!connection.get("/health").expect("an answer").closes(), "the service does not stop yet");
    }
    // strace delays each message from the master to the worker by half a second.
    let mut slow = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", "inject=sendto:delay_enter=500000", "-p"])
        .arg(supervisor.pid().to_string())
        .spawn()
        .expect("strace can be run");
    eventually("strace holds the master", PATIENCE, || {
        (supervisor.master().status()["TracerPid"] != "0").then_some(())
    });
    begin_stop(&supervisor);
    for connection in &mut idle {
        let answer = connection.get("/ready").expect("an answer");
        assert!(answer.closes(), "{:?}", answer.headers);
        assert_eq!(answer.status, 503, "the service stops");
    }
    assert_clean_end(supervisor);
    slow.wait().expect("it ends with the master");
}

#[test]
fn idle_connections_get_one_more_answer() {
    let supervisor = one_worker();
    let mut idle: Vec<_> = (0..20).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    for connection in &mut idle {
        let answer = connection.get("/health").expect("an answer");
        assert!(!answer.closes(), "the service does not stop yet");
    }
    begin_stop(&supervisor);
    for connection in &mut idle {
        let answer = connection.get("/health").expect("the next request of an idle connection is served");
        assert_eq!(answer.status, 200);
        assert!(answer.closes(), "{:?}", answer.headers);
        connection.wait_eof().expect("and then a clean end");
    }
    assert_clean_end(supervisor);
}

#[test]
fn silent_connections_are_served_when_they_send_a_request() {
    let supervisor = one_worker();
    let before = count_of(&supervisor, "connections");
    let mut silent: Vec<_> = (0..20).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    eventually("all are accepted", PATIENCE, || (count_of(&supervisor, "connections") >= before + 20).then_some(()));
    begin_stop(&supervisor);
    for connection in &mut silent {
        let answer = connection.get("/health").expect("the first request is served");
        assert!(answer.status == 200 && answer.closes(), "{answer:?}");
    }
    assert_clean_end(supervisor);
}

/// The kernel has accepted these connections, but the worker has not yet. They arrived before the stop, so the worker
/// must serve them too.
#[test]
fn queued_connections_are_served() {
    let supervisor = one_worker();
    let mut blocker = Connection::open(supervisor.address()).expect("a connection");
    blocker.send(&request("GET", "/debug/block/2500", &[], b"")).expect("sent");
    let probe = || {
        let mut probe = Connection::open(supervisor.address())?;
        probe.patience(Duration::from_millis(300));
        probe.get("/health")
    };
    eventually("the worker is blocked", PATIENCE, || probe().is_err().then_some(()));
    let mut queued: Vec<_> = (0..100).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    for connection in &mut queued {
        connection.send(&request("GET", "/health", &[], b"")).expect("the kernel takes it");
    }
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log(events::STOPPING, 1, PATIENCE);
    assert_eq!(blocker.answer().expect("the blocking request is answered").status, 200);
    for (number, connection) in queued.iter_mut().enumerate() {
        let answer = connection.answer().unwrap_or_else(|failure| panic!("queued connection {number}: {failure}"));
        assert_eq!(answer.status, 200);
    }
    assert_clean_end(supervisor);
}

#[test]
fn a_half_sent_body_may_be_finished() {
    let supervisor = one_worker();
    let before = count_of(&supervisor, "active_requests");
    let body = [b'x'; 64 * 1024];
    let whole = request("POST", "/debug/echo", &[], &body);
    let (first, second) = whole.split_at(whole.len() / 2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(first).expect("sent");
    eventually("it is being handled", PATIENCE, || (count_of(&supervisor, "active_requests") > before).then_some(()));
    begin_stop(&supervisor);
    connection.send(second).expect("the rest is taken");
    let answer = connection.answer().expect("the answer");
    assert!(answer.status == 200 && answer.body == body && answer.closes(), "{:?}", answer.headers);
    assert_clean_end(supervisor);
}

#[test]
fn a_half_sent_head_may_be_finished() {
    let supervisor = one_worker();
    let before = count_of(&supervisor, "connections");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(b"GET /health HT").expect("sent");
    eventually("it is accepted", PATIENCE, || (count_of(&supervisor, "connections") > before).then_some(()));
    begin_stop(&supervisor);
    connection.send(b"TP/1.1\r\nHost: localhost\r\n\r\n").expect("the rest is taken");
    assert_eq!(connection.answer().expect("the answer").status, 200);
    assert_clean_end(supervisor);
}

/// HTTP lets the server end a pipeline early if an answer says `Connection: close`. Every answer that the server began
/// must arrive complete, without a reset.
#[test]
fn a_pipeline_ends_with_a_complete_answer() {
    let supervisor = one_worker();
    let before = count_of(&supervisor, "active_requests");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let one = request("GET", "/debug/sleep/700", &[], b"");
    connection.send(&[one.as_slice(), &one, &one].concat()).expect("sent");
    eventually("the first is being handled", PATIENCE, || {
        (count_of(&supervisor, "active_requests") > before).then_some(())
    });
    begin_stop(&supervisor);
    for number in 1..=3 {
        let answer = connection.answer().unwrap_or_else(|failure| panic!("answer {number}: {failure}"));
        assert_eq!(answer.status, 200);
        if answer.closes() {
            break;
        }
        assert!(number < 3, "the last answer must say that it is the last");
    }
    connection.wait_eof().expect("a clean end, not a reset");
    assert_clean_end(supervisor);
}

#[test]
fn clients_of_every_kind_lose_nothing_while_the_stop_begins() {
    let supervisor = Launch::new().serving(2);
    let address = supervisor.address();
    let loads = [
        Load::start(address, "/debug/connections", 6, Mode::KeepAlive { think_ms: 20 }),
        Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 10 }),
        Load::start(address, "/debug/connections", 8, Mode::SlowFirstByte { up_to_ms: 300 }),
    ];
    eventually("the load runs", PATIENCE, || loads.iter().all(|load| load.answered() >= 20).then_some(()));
    let mut supervisor = supervisor;
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log(events::DRAINING, 2, PATIENCE);
    // The workers still accept new connections for one second after the stop. These clients leave before this second is
    // over, so they lose nothing.
    for load in loads {
        load.finish().assert_nothing_lost();
    }
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn requests_cut_at_the_graceful_timeout_are_counted() {
    let mut supervisor = Launch::new().set("workers.count", "1").set("workers.graceful_timeout", r#""2s""#).serving(1);
    let before = count_of(&supervisor, "active_requests");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/debug/sleep/20000", &[], b"")).expect("sent");
    eventually("it is being handled", PATIENCE, || (count_of(&supervisor, "active_requests") > before).then_some(()));
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    connection.answer().expect_err("the request was cut");
    let log = supervisor.log();
    let told = log.0.lines().any(|line| field(line, events::CUT_FIELD) == Some("1"));
    assert!(told, "the log says that one request was cut");
}
