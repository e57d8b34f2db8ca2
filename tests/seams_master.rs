//! Promise: a runtime other than Rust's own gets from the master what it needs: hooks around each fork, a signal for a
//! worker that hangs, and a command of its own for upgrades.

use std::{fs, path::PathBuf};

use crate::common::{Connection, Launch, PATIENCE, Signal, Supervisor, build_example, events, get, request, text};

/// Returns the launch of the example program, and the file in which it notes its hooks.
fn seams() -> (Launch, PathBuf) {
    let launch = Launch::of(build_example("seams_master"));
    let notes = launch.path("notes");
    let launch = launch.env("SEAMS_NOTES", notes.to_str().expect("UTF-8")).set("workers.count", "1");
    (launch, notes)
}

fn notes(path: &PathBuf) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Asserts that the master with the pid `master` and the worker with the pid `worker` have noted the three hooks of one
/// fork, beginning with `before fork`.
#[track_caller]
fn assert_forked(notes: &[String], master: u32, worker: u32) {
    let lines = [format!("{master} before fork"), format!("{master} after fork in master")];
    assert_eq!(notes.first(), Some(&lines[0]), "{notes:?}");
    for line in lines.iter().chain([&format!("{worker} after fork in worker")]) {
        assert_eq!(notes.iter().filter(|note| *note == line).count(), 1, "{line}: {notes:?}");
    }
    assert_eq!(notes.len(), 3, "{notes:?}");
}

#[test]
fn hooks_run_before_and_after_each_fork_of_a_worker() {
    let (launch, path) = seams();
    let mut supervisor = launch.serving(1);
    let first = supervisor.serving_pids()[0];
    let seen = notes(&path);
    assert_forked(&seen, supervisor.pid(), first);
    supervisor.assert_reload(0, &["generation 2 serves"]);
    let second = supervisor.wait_serving(1)[0];
    assert_forked(&notes(&path)[seen.len()..], supervisor.pid(), second);
    supervisor.stop();
}

#[test]
fn hooks_run_around_the_fork_of_check_deep() {
    let (launch, path) = seams();
    let output = launch.run_with(&["check", "--deep"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let notes = notes(&path);
    let of = |line: &str| notes.iter().filter(|note| note.ends_with(line)).count();
    assert_eq!([of("before fork"), of("after fork in master"), of("after fork in worker")], [1; 3], "{notes:?}");
}

#[test]
fn a_worker_that_hangs_writes_what_it_does_and_is_ended_a_second_later() {
    let (launch, path) = seams();
    let mut supervisor = launch.set("workers.timeout", r#""1s""#).serving(1);
    let hung = supervisor.serving_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/hang", &[], b"")).expect("sent");
    supervisor.wait_log(events::HUNG, 1, PATIENCE);
    supervisor.wait_gone(hung);
    assert_ne!(supervisor.wait_serving(1)[0], hung);
    assert!(notes(&path).contains(&format!("{hung} dump")), "{:?}", notes(&path));
    let log = supervisor.log();
    let lines: Vec<_> = log.lines_of(events::HUNG).collect();
    assert!(lines.len() == 1 && lines[0].contains("SIGPROF"), "{lines:?}");
    let exited = log.lines_of(events::EXITED).next().expect("the exit is in the log");
    assert!(exited.contains("SIGABRT"), "SIGABRT lets it leave a core: {exited}");
    supervisor.stop();
}

/// Returns the arguments that the master was executed with, as its only worker reports them.
fn arguments(supervisor: &Supervisor) -> Vec<String> {
    get(supervisor.address(), "/arguments").text().lines().map(str::to_owned).collect()
}

/// Returns the arguments of the present master. Kills the only worker first, because the present master forks its
/// replacement, which then reports the present master's arguments.
fn arguments_now(supervisor: &Supervisor) -> Vec<String> {
    let before = supervisor.serving_pids()[0];
    supervisor.signal_worker(before, Signal::SIGKILL);
    supervisor.wait_gone(before);
    supervisor.wait_serving(1);
    arguments(supervisor)
}

#[test]
fn an_upgrade_executes_the_command_of_the_runtime_and_a_failed_one_the_command_before() {
    let (launch, _) = seams();
    let fail = launch.path("fail");
    let mut supervisor = launch.env("SEAMS_FAIL", fail.to_str().expect("UTF-8")).serving(1);
    let first = arguments(&supervisor);
    assert!(!first.contains(&"--interpreted".to_owned()), "{first:?}");
    let interpreted = || {
        let program = std::iter::once(build_example("seams_master").to_string_lossy().into_owned());
        program.chain(["--interpreted".to_owned()]).chain(first[1..].iter().cloned()).collect::<Vec<_>>()
    };

    fs::write(&fail, "").expect("our own folder");
    let failed = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert_eq!(supervisor.wait_log(events::UPGRADE_ROLLED_BACK, 1, PATIENCE).len(), 1);
    assert_eq!(arguments_now(&supervisor), first, "the way back");

    fs::remove_file(&fail).expect("it was written above");
    for _ in 0..2 {
        let output = supervisor.ctl_by_socket(&["upgrade"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(arguments_now(&supervisor), interpreted());
    }

    fs::write(&fail, "").expect("our own folder");
    let failed = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    fs::remove_file(&fail).expect("it was written above");
    assert_eq!(arguments_now(&supervisor), interpreted(), "the way back from an upgrade after others");
    supervisor.stop();
}
