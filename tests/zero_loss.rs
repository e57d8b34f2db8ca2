//! Promise: an operator's action or a hanging worker never costs a request. A SIGKILL costs only the requests that the
//! killed worker had accepted. `make chaos` runs the long form of this proof.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::chaos::{Bind, Manner, Plan, Report, Swarm, Target, change_visibly, nginx};
use crate::common::{Launch, PATIENCE, Signal, events, eventually, get, now, observe_for};

/// Makes the tests of this file run one at a time. The tests measure waits, and would make each other's waits longer.
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
        // If several signals of one kind arrive while an action is under way, these signals cause only one more action.
        // The number of actions may therefore be lower than the number of signals.
        let least = if name.ends_with("took over") { 1 } else { 2 };
        assert!(times >= least, "{name} was done {times} times");
    }
    for (manner, score) in &report.outcome.scores {
        assert!(score.tally.ok >= 20, "{} made {} requests", manner.name(), score.tally.ok);
    }
}

fn storm(bind: Bind, seconds: u64, seed: u64) {
    storm_over(bind, seconds, seed, Launch::new());
}

fn storm_over(bind: Bind, seconds: u64, seed: u64, launch: Launch) {
    let _alone = alone();
    assert_kept(&Plan::without_kills(bind, Duration::from_secs(seconds), seed).run(launch));
}

#[test]
fn a_storm_over_one_listener_per_worker_loses_nothing() {
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
fn a_storm_without_steering_loses_nothing() {
    storm_over(Bind::Own, 4, 16, Launch::new().without_steering());
}

#[test]
fn kills_lose_only_what_the_killed_workers_had_accepted() {
    let _alone = alone();
    assert_kept(&Plan::with_kills(Bind::Own, Duration::from_secs(4), 15).run(Launch::new()));
}

/// Does ten reloads, one a second, while clients ask without a pause.
fn ten_reloads(manner: Manner) {
    let _alone = alone();
    let mut supervisor = Launch::new().set("http.metrics_path", r#""/metrics-0""#).serving(2);
    let address = supervisor.address();
    let swarm = Swarm::start(Target::Tcp(vec![address]), "/debug/connections", &[manner], 17);
    let second = Duration::from_secs(1);
    let rate = |since: std::time::Instant, answered: u64| answered as f64 / since.elapsed().as_secs_f64();

    let began = now();
    observe_for(2 * second);
    let before = rate(began, swarm.answered());

    let (began, answered) = (now(), swarm.answered());
    for round in 1..=10 {
        let due = now() + second;
        let path = change_visibly(&supervisor, round);
        supervisor.signal(Signal::SIGHUP);
        supervisor.wait_log(events::RELOADED, round, PATIENCE);
        eventually("the new settings answer, and they alone", PATIENCE, || {
            (0..8).all(|_| get(address, &path).status == 200).then_some(())
        });
        observe_for(due.saturating_duration_since(now()));
    }
    let during = rate(began, swarm.answered() - answered);

    let outcome = swarm.finish();
    eprintln!("{outcome}  {before:.0} requests a second before, {during:.0} during ten reloads");
    assert_eq!(outcome.losses().len(), 0, "lost of {} requests: {:?}", outcome.requests(), outcome.losses());
    let pids = outcome.scores[0].1.tally.pids.len();
    assert!(pids >= 18, "only {pids} workers answered: the reloads were not under this load");
    supervisor.stop();
}

#[test]
fn ten_reloads_under_saturating_keep_alive_lose_nothing() {
    ten_reloads(Manner::KeepAlive { clients: 64, think_ms: 0 });
}

#[test]
fn ten_reloads_under_a_connection_per_request_lose_nothing() {
    ten_reloads(Manner::PerRequest { clients: 16 });
}

/// Proves that the clients of these tests can see a lost request. During a reload of nginx, they see at least one.
#[test]
fn the_same_clients_see_the_losses_of_an_nginx_reload() {
    let _alone = alone();
    let witness = nginx::reloaded(8, Duration::from_millis(150), 16);
    eprintln!("{witness}");
    assert!(!witness.losses().is_empty(), "nginx lost nothing of {} requests", witness.requests());
}
