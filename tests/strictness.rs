//! Promise: bytes that are not a clean HTTP request never reach the app. A clean request gets its answer however its
//! bytes are cut into packets.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use crate::common::{Launch, PATIENCE, Random, get, metric};
use crate::corpus::{Answer, Case};

/// How the client cuts the bytes of a case into the pieces that it sends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    Bytes,
    /// Cuts at random positions. The seed determines the positions.
    Random(u64),
}

impl Cut {
    fn pieces(self, raw: &[u8]) -> Vec<&[u8]> {
        let Self::Random(seed) = self else {
            return raw.chunks(if matches!(self, Self::Bytes) { 1 } else { raw.len() }).collect();
        };
        let (mut pieces, mut rest, mut random) = (Vec::new(), raw, Random::new(seed));
        while !rest.is_empty() {
            // Half of the pieces have at most four bytes. The other half may be as long as the whole case.
            let most = if random.chance(50) { 4 } else { 1 + raw.len() as u64 };
            let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(most) as usize));
            pieces.push(piece);
            rest = behind;
        }
        pieces
    }
}

/// Sends a case and returns all bytes that the server sends until the connection ends. If the case is hostile, the
/// client does not end the connection, so the server must.
fn converse(address: SocketAddr, case: &Case, cut: Cut) -> Result<Vec<u8>, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .map_err(|error| error.to_string())?;
    for piece in cut.pieces(&case.raw) {
        stream.write_all(piece).map_err(|error| format!("write: {error}"))?;
    }
    // The client announces its end only if the case is legal, because the server must end a hostile connection by
    // itself.
    if !case.is_hostile() {
        stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
    }
    let mut said = Vec::new();
    stream
        .read_to_end(&mut said)
        .map_err(|error| format!("{error} instead of the end, after {}", String::from_utf8_lossy(&said)))?;
    Ok(said)
}

/// Takes the next response from the front of `said` and returns its status, its headers in lower case, and its content.
/// Skips interim responses.
fn take_response(said: &mut &[u8]) -> Result<(u16, String, Vec<u8>), String> {
    loop {
        let strange = || format!("no response: {}", String::from_utf8_lossy(said));
        let end = said.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(strange)? + 4;
        let head = String::from_utf8_lossy(&said[..end]).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(strange)?;
        let length =
            head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let content = said.get(end..end + length).ok_or_else(strange)?.to_vec();
        *said = &said[end + length..];
        if status >= 200 {
            return Ok((status, head, content));
        }
    }
}

fn check(address: SocketAddr, case: &Case, cut: Cut) -> Result<(), String> {
    let said = converse(address, case, cut)?;
    let mut rest = &said[..];
    for answer in &case.answers {
        let (status, head, content) = take_response(&mut rest)?;
        let text = || String::from_utf8_lossy(&content);
        match answer {
            Answer::Echo(expected) if status == 200 && content == *expected => {}
            Answer::Status(expected) if status == *expected => {}
            Answer::Refused(expected) | Answer::Broken(expected) if status == *expected => {
                if !head.contains("\r\nconnection: close\r\n") {
                    return Err(format!("it does not say that it closes: {head}"));
                }
                let error: serde_json::Value =
                    serde_json::from_slice(&content).map_err(|error| format!("{error}: {}", text()))?;
                if error["error"].as_str().is_none_or(|reason| reason.len() < 20) || !error["type"].is_string() {
                    return Err(format!("it does not say why: {error}"));
                }
            }
            expected => return Err(format!("{expected:?} expected, {status} {} came", text())),
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(format!("more answers: {}", String::from_utf8_lossy(rest))) }
}

/// Returns the number of requests that the app got. This number does not include the request for the metrics page.
fn requests(address: SocketAddr) -> u64 {
    let page = get(address, "/metrics").text();
    metric(&page, "oxicorn_requests_total").unwrap_or_else(|| panic!("no such line: {page}"))
}

/// Sends each case of the corpus, cut in each of the given ways. Compares the requests that the app got with the
/// requests that it may get.
fn send_all(cuts: &[Cut]) {
    let mut supervisor = Launch::new().set("workers.count", "1").set("http.metrics_path", r#""/metrics""#).serving(1);
    let (address, cases, mut wrong) = (supervisor.address(), crate::corpus::cases(), Vec::new());
    for (case, &cut) in cases.iter().flat_map(|case| cuts.iter().map(move |cut| (case, cut))) {
        let before = requests(address);
        if let Err(why) = check(address, case, cut) {
            wrong.push(format!("{}, {cut:?}: {why}", case.name));
        }
        let reached = case.answers.iter().filter(|answer| answer.reaches_the_app()).count() as u64;
        let seen = requests(address) - before;
        if seen != reached {
            wrong.push(format!("{}, {cut:?}: the app got {seen} requests, and not {reached}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cuts.len() * cases.len(), wrong.join("\n"));
    assert_eq!(supervisor.status()["totals"]["requests"], requests(address), "status and metrics agree");
    supervisor.stop();
}

#[test]
fn every_case_ends_right_when_sent_at_once() {
    send_all(&[Cut::Whole]);
}

#[test]
fn every_case_ends_right_when_sent_byte_by_byte() {
    send_all(&[Cut::Bytes]);
}

#[test]
fn every_case_ends_right_when_sent_in_random_pieces() {
    send_all(&[1, 2, 3].map(Cut::Random));
}
