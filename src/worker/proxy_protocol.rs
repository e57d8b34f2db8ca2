//! The PROXY protocol, versions 1 and 2: the first bytes of a connection name the client of the proxy.
//!
//! Owns: the grammar (haproxy's `doc/proxy-protocol.txt`, sections 2.1 and 2.2) and its bounds. Refuses: the reads from
//! a connection (`connection::proxy_header`), the trust in a peer (`forwarded`), and the TLVs behind the addresses,
//! which are skipped.

use std::net::{IpAddr, SocketAddr};

use crate::settings::ProxyProtocol;

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The most bytes in a line of version 1, with its CRLF (section 2.1).
const V1_MAX: usize = 107;
/// The length of the fixed part of version 2: signature, version and command, family, length.
const V2_FIXED: usize = 16;
/// The most bytes of addresses and TLVs that a header of version 2 may have. Its length field could say 65,535, but
/// proxies send some hundred bytes.
const V2_REST_MAX: usize = 4096;

/// What the first bytes of a connection are. If the bytes come in pieces, the result is `More` until there are enough
/// of them. A result other than `More` is final, whatever bytes come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParsedHeader {
    /// More bytes are needed to know the result.
    More,
    /// No header of the accepted versions begins here.
    Absent,
    /// A header that ends after `length` bytes. The header may have no source. For example, the proxy itself checks the
    /// health of this service, or the proxy's client came over a unix socket. Without a source, the addresses of the
    /// connection itself count.
    Header { length: usize, source: Option<SocketAddr> },
    /// The bytes begin like a header, but are not a valid header. The text is a sentence for the peer.
    Bad(&'static str),
}

pub(super) fn parse(accepted: ProxyProtocol, bytes: &[u8]) -> ParsedHeader {
    let (v1, v2) = match accepted {
        ProxyProtocol::Off => (false, false),
        ProxyProtocol::V1 => (true, false),
        ProxyProtocol::V2 => (false, true),
        ProxyProtocol::Auto => (true, true),
    };
    if v1 && bytes.starts_with(V1) {
        parse_v1(bytes)
    } else if v2 && bytes.starts_with(V2) {
        parse_v2(bytes)
    } else if (v1 && V1.starts_with(bytes)) || (v2 && V2.starts_with(bytes)) {
        ParsedHeader::More
    } else {
        ParsedHeader::Absent
    }
}

fn parse_v1(bytes: &[u8]) -> ParsedHeader {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() < V1_MAX {
            ParsedHeader::More
        } else {
            ParsedHeader::Bad("The PROXY header is longer than the 107 bytes of version 1")
        };
    };
    let line = window[..end].strip_suffix(b"\r").and_then(|line| str::from_utf8(line).ok());
    let Some(words) = line.and_then(|line| line.strip_prefix("PROXY ")) else {
        return ParsedHeader::Bad("The PROXY header does not end with CRLF, or is not text");
    };
    let length = end + 1;
    // The words behind UNKNOWN have no meaning.
    if words == "UNKNOWN" || words.starts_with("UNKNOWN ") {
        return ParsedHeader::Header { length, source: None };
    }
    match v1_source(words) {
        Some(source) => ParsedHeader::Header { length, source: Some(source) },
        None => ParsedHeader::Bad("The PROXY header must be PROXY, TCP4 or TCP6, source, destination, port, port"),
    }
}

fn v1_source(words: &str) -> Option<SocketAddr> {
    let mut words = words.split(' ');
    let address: fn(&str) -> Option<IpAddr> = match words.next()? {
        "TCP4" => |word| word.parse().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse().ok().map(IpAddr::V6),
        _ => return None,
    };
    let (source, _) = (address(words.next()?)?, address(words.next()?)?);
    let (port, _) = (v1_port(words.next()?)?, v1_port(words.next()?)?);
    words.next().is_none().then_some(SocketAddr::new(source, port))
}

/// Parses a port: a decimal number without sign or leading zeros.
fn v1_port(word: &str) -> Option<u16> {
    let decimal = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| decimal)
}

fn parse_v2(bytes: &[u8]) -> ParsedHeader {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return ParsedHeader::More };
    let [.., command, family, high, low] = *fixed;
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED + rest;
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return ParsedHeader::Bad("The PROXY header is not version 2, or its command is neither LOCAL nor PROXY"),
    };
    if rest > V2_REST_MAX {
        return ParsedHeader::Bad("The PROXY header is longer than 4096 bytes");
    }
    let Some(rest) = bytes.get(V2_FIXED..length) else { return ParsedHeader::More };
    if local {
        return ParsedHeader::Header { length, source: None };
    }
    let source = match family {
        // The family is unspecified or a unix stream. Such a header is valid, but has no address that is useful here.
        0x00 | 0x31 => return ParsedHeader::Header { length, source: None },
        // 0x11 is TCP over IPv4, and 0x21 is TCP over IPv6.
        0x11 => v2_source::<4>(rest),
        0x21 => v2_source::<16>(rest),
        _ => {
            return ParsedHeader::Bad(
                "The family of the PROXY header must be TCP over IPv4 or IPv6, a unix stream, or unspecified",
            );
        }
    };
    match source {
        Some(_) => ParsedHeader::Header { length, source },
        None => ParsedHeader::Bad("The PROXY header is shorter than its addresses"),
    }
}

/// Reads the source from the addresses of version 2. The addresses and ports stand in this order: source, destination,
/// source port, destination port. TLVs may follow. An address has `N` bytes.
fn v2_source<const N: usize>(rest: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let address: [u8; N] = *rest.first_chunk()?;
    let [port @ .., _, _] = *rest.get(2 * N..)?.first_chunk::<4>()?;
    Some(SocketAddr::new(IpAddr::from(address), u16::from_be_bytes(port)))
}

/// Asserts that bytes get the same result however they are split, and that more bytes do not change a known result.
#[cfg(any(test, fuzzing))]
pub(crate) fn assert_any_split_parses_alike(accepted: ProxyProtocol, bytes: &[u8]) {
    let at_once = parse(accepted, bytes);
    let mut known = false;
    for end in 0..=bytes.len() {
        let parsed = parse(accepted, &bytes[..end]);
        assert!(parsed == at_once || (parsed == ParsedHeader::More && !known), "{end}: {parsed:?}, {at_once:?}");
        known = parsed != ParsedHeader::More;
        if let ParsedHeader::Header { length, .. } = parsed {
            assert!(length <= end && length <= V2_FIXED + V2_REST_MAX, "a header of {length} bytes in {end}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const MODES: [ProxyProtocol; 4] = [ProxyProtocol::Off, ProxyProtocol::V1, ProxyProtocol::V2, ProxyProtocol::Auto];

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, rest].concat()
    }

    fn header(length: usize, source: &str) -> ParsedHeader {
        ParsedHeader::Header { length, source: (!source.is_empty()).then(|| source.parse().unwrap()) }
    }

    #[test]
    fn version_1_is_read_as_its_grammar_says() {
        let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        for (bytes, source) in [
            (&b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"[..], "192.0.2.7:56324"),
            (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", "0.0.0.0:0"),
            (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", "[2001:db8::7]:1"),
            (longest, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            (b"PROXY UNKNOWN\r\n", ""),
            (b"PROXY UNKNOWN what ever \xc3\xa9\r\n", ""),
        ] {
            let told = [bytes, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(ProxyProtocol::V1, &told), header(bytes.len(), source), "{}", bytes.escape_ascii());
            assert_eq!(parse(ProxyProtocol::Auto, &told), header(bytes.len(), source), "{}", bytes.escape_ascii());
            assert_eq!(parse(ProxyProtocol::V2, &told), ParsedHeader::Absent);
            assert_eq!(parse(ProxyProtocol::Off, &told), ParsedHeader::Absent);
        }
        for bytes in [
            &b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n"[..],
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1\r\n",
            b"PROXY TCP4 192.0.2.7  198.51.100.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n",
            b"PROXY TCP4 192.0.2.07 198.51.100.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 056324 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +5632 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 \r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
            b"PROXY TCP6 [::1] ::1 1 2\r\n",
            b"PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n",
            b"PROXY UNKNOWNS\r\n",
            b"PROXY  UNKNOWN\r\n",
            b"PROXY \r\n",
            b"PROXY / HTTP/1.1\r\n",
            b"PROXY TCP4 \xff.0.2.7 198.51.100.1 1 2\r\n",
        ] {
            let parsed = parse(ProxyProtocol::V1, bytes);
            assert!(matches!(parsed, ParsedHeader::Bad(_)), "{}: {parsed:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_line_of_version_1_has_at_most_107_bytes() {
        let line = |length: usize| [b"PROXY UNKNOWN ", "x".repeat(length - 16).as_bytes(), b"\r\n"].concat();
        assert_eq!(parse(ProxyProtocol::V1, &line(107)), header(107, ""));
        assert_eq!(parse(ProxyProtocol::V1, &line(108)[..106]), ParsedHeader::More);
        assert!(matches!(parse(ProxyProtocol::V1, &line(108)), ParsedHeader::Bad(_)));
        assert!(matches!(parse(ProxyProtocol::V1, &line(108)[..107]), ParsedHeader::Bad(_)));
    }

    #[test]
    fn version_2_is_read_as_its_grammar_says() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x01, 0xBB];
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[0; 15], &[1], &[0, 1, 0, 2]].concat();
        let tlv = [4, 0, 3, 1, 2, 3];
        for (bytes, source) in [
            (v2(0x21, 0x11, &four), "192.0.2.7:56324"),
            (v2(0x21, 0x11, &[&four[..], &tlv].concat()), "192.0.2.7:56324"),
            (v2(0x21, 0x21, &six), "[2001:db8::7]:1"),
            (v2(0x21, 0x21, &[&six[..], &tlv].concat()), "[2001:db8::7]:1"),
            (v2(0x21, 0x31, &[b'x'; 216]), ""),
            (v2(0x21, 0x00, &[]), ""),
            (v2(0x20, 0x00, &[]), ""),
            (v2(0x20, 0x11, &four), ""),
            (v2(0x20, 0xFF, &tlv), ""),
            (v2(0x20, 0x00, &[0; V2_REST_MAX]), ""),
        ] {
            let told = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(ProxyProtocol::V2, &told), header(bytes.len(), source), "{}", bytes.escape_ascii());
            assert_eq!(parse(ProxyProtocol::Auto, &told), header(bytes.len(), source), "{}", bytes.escape_ascii());
            assert_eq!(parse(ProxyProtocol::V1, &told), ParsedHeader::Absent);
            assert_eq!(parse(ProxyProtocol::Off, &told), ParsedHeader::Absent);
        }
        for bytes in [
            v2(0x11, 0x11, &four),
            v2(0x01, 0x11, &four),
            v2(0x22, 0x11, &four),
            v2(0x21, 0x11, &four[..11]),
            v2(0x21, 0x21, &six[..35]),
            v2(0x21, 0x12, &four),
            v2(0x21, 0x41, &four),
            v2(0x21, 0x10, &four),
            v2(0x21, 0x01, &four),
            v2(0x20, 0x00, &[0; V2_REST_MAX + 1]),
        ] {
            let parsed = parse(ProxyProtocol::V2, &bytes);
            assert!(matches!(parsed, ParsedHeader::Bad(_)), "{}: {parsed:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn bytes_that_may_become_a_header_wait_for_more() {
        for (mode, bytes, expected) in [
            (ProxyProtocol::Auto, &b""[..], ParsedHeader::More),
            (ProxyProtocol::Auto, b"P", ParsedHeader::More),
            (ProxyProtocol::Auto, b"PR", ParsedHeader::More),
            (ProxyProtocol::Auto, b"PO", ParsedHeader::Absent),
            (ProxyProtocol::Auto, b"\r\n", ParsedHeader::More),
            (ProxyProtocol::Auto, b"\r\nG", ParsedHeader::Absent),
            (ProxyProtocol::Auto, b"GET", ParsedHeader::Absent),
            (ProxyProtocol::Auto, b"\x16\x03\x01", ParsedHeader::Absent),
            (ProxyProtocol::Auto, b"PRI * HTTP/2.0", ParsedHeader::Absent),
            (ProxyProtocol::V2, b"P", ParsedHeader::Absent),
            (ProxyProtocol::V1, b"\r", ParsedHeader::Absent),
            (ProxyProtocol::Off, b"", ParsedHeader::Absent),
        ] {
            assert_eq!(parse(mode, bytes), expected, "{mode:?} {}", bytes.escape_ascii());
        }
    }

    /// Generates bytes that look like a header at first, and arbitrary bytes.
    fn near_headers() -> impl Strategy<Value = Vec<u8>> {
        let anything = vec(any::<u8>(), 0..200);
        let words = select(vec!["TCP4", "TCP6", "UNKNOWN", "1.2.3.4", "::1", "80", "0", " ", "\r\n", "\n", "\r", "\0"]);
        let line = vec(words, 0..9).prop_map(|words| format!("PROXY {}\r\n", words.join(" ")).into_bytes());
        let spoilt = (any::<u8>(), select(vec![0x20_u8, 0x21, 0x11, 0x22]), any::<u8>(), vec(any::<u8>(), 0..60));
        let binary = spoilt.prop_map(|(family, command, short, rest)| {
            let family = if family % 2 == 0 { [0x11, 0x21, 0x31, 0][usize::from(family / 2 % 4)] } else { family };
            let mut bytes = v2(command, family, &rest);
            if short < 30 {
                bytes[15] = short;
            }
            bytes
        });
        prop_oneof![
            anything.clone(),
            (line, anything.clone()).prop_map(|(a, b)| [a, b].concat()),
            (binary, anything).prop_map(|(a, b)| [a, b].concat())
        ]
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_split_the_result_is_the_same(bytes in near_headers(), mode in select(MODES.to_vec())) {
            assert_any_split_parses_alike(mode, &bytes);
        }
    }
}
