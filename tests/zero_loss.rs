//! Promise: nothing an operator does, and no hang, costs a request; a SIGKILL costs only what its victim had accepted.
//! The long form of this proof is `make chaos`.

mod chaos;
mod common;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chaos::{Bind, Plan, Report, nginx};
use common::Launch;

/// These measure waits: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[track_caller]
fn assert_kept(report: &Report) {
    eprintln!("{report}");
    let broken = report.broken();
    assert!(broken.is_empty(), "{}\n{}", broken.join("\n"), report.leads());
    for (name, times) in report.deeds() {
        assert!(times >= 2, "{name} was done {times} times");
    }
    for (manner, score) in &report.outcome.scores {
        assert!(score.tally.ok >= 20, "{} made {} requests", manner.name(), score.tally.ok);
    }
}

fn storm(bind: Bind, seconds: u64, seed: u64) {
    let _alone = alone();
    assert_kept(&Plan::without_kills(bind, Duration::from_secs(seconds), seed).run(Launch::new()));
}

#[test]
fn a_storm_over_one_listener_a_worker_loses_nothing() {
    storm(Bind::Own, 5, 11);
}

#[test]
fn a_storm_over_a_shared_listener_loses_nothing() {
    storm(Bind::Shared, 3, 12);
}

#[test]
fn a_storm_over_a_unix_socket_loses_nothing() {
    storm(Bind::Unix, 3, 13);
}

#[test]
fn a_storm_over_both_families_loses_nothing() {
    storm(Bind::Dual, 3, 14);
}

#[test]
fn kills_lose_only_what_the_killed_had_accepted() {
    let _alone = alone();
    assert_kept(&Plan::with_kills(Bind::Own, Duration::from_secs(4), 15).run(Launch::new()));
}

/// A client that cannot see a loss proves nothing.
#[test]
fn the_same_clients_see_what_a_reload_of_nginx_loses() {
    let _alone = alone();
    let witness = nginx::reloaded(8, Duration::from_millis(150), 16);
    eprintln!("{witness}");
    assert!(!witness.losses().is_empty(), "nginx lost nothing of {} requests", witness.requests());
}
