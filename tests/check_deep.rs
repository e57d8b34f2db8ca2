//! Promise: `check --deep` finds the problems that a start would have, and exits with the code with which the start
//! would exit. It disturbs no service.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, process::Output};

use crate::common::{Launch, PATIENCE, events, free_port, get};
use nix::unistd::Uid;

fn deep(launch: &Launch) -> (Option<i32>, String) {
    told(&launch.run_with(&["check", "--deep"]))
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

#[track_caller]
fn assert_told(launch: &Launch, exit: i32, sentence: &str) {
    let (code, text) = deep(launch);
    assert!(code == Some(exit) && text.contains(sentence), "{code:?}, not {exit}: {text}");
}

#[test]
fn a_sound_service_passes_and_the_check_leaves_nothing_behind() {
    let port = free_port();
    let launch = Launch::new()
        .set("server.bind", &format!(r#"["127.0.0.1:{port}", "unix:{{dir}}/app.sock"]"#))
        .set("process.pidfile", r#""{dir}/app.pid""#)
        .set("log.access", r#""{dir}/access.log""#)
        .log_to("app.log");
    assert_told(&launch, 0, "would succeed: a worker became ready");
    for name in ["app.sock", "app.pid", "app.log", "access.log", "control.sock"] {
        assert!(!launch.path(name).exists(), "{name} was made");
    }
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free: nothing holds it");

    let json = launch.run_with(&["check", "--deep", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["start"], serde_json::json!({"ok": true, "failures": [], "held": []}));
    // Without `--deep`, `check` starts nothing, so its output has no result of a start.
    let shallow = launch.run_with(&["check", "--json"]);
    let shallow: serde_json::Value = serde_json::from_slice(&shallow.stdout).expect("one JSON object");
    assert_eq!((&shallow["ok"], &shallow["start"]), (&true.into(), &serde_json::Value::Null));
    launch.serving(2).stop();
}

/// For each case, the test also starts the service, and the start must end with the same code as the check.
#[test]
fn the_check_ends_with_the_exit_code_of_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (address, &taken)).expect("it is bound");
    let in_the_way = |launch: Launch| {
        fs::write(launch.path("in-the-way"), "a file").expect("our own folder");
        launch
    };
    let cases = [
        (2, "workers.count", Launch::new().set("workers.count", "0")),
        (3, "folder", in_the_way(Launch::new().set("service.sqlite_path", r#""{dir}/in-the-way/facts.db""#))),
        (3, "cannot open the store", in_the_way(Launch::new().set("service.sqlite_path", r#""{dir}""#))),
        (3, "the factory failed", Launch::misbehave().set("misbehave.boot", r#""error""#)),
        (3, "the factory panicked", Launch::misbehave().set("misbehave.boot", r#""panic""#)),
        (3, "before it was ready", Launch::misbehave().set("misbehave.boot", r#""abort""#)),
        (4, "is in use", Launch::new().set("server.bind", &format!(r#"["{}"]"#, taken.0))),
        (4, "no interface of this machine", Launch::new().set("server.bind", r#"["192.0.2.1:8000"]"#)),
        (4, "is not a socket", in_the_way(Launch::new().set("server.bind", r#"["unix:{dir}/in-the-way"]"#))),
    ];
    for (exit, sentence, launch) in cases {
        assert_told(&launch, exit, sentence);
        assert_eq!(launch.start().wait_exit(PATIENCE), exit, "the start itself: {sentence}");
    }
}

#[test]
fn every_failure_is_reported_and_the_first_decides_the_exit_code() {
    let launch = Launch::misbehave().set("misbehave.boot", r#""error""#).set("server.bind", r#"["192.0.2.1:8000"]"#);
    let (code, text) = deep(&launch);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("with exit code 4: ") && text.contains("with exit code 3: "), "{text}");
    let json = launch.run_with(&["check", "--deep", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
    let exits: Vec<_> =
        told["start"]["failures"].as_array().expect("a list").iter().map(|told| &told["exit"]).collect();
    assert_eq!((json.status.code(), &told["ok"], exits), (Some(4), &false.into(), vec![&4.into(), &3.into()]));
}

#[test]
fn a_worker_that_hangs_at_its_boot_is_ended() {
    let launch = Launch::misbehave().set("misbehave.boot", r#""hang""#).set("workers.boot_timeout", r#""500ms""#);
    assert_told(&launch, 3, "not ready within workers.boot_timeout (500ms)");
    let folder = launch.path("").canonicalize().expect("our own folder");
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let here = processes.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == folder));
    assert_eq!(here.count(), 0, "its process still runs");
}

#[test]
fn a_running_service_keeps_its_addresses_and_is_not_disturbed() {
    let mut supervisor = Launch::new().set("process.pidfile", r#""{dir}/app.pid""#).serving(2);
    let address = supervisor.address();
    let bind = format!("OXICORN_SERVER__BIND={address}");
    let environment = bind.split_once('=').map(|(name, value)| (name, value.as_ref())).expect("a pair");
    let (code, text) = told(&supervisor.ctl_in(&["check", "--deep"], &[environment]));
    assert_eq!(code, Some(0), "{text}");
    let held = format!("{address} is held by the running service (pid {})", supervisor.pid());
    assert!(text.contains(&held) && text.contains("would succeed"), "{text}");
    assert_eq!(get(address, "/health").status, 200);
    let log = supervisor.log();
    assert_eq!(
        (log.count(events::FORKED), log.count(events::EXITED)),
        (2, 0),
        "the service was not disturbed: {}",
        log.0
    );
    assert_eq!(supervisor.master().children().len(), 2);
    supervisor.stop();
}

/// The checked worker runs as `process.user`. If it ran as root, it could write everywhere, and the check would miss
/// missing rights.
#[test]
fn the_checked_worker_has_the_rights_of_a_real_worker() {
    assert!(Uid::effective().is_root(), "only root can give its rights away: run the tests as root");
    let launch =
        Launch::new().set("process.user", r#""nobody""#).set("service.sqlite_path", r#""{dir}/roots/facts.db""#);
    fs::create_dir(launch.path("roots")).expect("our own folder");
    fs::set_permissions(launch.path("roots"), fs::Permissions::from_mode(0o755)).expect("our own folder");
    assert_told(&launch, 3, "facts.db");
    fs::set_permissions(launch.path("roots"), fs::Permissions::from_mode(0o777)).expect("our own folder");
    assert_told(&launch, 0, "would succeed");

    // The user `nobody` may not write in the folder. The output must name each thing that cannot be made there.
    let launch = Launch::new().set("process.pidfile", r#""{dir}/app.pid""#).set("log.file", r#""{dir}/app.log""#);
    let launch = launch.set("server.bind", r#"["unix:{dir}/app.sock"]"#);
    let launch = launch.through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    let (code, text) = deep(&launch);
    assert_eq!(code, Some(2), "{text}");
    for told in ["exit code 2: log.file", "exit code 4: server.bind", "exit code 1: process.pidfile", "exit code 3: "] {
        assert!(text.contains(told), "{told} is not in: {text}");
    }
}

#[test]
fn the_worker_of_the_check_runs_its_shutdown_hook() {
    let launch = Launch::misbehave().set("misbehave.goodbye_file", r#""{dir}/goodbye""#);
    assert_told(&launch, 0, "would succeed: a worker became ready");
    let goodbye = fs::read_to_string(launch.path("goodbye")).expect("the hook has written it");
    assert_eq!(goodbye.lines().count(), 1, "the factory may have opened what the hook closes");
}
