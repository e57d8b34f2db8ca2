//! Tests the scanner with unexpected bytes: cases of the corpus that are damaged and joined, and random bytes.
//!
//! With `PROPTEST_CASES=100000` in the environment the tests run longer.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    super::checks::{assert_hyper_sees_what_passes, assert_pieces_make_no_difference},
    *,
};

/// Bytes that separate or frame the parts of a request, or confuse a parser.
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
    // The long cases of the corpus test limits. They are left out, because here they would only take time.
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

/// Generates inputs as `Bytes`, because the debug output of `Bytes` is readable text.
fn input() -> impl Strategy<Value = Bytes> {
    let bytes = prop_oneof![
        8 => (any::<Index>(), vec(damage(), 0..8)).prop_map(|(case, damages)| damaged(case, damages)),
        1 => vec(any::<Index>().prop_map(|what| *what.get(NASTY)), 0..40).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..200),
    ];
    bytes.prop_map(Bytes::from)
}

/// Generates limits that are small enough for the inputs to reach them.
fn limits() -> impl Strategy<Value = SizeLimits> {
    let line = || prop_oneof![Just(0), 10..80usize];
    (line(), prop_oneof![Just(0), 1..8usize], line(), prop_oneof![Just(0), 1..30u64])
        .prop_map(|(request_line, fields, field_size, body)| SizeLimits { request_line, fields, field_size, body })
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn however_an_input_is_split_the_verdict_is_the_same(input in input(), limits in limits(), seed: u64) {
        assert_pieces_make_no_difference(limits, &input, input.chunks(1));
        assert_pieces_make_no_difference(limits, &input, cut(&input, seed));
    }
}

proptest! {
    #![proptest_config(config(1000))]

    /// hyper must see the same requests as the scanner, with the same content, and must refuse no request that passes.
    #[test]
    fn hyper_sees_what_the_scanner_passed(input in input()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert_hyper_sees_what_passes(&runtime, &input);
    }
}
