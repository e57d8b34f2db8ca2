//! Promise to ourselves: the client of the benchmark counts each request in exactly one class, never retries, and
//! measures from the moment at which a request was due.

#![allow(dead_code, unreachable_pub, reason = "the benchmark uses the rest")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may start threads")]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use oxicorn_testkit::load::{Load, Tally, Wire};
use socket2::SockRef;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Starts a server that runs until the test ends. It has one thread per connection and calls `answer` for every
/// request. Returns the server's address and the counter of the requests that it saw.
fn server(answer: impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (address, seen) = (listener.local_addr().expect("bound"), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&seen);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (answer, count) = (answer.clone(), Arc::clone(&count));
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    let whole = line == "\r\n";
                    line.clear();
                    if whole {
                        count.fetch_add(1, Ordering::Relaxed);
                        if !answer(&mut stream) {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, seen)
}

fn ask(address: SocketAddr) -> Tally {
    Load::saturating(address, 4, "/").run(Duration::from_millis(200))
}

/// Asserts that all requests ended in the class `class` and that the server saw each of them once.
#[track_caller]
fn all_are(class: &str, answer: impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static) {
    let (address, seen) = server(answer);
    let classes = ask(address).classes();
    let of_it = classes.get(class).copied().unwrap_or(0);
    assert!(of_it > 0, "{classes:?}");
    assert_eq!(classes.values().sum::<u64>(), of_it, "{classes:?}");
    assert_eq!(seen.load(Ordering::Relaxed), of_it, "no request is sent twice, and none is left uncounted");
}

fn says(text: &'static str, stays: bool) -> impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static {
    move |stream| stream.write_all(text.as_bytes()).is_ok() && stays
}

#[test]
fn each_way_a_request_ends_has_its_class() {
    all_are("ok", says(ANSWER, true));
    all_are("ok", says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", false));
    all_are("status 503", says("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", true));
    all_are("cut answer", says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", false));
    all_are("cut answer", says("HTTP/1.1 200 OK\r\nContent-Le", false));
    all_are("closed before answer", says("", false));
    all_are("malformed answer", says("hello, world\r\n\r\n", false));
    all_are("reset before answer", |stream| {
        SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        false
    });
}

#[test]
fn a_port_without_a_listener_counts_as_refused() {
    let address = (std::net::Ipv4Addr::LOCALHOST, common::free_port()).into();
    let classes = ask(address).classes();
    assert!(classes["refused connect"] > 0 && classes["ok"] == 0, "{classes:?}");
    assert_eq!(classes.len(), 2, "{classes:?}");
}

#[test]
fn a_silent_server_counts_as_timeout() {
    all_are("timeout", says("", true));
}

/// A hundred requests a second are due, but the server gives only twenty answers a second on its one connection.
/// Requests therefore wait, and their latency must include this wait.
#[test]
fn latency_counts_from_when_a_request_was_due() {
    let (address, _) = server(|stream| {
        common::observe_for(Duration::from_millis(50));
        stream.write_all(ANSWER.as_bytes()).is_ok()
    });
    let tally = Load::paced(address, 1, "/", 100.0).run(Duration::from_secs(1));
    assert!(tally.ok >= 10, "{:?}", tally.classes());
    assert!(tally.longest() > Duration::from_millis(400), "{:?}", tally.longest());
}

/// The server closes the connection after every answer and does not announce the close. The client sees the close
/// before it sends its next request, so no request is lost.
#[test]
fn a_connection_that_closed_while_idle_is_not_a_failure() {
    let (address, _) = server(says(ANSWER, false));
    let classes = Load::paced(address, 2, "/", 50.0).run(Duration::from_millis(600)).classes();
    assert!(classes["ok"] > 10 && classes.len() == 1, "{classes:?}");
}

#[test]
fn a_connection_per_request_loses_nothing() {
    let (address, seen) = server(says(ANSWER, false));
    let wire = Wire { per_request: true, ..Wire::default() };
    let tally = Load { wire, ..Load::saturating(address, 2, "/") }.run(Duration::from_millis(200));
    assert_eq!(tally.classes().len(), 1, "{:?}", tally.classes());
    assert_eq!(tally.ok, seen.load(Ordering::Relaxed));
}
