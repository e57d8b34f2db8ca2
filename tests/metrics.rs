//! Promise: the page at `http.metrics_path` tells the truth about the whole service, whichever worker answers. Requests
//! for this page never reach the app and are not counted as requests.
//!
//! Needs the package prometheus-client in target/python, and promtool in target/prometheus/usr/bin or on the PATH.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use nix::{sys::signal::kill, unistd::Pid};

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Response, Signal, events, eventually, get, request, root,
};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn launch() -> Launch {
    Launch::new().set("http.metrics_path", r#""/metrics""#)
}

/// The samples of the metrics page. Maps the name of each sample, with its labels, to the value.
struct Page(BTreeMap<String, f64>);

impl Page {
    #[track_caller]
    fn of(response: &Response) -> Self {
        assert_eq!((response.status, response.header("content-type")), (200, Some(CONTENT_TYPE)));
        let text = response.text();
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
        });
        Self(samples.collect())
    }

    fn scrape(address: SocketAddr) -> Self {
        Self::of(&get(address, "/metrics"))
    }

    #[track_caller]
    fn value(&self, sample: &str) -> f64 {
        *self.0.get(sample).unwrap_or_else(|| panic!("no {sample} in {:?}", self.0))
    }

    fn counters(&self) -> impl Iterator<Item = (&String, f64)> {
        self.0
            .iter()
            .filter(|(name, _)| {
                let name = name.split('{').next().unwrap_or_default();
                ["_total", "_bucket", "_count", "_sum"].iter().any(|suffix| name.ends_with(suffix))
            })
            .map(|(name, value)| (name, *value))
    }
}

#[test]
fn counts_match_the_clients_own_after_recycles_and_a_kill() {
    let mut supervisor = launch().set("workers.max_requests", "100").serving(2);
    let address = supervisor.address();
    let mut answered = 0;
    for (round, mode) in [Mode::KeepAlive { think_ms: 1 }, Mode::PerRequest { think_ms: 1 }].into_iter().enumerate() {
        let load = Load::start(address, "/debug/connections", 4, mode);
        eventually("recycles under load", 2 * PATIENCE, || {
            (supervisor.log().count(events::RECYCLE_REQUESTED) >= 4 * (round + 1)).then_some(())
        });
        let tally = load.finish();
        tally.assert_nothing_lost();
        answered += tally.ok;
        eventually("every recycle is over", PATIENCE, || {
            let log = supervisor.log();
            let begun = log.count(events::RECYCLE_REQUESTED) == log.count(events::DRAINING);
            (begun && supervisor.worker_pids().len() == 2).then_some(())
        });
        let victim = supervisor.wait_serving(2)[0];
        supervisor.signal_worker(victim, Signal::SIGKILL);
        supervisor.wait_gone(victim);
        supervisor.wait_serving(2);
    }
    for _ in 0..3 {
        assert_eq!(get(address, "/nowhere").status, 404);
    }

    let page = eventually("the last request has ended", PATIENCE, || {
        let page = Page::scrape(address);
        (page.value("oxicorn_request_duration_seconds_count") == (answered + 3) as f64).then_some(page)
    });
    let recycled = supervisor.log().count(events::DRAINING) as f64;
    for (sample, expected) in [
        ("oxicorn_requests_total", (answered + 3) as f64),
        (r#"oxicorn_responses_total{class="1xx"}"#, 0.0),
        (r#"oxicorn_responses_total{class="2xx"}"#, answered as f64),
        (r#"oxicorn_responses_total{class="3xx"}"#, 0.0),
        (r#"oxicorn_responses_total{class="4xx"}"#, 3.0),
        (r#"oxicorn_responses_total{class="5xx"}"#, 0.0),
        (r#"oxicorn_request_duration_seconds_bucket{le="+Inf"}"#, (answered + 3) as f64),
        ("oxicorn_requests_cut_total", 0.0),
        (r#"oxicorn_worker_restarts_total{reason="crashed"}"#, 2.0),
        (r#"oxicorn_worker_restarts_total{reason="hung"}"#, 0.0),
        (r#"oxicorn_worker_restarts_total{reason="recycled"}"#, recycled),
        (r#"oxicorn_workers{state="serving"}"#, 2.0),
        ("oxicorn_workers_target", 2.0),
        ("oxicorn_generation", 1.0),
    ] {
        assert_eq!(page.value(sample), expected, "{sample}");
    }
    supervisor.stop();
}

#[test]
fn counters_never_fall_during_a_storm() {
    let supervisor = launch().set("workers.count", "3").set("workers.max_requests", "60").serving(3);
    let load = Load::start(supervisor.address(), "/debug/connections", 6, Mode::PerRequest { think_ms: 2 });
    let mut highest = BTreeMap::new();
    let mut killed = 0;
    eventually("twenty workers ended, two of them crashed", 3 * PATIENCE, || {
        // The request may fail, because this test may kill the worker that accepted it.
        if let Ok(response) = Connection::open(supervisor.address()).and_then(|mut one| one.get("/metrics")) {
            for (name, value) in Page::of(&response).counters() {
                let before = highest.entry(name.clone()).or_insert(0.0);
                assert!(value >= *before, "{name} fell from {before} to {value}");
                *before = value;
            }
        }
        let ended = supervisor.log().count(events::EXITED);
        if ended >= 4 * (killed + 1)
            && let Some(victim) = supervisor.serving_pids().first()
        {
            // This signal may fail, because a worker that is just being recycled may be gone already. Such a worker may
            // also end without being counted as crashed, so the test asks for fewer crashes than it sends signals.
            killed += usize::from(kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).is_ok());
        }
        let crashed =
            highest.get(r#"oxicorn_worker_restarts_total{reason="crashed"}"#).is_some_and(|times| *times >= 2.0);
        (ended >= 20 && crashed).then_some(())
    });
    assert!(killed >= 3 && load.finish().ok > 500);
    assert!(highest["oxicorn_request_duration_seconds_sum"] > 0.0);
}

#[test]
fn the_metrics_page_is_answered_before_the_app_and_never_counted() {
    let mut supervisor = launch()
        .set("workers.count", "1")
        .set("workers.max_requests", "5")
        .set("http.keep_alive", r#""1s""#)
        .serving(1);
    let mut scraper = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..20 {
        let page = Page::of(&scraper.get("/metrics").expect("a page"));
        assert_eq!(page.value("oxicorn_requests_total"), 0.0);
        assert_eq!(page.value("oxicorn_connections_accepted_total"), 1.0);
        assert_eq!(page.value(r#"oxicorn_connections_open{slot="0"}"#), 1.0);
        assert_eq!(page.value(r#"oxicorn_requests_in_flight{slot="0"}"#), 0.0);
    }
    assert_eq!(Page::of(&scraper.get("/metrics?a=b").expect("a page")).value("oxicorn_generation"), 1.0);
    scraper.wait_eof().expect("an idle scraper is closed after http.keep_alive, like any client");

    let mut head = Connection::open(supervisor.address()).expect("a connection");
    head.send(&request("HEAD", "/metrics", &[("Connection", "close")], b"")).expect("sent");
    // The answer to HEAD announces the length of a body but has no body. This client waits for a body, so it reports an
    // error when the connection ends.
    head.answer().expect_err("no body");

    assert_eq!(supervisor.log().count(events::RECYCLE_REQUESTED), 0);
    for (method, path, status) in [("POST", "/metrics", 404), ("GET", "/metrics/", 404), ("GET", "/Metrics", 404)] {
        let mut other = Connection::open(supervisor.address()).expect("a connection");
        assert_eq!(other.ask(&request(method, path, &[], b"")).expect("the app answers").status, status, "{path}");
    }
    assert_eq!(Page::scrape(supervisor.address()).value("oxicorn_requests_total"), 3.0);

    let mut late = Connection::open(supervisor.address()).expect("a connection");
    Page::of(&late.get("/metrics").expect("a page"));
    let mut long = Connection::open(supervisor.address()).expect("a connection");
    long.send(&request("GET", "/debug/sleep/800", &[], b"")).expect("sent");
    eventually("the long request is in flight", PATIENCE, || {
        (Page::scrape(supervisor.address()).value(r#"oxicorn_requests_in_flight{slot="0"}"#) == 1.0).then_some(())
    });
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
    let page = eventually("a page shows the draining worker", PATIENCE, || {
        let response = late.get("/metrics").expect("a page while it drains");
        response.closes().then_some(response)
    });
    assert_eq!(Page::of(&page).value(r#"oxicorn_workers{state="draining"}"#), 1.0);
    assert_eq!(long.answer().expect("the long request").status, 200);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn a_request_counts_in_the_bucket_of_its_duration() {
    let supervisor = launch().serving(2);
    assert_eq!(get(supervisor.address(), "/debug/sleep/120").status, 200);
    let page = Page::scrape(supervisor.address());
    let bucket = |le: &str| page.value(&format!("oxicorn_request_duration_seconds_bucket{{le=\"{le}\"}}"));
    assert_eq!((bucket("0.1"), bucket("10.0"), bucket("+Inf")), (0.0, 1.0, 1.0));
    let sum = page.value("oxicorn_request_duration_seconds_sum");
    assert!((0.12..10.0).contains(&sum), "{sum}");
}

#[test]
fn without_the_key_the_path_belongs_to_the_app() {
    let supervisor = Launch::new().serving(2);
    assert_eq!(get(supervisor.address(), "/metrics").status, 404);
}

#[test]
fn waiting_connections_show_as_the_queue_of_their_listener() {
    let supervisor = launch().set("server.reuse_port", "false").set("workers.count", "2").serving(2);
    let sample = format!("oxicorn_listener_queue{{address=\"{}\"}}", supervisor.address());
    assert_eq!(Page::scrape(supervisor.address()).value(&sample), 0.0);
    let mut scraper = Connection::open(supervisor.address()).expect("a connection");
    let mine = scraper.get("/debug/connections").expect("an answer").pid().expect("the route tells the pid");
    for pid in supervisor.worker_pids().into_iter().filter(|pid| *pid != mine) {
        supervisor.signal_worker(pid, Signal::SIGSTOP);
    }
    // The only worker that runs is kept busy until all clients have connected. Afterwards this worker may accept some
    // of the clients before it reads the metrics request, so the test allows that a few clients no longer wait.
    scraper.send(&request("GET", "/debug/block/300", &[], b"")).expect("sent");
    scraper.send(&request("GET", "/metrics", &[], b"")).expect("sent");
    let waiting: Vec<_> =
        (0..20).map(|_| Connection::open(supervisor.address()).expect("the kernel accepts")).collect();
    assert_eq!(scraper.answer().expect("an answer").status, 200);
    let queued = Page::of(&scraper.answer().expect("a page")).value(&sample);
    assert!(queued >= 16.0, "{queued} of {} wait", waiting.len());
}

#[test]
fn prometheus_own_parser_reads_the_page() {
    const SCRIPT: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
print(json.dumps({
    "types": {f.name: f.type for f in families},
    "units": {f.name: f.unit for f in families if f.unit},
    "samples": sum(len(f.samples) for f in families),
    "undocumented": [f.name for f in families if not f.documentation],
}))"#;
    let supervisor = launch().serving(2);
    get(supervisor.address(), "/health");
    let response = get(supervisor.address(), "/metrics");
    let target = root().join("target/python");
    let mut python = Command::new("python3");
    let output = fed(python.args(["-c", SCRIPT]).env("PYTHONPATH", target), &response.body);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python3 -m pip install --target target/python prometheus-client?\n{told}");
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    assert_eq!(read["samples"], Page::of(&response).0.len());
    assert_eq!(read["undocumented"], serde_json::json!([]));
    assert_eq!(
        read["types"],
        serde_json::json!({
            "oxicorn_build": "info",
            "oxicorn_uptime_seconds": "gauge",
            "oxicorn_generation": "gauge",
            "oxicorn_requests": "counter",
            "oxicorn_responses": "counter",
            "oxicorn_request_duration_seconds": "histogram",
            "oxicorn_requests_shed": "counter",
            "oxicorn_requests_refused": "counter",
            "oxicorn_requests_abandoned": "counter",
            "oxicorn_requests_cut": "counter",
            "oxicorn_requests_in_flight": "gauge",
            "oxicorn_connections_accepted": "counter",
            "oxicorn_connections_rescued": "counter",
            "oxicorn_connections_evicted": "counter",
            "oxicorn_tls_handshakes_failed": "counter",
            "oxicorn_connections_open": "gauge",
            "oxicorn_listener_queue": "gauge",
            "oxicorn_access_lines_dropped": "counter",
            "oxicorn_workers_target": "gauge",
            "oxicorn_workers": "gauge",
            "oxicorn_worker_restarts": "counter",
            "oxicorn_worker_rss_bytes": "gauge",
            "oxicorn_master_rss_bytes": "gauge",
        })
    );
    assert_eq!(read["units"]["oxicorn_worker_rss_bytes"], "bytes");
    assert_eq!(read["units"]["oxicorn_request_duration_seconds"], "seconds");
}

fn fed(command: &mut Command, input: &[u8]) -> Output {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // If this fails, the program ended early and broke the pipe. The program's output, which this function returns,
    // says why.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    child.wait_with_output().expect("our own child can be waited for")
}

/// Returns each word in the text that begins with `oxicorn_`.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|sign: char| !(sign.is_ascii_alphanumeric() || sign == '_'))
        .filter(|word| word.starts_with("oxicorn_"))
        .collect()
}

#[test]
fn the_deployed_dashboards_and_rules_name_metrics_that_exist() {
    let root = root();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let supervisor = launch().serving(2);
    let page = get(supervisor.address(), "/metrics").text();
    let samples: String = page.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let told = names(&samples);
    let dashboard = read("deploy/grafana/oxicorn.json");
    let _: serde_json::Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let alerts = read("deploy/prometheus/alerts.yml");
    for (file, asked) in [("dashboard", names(&dashboard)), ("alerts", names(&alerts))] {
        let missing: Vec<_> = asked.difference(&told).collect();
        assert!(missing.is_empty(), "the {file} name metrics that do not exist: {missing:?}");
    }
    let unseen: Vec<_> = told.iter().filter(|name| !names(&dashboard).contains(*name)).collect();
    assert!(unseen.is_empty(), "without a panel: {unseen:?}");
}

#[test]
fn prometheus_accepts_the_rules_and_each_rule_fires() {
    let root = root();
    let path = env::join_paths(
        std::iter::once(root.join("target/prometheus/usr/bin"))
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    );
    for check in [
        ["check", "rules", "deploy/prometheus/alerts.yml"],
        ["check", "config", "deploy/prometheus/scrape.yml"],
        ["test", "rules", "tests/prometheus/alerts.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        let output = promtool.args(check).current_dir(root).env("PATH", path.as_ref().expect("a PATH")).output();
        let output = output.unwrap_or_else(|error| panic!("promtool: {error}; it comes with Debian's prometheus"));
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{check:?}: {told}");
    }
}
