//! Promise: master and worker lose no message to each other when one of them does not read for a while.

use crate::common::{Launch, PATIENCE, Signal, events, get};

/// The worker may have only one connection. For each connection that opens and closes, the worker therefore reports
/// "full" and "not full" to the master. The channel cannot hold all these messages.
#[test]
fn a_worker_whose_recycle_request_found_the_channel_full_sends_it_again() {
    let launch = Launch::new().set("workers.count", "1").set("http.worker_connections", "1");
    let mut supervisor = launch.set("workers.max_requests", "400").serving(1);
    supervisor.signal(Signal::SIGSTOP);
    for _ in 0..400 {
        get(supervisor.address(), "/debug/connections");
    }
    supervisor.signal(Signal::SIGCONT);
    supervisor.wait_log(events::RECYCLE_REQUESTED, 1, PATIENCE);
    supervisor.stop();
}

/// Each reopening of the log files sends one more message to the worker. The worker does not read, so its channel
/// becomes full.
#[test]
fn a_worker_that_did_not_read_learns_later_of_the_stop_and_of_the_log() {
    let mut supervisor = Launch::new().set("workers.count", "1").log_to("app.log").serving(1);
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGSTOP);
    for times in 1..=400 {
        supervisor.signal(Signal::SIGUSR1);
        supervisor.wait_log(events::LOGS_REOPENED, times, PATIENCE);
        if supervisor.log().count("channel_full") > 0 {
            break;
        }
    }
    assert_eq!(supervisor.log().count("channel_full"), 1, "the full channel is reported once");
    std::fs::rename(supervisor.path("app.log"), supervisor.path("app.log.1")).expect("our own file");
    supervisor.signal(Signal::SIGUSR1);
    supervisor.wait_log(events::LOGS_REOPENED, 1, PATIENCE);
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log(events::STOPPING, 1, PATIENCE);
    supervisor.signal_worker(worker, Signal::SIGCONT);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    let log = supervisor.log();
    assert_eq!((log.count(events::DRAINED), log.count(events::KILLED)), (1, 0), "{}", log.tail(20));
}
