//! Promise: at `http.health_path` and `http.ready_path` each worker answers itself, before the app, and these requests
//! are not counted. `/ready` is refused once the service was asked to stop, and only then.

use crate::common::{Connection, Launch, PATIENCE, Response, Signal, Supervisor, events, eventually, get, request};

const TEXT: &str = "text/plain; charset=utf-8";

fn launch() -> Launch {
    Launch::new().set("http.health_path", r#""/health""#).set("http.ready_path", r#""/prepared""#)
}

#[track_caller]
fn assert_page(response: &Response, status: u16, text: &str) {
    assert_eq!((response.status, response.text().as_str()), (status, text));
    assert_eq!(response.header("content-type"), Some(TEXT));
}

/// The number of requests that the app got.
fn requests(supervisor: &Supervisor) -> u64 {
    supervisor.total("requests")
}

#[test]
fn the_worker_answers_before_the_app_and_counts_nothing() {
    let mut supervisor = launch()
        .set("workers.count", "1")
        .set("workers.max_requests", "5")
        .set("log.access", r#""{dir}/access.log""#)
        .serving(1);
    let mut client = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..10 {
        assert_page(&client.get("/health").expect("an answer"), 200, "alive\n");
        assert_page(&client.get("/prepared?verbose").expect("an answer"), 200, "ready\n");
    }
    // The answer to HEAD announces the length of a body but has no body. This client waits for a body, so it reports an
    // error when the connection ends.
    client.ask(&request("HEAD", "/health", &[("Connection", "close")], b"")).expect_err("no body");
    assert_eq!(requests(&supervisor), 0);
    assert_eq!(supervisor.log().count(events::RECYCLE_REQUESTED), 0);

    for (method, path, status) in [("POST", "/health", 405), ("GET", "/health/", 404), ("GET", "/Prepared", 404)] {
        let mut other = Connection::open(supervisor.address()).expect("a connection");
        let answer = other.ask(&request(method, path, &[], b"")).expect("the app answers");
        assert_eq!(answer.status, status, "{method} {path}");
    }
    assert_eq!(requests(&supervisor), 3);
    let lines = eventually("each request has its line in the access log", PATIENCE, || {
        let lines = std::fs::read_to_string(supervisor.path("access.log")).unwrap_or_default();
        (lines.lines().count() == 24).then_some(lines)
    });
    for (line, times) in [
        (r#""GET /health HTTP/1.1" 200 6 "#, 10),
        (r#""GET /prepared?verbose HTTP/1.1" 200 6 "#, 10),
        (r#""HEAD /health HTTP/1.1" 200 0 "#, 1),
    ] {
        assert_eq!(lines.matches(line).count(), times, "{line}: {lines}");
    }
    supervisor.stop();
}

/// A worker that drains because another worker replaces it is still a worker of a service that runs.
#[test]
fn ready_is_refused_at_a_stop_and_not_when_a_worker_is_replaced() {
    let mut supervisor = launch().set("workers.count", "1").set("workers.shutdown_delay", r#""2s""#).serving(1);
    let address = supervisor.address();
    let mut kept = Connection::open(address).expect("a connection");
    let mut long = Connection::open(address).expect("a connection");
    long.send(&request("GET", "/debug/sleep/800", &[], b"")).expect("sent");
    kept.get("/health").expect("this worker has the connection");
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log(events::DRAINING, 1, PATIENCE);
    let last = kept.get("/prepared").expect("the draining worker answers");
    assert!(last.closes(), "this worker drains");
    assert_page(&last, 200, "ready\n");
    assert_eq!(long.answer().expect("the long request").status, 200);
    supervisor.wait_log("reloaded", 1, PATIENCE);

    supervisor.signal(Signal::SIGTERM);
    let refused = eventually("the stop is told", PATIENCE, || {
        let answer = get(address, "/prepared");
        (answer.status == 503).then_some(answer)
    });
    assert_page(&refused, 503, "stopping\n");
    assert_page(&get(address, "/health"), 200, "alive\n");
    assert_eq!(supervisor.log().count(events::DRAINING), 1, "the second worker drains only after the delay");
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}
