//! Promise: a runtime for another language may have settings of its own, whose reading takes time. The master never waits
//! for them in place: it serves, replaces workers and stops meanwhile. The runtime learns what happens to the service.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    thread,
};

use crate::common::{
    Launch, PATIENCE, Signal, Supervisor, assert_told_all, build_example, events, eventually, get, text,
};

/// Returns the launch of the example program, and the file with the settings of its runtime.
fn seams(settings: &str) -> (Launch, PathBuf) {
    let launch = Launch::of(build_example("seams_master"));
    let source = launch.path("source");
    fs::write(&source, settings).expect("our own folder");
    let path = |name: &str| launch.path(name).to_str().expect("UTF-8").to_owned();
    let (events, faults, fail) = (path("events"), path("faults"), path("fail"));
    let launch = launch.env("SEAMS_SOURCE", source.to_str().expect("UTF-8"));
    (launch.env("SEAMS_EVENTS", &events).env("SEAMS_FAULTS", &faults).env("SEAMS_FAIL", &fail), source)
}

/// Starts the program with the source in the place of the settings file, and waits until `workers` workers serve.
fn in_place(launch: Launch, workers: usize) -> Supervisor {
    let mut supervisor = launch.env("SEAMS_IN_PLACE", "yes").env("OXICORN_SERVER__BIND", "127.0.0.1:0").start();
    supervisor.wait_listening();
    supervisor.wait_log("worker_serving", workers, PATIENCE);
    supervisor
}

/// Runs a command that finds the service by the source.
fn ctl(supervisor: &Supervisor, words: &[&str]) -> Output {
    let source = supervisor.path("source");
    supervisor.ctl_in(words, &[("SEAMS_SOURCE", &source), ("SEAMS_IN_PLACE", Path::new("yes"))])
}

fn hold(source: &Path) -> PathBuf {
    source.with_extension("hold")
}

/// Makes the reading of the source take time, until the returned file is removed.
fn held(source: &Path) -> PathBuf {
    let hold = hold(source);
    fs::write(&hold, "").expect("our own folder");
    hold
}

fn happened(supervisor: &Supervisor) -> Vec<String> {
    fs::read_to_string(supervisor.path("events")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn wait_reloading(supervisor: &Supervisor) {
    eventually("the reload waits", PATIENCE, || (supervisor.status()["state"] == "reloading").then_some(()));
}

fn count(supervisor: &Supervisor) -> u64 {
    supervisor.status()["target_workers"].as_u64().expect("a number")
}

#[test]
fn the_settings_of_a_runtime_are_shown_checked_and_find_the_service() {
    let (launch, source) = seams("workers.count = 2\nprocess.name = seamed\nnote mind the gap\n");
    let shown = text(&launch.run_with(&["config"]));
    for line in ["count = 2  # from source:1", "name = \"seamed\"  # from source:2"] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    assert_told_all(&launch.run_with(&["check"]), 0, &["source:3: mind the gap", "settings are valid"]);
    let told = text(&launch.run_with(&["check", "--json"]));
    assert!(told.contains(r#""notes":[{"level":"warn","origin":"source:3","text":"mind the gap"}]"#), "{told}");

    let mut supervisor = in_place(launch, 2);
    assert_eq!(supervisor.log().count("compat"), 1);
    assert_eq!(get(supervisor.address(), "/foreign").text(), fs::read_to_string(&source).expect("it is there"));
    assert_told_all(&ctl(&supervisor, &["reload"]), 0, &["seamed", "generation 2 serves; no setting has changed"]);
    assert_eq!(supervisor.log().count("compat"), 1, "a note is told once");
    fs::write(&source, "workers.count = 1\nprocess.name = seamed\nnote another\n").expect("our own folder");
    assert_told_all(&ctl(&supervisor, &["check"]), 0, &["a reload of the running service", "workers.count"]);
    assert_told_all(&ctl(&supervisor, &["reload"]), 0, &["generation 3 serves; applies at once: workers.count"]);
    assert_eq!(supervisor.log().count("compat"), 2);

    fs::write(&source, "workers.cuont = 1\nprocess.name = seamed\nrefuse no such thing\n").expect("our own folder");
    let problems = ["source:3: no such thing", "source:1: workers.cuont: unknown key; did you mean workers.count?"];
    for command in ["check", "config"] {
        assert_told_all(&ctl(&supervisor, &[command]), 2, &problems);
    }
    assert_told_all(&ctl(&supervisor, &["reload"]), 1, &[&["refused, nothing was changed"], &problems[..]].concat());
    supervisor.stop();
}

#[test]
fn the_master_serves_and_replaces_workers_while_the_runtime_reads() {
    let (launch, source) = seams("workers.count = 1\n");
    let mut supervisor = launch.serving(1);
    let hold = held(&source);
    fs::write(&source, "workers.count = 2\n").expect("our own folder");
    thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.ctl_by_socket(&["reload"]));
        wait_reloading(&supervisor);
        let worker = supervisor.serving_pids()[0];
        supervisor.signal_worker(worker, Signal::SIGKILL);
        supervisor.wait_gone(worker);
        eventually("another worker serves", PATIENCE, || {
            supervisor.serving_pids().iter().any(|pid| *pid != worker).then_some(())
        });
        assert_eq!(get(supervisor.address(), "/pid").status, 200);
        assert_eq!((supervisor.generation(), count(&supervisor)), (1, 1), "the reload waits");
        fs::remove_file(&hold).expect("it was written above");
        assert_told_all(&reload.join().expect("it does not panic"), 0, &["generation 2 serves"]);
    });
    assert_eq!(count(&supervisor), 2);
    supervisor.stop();
}

#[test]
fn requests_that_come_while_the_runtime_reads_are_answered_in_order() {
    let (launch, source) = seams("workers.count = 1\n");
    let mut supervisor = launch.serving(1);
    let hold = held(&source);
    thread::scope(|scope| {
        let first = scope.spawn(|| supervisor.ctl_by_socket(&["reload"]));
        wait_reloading(&supervisor);
        // A check asks for a preview. It gives up after five seconds, so the source is held no longer than needed.
        let socket = supervisor.path("control.sock");
        let preview = scope.spawn(move || preview(&socket));
        supervisor.wait_log("control_socket", 2, PATIENCE);
        let last = scope.spawn(|| supervisor.ctl_by_socket(&["reload"]));
        supervisor.wait_log("reload_queued", 1, PATIENCE);
        fs::remove_file(&hold).expect("it was written above");
        assert_told_all(&first.join().expect("it does not panic"), 0, &["generation 2 serves"]);
        let told = preview.join().expect("it does not panic");
        assert!(told.contains("no setting has changed"), "{told}");
        assert_told_all(&last.join().expect("it does not panic"), 0, &["generation 3 serves"]);
    });
    let order: Vec<_> = happened(&supervisor)
        .into_iter()
        .filter(|line| line.starts_with("reload") || line.starts_with("refresh"))
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(order, ["reloading", "refresh", "reloaded", "reloading", "reloaded"]);
    supervisor.stop();
}

/// Asks the master what a reload would change, and returns its answer.
fn preview(socket: &Path) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the master listens");
    stream.write_all(b"{\"version\":1,\"command\":\"changes\"}\n").expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_stop_wins_over_a_reload_whose_settings_are_being_read() {
    let (launch, source) = seams("workers.count = 1\n");
    let mut supervisor = launch.serving(1);
    held(&source);
    thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.ctl_by_socket(&["reload"]));
        wait_reloading(&supervisor);
        supervisor.signal(Signal::SIGTERM);
        assert_told_all(&reload.join().expect("it does not panic"), 1, &["the service is stopping"]);
    });
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert_eq!((supervisor.log().count("reload_started"), supervisor.log().count("reload_refused")), (0, 0));
    assert_eq!(happened(&supervisor).last().map(String::as_str), Some("stopped"));
    fs::remove_file(hold(&source)).expect("it was written above");
}

#[test]
fn a_runtime_that_cannot_read_in_time_refuses_the_reload() {
    let (launch, source) = seams("workers.count = 1\n");
    let mut supervisor = launch.env("SEAMS_LIMIT_MS", "300").serving(1);
    let (worker, hold) = (supervisor.serving_pids(), held(&source));
    supervisor.assert_reload(1, &["refused, nothing was changed", "source: it took too long"]);
    assert_eq!((supervisor.serving_pids(), supervisor.generation()), (worker, 1));
    assert_eq!(happened(&supervisor).last().map(String::as_str), Some("refresh unused"));
    fs::remove_file(hold).expect("it was written above");
    supervisor.assert_reload(0, &["generation 2 serves"]);
    supervisor.stop();
}

#[test]
fn the_runtime_learns_what_happens_to_the_service() {
    let (launch, _) = seams("workers.count = 1\n");
    let mut supervisor = launch.serving(1);
    let first = supervisor.serving_pids()[0];
    let begun = ["starting 1 0", "listening 1", "forking 1 0", &format!("forked 1 {first}")].map(str::to_owned);
    assert_eq!(happened(&supervisor), begun);

    supervisor.assert_reload(0, &["generation 2 serves"]);
    supervisor.wait_gone(first);
    let second = supervisor.wait_serving(1)[0];
    let (forked, exited) = (format!("forked 2 {second}"), format!("exited 1 {first}"));
    let reloaded = ["reloading 1 1 1", "forking 2 0", &forked, "reloaded", &exited];
    eventually("the end of the old worker is told", PATIENCE, || happened(&supervisor).contains(&exited).then_some(()));
    assert_eq!(happened(&supervisor)[4..], reloaded);

    let before = happened(&supervisor).len();
    fs::write(supervisor.path("faults"), "after_fork_in_worker").expect("our own folder");
    supervisor.assert_reload(1, &["rolled back"]);
    fs::write(supervisor.path("faults"), "").expect("our own folder");
    assert!(happened(&supervisor)[before..].contains(&"rolled back".to_owned()), "{:?}", happened(&supervisor));

    let scaled = supervisor.ctl_by_socket(&["scale", "2"]);
    assert_eq!(scaled.status.code(), Some(0), "{}", text(&scaled));
    assert!(happened(&supervisor).contains(&"workers changed 2 1".to_owned()), "{:?}", happened(&supervisor));

    let before = happened(&supervisor).len();
    let upgraded = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(upgraded.status.code(), Some(0), "{}", text(&upgraded));
    let after = &happened(&supervisor)[before..];
    assert_eq!(after[..3], ["executing", "starting 2 2", "listening 1"], "{after:?}");
    let ages: Vec<u32> = happened(&supervisor)
        .iter()
        .filter_map(|line| line.strip_prefix("forked ")?.split(' ').next()?.parse().ok())
        .collect();
    assert!(ages.windows(2).all(|two| two[0] < two[1]), "each fork has a number of its own: {ages:?}");
    supervisor.stop();
    assert_eq!(happened(&supervisor).last().map(String::as_str), Some("stopped"));
}

#[test]
fn a_runtime_may_refuse_the_start_and_its_panics_do_not_end_the_service() {
    let (launch, _) = seams("workers.count = 1\n");
    fs::write(launch.path("faults"), "starting").expect("our own folder");
    assert_told_all(&launch.run_with(&["run"]), 3, &["master_failed", "not today"]);
    fs::write(launch.path("faults"), "").expect("our own folder");
    let mut supervisor = launch.serving(1);
    fs::write(supervisor.path("faults"), "on_event").expect("our own folder");
    supervisor.assert_reload(0, &["generation 2 serves"]);
    assert!(supervisor.log().count("runtime_hook_failed") > 0);
    supervisor.stop();
}

#[test]
fn the_way_back_of_an_upgrade_has_the_settings_that_were_read_before() {
    let (launch, source) = seams("workers.count = 1\nworkers.timeout = 17s\n");
    let mut supervisor = in_place(launch, 1);
    fs::write(&source, "workers.count = 1\nworkers.timeout = 23s\n").expect("our own folder");
    fs::write(supervisor.path("fail"), "").expect("our own folder");
    let failed = ctl(&supervisor, &["upgrade"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    supervisor.wait_log(events::UPGRADE_ROLLED_BACK, 1, PATIENCE);
    let shown = text(&ctl(&supervisor, &["config", "--running"]));
    assert!(shown.contains("timeout = \"17s\"  # from source:2"), "{shown}");
    supervisor.stop();
}
