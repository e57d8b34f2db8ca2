//! Properties that the scanner must have for any bytes.
//!
//! Owns: the assertions, which the proptests (`tests`) and the fuzzer (`fuzz/`) share. Refuses: the choice of the
//! bytes.

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
use tokio::runtime::Runtime;

use super::{Refusal, Scan, ScanState, Scanner, SizeLimits, Verdict};

/// The limits that the settings have by default.
pub(crate) const LIMITS: SizeLimits = SizeLimits { request_line: 8190, fields: 100, field_size: 8190, body: 16 << 20 };

/// What a scanner passed and refused of one input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) passed: Vec<u8>,
    pub(super) refusal: Option<Refusal>,
}

/// Offers the pieces of an input to a scanner, one after the other, as `http1` does. If a request asks for another
/// protocol, the scanner is told that the connection stays with HTTP.
pub(super) fn feed<'a>(limits: SizeLimits, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let (mut scanner, mut outcome, mut kept) = (Scanner::new(limits), Outcome::default(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let scan = scanner.scan(&kept);
            outcome.passed.extend(kept.drain(..scan.pass));
            if let Verdict::Refuse(refusal) = scan.verdict {
                assert_eq!(scanner.scan(&kept), Scan { pass: 0, verdict: scan.verdict }, "a refusal is final");
                return Outcome { refusal: Some(refusal), ..outcome };
            }
            if !scanner.is_held() {
                break;
            }
            scanner.resume();
        }
    }
    outcome
}

/// Asserts that `input` gets the same verdict in `pieces` as in one piece, and that the scanner passes a prefix of
/// `input`.
pub(crate) fn assert_pieces_make_no_difference<'a>(
    limits: SizeLimits,
    input: &[u8],
    pieces: impl IntoIterator<Item = &'a [u8]>,
) {
    let at_once = feed(limits, [input]);
    assert!(input.starts_with(&at_once.passed), "what passes is not the front of the input");
    assert_eq!(feed(limits, pieces), at_once);
}

/// A request as one of the two readers sees it: the scanner or hyper.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    target: String,
    /// The content of the body, with escapes that make it readable.
    content: String,
    /// True if the reader saw the end of the body.
    ended: bool,
}

/// Asserts that hyper and the scanner see the same requests with the same content in the bytes that pass, and that
/// hyper refuses none of these requests. The input must fit into the buffer of a socket.
pub(crate) fn assert_hyper_sees_what_passes(runtime: &Runtime, input: &[u8]) {
    let (passed, expected) = as_scanned(input);
    assert_eq!(runtime.block_on(as_served(passed)), expected);
}

/// Returns the bytes that pass, and the requests that the scanner sees in them.
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

/// Serves the bytes of `input` with hyper, and returns the requests that hyper sees in them.
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
            seen.lock().expect("no handler panics").push(Seen { method, target, content, ended });
            // The response is 404, because a 2xx would begin the tunnel that a CONNECT asks for.
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
    let _ = tokio::time::timeout(Duration::from_secs(10), served).await.expect("hyper comes to an end");
    std::mem::take(&mut seen.lock().expect("no handler panics"))
}

/// Returns a target as `http::Uri` writes it.
fn normalized(target: &str) -> String {
    target.parse::<http::Uri>().unwrap_or_else(|error| panic!("{target:?} passed: {error}")).to_string()
}
