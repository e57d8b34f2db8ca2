//! Promise: when the master is killed, its workers finish their requests and exit, and the next start can bind the same
//! port.

use std::{net::TcpListener, time::Duration};

use crate::common::{Connection, Launch, PATIENCE, Process, Signal, eventually, get, now, request};

#[test]
fn workers_exit_after_their_master_is_killed() {
    let graceful = Duration::from_secs(6);
    let mut supervisor = Launch::new().set("workers.graceful_timeout", r#""6s""#).serving(2);
    let (address, workers) = (supervisor.address(), supervisor.worker_pids());
    let mut connection = Connection::open(address).expect("a connection");
    let busy = connection.get("/debug/connections").expect("an answer").pid().expect("the route tells the pid");
    connection.send(&request("GET", "/debug/sleep/4000", &[], b"")).expect("sent");
    let mut idle = Connection::open(address).expect("a connection");
    idle.get("/health").expect("an answer");
    let mut hopeless = Connection::open(address).expect("a connection");
    hopeless.send(&request("GET", "/debug/sleep/60000", &[], b"")).expect("sent");

    let started = now();
    supervisor.signal(Signal::SIGKILL);
    eventually("the master is dead", PATIENCE, || (!supervisor.is_running()).then_some(()));
    let answer = idle.get("/health").expect("an idle connection is served once more");
    assert_eq!(answer.status, 200);
    eventually("the port can be bound", Duration::from_secs(4), || TcpListener::bind(address).ok());
    eprintln!("the port was free after {:?}", started.elapsed());
    assert!(Process(busy).is_alive(), "the worker still has a request to answer");

    // Starts the next service on the same port while the old workers still drain.
    let mut next = Launch::new().set("server.bind", &format!("[\"{address}\"]")).serving(2);
    assert_eq!(get(address, "/health").status, 200);
    assert_eq!(connection.answer().expect("the request in flight is answered").status, 200);
    eventually("all workers are gone", graceful + Duration::from_secs(4), || {
        workers.iter().all(|pid| !Process(*pid).is_alive()).then_some(())
    });
    next.stop();
}
