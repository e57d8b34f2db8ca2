//! Promise: an HTTP/1.0 client that asks for keep-alive gets a connection that stays open. In the last answer before
//! the connection ends, the header `Connection: close` occurs exactly once.

use std::process::Command;

use crate::common::{Connection, Launch, PATIENCE, Response, Supervisor, events, eventually, now, text};

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
/// request. ab runs again until enough workers were recycled: how often a worker is recycled in one run depends on how
/// fast the machine starts the next worker.
#[test]
fn ab_loses_nothing_while_workers_are_recycled() {
    const RECYCLES: usize = 5;
    let supervisor = Launch::new().set("workers.max_requests", "300").serving(2);
    let url = format!("http://{}/health", supervisor.address());
    let begun = now();
    let mut runs = 0;
    while supervisor.log().count(events::DRAINED) < RECYCLES {
        assert!(begun.elapsed() < 4 * PATIENCE, "fewer than {RECYCLES} workers were recycled in {runs} runs of ab");
        let ran = Command::new("timeout").args(["60", "ab", "-k", "-q", "-n", "1500", "-c", "8", &url]).output();
        let ran = ran.expect("timeout(1) can be run");
        let said = text(&ran);
        let told = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let counts = (told("Complete requests:"), told("Failed requests:"));
        assert_eq!(counts, (Some(1500), Some(0)), "run {runs} ended with {}:\n{said}", ran.status);
        runs += 1;
    }
    eventually("the drains are over", PATIENCE, || {
        let log = supervisor.log();
        (log.count(events::DRAINED) >= log.count(events::DRAINING)).then_some(())
    });
    eprintln!("{} recycles in {runs} runs", supervisor.log().count(events::DRAINED));
}
