//! Promise: `migrate` makes the database ready, however often and wherever it is run. When it cannot, it says why.

use std::{fs, os::unix::fs::MetadataExt, process::Output, thread, time::Duration};

use crate::common::{
    Canary, Connection, Launch, Mongod, PATIENCE, build_example, events, free_port, get, json_request, now, text,
};
use mongodb::bson::doc;
use nix::unistd::{Uid, User};
use serde_json::json;

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
}

#[test]
fn a_migration_happens_once_and_can_be_repeated() {
    let mongod = Mongod::start();
    for launch in [Launch::new(), Launch::new().env("MONGODB_URI", &mongod.uri())] {
        let first = launch.run_with(&["migrate"]);
        assert_exit(&first, 0);
        assert!(text(&first).contains("created the "), "{}", text(&first));
        let second = launch.run_with(&["migrate"]);
        assert_exit(&second, 0);
        assert_eq!(text(&second), "nothing to do\n");
        let third = launch.run_with(&["migrate", "--json"]);
        let answer: serde_json::Value = serde_json::from_slice(&third.stdout).expect("one JSON object");
        assert_eq!(answer, json!({"ok": true, "done": []}));
    }
}

#[test]
fn two_migrations_at_once_do_no_harm() {
    let mongod = Mongod::start();
    for round in 0..5 {
        let run = || {
            let launch = Launch::new().env("MONGODB_URI", &mongod.uri());
            launch.env("MONGODB_DATABASE", &format!("round{round}")).run_with(&["migrate"])
        };
        let outputs = thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            all.into_iter().map(|one| one.join().expect("it runs")).collect::<Vec<_>>()
        });
        outputs.iter().for_each(|output| assert_exit(output, 0));
        assert!(outputs.iter().any(|output| text(output).contains("created the index")), "one of them did it");
        assert_eq!(text(&run()), "nothing to do\n");
    }
}

#[test]
fn a_database_that_refuses_gives_exit_code_5_and_one_sentence() {
    let mongod = Mongod::start();
    let refused = format!("mongodb://me:hush-hush@127.0.0.1:{}", mongod.port());
    let unreachable = format!("mongodb://me:hush-hush@127.0.0.1:{}", free_port());
    for (uri, said) in [(refused, "Authentication failed"), (unreachable, "Connection refused")] {
        let (canary, began) = (Canary::start(), now());
        let output = Launch::new().env("MONGODB_URI", &uri).run_with(&["migrate"]);
        let took = began.elapsed().saturating_sub(canary.longest());
        assert_exit(&output, 5);
        let text = text(&output);
        assert!(text.contains(said) && text.lines().count() == 1 && !text.contains("hush"), "{text}");
        assert!(took < Duration::from_secs(8), "it took {took:?}");
    }
    let nowhere = Launch::new().set("service.sqlite_path", r#""/proc/nowhere/facts.db""#).run_with(&["migrate"]);
    assert_exit(&nowhere, 5);
    assert!(text(&nowhere).contains("/proc/nowhere"), "{}", text(&nowhere));
}

#[test]
fn wrong_settings_give_exit_code_2() {
    let nothing = Launch::of(build_example("hello")).run_with(&["migrate"]);
    assert_exit(&nothing, 2);
    assert!(text(&nothing).contains("App::migrate"), "{}", text(&nothing));
    let nowhere = Launch::new().set("service.store", r#""mongodb""#);
    for command in ["migrate", "check", "run"] {
        let output = nowhere.run_with(&[command]);
        assert_exit(&output, 2);
        assert!(text(&output).contains("set mongodb_uri"), "{}", text(&output));
    }
    let unreadable = Launch::new().env("MONGODB_URI", "mongodb://me:hush/hush@host").run_with(&["check"]);
    assert_exit(&unreadable, 2);
    assert!(text(&unreadable).contains("percent-encode") && !text(&unreadable).contains("hush"));
}

/// Asks MongoDB's query planner whether the service's own queries use the index.
#[test]
fn lists_by_tag_are_read_from_the_index() {
    let mongod = Mongod::start();
    let launch = Launch::new().env("MONGODB_URI", &mongod.uri());
    let plan = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let find =
            doc! {"find": "facts", "filter": {"_id": {"$lt": "g"}, "tags": "a"}, "sort": {"_id": -1}, "limit": 21};
        let explained = runtime.block_on(async {
            let client = mongodb::Client::with_uri_str(mongod.uri()).await?;
            client.database("r3nd").run_command(doc! {"explain": find}).await
        });
        explained.expect("explain answers").to_string()
    };
    assert!(!plan().contains("tags_newest_first"), "{}", plan());
    assert_exit(&launch.run_with(&["migrate"]), 0);
    let plan = plan();
    assert!(plan.contains("tags_newest_first") && plan.contains("IXSCAN"), "{plan}");
    assert!(!plan.contains("COLLSCAN") && !plan.contains("\"SORT\""), "{plan}");
}

/// `migrate` must run as the workers' user. If root made the database, workers of another user could not write to it.
#[test]
fn a_migration_has_the_rights_of_a_worker() {
    assert!(Uid::effective().is_root(), "only root can give its rights away: run the tests as root");
    let nobody = User::from_name("nobody").expect("the user database can be read").expect("the user nobody");
    let launch =
        Launch::new().set("process.user", r#""nobody""#).set("service.sqlite_path", r#""{dir}/data/facts.db""#);
    assert_exit(&launch.run_with(&["migrate"]), 0);
    let file = fs::metadata(launch.path("data/facts.db")).expect("the file was made");
    assert_eq!(file.uid(), nobody.uid.as_raw());
}

#[test]
fn a_worker_reports_a_missing_migration_once_and_serves() {
    let mongod = Mongod::start();
    let launch = || Launch::new().env("MONGODB_URI", &mongod.uri());
    let mut supervisor = launch().serving(2);
    let said = supervisor.wait_log("migration_needed", 1, PATIENCE);
    assert!(said[0].contains("migrate") && said[0].contains("r3nd"), "{}", said[0]);
    assert_eq!(get(supervisor.address(), "/facts?tag=a").status, 200);
    supervisor.stop();
    assert_eq!(supervisor.log().count("migration_needed"), 1, "one worker says it, once");

    assert_exit(&launch().run_with(&["migrate"]), 0);
    let mut supervisor = launch().serving(2);
    assert_eq!(get(supervisor.address(), "/ready").status, 200);
    supervisor.stop();
    assert_eq!(supervisor.log().count("migration_needed"), 0);
}

#[test]
fn a_password_is_never_shown() {
    let mongod = Mongod::start();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), format!("mongodb://me:hush-hush@127.0.0.1:{}\n", mongod.port())).expect("written");
    let launch = Launch::new()
        .env("MONGODB_URI_FILE", file.path().to_str().expect("UTF-8"))
        .set("log.level", r#""trace""#)
        .set("workers.count", "1");
    for arguments in [&["config"][..], &["config", "--json"]] {
        let shown = text(&launch.run_with(arguments));
        assert!(shown.contains("mongodb://***@127.0.0.1") && !shown.contains("hush"), "{shown}");
    }
    let mut supervisor = launch.serving(1);
    let request = json_request("POST", "/facts", &json!({"text": "refused"}));
    let answer = Connection::open(supervisor.address()).and_then(|mut connection| connection.ask(&request));
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["type"], "unavailable");
    supervisor.wait_log("dependency_failed", 1, PATIENCE);
    supervisor.stop();
    let log = supervisor.log();
    assert!(log.0.contains("Authentication failed") && !log.0.contains("hush") && !answer.text().contains("hush"));
    assert_eq!(log.count(events::BOOT_FAILED), 0, "the service starts although the database refuses");
}
