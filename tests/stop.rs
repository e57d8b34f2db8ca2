//! Promise: a stop ends in time with exit code 0, and its port is free long before the last request is done.

use std::{net::TcpListener, time::Duration};

use crate::common::{Connection, Launch, PATIENCE, Signal, Supervisor, events, eventually, get, now, request};

/// A request that is being handled when this returns. One worker only, whose count of requests is watched.
#[track_caller]
fn busy(supervisor: &Supervisor, millis: u32) -> Connection {
    let active =
        || get(supervisor.address(), "/debug/connections").json()["active_requests"].as_u64().expect("a count");
    let before = active();
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", &format!("/debug/sleep/{millis}"), &[], b"")).expect("a request is taken");
    eventually("the request is being handled", PATIENCE, || (active() > before).then_some(()));
    connection
}

fn one_worker() -> Launch {
    Launch::new().set("workers.count", "1")
}

#[test]
fn term_ends_an_idle_service_with_zero() {
    let mut supervisor = Launch::new().serving(2);
    let started = now();
    supervisor.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "nothing was to be waited for: {:?}", started.elapsed());
    let log = supervisor.log();
    assert_eq!((log.count(events::STOPPING), log.count(events::STOPPED)), (1, 1));
    assert_eq!((log.count(events::DRAINING), log.count(events::KILLED)), (2, 0));
    Connection::open(supervisor.address()).err().expect("nobody listens any more");
}

#[test]
fn int_and_quit_are_quick() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut supervisor = one_worker().serving(1);
        let _request = busy(&supervisor, 10_000);
        let started = now();
        supervisor.signal(signal);
        assert_eq!(supervisor.wait_exit(PATIENCE), 0, "{signal}");
        let took = started.elapsed();
        assert!(took < Duration::from_millis(4500), "{signal}: workers get two seconds, it took {took:?}");
        assert_eq!(supervisor.leftovers(), []);
    }
}

#[test]
fn a_second_signal_hurries() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let mut supervisor = one_worker().set("workers.graceful_timeout", r#""30s""#).serving(1);
        let _request = busy(&supervisor, 25_000);
        supervisor.signal(Signal::SIGTERM);
        supervisor.wait_log(events::DRAINING, 1, PATIENCE);
        let started = now();
        supervisor.signal(second);
        assert_eq!(supervisor.wait_exit(PATIENCE), 0);
        assert!(started.elapsed() < Duration::from_millis(4500), "{second}: {:?}", started.elapsed());
    }
}

#[test]
fn a_second_signal_never_lengthens() {
    let mut supervisor = one_worker().set("workers.graceful_timeout", r#""30s""#).serving(1);
    let _request = busy(&supervisor, 25_000);
    let started = now();
    supervisor.signal(Signal::SIGINT);
    supervisor.wait_log(events::STOPPING, 1, PATIENCE);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
}

/// The balancer is told first, and whoever still comes is served.
#[test]
fn during_shutdown_delay_ready_says_no_and_all_else_works() {
    let mut supervisor = Launch::new().set("workers.shutdown_delay", r#""2s""#).serving(2);
    let started = now();
    supervisor.signal(Signal::SIGTERM);
    let refused = eventually("/ready answers 503", Duration::from_millis(1500), || {
        let answer = get(supervisor.address(), "/ready");
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refused.json()["status"], "draining");
    let mut asked = 0;
    while started.elapsed() < Duration::from_millis(1500) {
        assert_eq!(get(supervisor.address(), "/health").status, 200);
        assert_eq!(get(supervisor.address(), "/ready").status, 503);
        asked += 1;
    }
    assert!(asked > 0);
    assert_eq!(supervisor.log().count(events::DRAINING), 0, "no worker drains before the delay is over");
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(started.elapsed() >= Duration::from_millis(1900), "the delay was cut to {:?}", started.elapsed());
}

#[test]
fn the_port_is_free_while_a_long_request_drains() {
    let mut supervisor = one_worker().serving(1);
    let mut request = busy(&supervisor, 5000);
    let started = now();
    supervisor.signal(Signal::SIGTERM);
    eventually("the port can be bound again", Duration::from_secs(4), || TcpListener::bind(supervisor.address()).ok());
    eprintln!("free after {:?}", started.elapsed());
    assert!(supervisor.is_running(), "the request still drains");
    let answer = request.answer().expect("the request is not lost");
    assert_eq!(answer.status, 200);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}
