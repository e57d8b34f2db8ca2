//! Promise: one command starts N serving workers. The log, `ps` and `/proc` show what was started, and an idle service
//! costs little.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Duration,
};

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Process, Signal, Supervisor, events, eventually, free_port, get,
    is_release, request,
};

#[test]
fn the_first_answers_are_correct() {
    let mut supervisor = Launch::new().serving(2);
    let health = get(supervisor.address(), "/health");
    assert_eq!((health.status, health.json()), (200, serde_json::json!({"status": "alive"})));
    assert_eq!(get(supervisor.address(), "/health/live").status, 200);
    let ready = get(supervisor.address(), "/ready");
    assert_eq!(
        (ready.status, ready.json()),
        (200, serde_json::json!({"status": "ready", "checks": {"database": "ok"}}))
    );
    assert_eq!(get(supervisor.address(), "/health/ready").status, 200);
    supervisor.stop();
}

#[test]
fn ps_distinguishes_master_and_workers() {
    let supervisor = Launch::new().set("workers.count", "3").serving(3);
    let master = supervisor.master().title();
    assert!(master.starts_with("oxicorn: master"), "{master:?}");
    let mut titles: Vec<_> = supervisor.worker_pids().into_iter().map(|pid| Process(pid).title()).collect();
    titles.sort();
    for (slot, title) in titles.iter().enumerate() {
        assert!(title.starts_with(&format!("oxicorn: worker {slot}")), "{titles:?}");
    }
    assert_eq!(titles.len(), 3);
}

#[test]
fn ps_shows_name_and_generation() {
    let supervisor = Launch::new().args(&["--name", "shop"]).serving(2);
    assert_eq!(supervisor.master().title(), "oxicorn: master [shop] gen 1");
    let mut titles: Vec<_> = supervisor.worker_pids().into_iter().map(|pid| Process(pid).title()).collect();
    titles.sort();
    assert_eq!(titles, ["oxicorn: worker 0 [shop] gen 1", "oxicorn: worker 1 [shop] gen 1"]);
}

#[test]
fn the_worker_count_comes_from_file_environment_and_flag() {
    let cpus = std::thread::available_parallelism().expect("this machine counts its CPUs").get();
    let by_file = |count: &str| Launch::new().set("workers.count", count);
    let by_environment = |count: &str| Launch::new().unset("workers.count").env("WEB_CONCURRENCY", count);
    let cases = [
        ("a number", by_file("3"), 3),
        ("a formula", by_file(r#""2n+1""#), 2 * cpus + 1),
        ("auto", by_file(r#""auto""#), cpus),
        ("the default", Launch::new().unset("workers.count"), cpus),
        ("WEB_CONCURRENCY", by_environment("3"), 3),
        ("WEB_CONCURRENCY over the file", by_file("1").env("WEB_CONCURRENCY", "3"), 3),
        ("OXICORN_ over WEB_CONCURRENCY", by_environment("1").env("OXICORN_WORKERS__COUNT", "3"), 3),
        ("the flag over all", by_file("1").env("OXICORN_WORKERS__COUNT", "2").args(&["-w", "3"]), 3),
    ];
    for (name, launch, expected) in cases {
        eprintln!("{name}: {expected}");
        let mut supervisor = launch.serving(expected);
        assert_eq!(supervisor.worker_pids().len(), expected, "{name}");
        supervisor.stop();
    }
}

/// The test only prints the settings. It never binds this address, because the port would be open to every network.
#[test]
fn port_is_taken_from_the_environment() {
    let launch = Launch::new().unset("server.bind").env("PORT", "8123").arg("config");
    let output = launch.run();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("0.0.0.0:8123"), "{text}");

    let port = free_port();
    let flag = Launch::new().env("PORT", "1").args(&["--bind", &format!("127.0.0.1:{port}")]).serving(2);
    assert_eq!(flag.address().port(), port, "a flag is stronger than PORT");
}

#[test]
fn several_addresses_are_served_by_every_worker() {
    let with_v6 = TcpListener::bind("[::1]:0").is_ok();
    let bind = match with_v6 {
        true => r#"["127.0.0.1:0", "[::1]:0", "unix:{dir}/app.sock"]"#,
        false => r#"["127.0.0.1:0", "127.0.0.2:0", "unix:{dir}/app.sock"]"#,
    };
    let mut supervisor = Launch::new().set("server.bind", bind).serving(2);
    let tcp: Vec<_> = supervisor.addresses().iter().filter_map(|address| address.parse().ok()).collect();
    assert_eq!(tcp.len(), 2, "{:?}", supervisor.addresses());
    for address in tcp {
        assert_eq!(get(address, "/health").status, 200, "{address}");
    }
    let socket = supervisor.path("app.sock");
    let mode = fs::metadata(&socket).expect("the socket lies there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "server.unix_mode");
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&socket).expect("the unix socket accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&request("GET", "/health", &[("Connection", "close")], b"")).expect("it takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    supervisor.stop();
}

#[test]
fn one_shared_listener_serves_all_workers() {
    let mut supervisor = Launch::new().arg("--no-reuse-port").serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 6, Mode::PerRequest { think_ms: 0 });
    eventually("400 answers", PATIENCE, || (load.answered() >= 400).then_some(()));
    load.finish().assert_nothing_lost();
    let victim = supervisor.worker_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGKILL);
    supervisor.wait_gone(victim);
    for _ in 0..20 {
        assert_eq!(get(supervisor.address(), "/health").status, 200, "the other worker holds the same listener");
    }
    supervisor.wait_serving(2);
    supervisor.stop();
}

#[test]
fn each_worker_gets_its_share_of_requests() {
    let supervisor = Launch::new().serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::PerRequest { think_ms: 0 });
    eventually("1000 answers", PATIENCE, || (load.answered() >= 1000).then_some(()));
    let tally = load.finish();
    tally.assert_nothing_lost();
    let mut served: Vec<_> = tally.pids.keys().copied().collect();
    served.sort_unstable();
    let mut workers = supervisor.worker_pids();
    workers.sort_unstable();
    assert_eq!(served, workers);
    for (pid, count) in &tally.pids {
        assert!(*count * 5 > tally.ok, "worker {pid} answered only {count} of {}", tally.ok);
    }
}

/// Allows each process five wake-ups a second. Other programs share the machine, so the best of a few time windows
/// counts.
#[test]
fn an_idle_service_wakes_up_rarely() {
    let supervisor = Launch::new().serving(2);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    let window = Duration::from_secs(4);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let before = switches(&supervisor);
        crate::common::observe_for(window);
        let rates: Vec<_> = switches(&supervisor)
            .iter()
            .zip(before)
            .map(|(after, before)| (after - before) / window.as_secs())
            .collect();
        if rates.iter().all(|rate| *rate <= 5) {
            return;
        }
        seen.push(rates);
    }
    panic!("wake-ups a second, of the master and each worker, in each window: {seen:?}");
}

fn switches(supervisor: &Supervisor) -> Vec<u64> {
    let workers = supervisor.worker_pids().into_iter().map(Process);
    std::iter::once(supervisor.master()).chain(workers).map(Process::context_switches).collect()
}

#[test]
fn the_master_is_one_small_thread() {
    let supervisor = Launch::new().serving(2);
    let (threads, rss) = (supervisor.master().threads(), supervisor.master().rss_kib());
    assert_eq!(threads, 1);
    eprintln!("the master's resident size: {rss} KiB");
    // The limit for an unoptimized build is 16 MiB. If the master did not release the memory of its start, that build
    // would have 19 MiB.
    let bound = if is_release() { 8 * 1024 } else { 16 * 1024 };
    assert!(rss < bound, "the master has {rss} KiB resident");
}

#[test]
fn the_first_answer_comes_soon_after_the_start() {
    let launch = Launch::new();
    let began = crate::common::now();
    let mut supervisor = launch.start();
    supervisor.wait_listening();
    assert_eq!(get(supervisor.address(), "/ready").status, 200);
    let took = began.elapsed();
    eprintln!("first answer after {took:?}");
    // The release build needs about 20 ms. The limits are much higher because the machine may be busy.
    let bound = Duration::from_millis(if is_release() { 300 } else { 2_000 });
    assert!(took < bound, "the first answer came after {took:?}");
}

#[test]
fn the_pidfile_exists_as_long_as_the_master() {
    let mut supervisor = Launch::new().set("process.pidfile", r#""{dir}/app.pid""#).serving(2);
    let pidfile = supervisor.path("app.pid");
    let text = fs::read_to_string(&pidfile).expect("the pidfile is written before the workers serve");
    assert_eq!(text.trim(), supervisor.pid().to_string());
    supervisor.stop();
    assert!(!pidfile.exists(), "the pidfile is removed at the end");
    assert_eq!(supervisor.log().count(events::STOPPED), 1);
}

#[test]
fn a_fact_can_be_written_read_changed_and_deleted() {
    let supervisor = Launch::new().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let mut ask = |method: &str, path: &str, body: &str| {
        let headers = [("Content-Type", "application/json")];
        connection.ask(&request(method, path, &headers, body.as_bytes())).expect("an answer")
    };
    let created = ask("POST", "/facts", r#"{"text": "Otters hold hands", "tags": ["otter"]}"#);
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["id"].as_str().expect("a fact has an id").to_owned();
    let path = format!("/facts/{id}");
    assert_eq!(created.header("location"), Some(path.as_str()));

    let read = ask("GET", &path, "");
    assert_eq!((read.status, read.json()), (200, created.json()));
    let changed = ask("PUT", &path, r#"{"text": "Otters sleep holding hands"}"#);
    assert_eq!((changed.status, &changed.json()["text"]), (200, &"Otters sleep holding hands".into()));
    let listed = ask("GET", "/facts?limit=5", "").json();
    assert_eq!(listed["items"][0]["id"], id.as_str());
    assert_eq!(ask("DELETE", &path, "").status, 204);
    assert_eq!(ask("GET", &path, "").status, 404);

    for (body, status) in [("not json", 400), (r#"{"text": ""}"#, 422), (r#"{"tags": []}"#, 422)] {
        let refused = ask("POST", "/facts", body);
        assert_eq!(refused.status, status, "{body}: {}", refused.text());
        assert!(refused.json()["error"].is_string() && refused.json()["type"].is_string(), "{}", refused.text());
    }
}
