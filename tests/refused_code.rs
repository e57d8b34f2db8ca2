//! Promise: if workers load their code from the disk, a refused reload or upgrade is not undone later. No worker is
//! replaced by choice until a reload or an upgrade succeeds. A slot whose worker dies is tried again and again, and the
//! log names the reason of the refusal.

use std::{fs, time::Duration};

use crate::common::{
    Launch, Load, Mode, PATIENCE, Signal, Supervisor, assert_told_all, build_example, events, eventually, get,
    observe_for, text,
};

const REFUSED_CODE: &str = "refused_code";
const SCALE_REFUSED: &str = "scale_refused";

fn launch() -> Launch {
    let launch = Launch::of(build_example("code_on_disk"));
    fs::write(launch.path("code"), "one\n").expect("our own folder");
    launch.env("CODE", "{dir}/code")
}

fn write_code(supervisor: &Supervisor, code: &str) {
    fs::write(supervisor.path("code"), format!("{code}\n")).expect("our own folder");
}

/// Returns the code that answers.
fn code(supervisor: &Supervisor) -> String {
    get(supervisor.address(), "/").json()["code"].as_str().expect("a text").to_owned()
}

/// Puts code on the disk that cannot start, and asserts that a reload refuses it.
#[track_caller]
fn refuse(supervisor: &Supervisor) {
    write_code(supervisor, "cannot start");
    supervisor.assert_reload(1, &["rolled back", "code, line 1: it cannot start"]);
    assert_eq!(supervisor.status()["recycling_held"], true);
}

#[track_caller]
fn assert_status_tells(supervisor: &Supervisor, line: &str) {
    let table = text(&supervisor.ctl(&["status"]));
    assert!(table.contains(line), "{line:?} is not in:\n{table}");
}

#[test]
fn nothing_is_recycled_until_a_reload_succeeds() {
    let launch = launch().set("workers.max_requests", "50").set("workers.max_rss", r#""100MiB""#);
    let mut supervisor = launch.serving(2);
    assert_status_tells(&supervisor, "code: from disk\n");
    assert_eq!(
        (&supervisor.status()["code"], &supervisor.status()["recycling_held"]),
        (&"from disk".into(), &false.into())
    );
    refuse(&supervisor);
    assert_status_tells(&supervisor, "code: from disk; refused last");
    let old = supervisor.serving_pids();
    let load = Load::start(supervisor.address(), "/", 4, Mode::KeepAlive { think_ms: 0 });
    let asked = supervisor.wait_log(events::RECYCLE_REQUESTED, 2, PATIENCE);
    assert!(asked.iter().all(|line| line.contains("the code on the disk was refused")), "{asked:?}");
    observe_for(Duration::from_secs(1));
    load.finish().assert_nothing_lost();
    assert_eq!((supervisor.serving_pids(), supervisor.total("recycled")), (old.clone(), 0));

    write_code(&supervisor, "two");
    supervisor.assert_reload(0, &["serves"]);
    assert_eq!(supervisor.status()["recycling_held"], false);
    assert_eq!(code(&supervisor), "two");
    let load = Load::start(supervisor.address(), "/", 4, Mode::KeepAlive { think_ms: 0 });
    eventually("workers are recycled again", PATIENCE, || (supervisor.total("recycled") > 2).then_some(()));
    load.finish().assert_nothing_lost();
    supervisor.stop();
}

#[test]
fn a_worker_that_grew_or_aged_stays_too() {
    let launch = launch().set("workers.max_age", r#""2s""#).set("workers.max_rss", r#""150MiB""#);
    let mut supervisor = launch.set("workers.count", "1").serving(1);
    refuse(&supervisor);
    let old = supervisor.serving_pids();
    assert_eq!(get(supervisor.address(), "/allocate/200").status, 200);
    supervisor.wait_log(events::RECYCLE_REQUESTED, 1, PATIENCE);
    observe_for(Duration::from_secs(2));
    assert_eq!((supervisor.serving_pids(), code(&supervisor)), (old, "one".to_owned()));
    supervisor.stop();
}

#[test]
fn a_death_is_followed_by_tries_and_one_line_that_names_the_refusal() {
    let mut supervisor = launch().serving(2);
    refuse(&supervisor);
    let pids = supervisor.serving_pids();
    supervisor.signal_worker(pids[0], Signal::SIGKILL);
    let told = supervisor.wait_log(REFUSED_CODE, 1, PATIENCE);
    assert!(told[0].contains("code, line 1: it cannot start") && told[0].contains("reload"), "{told:?}");
    // One of these boot failures is that of the reload.
    supervisor.wait_log(events::BOOT_FAILED, 4, PATIENCE);
    supervisor.wait_log(events::BACKOFF, 1, PATIENCE);
    assert_eq!((supervisor.serving_pids(), code(&supervisor)), (vec![pids[1]], "one".to_owned()));
    assert_eq!(supervisor.log().count(REFUSED_CODE), 1);
    write_code(&supervisor, "one, mended");
    supervisor.wait_serving(2);
    assert_eq!(supervisor.status()["recycling_held"], true, "only a reload tells that the code is good");
    supervisor.assert_reload(0, &["serves"]);
    supervisor.stop();
}

#[test]
fn more_workers_are_tried_and_taken_back_if_they_fail() {
    let mut supervisor = launch().serving(2);
    refuse(&supervisor);
    let old = supervisor.serving_pids();
    let scaled = supervisor.ctl(&["scale", "4"]);
    assert_told_all(&scaled, 1, &["code, line 1: it cannot start", "the target is 2 again"]);
    supervisor.wait_log(SCALE_REFUSED, 1, PATIENCE);
    supervisor.signal(Signal::SIGTTIN);
    let refused = supervisor.wait_log(SCALE_REFUSED, 2, PATIENCE);
    assert!(refused.iter().all(|line| line.contains("it cannot start")), "{refused:?}");
    let status = supervisor.status();
    assert_eq!((status["target_workers"].as_u64(), supervisor.serving_pids()), (Some(2), old.clone()));
    // Fewer workers need no code.
    assert_told_all(&supervisor.ctl(&["scale", "1"]), 0, &["1 worker serves"]);
    // The code is good again, and no reload has said so yet.
    write_code(&supervisor, "one");
    assert_told_all(&supervisor.ctl(&["scale", "3"]), 0, &["3 workers serve"]);
    supervisor.stop();
}

#[test]
fn refused_settings_and_a_refused_upgrade_count_too() {
    let mut supervisor = launch().set("workers.max_requests", "20").serving(2);
    supervisor.edit_settings("[workers]", "[workers]\ncuont = 4");
    supervisor.assert_reload(1, &["workers.cuont"]);
    assert_eq!(supervisor.status()["recycling_held"], true);
    supervisor.edit_settings("cuont = 4\n", "");
    write_code(&supervisor, "cannot start");
    assert_told_all(&supervisor.ctl(&["upgrade"]), 1, &["refused", "it cannot start"]);
    let pids = supervisor.serving_pids();
    supervisor.signal_worker(pids[0], Signal::SIGKILL);
    let told = supervisor.wait_log(REFUSED_CODE, 1, PATIENCE);
    assert!(told[0].contains("the last upgrade was refused") && told[0].contains("it cannot start"), "{told:?}");
    write_code(&supervisor, "dies");
    let failed = supervisor.ctl(&["upgrade"]);
    assert_told_all(&failed, 1, &["rolled back"]);
    assert_eq!(supervisor.status()["recycling_held"], true, "the old program knows of the refusal");
    write_code(&supervisor, "three");
    assert_told_all(&supervisor.ctl(&["upgrade"]), 0, &["serves with"]);
    assert_eq!(supervisor.status()["recycling_held"], false);
    supervisor.stop();
}

#[test]
fn code_in_the_program_is_recycled_whatever_was_refused() {
    let mut supervisor = launch().env("COMPILED", "1").set("workers.max_requests", "20").serving(2);
    supervisor.edit_settings("[workers]", "[workers]\ncuont = 4");
    supervisor.assert_reload(1, &["workers.cuont"]);
    let status = supervisor.status();
    assert_eq!((&status["code"], &status["recycling_held"]), (&"in the program".into(), &false.into()));
    let load = Load::start(supervisor.address(), "/", 4, Mode::KeepAlive { think_ms: 0 });
    eventually("workers are recycled", PATIENCE, || (supervisor.total("recycled") > 1).then_some(()));
    load.finish().assert_nothing_lost();
    supervisor.stop();
}
