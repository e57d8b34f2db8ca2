//! Promise: a service that cannot boot says why in one line, exits with code 3, and leaves no process and no file
//! behind.

use std::fs;

use crate::common::{Launch, Log, PATIENCE, Signal, Supervisor, events, field, get};

/// Checks everything that must be true after a failed first boot. Returns the log line with which the master gives up,
/// and the whole log.
#[track_caller]
fn gave_up(mut supervisor: Supervisor) -> (String, Log) {
    let code = supervisor.wait_exit(PATIENCE);
    let log = supervisor.log();
    assert_eq!(code, 3, "no worker became ready at first boot");
    assert_eq!(supervisor.leftovers(), [], "no orphan stays");
    assert!(!supervisor.path("app.pid").exists(), "the pidfile is removed");
    let lines: Vec<_> = log.lines_of(events::SERVICE_BOOT_FAILED).map(str::to_owned).collect();
    assert_eq!(lines.len(), 1, "one line says why");
    (lines[0].clone(), log)
}

#[test]
fn a_store_that_cannot_be_opened_is_named() {
    let launch = Launch::new()
        .set("service.sqlite_path", r#""/proc/nowhere/facts.db""#)
        .set("process.pidfile", r#""{dir}/app.pid""#);
    let (line, log) = gave_up(launch.start());
    assert!(line.contains("/proc/nowhere"), "{line}");
    assert!(log.count(events::FORKED) <= 2 * 3 + 2, "it gives up after three tries in each slot");
}

#[test]
fn a_factory_that_fails_is_tried_three_times_in_each_slot() {
    let launch = Launch::misbehave().set("misbehave.boot", r#""error""#).set("process.pidfile", r#""{dir}/app.pid""#);
    let (line, log) = gave_up(launch.start());
    assert!(line.contains("the moon is in the wrong house"), "{line}");
    for slot in ["0", "1"] {
        let tries = log.lines_of(events::FORKED).filter(|line| field(line, "slot") == Some(slot)).count();
        assert!((3..=4).contains(&tries), "slot {slot} was tried {tries} times");
    }
    assert!(log.count(events::BOOT_FAILED) >= 6);
    assert_eq!(log.count(events::READY), 0);
}

#[test]
fn a_panic_in_the_factory_is_quoted() {
    let (line, _) = gave_up(Launch::misbehave().set("misbehave.boot", r#""panic""#).start());
    assert!(line.contains("the moon fell into the sea"), "{line}");
}

#[test]
fn an_abort_in_the_factory_is_reported_by_its_signal() {
    let (line, _) = gave_up(Launch::misbehave().set("misbehave.boot", r#""abort""#).start());
    assert!(line.contains("SIGABRT"), "{line}");
}

#[test]
fn a_factory_that_hangs_is_ended_at_the_boot_timeout() {
    let launch = Launch::misbehave().set("misbehave.boot", r#""hang""#).set("workers.boot_timeout", r#""500ms""#);
    let (line, _) = gave_up(launch.start());
    assert!(line.contains("boot_timeout"), "the message names the key to change: {line}");
}

#[test]
fn a_stop_during_a_hanging_boot_does_not_wait_for_the_boot() {
    let mut supervisor = Launch::misbehave().set("misbehave.boot", r#""hang""#).start();
    supervisor.wait_listening();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0, "boot_timeout is a minute, a stop does not wait for it");
    assert_eq!(supervisor.leftovers(), []);
}

/// Once a boot has succeeded, the master never exits because of its workers.
#[test]
fn a_boot_that_fails_later_is_retried_until_it_works() {
    let mut supervisor = Launch::misbehave().set("misbehave.fail_while", r#""{dir}/obstacle""#).serving(2);
    let obstacle = supervisor.path("obstacle");
    fs::write(&obstacle, "").expect("a file in our own folder");
    for pid in supervisor.worker_pids() {
        supervisor.signal_worker(pid, Signal::SIGKILL);
    }
    // Eight failures are four in each of the two slots. A first boot would have given up earlier.
    supervisor.wait_log(events::BOOT_FAILED, 8, PATIENCE);
    assert!(supervisor.is_running());
    assert!(supervisor.log().count(events::BACKOFF) > 0, "the pause before the next try is in the log");
    fs::remove_file(&obstacle).expect("our own file");
    supervisor.wait_serving(2);
    assert_eq!(get(supervisor.address(), "/pid").status, 200);
    supervisor.stop();
}

#[test]
fn a_worker_that_cannot_be_forked_is_explained_in_the_log() {
    let launch = Launch::new().through(&["sh", "-c", r#"ulimit -n 20; exec "$@""#, "sh"]);
    let (line, _) = gave_up(launch.start());
    assert!(line.contains("could not be forked: ") && line.contains("Too many open files"), "{line}");
}
