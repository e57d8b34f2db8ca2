//! Promise: TTIN adds a worker, TTOU removes a worker (but never the last one), and no client notices.

use crate::common::{Launch, Load, Mode, PATIENCE, Signal, Supervisor, events, eventually, field};

fn target(supervisor: &Supervisor) -> Option<usize> {
    let log = supervisor.log();
    let line = log.lines_of(events::SCALED).last()?;
    field(line, events::TARGET_FIELD)?.parse().ok()
}

/// Sends one signal and waits for its effect. The kernel treats two pending signals of the same kind as one, so only
/// one may be pending at a time.
#[track_caller]
fn scale(supervisor: &Supervisor, signal: Signal, expected: usize) {
    let before = supervisor.log().count(events::SCALED);
    supervisor.signal(signal);
    supervisor.wait_log(events::SCALED, before + 1, PATIENCE);
    assert_eq!(target(supervisor), Some(expected), "after {signal}");
}

#[test]
fn each_signal_adds_or_removes_one_worker() {
    let mut supervisor = Launch::new().serving(2);
    // A service with two workers starts with eight slots. The test goes up to ten workers, so that the service needs
    // more slots.
    for expected in 3..=10 {
        scale(&supervisor, Signal::SIGTTIN, expected);
    }
    supervisor.wait_serving(10);
    for expected in (1..=9).rev() {
        scale(&supervisor, Signal::SIGTTOU, expected);
    }
    supervisor.wait_serving(1);
    eventually("the others are gone", PATIENCE, || (supervisor.worker_pids().len() == 1).then_some(()));
    // Waits for the effect of SIGTTOU before it sends SIGTTIN, because the kernel may deliver two pending signals in
    // either order.
    let before = supervisor.log().0.lines().count();
    supervisor.signal(Signal::SIGTTOU);
    eventually("the log says that one worker stays", PATIENCE, || {
        (supervisor.log().0.lines().count() > before).then_some(())
    });
    scale(&supervisor, Signal::SIGTTIN, 2);
    supervisor.wait_serving(2);
    supervisor.stop();
}

#[test]
fn many_scale_signals_under_load_lose_nothing() {
    let mut supervisor = Launch::new().serving(2);
    let address = supervisor.address();
    let loads = [
        Load::start(address, "/debug/connections", 6, Mode::KeepAlive { think_ms: 10 }),
        Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 5 }),
        Load::start(address, "/debug/connections", 4, Mode::SlowFirstByte { up_to_ms: 200 }),
    ];
    let answered = || loads.iter().map(Load::answered).sum::<u64>();
    let mut least = usize::MAX;
    for round in 0..60 {
        let up = [true, true, false, true, false, false][round % 6] && round < 50;
        supervisor.signal(if up { Signal::SIGTTIN } else { Signal::SIGTTOU });
        // Waits only after every third signal, so that some signals find the service settled and others find it busy.
        if round % 3 == 0 {
            let before = answered();
            eventually("the load continues", PATIENCE, || (answered() >= before + 20).then_some(()));
        }
        least = least.min(supervisor.worker_pids().len());
    }
    assert!(least >= 1, "there was a moment without a worker");
    for load in loads {
        load.finish().assert_nothing_lost();
    }
    eventually("as many workers serve as the log says", PATIENCE, || {
        (Some(supervisor.serving_pids().len()) == target(&supervisor)).then_some(())
    });
    assert_eq!(supervisor.log().count(events::KILLED), 0);
    supervisor.stop();
}
