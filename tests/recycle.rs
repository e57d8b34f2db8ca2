//! Promise: a planned replacement of a worker loses no request. The new worker serves before the old worker drains.

use std::collections::BTreeSet;

use crate::common::{Connection, Launch, Load, Log, Mode, PATIENCE, events, eventually, field, get};

/// Replays the log. Asserts that, once `count` workers had served, never fewer than `count` workers served. Also
/// asserts that never more than `count + max(count / 4, 1)` workers served.
#[track_caller]
fn assert_serving_stays_within(log: &Log, count: usize) {
    let most = count + (count / 4).max(1);
    let (mut serving, mut complete) = (BTreeSet::new(), false);
    for line in log.0.lines() {
        let (Some(event), Some(pid)) = (field(line, "event"), field(line, "pid")) else { continue };
        match event {
            events::SERVING => _ = serving.insert(pid),
            events::DRAINING | events::EXITED => _ = serving.remove(pid),
            _ => continue,
        }
        complete |= serving.len() == count;
        assert!(!complete || serving.len() >= count, "only {} workers served at: {line}", serving.len());
        assert!(serving.len() <= most, "{} workers served at: {line}", serving.len());
    }
    assert!(complete, "all {count} workers served once");
}

/// Returns the numbers in a log line that are in the range `among`. Leaves out the line's time and the fields `pid`,
/// `slot`, `generation` and `heir`.
fn numbers(line: &str, among: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    line.split_whitespace()
        .skip(1)
        .filter(|word| !["pid=", "slot=", "generation=", "heir="].iter().any(|name| word.starts_with(name)))
        .flat_map(|word| word.split(|sign: char| !sign.is_ascii_digit()))
        .filter_map(|digits| digits.parse().ok())
        .filter(|number| among.contains(number))
        .collect()
}

#[test]
fn max_requests_under_load_loses_nothing() {
    let mut supervisor = Launch::new()
        .set("workers.count", "4")
        .set("workers.max_requests", "200")
        .set("workers.max_requests_jitter", "100")
        .serving(4);
    let address = supervisor.address();
    let keep_alive = Load::start(address, "/debug/connections", 8, Mode::KeepAlive { think_ms: 20 });
    let new = Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 10 });
    let silent = Load::start(address, "/debug/connections", 4, Mode::SlowFirstByte { up_to_ms: 900 });
    eventually("twelve recycles", 3 * PATIENCE, || {
        (supervisor.log().count(events::RECYCLE_REQUESTED) >= 12).then_some(())
    });
    for load in [keep_alive, new, silent] {
        load.finish().assert_nothing_lost();
    }
    let log = supervisor.log();
    assert_serving_stays_within(&log, 4);
    assert_eq!(log.count(events::KILLED), 0, "no drain had to be ended by force");
    let limits: BTreeSet<_> =
        log.lines_of(events::RECYCLE_REQUESTED).flat_map(|line| numbers(line, 200..=320)).collect();
    assert!(limits.len() > 2, "the jitter is drawn for each worker: {limits:?}");
    supervisor.stop();
}

#[test]
fn every_worker_is_replaced_and_answers() {
    let supervisor = Launch::new().set("workers.max_requests", "50").serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::KeepAlive { think_ms: 2 });
    eventually("eight recycles", PATIENCE, || (supervisor.log().count(events::RECYCLE_REQUESTED) >= 8).then_some(()));
    let tally = load.finish();
    tally.assert_nothing_lost();
    assert!(tally.pids.len() >= 8, "{:?}", tally.pids);
    for (pid, count) in &tally.pids {
        assert!(*count < 500, "worker {pid} answered {count} requests, its limit is 50");
    }
}

#[test]
fn a_long_request_outlives_the_recycle_of_its_worker() {
    let supervisor = Launch::new().set("workers.count", "1").set("workers.max_requests", "20").serving(1);
    let first = supervisor.serving_pids()[0];
    let mut long = Connection::open(supervisor.address()).expect("a connection");
    long.send(&crate::common::request("GET", "/debug/sleep/4000", &[], b"")).expect("sent");
    let heir = eventually("a new worker answers", PATIENCE, || {
        get(supervisor.address(), "/debug/connections").pid().filter(|pid| *pid != first)
    });
    assert_ne!(heir, first);
    assert!(supervisor.worker_pids().contains(&first), "the old worker drains");
    assert_eq!(long.answer().expect("the long request is answered").status, 200);
    supervisor.wait_gone(first);
}

#[test]
fn max_age_replaces_idle_workers() {
    let supervisor = Launch::new().set("workers.max_age", r#""1s""#).serving(2);
    let first = supervisor.worker_pids();
    for pid in &first {
        supervisor.wait_gone(*pid);
    }
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    assert_serving_stays_within(&supervisor.log(), 2);
}

#[test]
fn max_rss_replaces_a_worker_that_grew() {
    let supervisor = Launch::new().set("workers.max_rss", r#""200MiB""#).serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let grown = connection.get("/debug/connections").expect("an answer").pid().expect("the route tells the pid");
    assert_eq!(connection.get("/debug/allocate/300").expect("an answer").status, 200);
    drop(connection);
    let asked = supervisor.wait_log(events::RECYCLE_REQUESTED, 1, 2 * PATIENCE);
    assert_eq!(field(&asked[0], "pid"), Some(grown.to_string().as_str()), "{}", asked[0]);
    assert!(asked[0].contains("max_rss"), "the key is named: {}", asked[0]);
    supervisor.wait_gone(grown);
    let now = supervisor.wait_serving(2);
    assert!(!now.contains(&grown));
    assert_serving_stays_within(&supervisor.log(), 2);
}
