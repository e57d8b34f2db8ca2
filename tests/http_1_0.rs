//! Promise: an HTTP/1.0 client that asks for keep-alive gets a connection that stays open. In the last answer before
//! the connection ends, the header `Connection: close` occurs exactly once.

use std::process::Command;

use crate::common::{Connection, Launch, PATIENCE, Response, Supervisor, events, eventually};

fn open(supervisor: &Supervisor) -> Connection {
    Connection::open(supervisor.address()).expect("a connection")
}

fn ask(connection: &mut Connection, path: &str) -> Response {
    let request = format!("GET {path} HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n");
    connection.ask(request.as_bytes()).expect("an answer")
}

/// Returns the values of all headers with this name.
fn words<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    let named = response.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

#[test]
fn a_drain_says_close_and_no_other_connection_option() {
    let supervisor = Launch::new().serving(2);
    let mut connections: Vec<_> = (0..16).map(|_| open(&supervisor)).collect();
    for connection in &mut connections {
        assert_eq!(words(&ask(connection, "/health"), "connection"), ["keep-alive"]);
    }
    assert!(supervisor.ctl(&["reload"]).status.success());
    for mut connection in connections {
        assert_eq!(words(&ask(&mut connection, "/health"), "connection"), ["close"]);
        connection.wait_eof().expect("the end that was announced");
    }
}

#[test]
fn an_answer_says_close_when_the_app_does_or_its_length_is_unknown() {
    let supervisor = Launch::misbehave().serving(2);
    for (path, body) in [("/close", "the last"), ("/unknown_length", "one two three ")] {
        let mut connection = open(&supervisor);
        let answer = ask(&mut connection, path);
        assert_eq!((words(&answer, "connection"), answer.text()), (vec!["close"], body.to_owned()), "{path}");
        connection.wait_eof().expect("the end that was announced");
    }
    let mut connection = open(&supervisor);
    assert_eq!(words(&ask(&mut connection, "/pid"), "connection"), ["keep-alive"]);
    assert!(ask(&mut connection, "/pid").pid().is_some(), "the connection continues");
}

/// `ab -k` reports a missing answer as an answer of the wrong length. The test counts such an answer as a failed
/// request.
#[test]
fn ab_loses_nothing_while_workers_are_recycled() {
    let supervisor = Launch::new().set("workers.max_requests", "300").serving(2);
    let url = format!("http://{}/health", supervisor.address());
    let said = Command::new("timeout")
        .args(["60", "ab", "-k", "-q", "-n", "6000", "-c", "8", &url])
        .output()
        .expect("timeout(1) can be run");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let told = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    assert_eq!((told("Complete requests:"), told("Failed requests:")), (Some(6000), Some(0)), "{said}");
    eventually("the drains are over", PATIENCE, || {
        let log = supervisor.log();
        (log.count(events::DRAINED) >= log.count(events::DRAINING)).then_some(())
    });
    let recycled = supervisor.log().count(events::DRAINED);
    assert!(recycled >= 5, "only {recycled} workers were recycled");
    eprintln!("{recycled} recycles");
}
