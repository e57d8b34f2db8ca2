//! Promise: `oxicorn status` always shows the true state, and `oxicorn health` says whether the service answers.

use std::collections::BTreeSet;

use crate::common::{Launch, PATIENCE, Process, Signal, Supervisor, events, eventually, free_port, get};
use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;

fn pids(status: &Value) -> BTreeSet<u32> {
    let workers = status["workers"].as_array().expect("a list of workers");
    workers.iter().filter_map(|worker| u32::try_from(worker["pid"].as_u64()?).ok()).collect()
}

fn living(supervisor: &Supervisor) -> BTreeSet<u32> {
    supervisor.worker_pids().into_iter().collect()
}

#[test]
fn status_agrees_with_the_operators_actions_and_with_proc() {
    let mut supervisor = Launch::new().set("workers.max_requests", "1000000").serving(2);
    for _ in 0..10 {
        assert_eq!(get(supervisor.address(), "/health").status, 200);
    }
    assert_eq!(get(supervisor.address(), "/nowhere").status, 404);
    let status = supervisor.status();
    assert_eq!((status["pid"].as_u64(), &status["state"]), (Some(supervisor.pid().into()), &"running".into()));
    assert_eq!((&status["generation"], &status["target_workers"]), (&1.into(), &2.into()));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_s"].as_f64().is_some_and(|uptime| (0.0..60.0).contains(&uptime)), "{status}");
    assert_eq!(status["listeners"][0]["address"], supervisor.address().to_string());
    assert_eq!(status["listeners"][0]["queued"], 0);
    assert_eq!(pids(&status), living(&supervisor));
    let workers = status["workers"].as_array().expect("a list of workers");
    for (slot, worker) in workers.iter().enumerate() {
        assert_eq!((&worker["slot"], &worker["generation"]), (&slot.into(), &1.into()));
        assert_eq!((&worker["state"], &worker["restarts"]), (&"serving".into(), &0.into()));
        assert_eq!((&worker["in_flight"], &worker["recycle_at"]), (&0.into(), &1_000_000.into()));
        let (told, real) = (worker["rss_bytes"].as_u64().unwrap_or(0) >> 10, rss_kib(worker));
        assert!(told.abs_diff(real) < real / 4, "rss {told} KiB, but {real} KiB in /proc");
        assert!(worker["heartbeat_age_ms"].as_u64().is_some_and(|age| age < 1_000), "{worker}");
    }
    let requests: u64 = workers.iter().filter_map(|worker| worker["requests"].as_u64()).sum();
    assert_eq!((requests, &status["totals"]["requests"]), (11, &11.into()));
    assert_eq!(status["totals"]["responses"]["2xx"], 10);
    assert_eq!(status["totals"]["responses"]["4xx"], 1);
    assert_eq!(status["last_reload"], Value::Null);

    let killed = supervisor.worker_pids()[0];
    supervisor.signal_worker(killed, Signal::SIGKILL);
    let status = eventually("it serves again", PATIENCE, || {
        let status = supervisor.status();
        let serving =
            status["workers"].as_array().is_some_and(|workers| workers.iter().all(|w| w["state"] == "serving"));
        (serving && pids(&status).len() == 2 && !pids(&status).contains(&killed)).then_some(status)
    });
    assert_eq!((&status["totals"]["crashed"], &status["totals"]["requests"]), (&1.into(), &11.into()));
    let replaced = status["workers"].as_array().and_then(|workers| workers.iter().find(|w| w["restarts"] == 1));
    let reason = replaced.and_then(|worker| worker["last_exit"].as_str()).unwrap_or_default();
    assert!(reason.contains("KILL"), "{status}");
    supervisor.stop();
}

fn rss_kib(worker: &Value) -> u64 {
    Process(worker["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")).rss_kib()
}

#[test]
fn status_answers_during_a_storm() {
    let mut supervisor = Launch::new().serving(2);
    let mut killed = 0;
    for round in 0..40 {
        match round % 4 {
            0 | 1 => supervisor.signal(if round < 20 { Signal::SIGTTIN } else { Signal::SIGTTOU }),
            _ => {
                let pid = supervisor.serving_pids().first().map(|pid| Pid::from_raw(pid.cast_signed()));
                // The kill may fail, because an earlier TTOU may already have made this worker exit.
                killed += u64::from(pid.is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok()));
            }
        }
        let before = living(&supervisor);
        let status = supervisor.status();
        let after = living(&supervisor);
        // A worker that lived both before and after the status was read also lived while the status was read, so the
        // status must list this worker.
        let lasting: BTreeSet<u32> = before.intersection(&after).copied().collect();
        assert!(lasting.is_subset(&pids(&status)), "{lasting:?} live, {status}");
    }
    let settled = eventually("status and /proc agree", PATIENCE, || {
        let status = supervisor.status();
        let workers = status["workers"].as_array()?;
        let settled = workers.len() as u64 == status["target_workers"].as_u64()?
            && workers.iter().all(|worker| worker["state"] == "serving")
            && pids(&status) == living(&supervisor);
        settled.then_some(status)
    });
    let crashed = settled["totals"]["crashed"].as_u64().expect("a count");
    assert!((1..=killed).contains(&crashed), "{crashed} of {killed} killed while they served");
    supervisor.stop();
}

#[test]
fn a_slot_that_cannot_boot_is_shown() {
    let supervisor =
        Launch::misbehave().set("misbehave.fail_while", r#""{dir}/trouble""#).set("workers.count", "1").serving(1);
    std::fs::write(supervisor.path("trouble"), "").expect("a file in our own folder");
    supervisor.signal_worker(supervisor.worker_pids()[0], Signal::SIGKILL);
    let status = eventually("the slot is empty", PATIENCE, || {
        let status = supervisor.status();
        (status["empty_slots"][0]["restarts"].as_u64() >= Some(2)).then_some(status)
    });
    assert_eq!((&status["empty_slots"][0]["slot"], &status["state"]), (&0.into(), &"running".into()));
    let output = supervisor.ctl(&["status"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("0 of 1 workers serve"), "{table}");
    let code = |arguments: &[&str]| supervisor.ctl(arguments).status.code();
    assert_eq!((output.status.code(), code(&["status", "--json"])), (Some(1), Some(1)));
    assert_eq!(
        code(&["status", "--format", "openmetrics"]),
        Some(0),
        "the page for a scraper has no verdict in its exit code"
    );
}

#[test]
fn status_prints_a_table_for_people() {
    let supervisor = Launch::new().serving(2);
    let output = supervisor.ctl(&["status"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert!(table.starts_with("running  2 of 2 workers serve  pid "), "{table}");
    assert!(table.contains("SLOT") && !table.contains('\x1b'), "{table}");
    for pid in supervisor.worker_pids() {
        assert!(table.contains(&pid.to_string()), "{table}");
    }
}

#[test]
fn broken_settings_do_not_hide_a_running_service() {
    let supervisor = Launch::new().unset("control.socket").serving(2);
    std::fs::write(supervisor.path("supervisor.toml"), "[workers]\ncount = \"many\"\n").expect("our own file");
    assert_eq!(supervisor.status()["pid"].as_u64(), Some(supervisor.pid().into()));
}

#[test]
fn health_exits_with_zero_or_one() {
    let port = free_port();
    let mut supervisor = Launch::new().set("server.bind", &format!(r#"["0.0.0.0:{port}"]"#)).serving(2);
    let health = |supervisor: &Supervisor, url: &[&str]| {
        let output = supervisor.ctl(&[&["health"], url].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(health(&supervisor, &[]), (Some(0), String::new()));
    assert_eq!(health(&supervisor, &["/ready"]).0, Some(0));
    assert_eq!(health(&supervisor, &[&format!("http://127.0.0.1:{port}/health")]).0, Some(0));
    let (code, told) = health(&supervisor, &["/nowhere"]);
    assert!(code == Some(1) && told.contains("answers 404"), "{code:?} {told}");
    supervisor.stop();
    assert_eq!(supervisor.log().count(events::STOPPED), 1);
    let (code, told) = health(&supervisor, &[]);
    assert!(code == Some(1) && told.contains("refused"), "{code:?} {told}");
}

#[test]
fn health_works_over_a_unix_socket() {
    let supervisor = Launch::new().set("server.bind", r#"["unix:{dir}/web.sock", "127.0.0.1:0"]"#).serving(2);
    assert!(supervisor.ctl(&["health"]).status.success());
    let url = format!("unix:{}", supervisor.path("web.sock").display());
    assert!(supervisor.ctl(&["health", &url]).status.success());
}

#[test]
fn status_prints_the_counts_for_prometheus_too() {
    let mut supervisor = Launch::new().serving(2);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    let output = supervisor.ctl(&["status", "--format", "openmetrics"]);
    let page = String::from_utf8(output.stdout).expect("text");
    assert!(page.contains("\noxicorn_requests_total 1\n") && page.ends_with("# EOF\n"), "{page}");
    supervisor.stop();
}
