//! Promise: with `workers.overlap = false` two workers of one slot never exist at once, only one slot at a time is
//! without a worker, and no request is lost. The connections wait meanwhile, even if the service has only one worker.

use std::fs;

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Signal, Supervisor, assert_told_all, build_example, events, eventually,
    field, get,
};

/// Returns the launch of a service each of whose workers holds a lock of its slot from its boot to its end. A worker
/// that finds the lock held cannot boot.
fn with_locks(workers: usize) -> Launch {
    let launch = Launch::of(build_example("code_on_disk"));
    let code = launch.path("code");
    fs::write(&code, "one\n").expect("our own folder");
    launch
        .set("workers.count", &workers.to_string())
        .set("workers.overlap", "false")
        .env("LOCKS", "{dir}")
        .env("CODE", "{dir}/code")
}

fn loads(supervisor: &Supervisor, path: &str) -> [Load; 2] {
    [
        Load::start(supervisor.address(), path, 4, Mode::KeepAlive { think_ms: 2 }),
        Load::start(supervisor.address(), path, 4, Mode::PerRequest { think_ms: 5 }),
    ]
}

/// Asserts that no worker found the lock of its slot held, and that at most one slot was without a worker at any time
/// after all of them had served.
#[track_caller]
fn assert_one_at_a_time(supervisor: &Supervisor, workers: usize) {
    let log = supervisor.log();
    assert_eq!(log.count(events::BOOT_FAILED), 0, "a lock was held: {}", log.0);
    let (mut serving, mut complete) = (0, false);
    for line in log.0.lines() {
        match field(line, "event") {
            Some(events::SERVING) => serving += 1,
            Some(events::DRAINING) => serving -= 1,
            _ => continue,
        }
        complete |= serving == workers;
        assert!(!complete || serving + 1 >= workers, "two slots were without a worker at: {line}");
    }
    assert!(complete, "all {workers} workers served once");
}

#[test]
fn reloads_and_recycles_under_load_lose_nothing() {
    for workers in [1, 2] {
        let mut supervisor = with_locks(workers).set("workers.max_requests", "400").serving(workers);
        let loads = loads(&supervisor, "/");
        for round in 1..=4 {
            fs::write(supervisor.path("code"), format!("code {round}\n")).expect("our own folder");
            supervisor.assert_reload(0, &["serves"]);
            let code = get(supervisor.address(), "/").json()["code"].as_str().map(str::to_owned);
            assert_eq!(code, Some(format!("code {round}")));
            let before = supervisor.total("recycled");
            eventually("a worker was recycled", PATIENCE, || (supervisor.total("recycled") > before).then_some(()));
        }
        loads.into_iter().for_each(|load| load.finish().assert_nothing_lost());
        assert_one_at_a_time(&supervisor, workers);
        assert_eq!(supervisor.log().count(events::KILLED), 0, "no drain had to be ended by force");
        supervisor.stop();
    }
}

#[test]
fn the_way_back_of_a_reload_restarts_one_slot_and_loses_nothing() {
    for workers in [1, 2] {
        let launch = Launch::misbehave().set("misbehave.boot", r#""ok""#).set("workers.overlap", "false");
        let mut supervisor = launch.set("workers.count", &workers.to_string()).serving(workers);
        let old = supervisor.serving_pids();
        let loads = loads(&supervisor, "/pid");
        supervisor.edit_settings(r#"boot = "ok""#, r#"boot = "error""#);
        supervisor.assert_reload(1, &["rolled back", "the moon is in the wrong house", "the others serve on"]);
        let now = supervisor.wait_serving(workers);
        loads.into_iter().for_each(|load| load.finish().assert_nothing_lost());
        let kept = now.iter().filter(|pid| old.contains(pid)).count();
        assert_eq!(kept, workers - 1, "{now:?}, before {old:?}");
        let status = supervisor.status();
        let generations: Vec<_> =
            status["workers"].as_array().expect("workers").iter().map(|w| &w["generation"]).collect();
        assert!(generations.iter().all(|generation| *generation == 1), "{generations:?}");
        assert_eq!(supervisor.log().count(events::BOOT_FAILED), 1, "only one new worker was tried");
        supervisor.stop();
    }
}

/// The preflight boots no worker, because that worker would find the lock held.
#[test]
fn an_upgrade_replaces_one_slot_after_the_other() {
    let mut supervisor = with_locks(2).serving(2);
    let old = supervisor.serving_pids();
    let loads = loads(&supervisor, "/");
    assert_told_all(&supervisor.ctl(&["upgrade"]), 0, &["serves with"]);
    let now = supervisor.wait_serving(2);
    assert!(!now.iter().any(|pid| old.contains(pid)), "{now:?}, before {old:?}");
    // The new program's workers fail: the old program gets its slot back, and the other slot is not touched.
    fs::write(supervisor.path("code"), "cannot start\n").expect("our own folder");
    let failed = supervisor.ctl(&["upgrade"]);
    assert_told_all(&failed, 1, &["rolled back", "cannot start", "the others serve on"]);
    fs::write(supervisor.path("code"), "one\n").expect("our own folder");
    let back = supervisor.wait_serving(2);
    assert_eq!(back.iter().filter(|pid| now.contains(pid)).count(), 1, "{back:?}, before {now:?}");
    loads.into_iter().for_each(|load| load.finish().assert_nothing_lost());
    let log = supervisor.log();
    assert!(log.lines_of(events::BOOT_FAILED).all(|line| line.contains("cannot start")), "a lock was held: {}", log.0);
    supervisor.stop();
}

#[test]
fn a_worker_that_hangs_or_is_told_to_end_is_gone_before_its_slot_gets_another() {
    let mut supervisor = with_locks(1).set("workers.timeout", r#""1s""#).serving(1);
    let first = supervisor.serving_pids()[0];
    supervisor.signal_worker(first, Signal::SIGSTOP);
    // This connection waits in the queue until the next worker serves.
    let mut waits = Connection::open(supervisor.address()).expect("a connection");
    let answer = waits.get("/").expect("an answer");
    assert_ne!(answer.pid(), Some(first));
    let second = supervisor.wait_serving(1)[0];
    supervisor.signal_worker(second, Signal::SIGTERM);
    supervisor.wait_gone(second);
    supervisor.wait_serving(1);
    let log = supervisor.log();
    assert_eq!((log.count(events::HUNG), log.count(events::BOOT_FAILED)), (1, 0), "{}", log.0);
    supervisor.stop();
}
