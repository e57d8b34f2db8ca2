//! Promise: an upgrade replaces the master's program in the same process and loses no request. A bad program changes
//! nothing.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Output,
    time::Duration,
};

use crate::common::{
    Canary, Launch, Load, Mode, PATIENCE, Process, Signal, Supervisor, assert_told_all, build_example, events,
    eventually, get, metric, now, text,
};

#[track_caller]
fn assert_one_sentence(output: &Output, code: i32, fragments: &[&str]) {
    let text = text(output);
    assert_eq!(text.trim_end().lines().count(), 1, "one sentence: {text}");
    assert_told_all(output, code, fragments);
}

/// Returns the total number of requests on the metrics page.
fn counted(supervisor: &Supervisor) -> u64 {
    let page = get(supervisor.address(), "/metrics").text();
    metric(&page, "oxicorn_requests_total").unwrap_or_else(|| panic!("no total in:\n{page}"))
}

/// After an upgrade, the pid, the sockets, the pid file and the counters are the same as before. The workers are new
/// and use the new settings.
#[test]
fn an_upgrade_under_load_is_invisible_to_clients() {
    let mut supervisor = Launch::new()
        .set("http.metrics_path", r#""/metrics""#)
        .set("process.pidfile", r#""{dir}/pid""#)
        .log_to("app.log")
        .serving(2);
    let (pid, address, old) = (supervisor.pid(), supervisor.address(), supervisor.serving_pids());
    let keep_alive = Load::start(address, "/debug/connections", 8, Mode::KeepAlive { think_ms: 0 });
    let new = Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 1 });
    let silent = Load::start(address, "/debug/connections", 4, Mode::SlowFirstByte { up_to_ms: 900 });
    let metrics = Load::start(address, "/metrics", 1, Mode::PerRequest { think_ms: 10 });
    eventually("the load runs", PATIENCE, || (keep_alive.answered() >= 50 && new.answered() >= 50).then_some(()));
    let before = (supervisor.status(), counted(&supervisor));
    supervisor.edit_settings("debug = true", "debug = true\ndocs = false");
    assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 0, &["generation 2 serves with /"]);
    eventually("the old workers are gone", PATIENCE, || {
        (!supervisor.worker_pids().iter().any(|pid| old.contains(pid))).then_some(())
    });
    let after = supervisor.status();
    assert_eq!((after["pid"].as_u64(), after["generation"].as_u64()), (Some(pid.into()), Some(2)));
    assert_eq!((&after["state"], &after["last_upgrade"]["ok"]), (&"running".into(), &true.into()));
    assert_eq!((&after["totals"]["upgrades"], &after["totals"]["reloads"]), (&1.into(), &0.into()));
    for count in ["requests", "connections"] {
        let of = |status: &serde_json::Value| status["totals"][count].as_u64().expect("a number");
        assert!(of(&after) > of(&before.0), "{count}: {} and then {}", before.0["totals"], after["totals"]);
    }
    assert!(counted(&supervisor) > before.1);
    assert!(after["uptime_s"].as_f64() > before.0["uptime_s"].as_f64());
    assert_eq!(fs::read_to_string(supervisor.path("pid")).expect("the pid file").trim(), pid.to_string());
    assert_eq!(get(address, "/docs").status, 404, "the new settings are visible in an answer");
    for load in [keep_alive, new, silent, metrics] {
        load.finish().assert_nothing_lost();
    }
    supervisor.stop();
    assert!(!supervisor.path("pid").exists() && !supervisor.path("control.sock").exists());
    assert_eq!(supervisor.log().count("master_stalled"), 0);
}

#[test]
fn twenty_upgrades_in_a_row_leak_no_descriptor() {
    let mut supervisor = Launch::new().log_to("app.log").serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::PerRequest { think_ms: 5 });
    let settled = || {
        eventually("the old workers are gone", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
        let worker = Process(supervisor.worker_pids()[0]);
        // A worker also has a descriptor for each open connection, and the number of connections varies. The test
        // therefore takes the smallest of fifty counts.
        let least = (0..50).map(|_| (crate::common::observe_for(Duration::from_millis(2)), worker.files()).1).min();
        (supervisor.master().files(), least.expect("it was looked at"))
    };
    assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 0, &["serves"]);
    let first = settled();
    for _ in 0..19 {
        assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 0, &["serves"]);
    }
    assert_eq!(settled(), first, "descriptors of the master, and of a worker");
    assert_eq!((supervisor.generation(), supervisor.log().count(events::UPGRADED)), (21, 20));
    load.finish().assert_nothing_lost();
    supervisor.stop();
}

/// The old program and its workers keep serving, whatever file the operator gives as the new program.
#[test]
fn a_file_that_is_no_oxicorn_program_is_refused() {
    let mut supervisor = Launch::new().set("workers.boot_timeout", r#""1s""#).serving(2);
    let old = supervisor.serving_pids();
    let load = Load::start(supervisor.address(), "/debug/connections", 8, Mode::KeepAlive { think_ms: 1 });
    let text = supervisor.path("no-program");
    fs::write(&text, "no program").expect("a file in our own folder");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).expect("our own file");
    let text = text.to_string_lossy();
    for (program, reason) in [
        ("/nowhere/oxicorn", "/nowhere/oxicorn cannot be opened: No such file"),
        ("/etc/passwd", "/etc/passwd cannot be executed: Permission denied"),
        (&*text, "cannot be executed: Exec format error"),
        ("/bin/false", "/bin/false exited with code 1 before it was ready"),
        ("/bin/ls", "/bin/ls exited with code 0 before it was ready; its last line: "),
        // This program prints "y" for ever, and never reports that it is ready.
        ("/usr/bin/yes", "/usr/bin/yes was not ready within workers.boot_timeout; its last line: "),
    ] {
        let output = supervisor.ctl(&["upgrade", "--program", program]);
        assert_one_sentence(&output, 1, &["refused, nothing was changed: ", reason]);
        let last = &supervisor.status()["last_upgrade"];
        assert!(last["reason"].as_str().is_some_and(|told| told.contains(reason)), "{last}");
    }
    assert_eq!((supervisor.serving_pids(), supervisor.generation()), (old, 1));
    assert_eq!(supervisor.master().children().len(), 2, "no process of a preflight is left");
    load.finish().assert_nothing_lost();
    supervisor.stop();
}

#[test]
fn a_program_whose_worker_cannot_boot_is_refused() {
    let mut supervisor =
        Launch::misbehave().set("misbehave.boot", r#""ok""#).set("workers.boot_timeout", r#""3s""#).serving(2);
    let old = supervisor.serving_pids();
    let load = Load::start(supervisor.address(), "/pid", 8, Mode::KeepAlive { think_ms: 1 });
    let mut before = r#"boot = "ok""#.to_owned();
    for (now, reason) in [
        (r#"boot = "error""#, "the moon is in the wrong house"),
        (r#"boot = "panic""#, "the moon fell into the sea"),
        (r#"boot = "abort""#, "killed by SIGABRT"),
        (r#"boot = "hang""#, "was not ready within workers.boot_timeout"),
        ("boot = \"ok\"\nbot = 1", "misbehave.bot: unknown key; did you mean misbehave.boot?"),
        ("boot = = \"ok\"", "not valid TOML"),
    ] {
        supervisor.edit_settings(&before, now);
        assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 1, &["refused, nothing was changed: ", reason]);
        assert_eq!(supervisor.serving_pids(), old);
        before = now.to_owned();
    }
    supervisor.edit_settings(&before, r#"boot = "ok""#);
    supervisor.edit_settings("bind = [", &format!("bind = [\"{}\", ", supervisor.address()));
    assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 1, &["in use"]);
    assert_eq!((supervisor.log().count(events::UPGRADE_REFUSED), supervisor.log().count("upgrade_exec")), (7, 0));
    load.finish().assert_nothing_lost();
    supervisor.stop();
}

/// In this test the new program fails after its preflight, when it is already the master.
#[test]
fn a_program_that_fails_later_is_rolled_back() {
    let mut supervisor = Launch::misbehave().set("misbehave.boot", r#""ok""#).log_to("app.log").serving(2);
    let old = supervisor.serving_pids();
    let load = Load::start(supervisor.address(), "/pid", 8, Mode::KeepAlive { think_ms: 1 });
    let files = supervisor.master().files();
    // The new program's workers die 300 ms after their start.
    supervisor.edit_settings(r#"boot = "ok""#, "boot = \"ok\"\nabort_after_ms = 300");
    assert_one_sentence(
        &supervisor.ctl(&["upgrade"]),
        1,
        &["rolled back: the new worker of slot ", "SIGABRT", "the old workers serve"],
    );
    // The settings become unreadable after the new program has passed its preflight.
    let spoils = format!("spoils = {:?}", supervisor.path("supervisor.toml"));
    supervisor.edit_settings("abort_after_ms = 300", &spoils);
    assert_one_sentence(
        &supervisor.ctl_by_socket(&["upgrade"]),
        1,
        &["rolled back: ", "not valid TOML", "the old workers serve"],
    );
    eventually("only the old workers are left", PATIENCE, || {
        let mut pids = supervisor.worker_pids();
        pids.sort_unstable();
        (pids == old).then_some(())
    });
    let log = supervisor.log();
    assert_eq!(
        (log.count("upgrade_exec"), log.count("workers_adopted"), log.count(events::UPGRADE_ROLLED_BACK)),
        (2, 1, 2)
    );
    eventually("the master has as many descriptors as before", PATIENCE, || {
        (supervisor.master().files() == files).then_some(())
    });
    // The old program keeps its old settings, although no file contains them any more.
    supervisor.signal_worker(old[0], Signal::SIGKILL);
    supervisor.wait_gone(old[0]);
    eventually("the killed worker is replaced", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
    load.finish();
    assert_one_sentence(&supervisor.ctl_by_socket(&["reload"]), 1, &["not valid TOML"]);
    let text = fs::read_to_string(supervisor.path("supervisor.toml")).expect("the settings file");
    let text = text.replace("no = = settings\n", "").replace(&spoils, "");
    fs::write(supervisor.path("supervisor.toml"), text).expect("our own file");
    assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 0, &["serves"]);
    supervisor.stop();
}

/// Each release has its own folder, and a symbolic link leads to the folder in use. An upgrade must follow this link.
#[test]
fn an_upgrade_follows_a_moved_link() {
    let launch = Launch::misbehave();
    let releases = [launch.path("one"), launch.path("two")];
    for release in &releases {
        fs::create_dir(release).expect("a folder in our own");
        fs::copy(build_example("misbehave"), release.join("service")).expect("a copy of the program");
    }
    let current = launch.path("current");
    let link = |to: &Path| {
        let draft = current.with_extension("draft");
        std::os::unix::fs::symlink(to, &draft).expect("a link in our own folder");
        fs::rename(&draft, &current).expect("our own link");
    };
    link(&releases[0]);
    let mut supervisor = launch.through(&["sh", "-c", "exec current/service"]).serving(2);
    let running = || fs::read_link(format!("/proc/{}/exe", supervisor.pid())).expect("the master's program");
    assert_eq!(running(), releases[0].join("service"));
    link(&releases[1]);
    fs::remove_dir_all(&releases[0]).expect("the old release goes");
    let upgrade = |program: &[&str]| supervisor.ctl_of(&releases[1].join("service"), &[&["upgrade"], program].concat());
    assert_one_sentence(&upgrade(&[]), 0, &["serves with ", "current/service"]);
    assert_eq!(running(), releases[1].join("service"));
    // If an upgrade names a program, later upgrades use this program too.
    let other = supervisor.path("other");
    fs::copy(releases[1].join("service"), &other).expect("a copy of the program");
    assert_one_sentence(&upgrade(&["--program", "other"]), 0, &["other"]);
    assert_eq!(running(), other);
    assert_one_sentence(&upgrade(&[]), 0, &["other"]);
    supervisor.stop();
}

/// The master obeys a TERM at once, both while a new program hangs in its preflight and while the new program is on
/// trial.
#[test]
fn a_stop_during_an_upgrade_is_obeyed_at_once() {
    let mut supervisor =
        Launch::misbehave().set("misbehave.boot", r#""ok""#).set("workers.boot_timeout", r#""60s""#).serving(2);
    supervisor.edit_settings(r#"boot = "ok""#, r#"boot = "hang""#);
    let mut caller = UnixStream::connect(supervisor.path("control.sock")).expect("the master takes connections");
    caller.write_all(b"{\"version\":1,\"command\":{\"upgrade\":{\"program\":null}}}\n").expect("a line");
    let hears = supervisor.wait_log("upgrade_started", 1, PATIENCE);
    assert_eq!(supervisor.status()["state"], "upgrading", "{hears:?}");
    // A second upgrade command gets an answer at once. A second upgrade signal waits until the first upgrade is over.
    assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 1, &["another upgrade is under way"]);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log("upgrade_queued", 1, PATIENCE);
    assert_one_sentence(&supervisor.ctl(&["scale", "3"]), 0, &["3 workers serve"]);
    let (canary, asked) = (Canary::start(), now());
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    let (took, stall) = (asked.elapsed(), canary.longest());
    // The limit of four seconds includes one second for the last accepts.
    assert!(took < Duration::from_secs(4) + 4 * stall, "{took:?}, machine {stall:?}");
    assert_eq!(supervisor.leftovers(), [], "the preflight is gone too");
    let mut answer = String::new();
    caller.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("the service is stopping"), "{answer}");

    let mut supervisor = Launch::misbehave().serving(2);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log("trial_started", 1, PATIENCE);
    supervisor.stop();
}

#[test]
fn an_upgrade_keeps_every_kind_of_socket() {
    let bind = r#"["unix:{dir}/service.sock", "127.0.0.1:0", "[::1]:0"]"#;
    let mut supervisor = Launch::new().set("server.bind", bind).serving(2);
    let socket = supervisor.path("service.sock");
    let addresses: Vec<_> = supervisor.addresses().iter().filter_map(|address| address.parse().ok()).collect();
    assert_eq!(addresses.len(), 2);
    let loads: Vec<_> = addresses
        .iter()
        .map(|address| Load::start(*address, "/debug/connections", 4, Mode::PerRequest { think_ms: 1 }))
        .collect();
    for round in 2..5 {
        // This client connects before the upgrade and sends its request after the upgrade. In the meantime its
        // connection waits in the socket's queue.
        let mut early = UnixStream::connect(&socket).expect("it listens");
        assert_one_sentence(&supervisor.ctl_by_socket(&["upgrade"]), 0, &[&format!("generation {round} serves")]);
        early.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        early.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    for load in loads {
        load.finish().assert_nothing_lost();
    }
    let queues = supervisor.status()["listeners"].clone();
    assert_eq!(queues.as_array().map(Vec::len), Some(3), "{queues}");
    supervisor.stop();
    assert!(!socket.exists(), "the last program removes the file that the first one made");
}
