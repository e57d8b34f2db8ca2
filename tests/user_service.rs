//! Promise: a user's own service gets the same supervisor as the reference service. The user's service boots, drains
//! and recycles workers in the same way, has its own settings table, and ends cleanly.

use std::{collections::BTreeSet, fs};

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Process, Signal, Supervisor, build_example, events, eventually, get,
    request, root,
};

fn noted(supervisor: &Supervisor, name: &str) -> BTreeSet<u32> {
    let text = fs::read_to_string(supervisor.path(name)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_users_service_boots_drains_and_runs_its_shutdown() {
    let mut supervisor = Launch::misbehave().set("misbehave.goodbye_file", r#""{dir}/goodbye""#).serving(2);
    let workers: BTreeSet<_> = supervisor.worker_pids().into_iter().collect();
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let worker = connection.get("/pid").expect("an answer").pid().expect("the route tells the pid");
    assert!(workers.contains(&worker));
    connection.send(&request("GET", "/sleep/1000", &[], b"")).expect("sent");
    supervisor.signal(Signal::SIGTERM);
    let answer = connection.answer().expect("the request in flight is answered");
    assert!(answer.status == 200 && answer.closes(), "{:?}", answer.headers);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert_eq!(noted(&supervisor, "goodbye"), workers, "the lifespan's end ran in each worker");
}

#[test]
fn a_users_service_is_recycled_without_loss_and_runs_its_shutdown_each_time() {
    let mut supervisor = Launch::misbehave()
        .set("misbehave.goodbye_file", r#""{dir}/goodbye""#)
        .set("workers.max_requests", "100")
        .serving(2);
    let load = Load::start(supervisor.address(), "/pid", 6, Mode::KeepAlive { think_ms: 5 });
    eventually("six notes of a shutdown", PATIENCE, || (noted(&supervisor, "goodbye").len() >= 6).then_some(()));
    load.finish().assert_nothing_lost();
    supervisor.wait_serving(2);
    supervisor.stop();
}

#[test]
fn a_users_service_may_listen_to_signals_with_tokio() {
    let mut supervisor = Launch::misbehave().set("misbehave.hup_file", r#""{dir}/hup""#).serving(2);
    let workers = supervisor.worker_pids();
    for worker in &workers {
        supervisor.signal_worker(*worker, Signal::SIGHUP);
    }
    eventually("each app heard its own HUP", PATIENCE, || (noted(&supervisor, "hup").len() == 2).then_some(()));
    assert_eq!(supervisor.serving_pids().len(), 2, "and no worker died of it");
    supervisor.signal_worker(workers[0], Signal::SIGTERM);
    supervisor.wait_gone(workers[0]);
    assert!(supervisor.log().pids(events::DRAINED).contains(&workers[0]), "TERM still drains");
    supervisor.wait_serving(2);
    supervisor.stop();
}

#[test]
fn a_panic_in_a_handler_costs_one_request() {
    let supervisor = Launch::misbehave().set("workers.count", "1").serving(1);
    let worker = supervisor.worker_pids()[0];
    let answer = get(supervisor.address(), "/panic");
    assert_eq!(answer.status, 500);
    assert_eq!(get(supervisor.address(), "/pid").pid(), Some(worker), "the worker lives on");
    assert!(supervisor.log().0.contains("a bug in one route"), "the panic is in the log");
}

#[test]
fn a_users_table_is_checked_like_the_supervisors_own() {
    let text = |launch: Launch| {
        let output = launch.run();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let unknown = text(Launch::misbehave().raw("[misbehave]\n\nbot = \"error\"").arg("check"));
    for fragment in ["misbehave.bot", "boot", "supervisor.toml:3"] {
        assert!(unknown.contains(fragment), "{unknown}");
    }
    let wrong = text(Launch::misbehave().raw("[misbehave]\nabort_after_ms = \"soon\"").arg("check"));
    for fragment in ["misbehave.abort_after_ms", "supervisor.toml:2"] {
        assert!(wrong.contains(fragment), "{wrong}");
    }
    let foreign = text(Launch::misbehave().raw("[service]\ndebug = true").arg("check"));
    assert!(foreign.contains("service"), "the reference service's table is not this program's: {foreign}");
}

#[test]
fn a_users_table_can_be_set_from_the_environment() {
    let mut supervisor = Launch::misbehave().env("OXICORN_MISBEHAVE__BOOT", "error").start();
    assert_eq!(supervisor.wait_exit(PATIENCE), 3);
    assert!(supervisor.log().0.contains("the moon is in the wrong house"));
}

#[test]
fn a_program_with_threads_before_run_is_refused() {
    let output = Launch::misbehave().env("MISBEHAVE_THREAD", "1").run();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("thread"), "{text}");
}

/// Users begin their services from the examples, so each example must start, answer and stop.
#[test]
fn every_example_boots_answers_and_stops() {
    let folder = root().join("examples");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("there are examples")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        eprintln!("--- {name}");
        let mut supervisor = Launch::of(build_example(&name)).serving(2);
        let answer = get(supervisor.address(), "/");
        assert!(answer.status < 500, "{name}: {}", answer.status);
        assert!(supervisor.worker_pids().into_iter().all(|pid| Process(pid).is_alive()), "{name}");
        supervisor.stop();
    }
}
