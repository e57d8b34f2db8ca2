//! Promise: each signal to the master or to a worker does what the table in the documentation says. A signal sent by
//! mistake does no harm.

use std::{fs, time::Duration};

use crate::common::{
    Canary, Connection, Launch, Load, Mode, PATIENCE, Process, Signal, events, eventually, get, now, observe_for,
};

#[test]
fn winch_is_logged_and_does_no_harm() {
    let mut supervisor = Launch::new().serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::KeepAlive { think_ms: 5 });
    supervisor.signal(Signal::SIGWINCH);
    let lines = supervisor.wait_log(events::SIGNAL_IGNORED, 1, PATIENCE);
    assert!(lines[0].contains("WINCH"), "{lines:?}");
    let answered = load.answered();
    eventually("the load continues", PATIENCE, || (load.answered() >= answered + 50).then_some(()));
    assert!(supervisor.is_running());
    load.finish().assert_nothing_lost();
    supervisor.wait_serving(2);
    supervisor.stop();
}

/// If one of these signals were deadly, it would kill the worker before the worker runs again. One more answer from the
/// same worker therefore proves that all these signals are harmless.
#[test]
fn signals_sent_to_a_worker_by_mistake_do_not_kill_it() {
    let supervisor = Launch::new().set("workers.count", "1").serving(1);
    let worker = supervisor.worker_pids()[0];
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGWINCH,
        Signal::SIGPIPE,
    ] {
        supervisor.signal_worker(worker, signal);
        assert_eq!(get(supervisor.address(), "/debug/connections").pid(), Some(worker), "after {signal}");
    }
    let log = supervisor.log();
    assert_eq!((log.count(events::EXITED), log.count(events::SCALED), log.count(events::STOPPING)), (0, 0, 0));
}

#[test]
fn term_to_one_worker_drains_and_replaces_it() {
    let mut supervisor = Launch::new().serving(2);
    let address = supervisor.address();
    let keep_alive = Load::start(address, "/debug/connections", 6, Mode::KeepAlive { think_ms: 10 });
    let new = Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 5 });
    eventually("the load runs", PATIENCE, || (keep_alive.answered() >= 50 && new.answered() >= 50).then_some(()));
    for worker in supervisor.worker_pids() {
        supervisor.signal_worker(worker, Signal::SIGTERM);
        supervisor.wait_gone(worker);
        supervisor.wait_serving(2);
    }
    keep_alive.finish().assert_nothing_lost();
    new.finish().assert_nothing_lost();
    assert!(supervisor.is_running());
    assert_eq!(supervisor.log().count(events::STOPPING), 0, "one worker's TERM is not the master's");
    supervisor.stop();
}

#[test]
fn a_request_in_flight_survives_the_term_of_its_worker() {
    let supervisor = Launch::new().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let worker = connection.get("/debug/connections").expect("an answer").pid().expect("the route tells the pid");
    connection.send(&crate::common::request("GET", "/debug/sleep/1500", &[], b"")).expect("sent");
    supervisor.signal_worker(worker, Signal::SIGTERM);
    let answer = connection.answer().expect("the answer");
    assert!(answer.status == 200 && answer.closes(), "{:?}", answer.headers);
    supervisor.wait_gone(worker);
}

#[test]
fn usr1_reopens_the_log() {
    let mut supervisor = Launch::new().log_to("app.log").serving(2);
    let (current, rotated) = (supervisor.path("app.log"), supervisor.path("app.log.1"));
    fs::rename(&current, &rotated).expect("our own file");
    supervisor.signal(Signal::SIGUSR1);
    eventually("a new file is begun", PATIENCE, || current.exists().then_some(()));
    supervisor.wait_log(events::LOGS_REOPENED, 1, PATIENCE);
    let old = fs::read_to_string(&rotated).expect("the old file stays");
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGKILL);
    supervisor.wait_log(events::EXITED, 1, PATIENCE);
    assert_eq!(fs::read_to_string(&rotated).expect("the old file stays"), old, "nothing more is written there");
    supervisor.wait_gone(worker);
    // This worker was forked before the rotation and writes its own lines to the log, so it must have opened the new
    // log file too.
    let elder = supervisor.worker_pids().into_iter().min().expect("the other worker");
    supervisor.signal_worker(elder, Signal::SIGTERM);
    let drained = supervisor.wait_log(events::DRAINED, 1, PATIENCE);
    assert!(drained[0].contains(&format!("pid={elder} ")), "{drained:?}");
    assert_eq!(fs::read_to_string(&rotated).expect("the old file stays"), old, "the worker still writes there");
    supervisor.wait_gone(elder);
    assert!(supervisor.worker_pids().into_iter().all(|pid| Process(pid).is_alive()));
    supervisor.stop();
}

/// A thousand signals a second arrive, and each signal asks the master to change something. No worker dies, no request
/// is lost, and the master obeys a TERM at once.
#[test]
fn a_storm_of_signals_kills_no_worker_and_a_term_ends_it() {
    let mut supervisor = Launch::new().set("workers.graceful_timeout", r#""3s""#).log_to("app.log").serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::PerRequest { think_ms: 2 });
    let storm = [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];
    let began = now();
    for signal in storm.into_iter().cycle().take(4_000) {
        supervisor.signal(signal);
        observe_for(Duration::from_millis(1));
    }
    eprintln!("4,000 signals in {:?}", began.elapsed());
    assert!(supervisor.is_running());
    // The TERM comes at a moment when a reload or an upgrade is still under way.
    load.finish().assert_nothing_lost();
    let (canary, asked) = (Canary::start(), now());
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    let (took, stall) = (asked.elapsed(), canary.longest());
    // The limit of five seconds is the sum of the grace (3 s), one second for the last accepts, and the time that an
    // exec takes.
    assert!(took < Duration::from_secs(5) + 4 * stall, "{took:?}, machine {stall:?}");
    assert_eq!(supervisor.leftovers(), []);
    let log = supervisor.log();
    assert!(log.count(events::UPGRADED) >= 1 && log.count(events::RELOADED) >= 1, "reload and upgrade both happen");
    for event in [events::HUNG, events::KILLED, events::UPGRADE_REFUSED, events::UPGRADE_ROLLED_BACK] {
        assert_eq!(log.count(event), 0, "{event}");
    }
}

/// The kernel merges two pending signals of the same kind into one. The master must handle all pending signals of
/// different kinds.
#[test]
fn different_signals_sent_together_are_all_handled() {
    let mut supervisor = Launch::new().serving(2);
    for signal in [Signal::SIGWINCH, Signal::SIGTTIN, Signal::SIGUSR1, Signal::SIGTERM] {
        supervisor.signal(signal);
    }
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert_eq!(supervisor.leftovers(), [], "the worker that TTIN asked for is gone too");
}
