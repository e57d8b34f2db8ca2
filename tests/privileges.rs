//! Promise: with `process.user`, no worker keeps a right of root, no matter when it was started, and the service still
//! works.
//!
//! Needs root.

use std::{fs, os::unix::fs::MetadataExt};

use crate::common::{Connection, Launch, PATIENCE, Process, Signal, Supervisor, events, eventually, get, request};
use nix::unistd::{Uid, User};

fn nobody() -> User {
    assert!(Uid::effective().is_root(), "only root can give its rights away: run the tests as root");
    User::from_name("nobody").expect("the user database can be read").expect("the user nobody")
}

fn launch() -> Launch {
    Launch::new().set("process.user", r#""nobody""#).set("service.sqlite_path", r#""{dir}/data/facts.db""#)
}

#[track_caller]
fn assert_without_rights(supervisor: &Supervisor, user: &User) {
    let workers = supervisor.worker_pids();
    assert_eq!(workers.len(), 2);
    for worker in workers.into_iter().map(Process) {
        assert_eq!(worker.ids("Uid"), [user.uid.as_raw(); 4], "{worker:?}");
        assert_eq!(worker.ids("Gid"), [user.gid.as_raw(); 4], "{worker:?}");
        let groups = worker.ids("Groups");
        assert!(groups.iter().all(|group| *group == user.gid.as_raw()), "{worker:?} is in groups {groups:?}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(worker.capabilities(set), 0, "{set} of {worker:?}");
        }
    }
}

fn write_a_fact(supervisor: &Supervisor) {
    let body = br#"{"text": "Nobody wrote this"}"#;
    let headers = [("Content-Type", "application/json"), ("Connection", "close")];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let answer = connection.ask(&request("POST", "/facts", &headers, body)).expect("an answer");
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn workers_run_as_process_user_from_the_first_to_the_last() {
    let user = nobody();
    let mut supervisor = launch().serving(2);
    assert_eq!(supervisor.master().ids("Uid"), [0; 4], "the master keeps what it was started with");
    assert_without_rights(&supervisor, &user);
    write_a_fact(&supervisor);
    let folder = fs::metadata(supervisor.path("data")).expect("the folder was made");
    assert_eq!((folder.uid(), folder.mode() & 0o777), (user.uid.as_raw(), 0o750));

    for pid in supervisor.worker_pids() {
        supervisor.signal_worker(pid, Signal::SIGKILL);
        supervisor.wait_gone(pid);
    }
    supervisor.wait_serving(2);
    assert_without_rights(&supervisor, &user);
    write_a_fact(&supervisor);
    supervisor.stop();
}

#[test]
fn recycled_workers_run_as_process_user_too() {
    let user = nobody();
    let mut supervisor = launch().set("workers.max_requests", "30").serving(2);
    let first = supervisor.worker_pids();
    eventually("both workers are replaced", PATIENCE, || {
        assert_eq!(get(supervisor.address(), "/health").status, 200);
        first.iter().all(|pid| !Process(*pid).is_alive()).then_some(())
    });
    supervisor.wait_serving(2);
    eventually("no worker drains", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
    assert_without_rights(&supervisor, &user);
    write_a_fact(&supervisor);
    assert_eq!(supervisor.log().count(events::BOOT_FAILED), 0);
    supervisor.stop();
}

/// The master forks new workers at a reload and at an upgrade. After an upgrade, the new program forks them. All these
/// workers must run as `process.user`.
#[test]
fn workers_of_a_reload_and_of_an_upgrade_run_as_process_user_too() {
    let user = nobody();
    let mut supervisor = launch().serving(2);
    for (round, command) in [["reload"], ["upgrade"], ["upgrade"], ["reload"]].iter().enumerate() {
        let before = supervisor.worker_pids();
        let output = supervisor.ctl(command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        eventually("no worker drains", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
        assert!(supervisor.worker_pids().iter().all(|pid| !before.contains(pid)), "round {round}");
        assert_without_rights(&supervisor, &user);
        write_a_fact(&supervisor);
        assert_eq!(supervisor.master().ids("Uid"), [0; 4], "the master keeps what it was started with");
    }
    supervisor.stop();
}

/// If the folder existed before the start, the operator made it, so its owner must not be changed.
#[test]
fn an_existing_folder_keeps_its_owner() {
    nobody();
    let launch = launch();
    fs::create_dir(launch.path("data")).expect("a folder in our own");
    let mut supervisor = launch.start();
    assert_eq!(supervisor.wait_exit(PATIENCE), 3, "the user nobody cannot write there");
    assert_eq!(fs::metadata(supervisor.path("data")).expect("it is still there").uid(), 0);
    let log = supervisor.log();
    let line = log.lines_of(events::SERVICE_BOOT_FAILED).next().expect("one line says why");
    assert!(line.contains("facts.db"), "{line}");
}
