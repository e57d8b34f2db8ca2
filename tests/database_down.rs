//! Promise: while the database is gone, requests that need it get 503 and nothing else happens. The service stays
//! alive, no worker is restarted, and no request hangs. All requests work again as soon as the database works. A
//! database that accepts no writes is still read, and the service reports that the database is in this state.
//!
//! Needs root, because one test mounts a small disk.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::common::{
    Canary, Connection, Launch, Load, Mode, Mongod, PATIENCE, Signal, Supervisor, events, eventually, get,
    json_request, now, observe_for,
};
use serde_json::json;

/// The longest time that a request may wait for a database that is gone. The request may wait two seconds for a server
/// to be found, and three seconds for this server's answer. docs/reference/reference-service.md states this bound.
const BOUND: Duration = Duration::from_secs(5);
/// How soon requests work again after the database is back. This bound is the sum of two times: the time to find the
/// server, and the second for which the service keeps its last readiness answer.
const RECOVERY: Duration = Duration::from_secs(3);
const WORKERS: usize = 2;

#[test]
fn writes_recover_when_the_database_is_killed_and_started_again() {
    outage(|mongod| mongod.kill(), Mongod::start_again);
}

#[test]
fn writes_recover_when_the_database_is_stopped_and_continued() {
    outage(|mongod| mongod.signal(Signal::SIGSTOP), |mongod| mongod.signal(Signal::SIGCONT));
}

#[test]
fn the_service_starts_without_the_database_and_becomes_ready_with_it() {
    let mut mongod = Mongod::start();
    mongod.kill();
    let mut supervisor = launch(&mongod).serving(WORKERS);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    wait_ready(&supervisor, 503);
    assert_eq!(write(supervisor.address()), 503);
    mongod.start_again();
    wait_ready(&supervisor, 200);
    assert_eq!(write(supervisor.address()), 201);
    assert_eq!(supervisor.log().count(events::FORKED), WORKERS, "no worker was restarted");
    supervisor.stop();
}

fn launch(mongod: &Mongod) -> Launch {
    Launch::new().env("MONGODB_URI", &mongod.uri())
}

fn write(address: SocketAddr) -> u16 {
    let request = json_request("POST", "/facts", &json!({"text": "written in hard times"}));
    let answer = Connection::open(address).and_then(|mut connection| connection.ask(&request));
    let answer = answer.unwrap_or_else(|failure| panic!("POST /facts: {failure}"));
    if answer.status == 503 {
        assert_eq!(answer.json()["type"], "unavailable", "{}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
    }
    answer.status
}

/// Asks `/ready` until eight answers in a row have this status. Connections reach the workers more or less in turn, so
/// each worker has given at least one of the eight answers.
fn wait_ready(supervisor: &Supervisor, status: u16) {
    eventually(&format!("/ready answers {status} again and again"), PATIENCE, || {
        (0..8)
            .all(|_| {
                let answer = get(supervisor.address(), "/ready");
                let (word, database) = if status == 200 { ("ready", "ok") } else { ("degraded", "unavailable") };
                answer.status == status && answer.json() == json!({"status": word, "checks": {"database": database}})
            })
            .then_some(())
    });
}

/// Writes facts until `enough` is set. Returns the number of answers by status, and the longest time that an answer
/// took.
fn writes(address: SocketAddr, enough: &AtomicBool) -> (BTreeMap<u16, u32>, Duration) {
    let (mut statuses, mut longest) = (BTreeMap::new(), Duration::ZERO);
    while !enough.load(Ordering::Relaxed) {
        let began = now();
        *statuses.entry(write(address)).or_default() += 1;
        longest = longest.max(began.elapsed());
    }
    (statuses, longest)
}

fn outage(gone: impl Fn(&mut Mongod), back: impl Fn(&mut Mongod)) {
    let mut mongod = Mongod::start();
    let mut supervisor = launch(&mongod).serving(WORKERS);
    let address = supervisor.address();
    let workers = supervisor.worker_pids();
    wait_ready(&supervisor, 200);

    let canary = Canary::start();
    let liveness = Load::start(address, "/health", 2, Mode::PerRequest { think_ms: 5 });
    let enough = AtomicBool::new(false);
    let (recovered, writers) = thread::scope(|scope| {
        let writers: Vec<_> = (0..8).map(|_| scope.spawn(|| writes(address, &enough))).collect();
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gone(&mut mongod);
            wait_ready(&supervisor, 503);
            // The database stays away long enough for each writer to wait until its time limit.
            observe_for(BOUND + Duration::from_secs(1));
            assert_eq!(get(address, "/ready").status, 503);
            back(&mut mongod);
            let began = now();
            wait_ready(&supervisor, 200);
            began.elapsed()
        }));
        enough.store(true, Ordering::Relaxed);
        let writers: Vec<_> =
            writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect();
        (story.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), writers)
    });
    let stall = canary.longest();
    let longest = writers.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    eprintln!("recovered in {recovered:?}, longest write {longest:?}, stall {stall:?}, {:?}", writers[0].0);
    liveness.finish().assert_nothing_lost();
    assert!(longest < BOUND + Duration::from_millis(500) + 4 * stall, "a request took {longest:?}, stalls {stall:?}");
    assert!(recovered < RECOVERY + 4 * stall, "ready again after {recovered:?}, stalls {stall:?}");
    for (statuses, _) in &writers {
        assert!(statuses.keys().all(|status| matches!(status, 201 | 503)), "{statuses:?}");
        assert!(statuses.contains_key(&503), "each writer met the outage: {statuses:?}");
    }

    assert_eq!(write(address), 201);
    assert_eq!(supervisor.worker_pids(), workers, "no worker was restarted");
    let log = supervisor.log();
    assert_eq!(log.count(events::FORKED), WORKERS);
    // When the database goes and comes back, a few requests fail while others succeed. Still, the log must not have a
    // line for each request.
    let lines = log.count("dependency_failed");
    assert!((1..=20).contains(&lines), "{lines} lines of one outage");
    assert!(log.count("dependency_recovered") >= 1);
    supervisor.stop();
}

/// A shell mounts the disk in a new mount namespace, in which the service then runs. The test fills the disk from
/// outside.
#[test]
fn a_full_disk_fails_writes_and_is_reported_once() {
    let mount = "mkdir data && mount -t tmpfs -o size=2m tmpfs data && exec \"$0\" \"$@\"";
    let launch = Launch::new().unset("service.sqlite_path").set("workers.count", "1");
    let mut supervisor = launch.through(&["unshare", "-m", "sh", "-c", mount]).serving(1);
    let address = supervisor.address();
    assert_eq!((write(address), get(address, "/facts").status), (201, 200));
    assert_eq!(get(address, "/ready").json(), json!({"status": "ready", "checks": {"database": "ok"}}));

    let seen = format!("/proc/{}/root{}", supervisor.pid(), supervisor.path("data/filler").display());
    let filled = std::io::copy(&mut std::io::repeat(b'x'), &mut std::fs::File::create(&seen).expect("a file"));
    assert_eq!(filled.expect_err("it has an end").kind(), std::io::ErrorKind::StorageFull);
    let mut statuses = BTreeMap::<(u16, u16), u32>::new();
    let unknown = "/facts/01a20155-6968-7621-88be-ae16c701f5b1";
    for _ in 0..100 {
        let written = write(address);
        *statuses.entry((written, get(address, "/facts").status)).or_default() += 1;
        let change = json_request("PUT", unknown, &json!({"text": "there is nothing to write"}));
        Connection::open(address).and_then(|mut connection| connection.ask(&change)).expect("an answer");
    }
    assert_eq!(statuses, BTreeMap::from([((503, 200), 100)]));
    eventually("it is read-only", PATIENCE, || {
        let answer = get(address, "/ready");
        let read_only = json!({"status": "degraded", "checks": {"database": "read-only"}});
        (answer.status == 503 && answer.json() == read_only).then_some(())
    });
    let log = supervisor.log();
    let failed: Vec<_> = log.lines_of("dependency_failed").collect();
    assert_eq!((failed.len(), log.count("dependency_recovered")), (1, 0), "{failed:#?}");
    assert!(failed[0].contains("writing to the database fails") && failed[0].contains("full"), "{}", failed[0]);

    std::fs::remove_file(&seen).expect("our own file");
    wait_ready(&supervisor, 200);
    supervisor.wait_log("dependency_recovered", 1, PATIENCE);
    assert_eq!(write(address), 201);
    supervisor.stop();
}
