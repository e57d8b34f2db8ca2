//! Promise: a reload tries the new workers first, then replaces every worker, and loses no request. A bad reload
//! changes nothing.

use std::{fs, time::Duration};

use crate::common::{Connection, Launch, Load, Mode, PATIENCE, Signal, Supervisor, events, eventually, free_port, get};

fn sleeps(supervisor: &Supervisor) -> u16 {
    get(supervisor.address(), "/debug/sleep/1").status
}

#[test]
fn a_reload_answers_when_the_new_settings_serve() {
    let mut supervisor = Launch::new().set("service.debug", "true").set("workers.count", "2").serving(2);
    let old = supervisor.serving_pids();
    assert_eq!(sleeps(&supervisor), 200);
    supervisor.edit_settings("debug = true", "debug = false");
    supervisor.assert_reload(0, &["generation 2 serves; with the new workers: service.debug"]);
    eventually("the old workers are gone", PATIENCE, || {
        (!supervisor.worker_pids().iter().any(|pid| old.contains(pid))).then_some(())
    });
    assert_eq!(sleeps(&supervisor), 404, "the new settings are visible in an answer");
    let status = supervisor.status();
    assert_eq!((status["generation"].as_u64(), status["totals"]["reloads"].as_u64()), (Some(2), Some(1)));
    assert_eq!(status["last_reload"]["ok"].as_bool(), Some(true));
    supervisor.stop();
}

#[test]
fn ten_reloads_under_load_lose_nothing() {
    let mut supervisor = Launch::new().serving(2);
    let keep_alive = Load::start(supervisor.address(), "/debug/connections", 16, Mode::KeepAlive { think_ms: 0 });
    let new = Load::start(supervisor.address(), "/debug/connections", 4, Mode::PerRequest { think_ms: 1 });
    let silent = Load::start(supervisor.address(), "/debug/connections", 4, Mode::SlowFirstByte { up_to_ms: 900 });
    for round in 2..=11 {
        let old = supervisor.serving_pids();
        supervisor.signal(Signal::SIGHUP);
        supervisor.wait_log("reloaded", round - 1, PATIENCE);
        let serving = supervisor.serving_pids();
        assert!(serving.iter().any(|pid| !old.contains(pid)));
    }
    assert_eq!(supervisor.generation(), 11);
    for load in [keep_alive, new, silent] {
        load.finish().assert_nothing_lost();
    }
    supervisor.stop();
}

#[test]
fn bad_settings_are_refused_and_nothing_changes() {
    let mut supervisor = Launch::new().serving(2);
    let old = supervisor.serving_pids();
    supervisor.edit_settings("[workers]", "[workers]\ncuont = 4");
    supervisor.assert_reload(1, &["refused", "workers.cuont", "did you mean workers.count?"]);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log("reload_refused", 2, PATIENCE);
    assert_eq!((supervisor.serving_pids(), supervisor.generation()), (old.clone(), 1));
    supervisor.edit_settings("cuont = 4\n", "");
    supervisor.assert_reload(0, &["generation 2 serves"]);
    let status = supervisor.status();
    assert_eq!(status["last_reload"]["ok"].as_bool(), Some(true));
    supervisor.stop();
}

/// The old workers keep serving, whatever is wrong with the new workers.
#[test]
fn a_generation_that_fails_its_trial_is_rolled_back() {
    let mut supervisor =
        Launch::misbehave().set("misbehave.boot", r#""ok""#).set("workers.boot_timeout", r#""1s""#).serving(2);
    let old = supervisor.serving_pids();
    let load = Load::start(supervisor.address(), "/pid", 8, Mode::KeepAlive { think_ms: 1 });
    let mut before = r#"boot = "ok""#.to_owned();
    for (now, reason) in [
        (r#"boot = "error""#, "the moon is in the wrong house"),
        (r#"boot = "panic""#, "the moon fell into the sea"),
        (r#"boot = "abort""#, "SIGABRT"),
        (r#"boot = "hang""#, "boot_timeout"),
        ("boot = \"ok\"\nabort_after_ms = 200", "SIGABRT"),
    ] {
        supervisor.edit_settings(&before, now);
        supervisor.assert_reload(1, &["rolled back", reason, "the old workers serve on"]);
        assert_eq!(supervisor.generation(), 1);
        before = now.to_owned();
    }
    eventually("only the old workers are left", PATIENCE, || {
        let mut pids = supervisor.worker_pids();
        pids.sort_unstable();
        (pids == old).then_some(())
    });
    load.finish().assert_nothing_lost();
    supervisor.edit_settings(&before, r#"boot = "ok""#);
    supervisor.assert_reload(0, &["serves"]);
    supervisor.stop();
}

#[test]
fn addresses_can_be_added_and_removed_without_a_loss() {
    let mut supervisor = Launch::new().serving(2);
    let (stays, comes) = (supervisor.address(), free_port());
    let load = Load::start(stays, "/health", 4, Mode::PerRequest { think_ms: 2 });
    let path = supervisor.path("supervisor.toml");
    let text = fs::read_to_string(&path).expect("the settings file");
    let with = |extra: &str| text.replacen("bind = [", &format!("bind = [{extra}"), 1);
    assert_ne!(with("x"), text, "{text}");
    fs::write(&path, with(&format!("\"127.0.0.1:{comes}\", "))).expect("our own file");
    supervisor.assert_reload(0, &["generation 2 serves", "server.bind"]);
    let added = format!("127.0.0.1:{comes}").parse().expect("an address");
    assert_eq!(get(added, "/health").status, 200);
    fs::write(&path, &text).expect("our own file");
    supervisor.assert_reload(0, &["generation 3 serves"]);
    supervisor.wait_log("address_closed", 1, PATIENCE);
    assert!(Connection::open(added).is_err(), "the removed address still answers");
    load.finish().assert_nothing_lost();
    supervisor.stop();
}

#[test]
fn an_address_that_is_taken_refuses_the_reload() {
    let mut supervisor = Launch::new().serving(2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address");
    supervisor.edit_settings("bind = [", &format!("bind = [\"{taken}\", "));
    supervisor.assert_reload(1, &["refused", &taken.to_string()]);
    assert_eq!((supervisor.generation(), get(supervisor.address(), "/health").status), (1, 200));
    supervisor.stop();
}

#[test]
fn a_scaled_worker_count_survives_a_reload_unless_the_file_changes_it() {
    let mut supervisor = Launch::new().set("workers.count", "2").serving(2);
    supervisor.signal(Signal::SIGTTIN);
    supervisor.wait_serving(3);
    supervisor.assert_reload(0, &["no setting has changed"]);
    assert_eq!(supervisor.status()["target_workers"].as_u64(), Some(3));
    supervisor.edit_settings("count = 2", "count = 1");
    supervisor.assert_reload(0, &["workers.count"]);
    assert_eq!(supervisor.status()["target_workers"].as_u64(), Some(1));
    supervisor.stop();
}

#[test]
fn check_reports_what_a_reload_would_change_and_the_reload_reports_the_same() {
    let checked = |supervisor: &Supervisor| {
        let output = supervisor.ctl(&["check"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut supervisor = Launch::new()
        .set("workers.count", "2")
        .set("service.debug", "true")
        .set("server.reuse_port", "true")
        .serving(2);
    let pid = format!("(pid {}, ", supervisor.status()["pid"]);
    let said = checked(&supervisor);
    assert!(said.contains(&pid) && said.contains(": no setting has changed"), "{said}");
    supervisor.edit_settings("count = 2", "count = 3");
    supervisor.edit_settings("debug = true", "debug = false");
    supervisor.edit_settings("reuse_port = true", "reuse_port = false");
    let changes = "applies at once: workers.count; with the new workers: service.debug; \
                   as before until a restart: server.reuse_port";
    let said = checked(&supervisor);
    assert!(said.contains(changes), "{said}");
    assert_eq!((supervisor.generation(), supervisor.serving_pids().len()), (1, 2), "nothing was done");
    supervisor.assert_reload(0, &[&format!("generation 2 serves; {changes}")]);
    supervisor.edit_settings("count = 3", "cuont = 3");
    let output = supervisor.ctl(&["check"]);
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()));
    supervisor.stop();
    let alone = Launch::new().arg("check").run();
    assert_eq!(String::from_utf8_lossy(&alone.stdout), "settings are valid\n");
}

#[test]
fn a_key_that_needs_a_restart_is_reported_and_keeps_its_value() {
    let mut supervisor = Launch::new().set("process.name", r#""shop""#).serving(2);
    supervisor.edit_settings(r#""shop""#, r#""bakery""#);
    // Reloads by a signal. The command-line client would read the new name from the edited file, and would then look
    // for a service with this name.
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log("reloaded", 1, PATIENCE);
    assert!(supervisor.master().title().contains("[shop] gen 2"), "{}", supervisor.master().title());
    supervisor.stop();
}

#[test]
fn a_stop_during_a_reload_is_obeyed_at_once() {
    let mut supervisor = Launch::misbehave().set("misbehave.boot", r#""ok""#).serving(2);
    supervisor.edit_settings(r#"boot = "ok""#, r#"boot = "hang""#);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log("trial_started", 1, PATIENCE);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(Duration::from_secs(6)), 0, "boot_timeout is a minute");
    assert_eq!(supervisor.log().count(events::STOPPED), 1);
}
