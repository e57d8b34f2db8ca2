//! Requests that must not reach the app: the known ways of request smuggling, and bytes that are not HTTP.

use super::{Answer, Case, case, chunks, echo, line, post};

/// The second request, which an attacker tries to hide behind the first one.
const SMUGGLED: &str = "GET /debug/connections HTTP/1.1\r\nHost: a\r\n\r\n";

pub(super) fn cases() -> Vec<Case> {
    let refused = |status, name, raw: Vec<u8>| case(name, raw, &[Answer::Refused(status)]);
    let mut cases = Vec::new();
    cases.extend(request_lines().into_iter().map(|(status, name, text)| refused(status, name, line(text))));
    cases.extend(raw_heads().into_iter().map(|(name, raw)| refused(400, name, raw.to_vec())));
    cases.extend(hosts().into_iter().map(|(name, host)| {
        refused(400, name, format!("GET /debug/connections HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes())
    }));
    cases.extend(fields().into_iter().map(|(name, fields)| refused(400, name, post(fields, SMUGGLED))));
    cases.extend(
        lengths().into_iter().map(|(name, value)| {
            refused(400, name, post(format!("Content-Length: {value}"), ["abc", SMUGGLED].concat()))
        }),
    );
    cases.extend(codings().into_iter().map(|(name, value)| {
        refused(400, name, post([b"Transfer-Encoding: ", value].concat(), ["0\r\n\r\n", SMUGGLED].concat()))
    }));
    cases.extend(smuggling());
    cases.extend(expectations());
    cases.extend(
        bodies()
            .into_iter()
            .map(|(name, body)| case(name, chunks([body, SMUGGLED.as_bytes()].concat()), &[Answer::Broken(400)])),
    );
    cases.extend(limits());
    cases.extend(behind_others());
    cases
}

fn request_lines() -> Vec<(u16, &'static str, &'static [u8])> {
    vec![
        (400, "HTTP/0.9", b"GET /debug/connections"),
        (505, "version 0.9", b"GET /debug/connections HTTP/0.9"),
        (505, "version 1.2", b"GET /debug/connections HTTP/1.2"),
        (505, "version 2.0", b"GET /debug/connections HTTP/2.0"),
        (505, "version 3.0", b"GET /debug/connections HTTP/3.0"),
        (400, "version in lower case", b"GET /debug/connections http/1.1"),
        (400, "version without a minor", b"GET /debug/connections HTTP/1"),
        (400, "version with two digits", b"GET /debug/connections HTTP/1.10"),
        (400, "version with a leading zero", b"GET /debug/connections HTTP/01.1"),
        (400, "version with a comma", b"GET /debug/connections HTTP/1,1"),
        (400, "version of letters", b"GET /debug/connections HTTP/x.y"),
        (400, "version with something behind", b"GET /debug/connections HTTP/1.1x"),
        (400, "space behind the version", b"GET /debug/connections HTTP/1.1 "),
        (400, "another protocol", b"GET /debug/connections ICY/1.1"),
        (400, "two spaces behind the method", b"GET  /debug/connections HTTP/1.1"),
        (400, "two spaces before the version", b"GET /debug/connections  HTTP/1.1"),
        (400, "tabs for spaces", b"GET\t/debug/connections\tHTTP/1.1"),
        (400, "tab behind the space", b"GET \t/debug/connections HTTP/1.1"),
        (400, "space before the method", b" GET /debug/connections HTTP/1.1"),
        (400, "no method", b" /debug/connections HTTP/1.1"),
        (400, "no target", b"GET HTTP/1.1"),
        (400, "no version", b"GET /debug/connections "),
        (400, "four words", b"GET /debug/connections HTTP/1.1 HTTP/1.1"),
        (400, "space in the target", b"GET /debug /connections HTTP/1.1"),
        (400, "tab in the target", b"GET /debug\t/connections HTTP/1.1"),
        (400, "vertical tab in the target", b"GET /debug\x0b/connections HTTP/1.1"),
        (400, "NUL in the target", b"GET /debug/connections\0 HTTP/1.1"),
        (400, "DEL in the target", b"GET /debug/connections\x7f HTTP/1.1"),
        (400, "CR in the target", b"GET /debug/\rconnections HTTP/1.1"),
        (400, "LF in the target", b"GET /debug/\nconnections HTTP/1.1"),
        (400, "target that is not UTF-8", b"GET /debug/connections?\xff HTTP/1.1"),
        (400, "fragment", b"GET /debug/connections#top HTTP/1.1"),
        (400, "fragment behind a query", b"GET /debug/connections?a=b#top HTTP/1.1"),
        (400, "angle brackets in the target", b"GET /<script> HTTP/1.1"),
        (400, "quotes in the query", b"GET /debug/connections?\"a\" HTTP/1.1"),
        (400, "relative target", b"GET debug/connections HTTP/1.1"),
        (400, "backslash for a slash", b"GET \\debug\\connections HTTP/1.1"),
        (400, "query alone", b"GET ?a=b HTTP/1.1"),
        (400, "asterisk with GET", b"GET * HTTP/1.1"),
        (400, "asterisk and more", b"OPTIONS *?a HTTP/1.1"),
        (400, "authority with GET", b"GET a:80 HTTP/1.1"),
        (400, "authority with OPTIONS", b"OPTIONS a:80 HTTP/1.1"),
        (400, "scheme that is not HTTP", b"GET ftp://a/debug/connections HTTP/1.1"),
        (400, "scheme without slashes", b"GET http:a/debug/connections HTTP/1.1"),
        (400, "URL without a host", b"GET http:///debug/connections HTTP/1.1"),
        (400, "URL with a port and no host", b"GET http://:80/debug/connections HTTP/1.1"),
        (400, "URL with a user", b"GET http://a@a/debug/connections HTTP/1.1"),
        (400, "URL with a password", b"GET http://a:b@a/debug/connections HTTP/1.1"),
        (400, "URL with a wide port", b"GET http://a:65536/debug/connections HTTP/1.1"),
        (400, "URL with a port of letters", b"GET http://a:http/debug/connections HTTP/1.1"),
        (400, "URL with a fragment behind its host", b"GET http://a#/debug/connections HTTP/1.1"),
        (400, "URL with a backslash behind its host", b"GET http://a\\@b/debug/connections HTTP/1.1"),
        (400, "URL of another host", b"GET http://b/debug/connections HTTP/1.1"),
        (400, "URL of another port", b"GET http://a:8080/debug/connections HTTP/1.1"),
        (400, "CONNECT without a port", b"CONNECT a HTTP/1.1"),
        (400, "CONNECT with an empty port", b"CONNECT a: HTTP/1.1"),
        (400, "CONNECT with a path", b"CONNECT /debug/connections HTTP/1.1"),
        (400, "CONNECT with a URL", b"CONNECT http://a/ HTTP/1.1"),
        (400, "CONNECT to another host", b"CONNECT b:80 HTTP/1.1"),
        (400, "CONNECT with an asterisk", b"CONNECT * HTTP/1.1"),
        (400, "method with a colon", b"GE:T /debug/connections HTTP/1.1"),
        (400, "method with parentheses", b"GET() /debug/connections HTTP/1.1"),
        (400, "method with a slash", b"GET/ /debug/connections HTTP/1.1"),
        (400, "method above ASCII", b"G\xcbT /debug/connections HTTP/1.1"),
        (400, "method with NUL", b"GET\0 /debug/connections HTTP/1.1"),
        (400, "method with DEL", b"GET\x7f /debug/connections HTTP/1.1"),
    ]
}

fn raw_heads() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("LF ends every line", b"GET /debug/connections HTTP/1.1\nHost: a\n\n"),
        ("LF ends the request line", b"GET /debug/connections HTTP/1.1\nHost: a\r\n\r\n"),
        ("LF ends a field", b"GET /debug/connections HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        ("LF ends the head", b"GET /debug/connections HTTP/1.1\r\nHost: a\r\n\n"),
        ("CR ends every line", b"GET /debug/connections HTTP/1.1\rHost: a\r\r"),
        ("CR ends the head", b"GET /debug/connections HTTP/1.1\r\nHost: a\r\n\rX"),
        ("CR twice", b"GET /debug/connections HTTP/1.1\r\r\nHost: a\r\n\r\n"),
        ("LF before CR", b"GET /debug/connections HTTP/1.1\n\rHost: a\n\r\n\r"),
        ("two empty lines first", b"\r\n\r\nGET /debug/connections HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bare LF first", b"\nGET /debug/connections HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bare CR first", b"\rGET /debug/connections HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("byte order mark first", b"\xef\xbb\xbfGET /debug/connections HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("TLS to a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("SMTP", b"EHLO example.com\r\n"),
        ("nothing but zeros", b"\0\0\0\0\0\0\0\0"),
        (
            "PROXY header although none is configured",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        ("no Host", b"GET /debug/connections HTTP/1.1\r\n\r\n"),
        ("no Host, URL as target", b"GET http://a/debug/connections HTTP/1.1\r\n\r\n"),
        ("two Hosts", b"GET /debug/connections HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("two equal Hosts", b"GET /debug/connections HTTP/1.1\r\nHost: a\r\nX: y\r\nhOST: a\r\n\r\n"),
        ("two Hosts on 1.0", b"GET /debug/connections HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
        ("bad Host on 1.0", b"GET /debug/connections HTTP/1.0\r\nHost: a b\r\n\r\n"),
        ("Host of the URL on 1.0", b"GET http://a/debug/connections HTTP/1.0\r\nHost: b\r\n\r\n"),
        ("first field indented", b"GET /debug/connections HTTP/1.1\r\n Host: a\r\n\r\n"),
        ("first field indented by a tab", b"GET /debug/connections HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n"),
        ("Host folded", b"GET /debug/connections HTTP/1.1\r\nHost:\r\n a\r\n\r\n"),
        ("Host before its colon", b"GET /debug/connections HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("CONNECT with a length", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabc"),
        ("CONNECT with chunks", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("chunks on 1.0", b"POST /debug/echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "chunks and keep-alive on 1.0",
            b"POST /debug/echo HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ]
}

fn hosts() -> Vec<(&'static str, &'static str)> {
    vec![
        ("empty Host", ""),
        ("Host of spaces", "   "),
        ("Host with a space", "a b"),
        ("Host with a tab", "a\tb"),
        ("list of Hosts", "a, b"),
        ("Host with a path", "a/debug"),
        ("Host with a query", "a?b"),
        ("Host with a fragment", "a#b"),
        ("Host with a user", "u@a"),
        ("Host with a scheme", "http://a"),
        ("Host with a backslash", "a\\b"),
        ("Host with a percent sign", "a%00"),
        ("Host with quotes", "\"a\""),
        ("Host with angle brackets", "<a>"),
        ("Host above ASCII", "b\u{fc}cher.example"),
        ("Host with a port of letters", "a:http"),
        ("Host with a wide port", "a:65536"),
        ("Host with a long port", "a:000080"),
        ("Host with a signed port", "a:+80"),
        ("Host with two ports", "a:80:80"),
        ("port alone", ":80"),
        ("IPv6 without brackets", "::1"),
        ("IPv6 half in brackets", "[::1"),
        ("IPv6 with something behind", "[::1]a"),
        ("IPv6 with a zone", "[fe80::1%25eth0]"),
        ("brackets around nothing", "[]"),
        ("brackets around a name", "[a]"),
    ]
}

fn fields() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("space before the colon", b"X : y"),
        ("tab before the colon", b"X\t: y"),
        ("length before its colon", b"Content-Length : 44"),
        ("coding before its colon", b"Transfer-Encoding : chunked"),
        ("folded value", b"X: y\r\n z"),
        ("folded by a tab", b"X: y\r\n\tz"),
        ("folded length", b"Content-Length:\r\n 3"),
        ("folded coding", b"Transfer-Encoding:\r\n chunked"),
        ("line of spaces", b"X: y\r\n  \r\nZ: z"),
        ("no colon", b"X"),
        ("length without a colon", b"Content-Length 44"),
        ("no name", b": y"),
        ("name with a space", b"X Y: z"),
        ("name with parentheses", b"X(Y): z"),
        ("name with brackets", b"X[Y]: z"),
        ("name with an equals sign", b"X=Y: z"),
        ("name with a slash", b"X/Y: z"),
        ("name with quotes", b"\"X\": z"),
        ("name with NUL", b"X\0: y"),
        ("name with DEL", b"X\x7f: y"),
        ("name above ASCII", b"X\xe4: y"),
        ("length with NUL in its name", b"Content-\0Length: 44"),
        ("coding with a vertical tab in its name", b"Transfer-Encoding\x0b: chunked"),
        ("coding with a no-break space before it", b"\xa0Transfer-Encoding: chunked"),
        ("NUL in a value", b"X: y\0z"),
        ("CR in a value", b"X: y\rz"),
        ("LF in a value", b"X: y\nz"),
        ("CR that hides a field", b"X: y\rTransfer-Encoding: chunked"),
        ("LF that hides a field", b"X: y\nTransfer-Encoding: chunked"),
        ("CR twice behind a value", b"X: y\r\r\nZ: z"),
        ("bell in a value", b"X: \x07"),
        ("escape in a value", b"X: \x1b[2J"),
        ("form feed in a value", b"X: \x0c"),
        ("DEL in a value", b"X: y\x7f"),
        ("second Host", b"Host: a"),
        ("second request line", b"GET / HTTP/1.1"),
    ]
}

fn lengths() -> Vec<(&'static str, &'static str)> {
    vec![
        ("length with a plus", "+3"),
        ("length with a minus", "-3"),
        ("length of minus nothing", "-0"),
        ("length in hexadecimal", "0x3"),
        ("length of hexadecimal digits", "3a"),
        ("length with a space", "3 3"),
        ("length with a tab", "4\t4"),
        ("list of equal lengths", "3, 3"),
        ("list of lengths", "3, 44"),
        ("list without a space", "3,3"),
        ("list with an empty end", "3,"),
        ("length with a semicolon", "3;"),
        ("length with a fraction", "3.0"),
        ("length with an exponent", "3e0"),
        ("length with an underscore", "4_4"),
        ("length in quotes", "\"3\""),
        ("no length", ""),
        ("length of letters", "three"),
        ("length in other digits", "\u{663}"),
        ("length in full-width digits", "\u{ff13}"),
        ("length of 2^63", "9223372036854775808"),
        ("length of 2^64", "18446744073709551616"),
        ("length of 2^64 + 3", "18446744073709551619"),
        ("length of 30 digits", "000000000100000000000000000003"),
        ("length twice", "3\r\nContent-Length: 3"),
        ("length twice, in two cases", "3\r\ncontent-length: 3"),
        ("two lengths", "3\r\nX: y\r\nContent-Length: 44"),
        ("length and nothing", "3\r\nContent-Length:"),
        ("two lengths of nothing", "0\r\nContent-Length: 0"),
    ]
}

fn codings() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("no coding", b""),
        ("coding that begins otherwise", b"xchunked"),
        ("coding that ends otherwise", b"chunkedx"),
        ("word before the coding", b"x chunked"),
        ("chunked twice", b"chunked, chunked"),
        ("chunked and a comma", b"chunked,"),
        ("comma and chunked", b", chunked"),
        ("gzip and chunked", b"gzip, chunked"),
        ("chunked and gzip", b"chunked, gzip"),
        ("chunked and identity", b"chunked, identity"),
        ("identity", b"identity"),
        ("gzip", b"gzip"),
        ("chunked in quotes", b"\"chunked\""),
        ("chunked in apostrophes", b"'chunked'"),
        ("chunked with a parameter", b"chunked;q=1"),
        ("chunked with a semicolon", b"chunked;"),
        ("chunked and a vertical tab", b"chunked\x0b"),
        ("chunked and NUL", b"chunked\0"),
        ("no-break space before chunked", b"\xa0chunked"),
        ("chunked with a Kelvin sign", b"chun\xe2\x84\xaaed"),
        ("coding in two fields", b"chunked\r\nTransfer-Encoding: chunked"),
        ("identity in a second field", b"chunked\r\nTransfer-Encoding: identity"),
        ("identity in a first field", b"identity\r\nTransfer-Encoding: chunked"),
        ("second field in another case", b"chunked\r\ntransfer-encoding: x"),
    ]
}

fn smuggling() -> Vec<Case> {
    let refused =
        |name, fields: &str, body: &str| case(name, post(fields, [body, SMUGGLED].concat()), &[Answer::Refused(400)]);
    vec![
        refused("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG"),
        refused("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 4", "8\r\nSMUGGLED\r\n0\r\n\r\n"),
        refused("CL.TE, both agree", "Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        refused("CL.0", "Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        refused("TE.CL far apart", "Transfer-Encoding: chunked\r\nX: y\r\nZ: z\r\ncontent-length: 4", "0\r\n\r\n"),
        refused("TE.TE.CL", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4", "0\r\n\r\n"),
        refused("CL.TE.CL", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 4", "0\r\n\r\n"),
        refused("CL.TE by a second line", "Content-Length: 4\r\nX: y\n\tTransfer-Encoding: chunked", "0\r\n\r\n"),
    ]
}

fn expectations() -> Vec<Case> {
    ["200-ok", "100-continue, 200-ok", "", "100-continue;q=1", "100-continue\r\nExpect: x"]
        .into_iter()
        .zip([
            "unknown expectation",
            "known and unknown expectation",
            "empty expectation",
            "expectation with a parameter",
            "unknown expectation in a second field",
        ])
        .map(|(value, name)| {
            case(name, post(format!("Content-Length: 3\r\nExpect: {value}"), "abc"), &[Answer::Refused(417)])
        })
        .collect()
}

/// Returns one pair for each case with a broken chunked body: the name of the case, and the body. The app gets the head
/// of the request, but never the end of the body.
fn bodies() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("no chunk size", b"\r\nabc\r\n0\r\n\r\n"),
        ("extension without a chunk size", b";a=b\r\nabc\r\n0\r\n\r\n"),
        ("chunk size of other letters", b"g\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with 0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with a plus", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with a minus", b"-3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with a dot", b"3.\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with an underscore", b"0_3\r\nabc\r\n0\r\n\r\n"),
        ("space before the chunk size", b" 3\r\nabc\r\n0\r\n\r\n"),
        ("space behind the chunk size", b"3 \r\nabc\r\n0\r\n\r\n"),
        ("tab behind the chunk size", b"3\t\r\nabc\r\n0\r\n\r\n"),
        ("two chunk sizes", b"3 3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size with a comma", b"3,3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size in quotes", b"\"3\"\r\nabc\r\n0\r\n\r\n"),
        ("chunk size above ASCII", b"\xb3\r\nabc\r\n0\r\n\r\n"),
        ("chunk size of 17 digits", b"00000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("chunk size of 2^64", b"10000000000000000\r\nabc\r\n0\r\n\r\n"),
        ("chunk size of 2^64 + 3", b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("NUL in the chunk size", b"3\0\r\nabc\r\n0\r\n\r\n"),
        ("LF behind the chunk size", b"3\nabc\r\n0\r\n\r\n"),
        ("CR behind the chunk size", b"3\rabc\r\n0\r\n\r\n"),
        ("CR twice behind the chunk size", b"3\r\r\nabc\r\n0\r\n\r\n"),
        ("LF behind the chunk data", b"3\r\nabc\n0\r\n\r\n"),
        ("CR behind the chunk data", b"3\r\nabc\r0\r\n\r\n"),
        ("nothing behind the chunk data", b"3\r\nabc0\r\n\r\n"),
        ("more data than the chunk size", b"3\r\nabcd\r\n0\r\n\r\n"),
        ("less data than the chunk size", b"4\r\nabc\r\n0\r\n\r\n"),
        ("two other bytes behind the chunk data", b"3\r\nabcXX0\r\n\r\n"),
        ("LF in a chunk extension", b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("CR in a chunk extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
        ("NUL in a chunk extension", b"3;a=\0\r\nabc\r\n0\r\n\r\n"),
        ("LF in a quoted chunk extension", b"3;a=\"\n\"\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension without a name", b"3;\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension of a value", b"3;=b\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension without its value", b"3;a=\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension with an open quote", b"3;a=\"b\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension without a semicolon", b"3 a=b\r\nabc\r\n0\r\n\r\n"),
        ("space behind a chunk extension", b"3;a=b \r\nabc\r\n0\r\n\r\n"),
        ("LF ends the last chunk", b"3\r\nabc\r\n0\n\r\n"),
        ("LF ends the body", b"3\r\nabc\r\n0\r\n\n"),
        ("CR ends the body", b"3\r\nabc\r\n0\r\n\rX"),
        ("trailer that frames", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("trailer of a length", b"0\r\nContent-Length: 44\r\n\r\n"),
        ("trailer of a host", b"0\r\nHost: b\r\n\r\n"),
        ("trailer that authorizes", b"0\r\nAuthorization: Bearer x\r\n\r\n"),
        ("trailer of a cookie", b"0\r\nCookie: a=b\r\n\r\n"),
        ("trailer of a type", b"0\r\ncontent-TYPE: text/html\r\n\r\n"),
        ("trailer of an encoding", b"0\r\nContent-Encoding: gzip\r\n\r\n"),
        ("trailer of the connection", b"0\r\nConnection: close\r\n\r\n"),
        ("trailer of an expectation", b"0\r\nExpect: 100-continue\r\n\r\n"),
        ("trailer of a trailer", b"0\r\nX: y\r\nTrailer: X\r\n\r\n"),
        ("folded trailer", b"0\r\nX: y\r\n z\r\n\r\n"),
        ("trailer before its colon", b"0\r\nX : y\r\n\r\n"),
        ("trailer without a colon", b"0\r\nX\r\n\r\n"),
        ("trailer without a name", b"0\r\n: y\r\n\r\n"),
        ("NUL in a trailer", b"0\r\nX: \0\r\n\r\n"),
        ("CR in a trailer", b"0\r\nX: y\rz\r\n\r\n"),
        ("LF ends a trailer", b"0\r\nX: y\n\r\n"),
        ("request line for a trailer", b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    ]
}

fn limits() -> Vec<Case> {
    let refused = |status, name, raw: Vec<u8>| case(name, raw, &[Answer::Refused(status)]);
    let broken = |status, name, body: String| case(name, chunks(body), &[Answer::Broken(status)]);
    let path = "/".repeat(8191 - "GET  HTTP/1.1".len());
    let fields = |count: usize| vec!["X: y"; count].join("\r\n");
    vec![
        refused(414, "request line too long", line(format!("GET {path} HTTP/1.1"))),
        refused(414, "request line without an end", format!("GET /{}", "a".repeat(8190)).into_bytes()),
        refused(414, "method without an end", "A".repeat(8191).into_bytes()),
        refused(431, "field too long", post(format!("X: {}", "y".repeat(8188)), "")),
        refused(431, "field without an end", format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(8190)).into_bytes()),
        refused(431, "name without an end", format!("GET / HTTP/1.1\r\n{}", "x".repeat(8191)).into_bytes()),
        refused(431, "too many fields", post(fields(100), "")),
        refused(431, "too many fields, and no end", format!("GET / HTTP/1.1\r\n{}\r\nX", fields(100)).into_bytes()),
        refused(
            431,
            "head too long",
            // A test may also send this case byte by byte, and the server does not wait many seconds for the end of a
            // head. The head is therefore only a little longer than the limit.
            post((0..33).map(|_| format!("X: {}", "y".repeat(8187))).collect::<Vec<_>>().join("\r\n"), ""),
        ),
        refused(413, "length beyond the limit", post("Content-Length: 16777217", "abc")),
        refused(413, "length far beyond the limit", post("Content-Length: 9223372036854775807", "")),
        refused(
            413,
            "length beyond the limit, expecting",
            post("Content-Length: 16777217\r\nExpect: 100-continue", ""),
        ),
        broken(413, "chunk beyond the limit", "1000001\r\nabc".to_owned()),
        broken(413, "chunk of 2^64 - 1", "FFFFFFFFFFFFFFFF\r\nabc".to_owned()),
        broken(413, "chunks beyond the limit", "1\r\na\r\n1000000\r\nabc".to_owned()),
        broken(431, "too many trailers", format!("0\r\n{}\r\n\r\n", fields(99))),
        broken(431, "trailer too long", format!("0\r\nX: {}\r\n\r\n", "y".repeat(8188))),
        broken(400, "chunk extension too long", format!("3;a={}\r\nabc\r\n0\r\n\r\n", "b".repeat(16_384))),
        broken(400, "chunk extensions too long", format!("{}0\r\n\r\n", "1;a=bcdefgh\r\na\r\n".repeat(1_700))),
    ]
}

/// Returns the cases with a bad request behind good requests. The good requests must be answered first.
fn behind_others() -> Vec<Case> {
    let good = "POST /debug/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let behind = |name, rest: &str, status| case(name, [good, rest].concat(), &[echo("abc"), Answer::Refused(status)]);
    vec![
        behind("bad request behind a good one", "GET / HTTP/1.1\r\n\r\n", 400),
        case(
            "body longer than its length",
            [good, "defGET / HTTP/1.1\r\nHost: a\r\n\r\ndef\r\n"].concat(),
            &[echo("abc"), Answer::Status(404), Answer::Refused(400)],
        ),
        behind("garbage behind a good one", "\x01\x02\x03", 400),
        behind("two empty lines between", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        behind("long line behind a good one", &"a".repeat(8191), 414),
        case(
            "bad request behind chunks",
            chunks("3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            &[echo("abc"), Answer::Refused(400)],
        ),
        case(
            "chunks end, and end again",
            chunks("3\r\nabc\r\n0\r\n\r\n0\r\n\r\n"),
            &[echo("abc"), Answer::Refused(400)],
        ),
        case(
            "good, good, bad chunk",
            [good.as_bytes(), good.as_bytes(), &chunks("3\r\nabcd\r\n0\r\n\r\n")].concat(),
            &[echo("abc"), echo("abc"), Answer::Broken(400)],
        ),
        case(
            "garbage behind a refused upgrade",
            [&post("Content-Length: 0\r\nConnection: upgrade\r\nUpgrade: websocket", ""), &b"\x81\x05hello"[..]]
                .concat(),
            &[echo(""), Answer::Refused(400)],
        ),
    ]
}
