//! Promise: workers that die soon after each start are retried ever more slowly; the master neither spins nor ends.

use std::time::Duration;

use crate::common::{Launch, PATIENCE, Signal, events, now, observe_for};

#[test]
fn a_crash_after_ready_is_not_a_spin() {
    let mut supervisor = Launch::misbehave().set("workers.count", "1").set("misbehave.abort_after_ms", "50").start();
    supervisor.wait_listening();
    supervisor.wait_log(events::READY, 1, PATIENCE);
    observe_for(Duration::from_secs(10));
    let log = supervisor.log();
    let forks = log.count(events::FORKED);
    assert!((3..=10).contains(&forks), "{forks} forks in ten seconds");
    assert!(log.count(events::BACKOFF) >= 2, "each pause is in the log");
    assert_eq!(log.count(events::GAVE_UP), 0, "it was ready once: the master never gives up");
    assert!(supervisor.is_running());

    let started = now();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert!(started.elapsed() < Duration::from_secs(4), "a stop does not wait for a backoff: {:?}", started.elapsed());
}

/// Eight deaths at one stroke are one misfortune: all slots are back at once.
#[test]
fn one_misfortune_is_not_a_crash_loop() {
    let supervisor = Launch::new().set("workers.count", "4").serving(4);
    let first = supervisor.worker_pids();
    for pid in &first {
        supervisor.signal_worker(*pid, Signal::SIGKILL);
    }
    supervisor.wait_log(events::EXITED, 4, PATIENCE);
    let second = supervisor.wait_serving(4);
    assert!(second.iter().all(|pid| !first.contains(pid)));
    assert_eq!(supervisor.log().count(events::FORKED), 8);
}
