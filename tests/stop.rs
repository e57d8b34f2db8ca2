//! Promise: a stop ends in time with exit code 0, resets no client however the stop was ordered, and frees the port
//! long before the last request is done. `make soak-stop` runs the long form.

use std::{net::TcpListener, thread, time::Duration};

use crate::common::{
    Connection, Launch, PATIENCE, Signal, Supervisor, events, eventually, field, get, now, observe_for, request,
};
use crate::stops::{Way, stop_many};

/// Sends a request that takes `millis` milliseconds, and returns once a handler works on it. The service must have only
/// one worker, because each worker reports only its own count of requests.
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

/// Runs all cases at the same time. This saves time, because a stop mostly waits.
fn side_by_side<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| test(case));
        }
    });
}

fn one_worker() -> Launch {
    Launch::new().set("workers.count", "1")
}

#[test]
fn term_ends_an_idle_service_with_exit_code_zero() {
    let mut supervisor = Launch::new().serving(2);
    let started = now();
    supervisor.stop();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "a stop of an idle service has nothing to wait for: {:?}",
        started.elapsed()
    );
    let log = supervisor.log();
    assert_eq!((log.count(events::STOPPING), log.count(events::STOPPED)), (1, 1));
    assert_eq!((log.count(events::DRAINING), log.count(events::KILLED)), (2, 0));
    Connection::open(supervisor.address()).err().expect("nothing listens any more");
}

#[test]
fn int_and_quit_are_quick() {
    side_by_side([Signal::SIGINT, Signal::SIGQUIT], |signal| {
        let mut supervisor = one_worker().serving(1);
        let _request = busy(&supervisor, 10_000);
        let started = now();
        supervisor.signal(signal);
        assert_eq!(supervisor.wait_exit(PATIENCE), 0, "{signal}");
        let took = started.elapsed();
        assert!(took < Duration::from_millis(4500), "{signal}: workers get two seconds, it took {took:?}");
        assert_eq!(supervisor.leftovers(), []);
    });
}

#[test]
fn a_second_signal_shortens_a_stop() {
    side_by_side([Signal::SIGTERM, Signal::SIGINT], |second| {
        let mut supervisor = one_worker().set("workers.graceful_timeout", r#""30s""#).serving(1);
        let _request = busy(&supervisor, 25_000);
        supervisor.signal(Signal::SIGTERM);
        supervisor.wait_log(events::DRAINING, 1, PATIENCE);
        if second == Signal::SIGTERM {
            // The pause is longer than a second, because the master treats a signal less than a second after the first
            // signal as the same signal.
            observe_for(Duration::from_millis(1100));
        }
        let started = now();
        supervisor.signal(second);
        assert_eq!(supervisor.wait_exit(PATIENCE), 0);
        assert!(started.elapsed() < Duration::from_millis(4500), "{second}: {:?}", started.elapsed());
    });
}

/// The service may get the signal twice although there is only one stop. For example, `timeout 5 oxicorn` signals its
/// child and then its group, and an init with a trap forwards a signal that the whole group has already received.
#[test]
fn a_signal_delivered_twice_counts_once() {
    side_by_side([(Signal::SIGTERM, 3000), (Signal::SIGINT, 1200)], |(signal, millis)| {
        let mut supervisor = one_worker().set("workers.graceful_timeout", r#""30s""#).serving(1);
        let mut request = busy(&supervisor, millis);
        for _ in 0..3 {
            supervisor.signal(signal);
            observe_for(Duration::from_millis(20));
        }
        assert_eq!(request.answer().expect("the request is not cut").status, 200, "{signal}");
        assert_eq!(supervisor.wait_exit(PATIENCE), 0);
        assert_eq!(supervisor.log().count(events::STOPPING), 1, "{signal}");
    });
}

fn assert_stops_reset_nobody(way: Way) {
    let outcome = stop_many(way, 10);
    eprintln!("{way:?}: {outcome}");
    assert!(outcome.is_clean(), "{way:?}: {outcome}");
}

#[test]
fn stops_of_the_master_reset_no_client() {
    assert_stops_reset_nobody(Way::Master);
}

#[test]
fn stops_of_the_process_group_reset_no_client() {
    assert_stops_reset_nobody(Way::Group);
}

#[test]
fn stops_signalled_twice_reset_no_client() {
    assert_stops_reset_nobody(Way::Twice);
}

#[test]
fn stops_in_the_order_of_systemd_reset_no_client() {
    assert_stops_reset_nobody(Way::MasterThenWorkers);
}

#[test]
fn stops_that_reach_the_workers_first_reset_no_client() {
    assert_stops_reset_nobody(Way::WorkersThenMaster);
}

/// The only worker cannot accept, and the master kills it at the end of the grace. The connections that still wait in
/// the queue are lost, and the log must count them.
#[test]
fn connections_that_no_worker_accepted_are_counted() {
    let mut supervisor = one_worker().set("workers.graceful_timeout", r#""1s""#).serving(1);
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGSTOP);
    let queued: Vec<_> = (0..5).map(|_| Connection::open(supervisor.address()).expect("the kernel takes it")).collect();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    drop(queued);
    let lines = supervisor.wait_log("connections_reset", 1, PATIENCE);
    assert_eq!(field(&lines[0], "connections"), Some("5"), "{lines:?}");
    let log = supervisor.log();
    let totals = log.lines_of("totals").last().and_then(|line| field(line, "cut"));
    assert_eq!(totals, Some("5"), "{}", log.tail(10));
}

/// If a worker dies during the stop, its requests are lost too, and the log must count them.
#[test]
fn requests_of_a_worker_that_is_killed_are_counted() {
    let mut supervisor = one_worker().serving(1);
    let _request = busy(&supervisor, 10_000);
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGKILL);
    supervisor.wait_log(events::EXITED, 1, PATIENCE);
    supervisor.stop();
    let log = supervisor.log();
    let totals = log.lines_of("totals").last().and_then(|line| field(line, "cut"));
    assert_eq!(totals, Some("1"), "{}", log.tail(10));
}

#[test]
fn a_second_signal_never_lengthens_a_stop() {
    let mut supervisor = one_worker().set("workers.graceful_timeout", r#""30s""#).serving(1);
    let _request = busy(&supervisor, 25_000);
    let started = now();
    supervisor.signal(Signal::SIGINT);
    supervisor.wait_log(events::STOPPING, 1, PATIENCE);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
}

/// During the delay, only `/ready` fails, so that the load balancer learns of the stop first. Clients that still
/// connect are served.
#[test]
fn during_shutdown_delay_only_ready_fails() {
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
