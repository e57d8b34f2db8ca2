//! The scanner under bytes that nobody thought of: cases of the corpus, damaged and joined, and plain noise.
//!
//! `PROPTEST_CASES=100000` looks longer.

use std::{
    convert::Infallible,
    io::Write as _,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

/// A request as one reader sees it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    target: String,
    /// Escaped.
    content: String,
    /// Whether its end was seen.
    ended: bool,
}

/// What separates, frames or confuses.
const NASTY: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"\\",
    b"/",
    b"?",
    b"#",
    b"*",
    b"%",
    b"@",
    b"[",
    b"]",
    b"0",
    b"1",
    b"3",
    b"f",
    b"+",
    b"-",
    b"x",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xc3\xa9",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Host: a\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Upgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"X: y\r\n",
    b"CONNECT a:1 ",
    b"http://a/",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
];

#[derive(Clone, Debug)]
enum Damage {
    Insert(Index, Index),
    Replace(Index, Index),
    Remove(Index, usize),
    Repeat(Index, usize),
    Join(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), at()).prop_map(|(place, bytes)| Damage::Insert(place, bytes)),
        (at(), at()).prop_map(|(place, bytes)| Damage::Replace(place, bytes)),
        (at(), 1..6usize).prop_map(|(place, length)| Damage::Remove(place, length)),
        (at(), 1..40usize).prop_map(|(place, length)| Damage::Repeat(place, length)),
        at().prop_map(Damage::Join),
    ]
}

fn damaged(case: Index, damages: Vec<Damage>) -> Vec<u8> {
    // The long ones are about limits, and would only take time.
    let cases: Vec<_> = corpus::cases().into_iter().map(|case| case.raw).filter(|raw| raw.len() < 2000).collect();
    let mut bytes = case.get(&cases).clone();
    for damage in damages {
        let place = |at: Index, bytes: &[u8]| at.index(bytes.len() + 1);
        match damage {
            Damage::Insert(at, what) => {
                let at = place(at, &bytes);
                bytes.splice(at..at, what.get(NASTY).iter().copied());
            }
            Damage::Replace(at, what) => {
                let at = place(at, &bytes);
                bytes.splice(at..bytes.len().min(at + 1), what.get(NASTY).iter().copied());
            }
            Damage::Remove(at, length) => {
                let at = place(at, &bytes);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Damage::Repeat(at, length) => {
                let at = place(at, &bytes);
                bytes.extend_from_within(at..bytes.len().min(at + length));
            }
            Damage::Join(other) => bytes.extend_from_slice(other.get::<Vec<u8>>(&cases)),
        }
    }
    bytes
}

/// As `Bytes`, which show themselves as text.
fn input() -> impl Strategy<Value = Bytes> {
    let bytes = prop_oneof![
        8 => (any::<Index>(), vec(damage(), 0..8)).prop_map(|(case, damages)| damaged(case, damages)),
        1 => vec(any::<Index>().prop_map(|what| *what.get(NASTY)), 0..40).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..200),
    ];
    bytes.prop_map(Bytes::from)
}

/// Small enough to be met.
fn limits() -> impl Strategy<Value = Limits> {
    let line = || prop_oneof![Just(0), 10..80usize];
    (line(), prop_oneof![Just(0), 1..8usize], line(), prop_oneof![Just(0), 1..30u64])
        .prop_map(|(request_line, fields, field_size, body)| Limits { request_line, fields, field_size, body })
}

/// What the scanner believes that it passes on.
fn as_scanned(input: &[u8]) -> (Vec<u8>, Vec<Seen>) {
    let (mut scanner, mut seen, mut rest) = (Scanner::new(LIMITS), Vec::<Seen>::new(), input);
    loop {
        let head = matches!(scanner.state, ScanState::Head(_));
        let content = scanner.body_left().is_some();
        let passed = match scanner.step(rest) {
            Ok(0) if scanner.is_held() => {
                scanner.resume();
                continue;
            }
            Ok(0) | Err(_) => return (input[..input.len() - rest.len()].to_vec(), seen),
            Ok(passed) => passed,
        };
        let (bytes, behind) = rest.split_at(passed);
        rest = behind;
        if head {
            let line = bytes.trim_ascii_start().split(|&sign| sign == b'\r').next().unwrap_or_default();
            let mut words = str::from_utf8(line).expect("verified as UTF-8").split(' ');
            let mut word = || words.next().expect("verified as three words").to_owned();
            seen.push(Seen { method: word(), target: normalized(&word()), content: String::new(), ended: false });
        }
        if let Some(request) = seen.last_mut() {
            if content {
                request.content += &bytes.escape_ascii().to_string();
            }
            request.ended = !matches!(scanner.state, ScanState::Length(_) | ScanState::Chunked(_));
        }
    }
}

/// What hyper makes of the same bytes.
async fn as_served(input: Vec<u8>) -> Vec<Seen> {
    let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
    client.write_all(&input).expect("it fits the buffer");
    client.shutdown(Shutdown::Write).expect("an open socket");
    server.set_nonblocking(true).expect("an open socket");
    let server = tokio::net::UnixStream::from_std(server).expect("a socket that does not block");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, mut body) = request.into_parts();
            let (method, target) = (head.method.to_string(), head.uri.to_string());
            let (mut content, mut ended) = (String::new(), true);
            while let Some(frame) = body.frame().await {
                match frame.map(|frame| frame.into_data()) {
                    Ok(Ok(data)) => content += &data.escape_ascii().to_string(),
                    Ok(Err(_trailers)) => {}
                    Err(_) => ended = false,
                }
            }
            seen.lock().expect("nobody panics").push(Seen { method, target, content, ended });
            // A 2xx would begin the tunnel that CONNECT asks for.
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
    let _ = tokio::time::timeout(Duration::from_secs(10), served).await.expect("hyper comes to an end");
    std::mem::take(&mut seen.lock().expect("nobody panics"))
}

/// As `http::Uri` writes it.
fn normalized(target: &str) -> String {
    target.parse::<http::Uri>().unwrap_or_else(|error| panic!("{target:?} passed: {error}")).to_string()
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn any_pieces_of_any_input_are_judged_alike(input in input(), limits in limits(), seed: u64) {
        let whole = feed(limits, [&input[..]]);
        prop_assert!(input.starts_with(&whole.passed));
        prop_assert_eq!(&feed(limits, input.chunks(1)), &whole);
        prop_assert_eq!(&feed(limits, cut(&input, seed)), &whole);
    }
}

proptest! {
    #![proptest_config(config(1000))]

    /// The same requests with the same content; of those that pass, hyper refuses none.
    #[test]
    fn hyper_sees_what_the_scanner_passed(input in input()) {
        let (passed, expected) = as_scanned(&input);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        prop_assert_eq!(runtime.block_on(as_served(passed)), expected);
    }
}
