//! Promise: when an answer comes before the end of the request's body, the client's next request is not lost. The
//! worker reads the rest of the body if the rest is small. Otherwise the answer says `Connection: close`, and it
//! reaches the client whatever the client still sends.

use std::{
    net::{Ipv4Addr, TcpStream},
    thread,
    time::Duration,
};

use crate::common::{Connection, Launch, PATIENCE, Supervisor, eventually, now, observe_for, request};

/// How a client sends the body of its request. The body always comes after the request's head and in other packets.
#[derive(Clone, Copy, Debug)]
enum Sent {
    /// Sends 10 bytes, long after the answer has come.
    Late,
    Middling,
    Large,
    /// Sends two chunks, the second one late.
    Chunked,
}

impl Sent {
    /// Returns true if the connection must stay open after every answer to a request with this body.
    fn is_cheap(self) -> bool {
        matches!(self, Self::Late | Self::Middling)
    }

    fn send(self, connection: &mut Connection, method: &str, path: &str) {
        let head = |field: &str| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n").into_bytes();
        let pause = || thread::sleep(Duration::from_millis(10));
        let mut send = |bytes: &[u8]| connection.send(bytes).expect("sent");
        match self {
            Self::Late => {
                send(&head("Content-Length: 10"));
                pause();
                send(b"0123456789");
            }
            Self::Middling => {
                send(&head("Content-Length: 20000"));
                send(&[b'a'; 20_000]);
            }
            Self::Large => {
                send(&head("Content-Length: 300000"));
                send(&[b'a'; 300_000]);
            }
            Self::Chunked => {
                send(&head("Transfer-Encoding: chunked"));
                send(b"5\r\nhello\r\n");
                pause();
                send(b"6\r\n world\r\n0\r\n\r\n");
            }
        }
    }
}

/// Returns how many answers to try for each kind of answer and body. This is the number in the environment variable
/// `EARLY_ANSWERS`, or 100 without this variable.
pub(crate) fn times() -> usize {
    std::env::var("EARLY_ANSWERS").ok().and_then(|times| times.parse().ok()).unwrap_or(100)
}

const CLIENTS: usize = 10;

/// Asserts that each request gets its early answer. Also asserts that the client's next request is answered, on the
/// same connection or, if the answer said `Connection: close`, on a new one.
#[track_caller]
fn assert_no_next_request_is_lost(supervisor: &Supervisor, method: &str, path: &str, status: u16) {
    let (address, begun) = (supervisor.address(), now());
    let client = |number: usize, sent: Sent| {
        // Each client connects from an address of its own. A single address has too few ports, because each connection
        // that has ended still occupies its port for a while.
        let source = Ipv4Addr::new(127, 7, number as u8, 1).into();
        let open = || Connection::open_from(source, address).expect("a connection");
        let (mut connection, mut closed) = (open(), 0);
        for time in 0..times() / CLIENTS {
            let what = || format!("{method} {path}, {sent:?}, time {time}");
            sent.send(&mut connection, method, path);
            let answer = connection.answer().unwrap_or_else(|failure| panic!("{}: {failure}", what()));
            assert_eq!(answer.status, status, "{}: {}", what(), answer.text());
            if answer.closes() {
                assert!(!sent.is_cheap(), "{}: {:?}", what(), answer.headers);
                connection.wait_eof().unwrap_or_else(|failure| panic!("{}: {failure}", what()));
                (connection, closed) = (open(), closed + 1);
            }
            let next = connection.get("/exempt").unwrap_or_else(|failure| panic!("after {}: {failure}", what()));
            assert_eq!(next.status, 200, "after {}", what());
        }
        closed
    };
    for sent in [Sent::Late, Sent::Middling, Sent::Large, Sent::Chunked] {
        let closed: usize = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number, sent))).collect();
            clients.into_iter().map(|client| client.join().expect("nothing is lost")).sum()
        });
        eprintln!("{method} {path}, {sent:?}: {} answers, {closed} of them the last", times());
    }
    assert!(begun.elapsed() < 4 * PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn an_early_answer_of_the_app_costs_no_next_request() {
    let supervisor = Launch::misbehave().serving(2);
    for status in [200, 401, 405, 413] {
        assert_no_next_request_is_lost(&supervisor, "POST", &format!("/early/{status}"), status);
    }
    assert_no_next_request_is_lost(&supervisor, "POST", "/nowhere", 404);
}

#[test]
fn a_failing_app_costs_no_next_request() {
    let supervisor = Launch::misbehave().set("http.request_timeout", r#""100ms""#).serving(2);
    assert_no_next_request_is_lost(&supervisor, "POST", "/panic", 500);
    assert_no_next_request_is_lost(&supervisor, "POST", "/sleep/60000", 504);
}

#[test]
fn an_early_answer_of_the_worker_costs_no_next_request() {
    let supervisor = Launch::misbehave()
        .set("workers.count", "1")
        .set("http.metrics_path", r#""/metrics""#)
        .set("http.limit_concurrency", "1")
        .set("http.limit_exempt", r#"["/exempt"]"#)
        .serving(1);
    assert_no_next_request_is_lost(&supervisor, "GET", "/metrics", 200);
    let mut busy = Connection::open(supervisor.address()).expect("a connection");
    busy.send(&request("GET", "/sleep/600000", &[], b"")).expect("sent");
    eventually("it is in flight", PATIENCE, || (supervisor.status()["workers"][0]["in_flight"] == 1).then_some(()));
    assert_no_next_request_is_lost(&supervisor, "POST", "/early/200", 503);
}

/// The app answers while it reads the body, and stops reading as soon as the answer has begun.
#[test]
fn an_app_that_stops_reading_after_its_answer_began_costs_no_next_request() {
    let supervisor = Launch::misbehave().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..20 {
        connection
            .send(b"POST /first_piece HTTP/1.1\r\nHost: a\r\nContent-Length: 20010\r\n\r\n0123456789")
            .expect("sent");
        assert_eq!(connection.answer().expect("an answer").text(), "0123456789");
        connection.send(&[b'a'; 20_000]).expect("the rest is taken");
        assert_eq!(connection.get("/pid").expect("the next answer").status, 200);
    }
}

#[test]
fn a_large_or_unknown_rest_of_a_body_is_not_read() {
    let supervisor = Launch::misbehave().serving(2);
    for (field, begun) in [("Content-Length: 300000", ""), ("Transfer-Encoding: chunked", "5\r\nhello\r\n")] {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        let head = format!("POST /early/200 HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n{begun}");
        let answer = connection.ask(head.as_bytes()).expect("an answer");
        assert!(answer.closes(), "{field}: {:?}", answer.headers);
        connection.wait_eof().expect("the end at once");
    }
}

/// The whole body has already arrived. The worker therefore need not read more of it and keeps the connection.
#[test]
fn a_small_chunked_body_costs_no_connection() {
    let supervisor = Launch::misbehave().serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let chunks = "3\r\nabc\r\n".repeat(20);
    let whole = format!("POST /early/401 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    for _ in 0..20 {
        let answer = connection.ask(whole.as_bytes()).expect("an answer");
        assert!(answer.status == 401 && !answer.closes(), "{answer:?}");
    }
}

/// A client that expects `100 Continue` and gets another answer may send its body or leave it out. The worker cannot
/// know what the client does, so the worker ends the connection.
#[test]
fn a_client_that_expects_continue_is_told_that_the_connection_ends() {
    let supervisor = Launch::misbehave().serving(2);
    for path in ["/early/401", "/nowhere"] {
        for body in ["", "0123456789"] {
            let mut connection = Connection::open(supervisor.address()).expect("a connection");
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n");
            let answer = connection.ask(head.as_bytes()).expect("an answer");
            assert!(answer.closes(), "{path}: {:?}", answer.headers);
            connection.send(body.as_bytes()).expect("sent");
            connection.wait_eof().expect("a clean end");
        }
    }
}

/// The client may never send the rest of the body that it announced. The worker waits for the rest as long as it waits
/// for any body.
#[test]
fn a_client_that_does_not_send_the_rest_gets_the_time_of_any_body() {
    let supervisor = Launch::misbehave().set("http.body_timeout", r#""700ms""#).serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(b"POST /early/401 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234").expect("sent");
    let (answer, answered) = (connection.answer().expect("an answer"), now());
    assert!(!answer.closes(), "{:?}", answer.headers);
    connection.wait_eof().expect("a clean end");
    let waited = answered.elapsed();
    assert!((Duration::from_millis(600)..PATIENCE).contains(&waited), "{waited:?}");
}

/// A client whose kernel uses Nagle's algorithm, such as nginx, sends its next request only once the rest of the body
/// is acknowledged. The worker sent the answer before the rest arrived, so the answer cannot carry the acknowledgement.
/// The kernel would delay a separate acknowledgement by 40 ms.
#[test]
fn the_rest_of_a_body_is_acknowledged_at_once() {
    let supervisor = Launch::misbehave().serving(2);
    let mut connection = Connection::over(TcpStream::connect(supervisor.address()).expect("a connection"));
    let begun = now();
    for _ in 0..100 {
        connection.send(b"POST /early/401 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").expect("sent");
        assert_eq!(connection.answer().expect("an answer").status, 401);
        connection.send(b"0123456789").expect("sent");
        assert_eq!(connection.get("/pid").expect("the next answer").status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// A client that still sends a body is not idle, so the time limit `http.keep_alive` counts from the end of the body.
#[test]
fn keep_alive_counts_from_the_end_of_the_rest() {
    let supervisor = Launch::misbehave().set("http.keep_alive", r#""700ms""#).serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(b"POST /early/401 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").expect("sent");
    assert_eq!(connection.answer().expect("an answer").status, 401);
    for byte in b"0123456789" {
        observe_for(Duration::from_millis(150));
        connection.send(&[*byte]).expect("sent");
    }
    observe_for(Duration::from_millis(200));
    assert_eq!(connection.get("/pid").expect("the next answer").status, 200);
    let idle = now();
    connection.wait_eof().expect("a clean end");
    assert!(idle.elapsed() > Duration::from_millis(600), "{:?}", idle.elapsed());
}

/// The client already has its answer. A drain must therefore not take longer because the worker still reads the rest of
/// the body.
#[test]
fn a_drain_ends_with_its_grace_whatever_is_still_unread() {
    let supervisor = Launch::misbehave().set("workers.graceful_timeout", r#""2s""#).serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(b"POST /early/401 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234").expect("sent");
    assert!(!connection.answer().expect("an answer").closes());
    assert!(supervisor.ctl(&["reload"]).status.success());
    let begun = now();
    connection.wait_eof().expect("a clean end");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
