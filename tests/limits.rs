//! Promise: a request gets an HTTP error without reaching the app if it is too large, or if the worker already has as
//! many requests as its limit allows. A request that is too slow gets an HTTP error too.

use std::time::Duration;

use crate::common::{Connection, Failure, Launch, PATIENCE, Process, Supervisor, eventually, request};

/// Sends the bytes on a new connection. Asserts that the answer has this status and the documented error body with the
/// text `names`, and that the connection ends cleanly.
#[track_caller]
fn refused(supervisor: &Supervisor, bytes: &[u8], status: u16, kind: &str, names: &str) {
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let response = connection.ask(bytes).unwrap_or_else(|failure| panic!("{status}: {failure}"));
    let error = response.json();
    assert_eq!((response.status, error["type"].as_str()), (status, Some(kind)), "{error}");
    assert!(error["error"].as_str().is_some_and(|sentence| sentence.contains(names)), "{error} names {names}");
    assert!(response.closes(), "{:?}", response.headers);
    connection.wait_eof().expect("the connection ends after the refusal");
}

#[test]
fn a_request_that_is_too_large_is_refused_before_the_app_sees_it() {
    let supervisor = Launch::new()
        .set("http.limit_request_line", "200")
        .set("http.limit_request_fields", "10")
        .set("http.limit_request_field_size", "300")
        .set("http.limit_request_body", "1000")
        .serving(2);
    let asked = supervisor.total("requests");

    let long_line = request("GET", &format!("/{}", "a".repeat(200)), &[], b"");
    refused(&supervisor, &long_line, 414, "uri_too_long", "limit_request_line");
    let long_field = request("GET", "/health", &[("X-Long", &"a".repeat(300))], b"");
    refused(&supervisor, &long_field, 431, "header_fields_too_large", "limit_request_field_size");
    let many_fields = request("GET", "/health", &[("X-Field", "1"); 10], b"");
    refused(&supervisor, &many_fields, 431, "header_fields_too_large", "limit_request_fields");
    let large = request("POST", "/debug/echo", &[], &[b'a'; 1001]);
    refused(&supervisor, &large, 413, "payload_too_large", "limit_request_body");
    // The body is larger than all buffers between client and worker, so the client still writes when the worker sends
    // the refusal. The client must be able to read the refusal.
    let huge = request("POST", "/debug/echo", &[], &vec![b'a'; 8 << 20]);
    refused(&supervisor, &huge, 413, "payload_too_large", "limit_request_body");
    let expects = request("POST", "/debug/echo", &[("Expect", "200-maybe")], b"a");
    refused(&supervisor, &expects, 417, "expectation_failed", "Expect");
    let smuggles =
        b"POST /debug/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(&supervisor, smuggles, 400, "bad_request", "Transfer-Encoding");

    assert_eq!((supervisor.total("requests"), supervisor.total("refused")), (asked, 7));
    let lines = supervisor.log().count("request_refused") as u64;
    assert!((1..7).contains(&lines), "{lines} lines for 7 refusals in a moment");
    let ok = request("POST", "/debug/echo", &[], &[b'a'; 1000]);
    let response = Connection::open(supervisor.address()).and_then(|mut one| one.ask(&ok)).expect("an answer");
    assert_eq!((response.status, response.body.len()), (200, 1000));
}

#[test]
fn a_body_that_grows_too_long_or_breaks_is_refused_whatever_the_app_answers() {
    let supervisor = Launch::new().set("http.limit_request_body", "1000").serving(2);
    let head = b"POST /debug/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"1f4\r\n".as_slice(), &[b'a'; 500], b"\r\n"].concat();
    let too_long = [head.as_slice(), &chunk, &chunk, b"1\r\na\r\n0\r\n\r\n"].concat();
    refused(&supervisor, &too_long, 413, "payload_too_large", "limit_request_body");
    let broken = [head.as_slice(), &chunk, b"xyz\r\n"].concat();
    refused(&supervisor, &broken, 400, "bad_request", "chunk");
    let whole = [head.as_slice(), &chunk, &chunk, b"0\r\n\r\n"].concat();
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    assert_eq!(connection.ask(&whole).expect("an answer").body, [b'a'; 1000]);
    // A body of exactly the allowed length is accepted, so the same connection continues.
    assert_eq!(connection.get("/health").expect("an answer").status, 200);
    assert_eq!(supervisor.total("refused"), 2);
}

#[test]
fn pipelined_requests_before_a_refused_one_are_answered_in_order() {
    let supervisor = Launch::new().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let [first, second] = ["one", "two"].map(|body| request("POST", "/debug/echo", &[], body.as_bytes()));
    connection
        .send(&[&first, &second, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".as_slice()].concat())
        .expect("sent");
    let answers: Vec<_> = (0..3).map(|_| connection.answer().expect("an answer")).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 400]);
    assert_eq!((answers[0].text(), answers[1].text()), ("one".into(), "two".into()));
    connection.wait_eof().expect("the end");
}

#[test]
fn a_refused_head_request_gets_no_body() {
    let supervisor = Launch::new().set("http.limit_request_fields", "5").serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let fields: Vec<_> = (0..6).map(|_| ("X-Field", "1")).collect();
    connection.send(&request("HEAD", "/health", &fields, b"")).expect("sent");
    let all = String::from_utf8(connection.read_to_end().expect("a clean end")).expect("text");
    let (head, body) = all.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 431 ") && !head.contains("Content-Length: 0"), "{head}");
    assert_eq!(body, "");
}

#[test]
fn bytes_after_a_last_answer_get_no_refusal() {
    let supervisor = Launch::new().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let last = request("GET", "/health", &[("Connection", "close")], b"");
    connection.send(&[&last, b"rubbish\0\r\n\r\n".as_slice()].concat()).expect("sent");
    assert_eq!(connection.answer().expect("an answer").status, 200);
    connection.wait_eof().expect("nothing follows");
    assert_eq!(supervisor.total("refused"), 0);
}

#[test]
fn continue_is_sent_only_when_the_app_reads() {
    let supervisor = Launch::new().serving(2);
    let expecting = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").into_bytes()
    };
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&expecting("/debug/echo")).expect("sent");
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(connection.read(interim.len()).expect("an interim answer"), interim);
    connection.send(b"abc").expect("sent");
    assert_eq!(connection.answer().expect("an answer").text(), "abc");
    // The route does not exist, so no handler reads the body and the worker sends no `100 Continue`.
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&expecting("/nowhere")).expect("sent");
    assert_eq!(connection.read(12).expect("an answer"), b"HTTP/1.1 404");
}

#[test]
fn a_client_that_sends_a_fin_after_its_request_gets_the_answer() {
    let supervisor = Launch::new().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/debug/sleep/300", &[], b"")).expect("sent");
    connection.finish_sending();
    assert_eq!(connection.answer().expect("the answer in spite of the FIN").status, 200);
    connection.wait_eof().expect("the end");
}

#[test]
fn above_limit_concurrency_requests_are_shed_at_once_except_exempt_ones() {
    let supervisor = Launch::new()
        .set("workers.count", "1")
        .set("http.limit_concurrency", "2")
        .set("http.limit_exempt", r#"["/health"]"#)
        .serving(1);
    let mut busy: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = Connection::open(supervisor.address()).expect("a connection");
            connection.send(&request("GET", "/debug/sleep/3000", &[], b"")).expect("sent");
            connection
        })
        .collect();
    eventually("two requests are in flight", PATIENCE, || {
        (supervisor.status()["workers"][0]["in_flight"] == 2).then_some(())
    });
    let asked = supervisor.total("requests");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..3 {
        let shed = connection.get("/ready").expect("an answer");
        assert_eq!((shed.status, shed.header("retry-after")), (503, Some("1")));
        assert_eq!(shed.json()["type"], "unavailable");
        assert!(!shed.closes(), "the connection may be used again");
    }
    assert_eq!(connection.get("/health").expect("an answer").status, 200);
    assert_eq!((supervisor.total("shed"), supervisor.total("requests")), (3, asked + 1));
    for connection in &mut busy {
        assert_eq!(connection.answer().expect("an answer").status, 200);
    }
    assert_eq!(connection.get("/ready").expect("an answer").status, 200);
    assert_eq!(supervisor.log().count("request_shed"), 1);
}

#[test]
fn a_handler_that_takes_longer_than_request_timeout_is_dropped() {
    let supervisor = Launch::new().set("workers.count", "1").set("http.request_timeout", r#""300ms""#).serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let response = connection.get("/debug/sleep/30000").expect("an answer");
    assert_eq!((response.status, response.json()["type"].as_str()), (504, Some("gateway_timeout")));
    assert_eq!(connection.get("/debug/sleep/1").expect("the connection continues").status, 200);
    assert_eq!(supervisor.status()["workers"][0]["in_flight"], 0, "the handler is gone");
    assert_eq!(supervisor.log().count("request_timeout"), 1);
}

#[test]
fn a_panic_is_a_500_of_that_request_only() {
    let supervisor = Launch::misbehave().set("workers.count", "1").serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let response = connection.get("/panic").expect("an answer");
    assert_eq!((response.status, response.json()["type"].as_str()), (500, Some("internal_error")));
    assert_eq!(connection.get("/pid").expect("the connection continues").status, 200);
}

#[test]
fn refused_and_shed_requests_do_not_count_for_max_requests() {
    let supervisor = Launch::new()
        .set("workers.count", "1")
        .set("workers.max_requests", "5")
        .set("http.limit_request_line", "50")
        .serving(1);
    let long = request("GET", &format!("/{}", "a".repeat(50)), &[], b"");
    for _ in 0..20 {
        refused(&supervisor, &long, 414, "uri_too_long", "limit_request_line");
    }
    assert_eq!((supervisor.log().count("recycle_requested"), supervisor.total("recycled")), (0, 0));
}

#[test]
fn a_full_worker_stops_accepting_serves_its_connections_and_accepts_again_later() {
    let supervisor = Launch::new()
        .set("workers.count", "1")
        .set("http.worker_connections", "4")
        .set("http.header_timeout", r#""60s""#)
        .serving(1);
    // These clients have not sent anything yet, so the worker must not close any of them to make room.
    let mut open: Vec<_> = (0..4).map(|_| Connection::open(supervisor.address()).expect("a connection")).collect();
    supervisor.wait_log("worker_full", 1, PATIENCE);
    let mut waiting = Connection::open(supervisor.address()).expect("the kernel's queue takes it");
    waiting.send(&request("GET", "/health", &[], b"")).expect("sent");
    waiting.patience(Duration::from_secs(1));
    let worker = Process(supervisor.serving_pids()[0]);
    let before = worker.cpu_time();
    assert_eq!(waiting.answer().err(), Some(Failure::Timeout), "it waits");
    let spent = worker.cpu_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} in a second: it spins");
    for connection in &mut open {
        assert_eq!(connection.get("/health").expect("those it has are served").status, 200);
    }
    assert_eq!(supervisor.status()["workers"][0]["connections"], 4);
    drop(open.pop());
    waiting.patience(PATIENCE);
    assert_eq!(waiting.answer().expect("its turn has come").status, 200);
    assert_eq!(supervisor.log().count("worker_full"), 1);
}

#[test]
fn new_connections_avoid_the_full_worker_and_no_full_worker_is_killed() {
    let supervisor = Launch::new()
        .set("workers.count", "2")
        .set("workers.timeout", r#""1s""#)
        .set("http.worker_connections", "20")
        .set("http.keep_alive", r#""60s""#)
        .serving(2);
    let pids = supervisor.serving_pids();
    // Opens as many connections as both workers together may have. When one worker is full, each new connection must
    // reach the other worker.
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        assert_eq!(connection.get("/health").expect("an answer at once").status, 200);
        open.push(connection);
    }
    let each: Vec<_> = [0, 1].map(|n| supervisor.status()["workers"][n]["connections"].clone()).into();
    assert_eq!(each, [20, 20], "no worker has more than it may");
    crate::common::observe_for(Duration::from_secs(2));
    for connection in &mut open {
        assert_eq!(connection.get("/health").expect("an answer").status, 200);
    }
    assert_eq!(supervisor.serving_pids(), pids, "the full workers were left alone");
    drop(open);
    assert_eq!(crate::common::get(supervisor.address(), "/health").status, 200);
}
