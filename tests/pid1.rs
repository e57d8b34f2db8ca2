//! Promise: as PID 1 of a container, oxicorn reaps every orphan, and it stops as it does anywhere else.
//!
//! Needs the right to make a PID namespace, which root has.

use std::process::Command;

use crate::common::{Launch, PATIENCE, Process, Signal, Supervisor, events, eventually, get};

const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

fn in_a_container() -> Supervisor {
    let made = Command::new(NAMESPACE[0]).args(&NAMESPACE[1..]).arg("true").status();
    assert!(
        made.as_ref().is_ok_and(|status| status.success()),
        "no PID namespace can be made here ({made:?}): run the tests as root, in a container with CAP_SYS_ADMIN"
    );
    let mut supervisor = Launch::new().through(&NAMESPACE).start();
    supervisor.wait_listening();
    supervisor.wait_log(events::SERVING, 2, PATIENCE);
    supervisor
}

#[test]
fn orphans_are_reaped() {
    let mut supervisor = in_a_container();
    let master = supervisor.master();
    let status = master.status();
    assert!(status["NSpid"].ends_with("\t1"), "it is PID 1 inside: {}", status["NSpid"]);

    // The shell ends at once, so its children become orphans, and PID 1 becomes their parent.
    let entered = Command::new("nsenter")
        .args(["--target", &master.0.to_string(), "--pid", "--mount"])
        .args(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done"])
        .status()
        .expect("nsenter can be run");
    assert!(entered.success());
    let orphans = || master.children().into_iter().filter(|child| child.comm() == "sleep").count();
    eventually("the orphans came to the master", PATIENCE, || (orphans() == 8).then_some(()));
    eventually("every orphan was reaped", PATIENCE, || (orphans() == 0).then_some(()));
    assert!(master.children().into_iter().all(Process::is_alive), "no zombie stays");
    let log = supervisor.log();
    assert_eq!((log.count(events::EXITED), log.count(events::FORKED)), (0, 2), "an orphan is not a worker");
    assert_eq!(get(supervisor.address(), "/health").status, 200);

    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

/// A container ends when its PID 1 ends, so an upgrade must keep this process.
#[test]
fn an_upgrade_keeps_pid_1() {
    let mut supervisor = in_a_container();
    let master = supervisor.master();
    for round in 1..=2 {
        supervisor.signal(Signal::SIGUSR2);
        supervisor.wait_log(events::UPGRADED, round, PATIENCE);
        assert!(master.status()["NSpid"].ends_with("\t1") && supervisor.is_running());
        assert_eq!(get(supervisor.address(), "/health").status, 200);
    }
    eventually("the old workers are gone", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
    assert!(master.children().into_iter().all(Process::is_alive), "no zombie stays");
    let victim = supervisor.worker_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGKILL);
    supervisor.wait_gone(victim);
    supervisor.wait_log(events::SERVING, 7, PATIENCE);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn a_dead_worker_is_replaced_in_a_container_too() {
    let supervisor = in_a_container();
    let victim = supervisor.worker_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGKILL);
    supervisor.wait_log(events::SERVING, 3, PATIENCE);
    supervisor.wait_gone(victim);
    assert_eq!(supervisor.worker_pids().len(), 2);
}
