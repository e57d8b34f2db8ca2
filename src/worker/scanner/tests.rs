//! Tests the scanner alone: bytes go in, and a verdict comes out.

use super::{
    checks::{LIMITS, feed},
    *,
};
use corpus::{Answer, Case};
use oxicorn_testkit::random::Random;

#[path = "../../../tests/corpus/mod.rs"]
mod corpus;
mod properties;

/// Cuts an input into pieces at random places, which `seed` decides.
fn cut(input: &[u8], seed: u64) -> Vec<&[u8]> {
    let (mut pieces, mut rest, mut random) = (Vec::new(), input, Random::new(seed));
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(40) as usize));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// Returns how many heads pass, and the refusal if the scanner refuses something.
fn heads(input: &[u8]) -> (usize, Option<Refusal>) {
    let (mut scanner, mut rest, mut heads) = (Scanner::new(LIMITS), input, 0);
    loop {
        let head = matches!(scanner.state, ScanState::Head(_));
        match scanner.step(rest) {
            Ok(0) if scanner.is_held() => scanner.resume(),
            Ok(0) => return (heads, None),
            Ok(passed) => {
                heads += usize::from(head);
                rest = &rest[passed..];
            }
            Err(refusal) => return (heads, Some(refusal)),
        }
    }
}

#[test]
fn the_corpus_is_large_and_its_names_are_unique() {
    let cases = corpus::cases();
    let (hostile, legal): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.is_hostile());
    assert!(hostile.len() >= 80 && legal.len() >= 40, "{} hostile, {} legal", hostile.len(), legal.len());
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn hostile_requests_are_refused_and_legal_ones_pass() {
    let wrong: Vec<_> = corpus::cases()
        .iter()
        .filter_map(|Case { name, raw, answers }| {
            let expected = (
                answers.iter().filter(|answer| answer.reaches_the_app()).count(),
                answers.iter().find_map(Answer::refusal),
            );
            let (heads, refusal) = heads(raw);
            (expected != (heads, refusal.map(|refusal| refusal.status)))
                .then(|| format!("{name}: {expected:?}, but {heads} {refusal:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn however_the_corpus_is_split_the_verdict_is_the_same() {
    for Case { name, raw, .. } in corpus::cases() {
        let whole = feed(LIMITS, [&raw[..]]);
        assert_eq!(feed(LIMITS, raw.chunks(1)), whole, "{name}, byte by byte");
        for seed in 0..20 {
            assert_eq!(feed(LIMITS, cut(&raw, seed)), whole, "{name}, cut by {seed}");
        }
    }
}

#[test]
fn a_scanner_takes_at_most_96_bytes() {
    assert!(size_of::<Scanner>() <= 96, "{}", size_of::<Scanner>());
}

/// The content of a body may be read without the scanner seeing it. The scanner must still know where the body ends.
#[test]
fn content_can_be_read_past_the_scanner() {
    let mut scanner = Scanner::new(LIMITS);
    assert_eq!(scanner.body_left(), None);
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    assert_eq!(scanner.scan(&[head, &b"abc"[..]].concat()), Scan { pass: head.len() + 3, verdict: Verdict::More });
    assert_eq!(scanner.body_left(), Some(7));
    scanner.skip(6);
    assert_eq!(scanner.body_left(), Some(1));
    scanner.skip(1);
    assert_eq!(scanner.body_left(), None);
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n";
    assert_eq!(scanner.scan(head), Scan { pass: head.len(), verdict: Verdict::More });
    assert_eq!(scanner.body_left(), Some(5));
    scanner.skip(5);
    assert_eq!(scanner.body_left(), None);
    assert_eq!(scanner.scan(b"\r\n0\r\n\r\n").pass, 7);
    assert_eq!(scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").pass, 27);
}

#[test]
fn the_scanner_knows_when_a_head_has_begun() {
    let mut scanner = Scanner::new(LIMITS);
    for (bytes, begun) in
        [("", false), ("\r", false), ("\r\n", false), ("\r\nG", true), ("\r\nGET / HTTP/1.1\r\n", true)]
    {
        assert_eq!(scanner.scan(bytes.as_bytes()), Scan { pass: 0, verdict: Verdict::More });
        assert_eq!(scanner.in_head(), begun, "{bytes:?}");
    }
    let whole = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(scanner.scan(whole.as_bytes()).pass, whole.len());
    assert!(!scanner.in_head());
}

#[test]
fn bytes_behind_a_request_for_another_protocol_are_kept() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let kept = Scan { pass: 0, verdict: Verdict::More };
    for connect in [false, true] {
        let head = if connect { "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" } else { upgrade };
        let mut scanner = Scanner::new(LIMITS);
        assert_eq!(scanner.scan(format!("{head}\0\0").as_bytes()).pass, head.len());
        assert!(scanner.is_held() && !scanner.in_head());
        assert_eq!(scanner.scan(b"\0\0"), kept);
        scanner.resume();
        assert!(matches!(scanner.scan(b"\0\0"), Scan { pass: 0, verdict: Verdict::Refuse(_) }));
        assert!(!scanner.refused_in_body());
    }
    // The scanner may be told to resume before the body of the request has ended, because the response may be known
    // early.
    let mut scanner = Scanner::new(LIMITS);
    let head = upgrade.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(scanner.scan(head.as_bytes()).pass, head.len());
    scanner.resume();
    assert_eq!(scanner.scan(b"abcG").pass, 3);
    assert!(scanner.in_head());
}

#[test]
fn no_byte_passes_after_the_last_request() {
    let mut scanner = Scanner::new(LIMITS);
    let last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(!scanner.has_ended());
    assert_eq!(scanner.scan(&[last, &b"\0"[..]].concat()), Scan { pass: last.len(), verdict: Verdict::More });
    assert!(scanner.has_ended() && !scanner.in_head());
}

/// A limit of 0 switches a setting off. The scanner then still applies its own limits, because hyper's types and the
/// worker's memory are limited.
#[test]
fn limits_that_are_off_leave_the_scanners_own() {
    let off = SizeLimits { request_line: 0, fields: 0, field_size: 0, body: 0 };
    let refusal = |input: String| feed(off, [input.as_bytes()]).refusal;
    let begin = "POST / HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(refusal(format!("{begin}{}\r\n", "X: y\r\n".repeat(2000))), None);
    assert_eq!(refusal(format!("{begin}X: {}\r\n\r\n", "y".repeat(60_000))), None);
    assert_eq!(refusal(format!("{begin}Content-Length: {}\r\n\r\n", i64::MAX)), None);
    assert_eq!(refusal(format!("{begin}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n")), None);
    assert_eq!(refusal(format!("GET /{} HTTP/1.1", "a".repeat(LINE_MAX))), Some(Refusal::LINE_LONG));
    assert_eq!(refusal(format!("{begin}X: {}", "y".repeat(LINE_MAX))), Some(Refusal::FIELD_LONG));
    let exact = |fill: usize| format!("{begin}{}Y:{}\r\n\r\n", "X: y\r\n".repeat(43_000), "y".repeat(fill));
    let fill = HEAD_MAX - exact(0).len();
    assert_eq!(refusal(exact(fill)), None);
    assert_eq!(refusal(exact(fill + 1)), Some(Refusal::HEAD_LONG));
}
