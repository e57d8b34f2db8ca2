//! The scanner, told of bytes and asked for its verdict.

use super::*;

const LIMITS: Limits = Limits { request_line: 100, fields: 10, field_size: 100, body: 1000 };

/// What passes of an input that arrives in these pieces, and why the rest does not.
fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Option<Refusal>) {
    let (mut scanner, mut passed, mut kept) = (Scanner::new(LIMITS), Vec::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        let scan = scanner.scan(&kept);
        passed.extend(kept.drain(..scan.pass));
        if let Verdict::Refuse(refusal) = scan.verdict {
            return (passed, Some(refusal));
        }
    }
    (passed, None)
}

#[test]
fn it_is_small() {
    assert!(size_of::<Scanner>() <= 104, "{}", size_of::<Scanner>());
}

#[test]
fn a_request_passes_whole_and_byte_by_byte() {
    let request = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nhost:b\r\n\r\n";
    assert_eq!(feed([&request[..]]), (request.to_vec(), None));
    assert_eq!(feed(request.chunks(1)), (request.to_vec(), None));
}
