//! Requests that the server must answer, however strange they look.

use super::{Answer, Case, case, chunks, echo, line, post};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = targets();
    cases.extend(fields());
    cases.extend(clients());
    cases.extend(bodies());
    cases.extend(connections());
    cases.extend(upgrades());
    cases
}

fn targets() -> Vec<Case> {
    let answered = |status, name, text: &str| case(name, line(text), &[Answer::Status(status)]);
    vec![
        answered(200, "plain GET", "GET /debug/connections HTTP/1.1"),
        answered(200, "empty query", "GET /debug/connections? HTTP/1.1"),
        answered(200, "odd query", "GET /debug/connections?a=[b]{c}|d\\e^f`g'(h)*i,j;k:l@m!n$o?p/q HTTP/1.1"),
        answered(200, "UTF-8 in the query", "GET /debug/connections?caf\u{e9}=\u{2603} HTTP/1.1"),
        answered(200, "NUL, percent-encoded", "GET /debug/connections?%00%ff%zz% HTTP/1.1"),
        answered(404, "UTF-8 in the path", "GET /caf\u{e9} HTTP/1.1"),
        answered(404, "odd path", "GET /a[b]{c}|d\\e^f\"g HTTP/1.1"),
        answered(404, "two slashes", "GET //debug/connections HTTP/1.1"),
        answered(404, "dots", "GET /debug/../debug/./connections HTTP/1.1"),
        answered(404, "colon and at sign in the path", "GET /http://u:p@b:80/ HTTP/1.1"),
        answered(404, "asterisk with OPTIONS", "OPTIONS * HTTP/1.1"),
        answered(405, "OPTIONS of a route", "OPTIONS /debug/connections HTTP/1.1"),
        answered(405, "method in lower case", "get /debug/connections HTTP/1.1"),
        answered(405, "method of all token characters", "!#$%&'*+-.^_`|~09azAZ /debug/connections HTTP/1.1"),
        answered(405, "method with a dash", "M-SEARCH /debug/connections HTTP/1.1"),
        answered(405, "long method", &format!("{} /debug/connections HTTP/1.1", "A".repeat(1000))),
        answered(200, "URL as target", "GET http://a/debug/connections HTTP/1.1"),
        answered(200, "https URL as target", "GET https://a/debug/connections HTTP/1.1"),
        answered(200, "URL in capitals", "GET HTTP://A/debug/connections HTTP/1.1"),
        answered(404, "URL without a path", "GET http://a HTTP/1.1"),
        answered(404, "URL with a query and no path", "GET http://a?b=c HTTP/1.1"),
        answered(404, "OPTIONS of a whole server by URL", "OPTIONS http://a HTTP/1.1"),
        case(
            "URL with a port",
            "GET http://a:8080/debug/connections HTTP/1.1\r\nHost: A:8080\r\n\r\n",
            &[Answer::Status(200)],
        ),
        case(
            "URL with an IPv6 address",
            "GET http://[::1]:80/debug/connections HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            &[Answer::Status(200)],
        ),
        case("URL on 1.0", "GET http://a/debug/connections HTTP/1.0\r\n\r\n", &[Answer::Status(200)]),
        answered(
            200,
            "request line as long as may be",
            &format!("GET /debug/connections?{} HTTP/1.1", "a".repeat(8190 - "GET /debug/connections? HTTP/1.1".len())),
        ),
    ]
}

fn fields() -> Vec<Case> {
    let host = |name, host: &str| {
        case(name, format!("GET /debug/connections HTTP/1.1\r\nHost:{host}\r\n\r\n"), &[Answer::Status(200)])
    };
    let with =
        |name, fields: &[u8]| case(name, post([b"Content-Length: 3\r\n", fields].concat(), "abc"), &[echo("abc")]);
    let many = vec!["X: y"; 98].join("\r\n");
    vec![
        host("Host without a space", "a"),
        host("Host among spaces", " \t a \t "),
        host("Host with a port", " localhost:8000"),
        host("Host with an empty port", " localhost:"),
        host("Host of IPv4", " 127.0.0.1:80"),
        host("Host of IPv6", " [2001:db8::1]:65535"),
        host("Host of IPv4 in IPv6", " [::ffff:192.0.2.1]"),
        host("Host with a final dot", " example.com."),
        host("Host with an underscore", " _my_service.example"),
        host("Host with odd characters", " a!$&'()*+,;=~b"),
        with("empty value", b"X:\r\nY: \r\nZ:\t \t"),
        with("spaces and tabs in a value", b"X: \t a \t b \t "),
        with("value above ASCII", b"X: caf\xe9 \xff\x80"),
        with("value of all that is visible", b"X: !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"),
        with("odd names", b"!#$%&'*+-.^_`|~09azAZ: y\r\n_: y\r\n-: y\r\n0: y"),
        with("value that looks like a field", b"X: Transfer-Encoding: chunked"),
        with(
            "names that only begin alike",
            b"Hosts: b\r\nContent-Lengths: 4\r\nTransfer-Encodings: chunked\r\nTE: trailers",
        ),
        with("repeated fields", b"X: y\r\nX: y\r\nCookie: a=b\r\nCookie: a=b\r\nAccept: */*\r\nAccept: text/html"),
        with("announced trailers", b"Trailer: X\r\nTE: trailers, deflate;q=0.5\r\nConnection: TE"),
        with("as many fields as may be", many.as_bytes()),
        with("field as long as may be", format!("X: {}", "y".repeat(8187)).as_bytes()),
        case("length with leading zeros", post("Content-Length: 0000000000000000000003", "abc"), &[echo("abc")]),
        case("length among spaces", post("content-LENGTH:  \t3\t ", "abc"), &[echo("abc")]),
        case("length of nothing", post("Content-Length: 0", ""), &[echo("")]),
        case("neither length nor chunks", post("X: y", ""), &[echo("")]),
        case("expected body", post("Content-Length: 3\r\nExpect: 100-Continue", "abc"), &[echo("abc")]),
        case(
            "body expected twice",
            post("Content-Length: 3\r\nExpect: 100-continue\r\nExpect: 100-continue", "abc"),
            &[echo("abc")],
        ),
        case(
            "expected body on 1.0",
            "POST /debug/echo HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
            &[echo("abc")],
        ),
    ]
}

/// Returns cases with requests as real clients send them.
fn clients() -> Vec<Case> {
    let ok = |name, text: &str| case(name, text.replace('\n', "\r\n"), &[Answer::Status(200)]);
    vec![
        ok("curl", "GET /debug/connections HTTP/1.1\nHost: localhost:8000\nUser-Agent: curl/8.14.1\nAccept: */*\n\n"),
        ok(
            "curl --http2",
            "GET /debug/connections HTTP/1.1\nHost: localhost:8000\nUser-Agent: curl/8.14.1\nAccept: */*\n\
             Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\n\n",
        ),
        ok(
            "Chrome",
            "GET /debug/connections HTTP/1.1\nHost: localhost:8000\nConnection: keep-alive\nCache-Control: max-age=0\n\
             sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\", \"Google Chrome\";v=\"140\"\n\
             sec-ch-ua-mobile: ?0\nsec-ch-ua-platform: \"Linux\"\nUpgrade-Insecure-Requests: 1\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 \
             Safari/537.36\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,\
             image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7\nSec-Fetch-Site: none\nSec-Fetch-Mode: navigate\n\
             Sec-Fetch-User: ?1\nSec-Fetch-Dest: document\nAccept-Encoding: gzip, deflate, br, zstd\n\
             Accept-Language: en-US,en;q=0.9,de;q=0.8\nCookie: session=3f2c9a1b; theme=dark; _ga=GA1.1.1.1\n\n",
        ),
        ok(
            "a proxy in front",
            "GET /debug/connections HTTP/1.1\nHost: example.com\nX-Forwarded-For: 192.0.2.60, 198.51.100.1\n\
             X-Forwarded-Proto: https\nForwarded: for=192.0.2.60;proto=https;by=203.0.113.43\nVia: 1.1 proxy\n\n",
        ),
        ok("ab", "GET /debug/connections HTTP/1.0\nHost: 127.0.0.1:8000\nUser-Agent: ApacheBench/2.3\nAccept: */*\n\n"),
        case(
            "python requests",
            "POST /debug/echo HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: python-requests/2.32\r\n\
             Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\
             Content-Type: application/json\r\n\r\n{\"a\":1}",
            &[echo("{\"a\":1}")],
        ),
    ]
}

fn bodies() -> Vec<Case> {
    let echoed = |name, body: &[u8], content: &[u8]| case(name, chunks(body), &[echo(content)]);
    let all: Vec<u8> = (0..=255).collect();
    let long = all.repeat(40);
    vec![
        case("one byte", post("Content-Length: 1", "a"), &[echo("a")]),
        case("all bytes", post("Content-Length: 256", &all), &[echo(&all)]),
        case("ten thousand bytes", post("Content-Length: 10240", &long), &[echo(&long)]),
        case(
            "body that is a request",
            post("Content-Length: 27", line("GET / HTTP/1.1")),
            &[echo(line("GET / HTTP/1.1"))],
        ),
        case(
            "body of a GET",
            "GET /debug/connections HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            &[Answer::Status(200)],
        ),
        echoed("one chunk", b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        echoed("chunks", b"1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", b"abcdef"),
        echoed("no chunk", b"0\r\n\r\n", b""),
        echoed("zeros for the last chunk", b"3\r\nabc\r\n0000000000000000\r\n\r\n", b"abc"),
        echoed("zeros before a size", b"0000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
        echoed("size in both cases", b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", b"01234567890123456789a"),
        echoed("chunk of line ends", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        echoed("chunk that looks like an end", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        echoed("chunk of all bytes", &[b"100\r\n", &all[..], b"\r\n0\r\n\r\n"].concat(), &all),
        echoed("chunk of ten thousand bytes", &[b"2800\r\n", &long[..], b"\r\n0\r\n\r\n"].concat(), &long),
        echoed("extension", b"3;a\r\nabc\r\n0;b\r\n\r\n", b"abc"),
        echoed("extension with a value", b"3;a=b;c=d\r\nabc\r\n0\r\n\r\n", b"abc"),
        echoed("extension with a quoted value", b"3;a=\"b;\\\"\xe9 c=d\"\r\nabc\r\n0\r\n\r\n", b"abc"),
        echoed("extension among spaces", b"3 ;\ta = b ; c\r\nabc\r\n0\r\n\r\n", b"abc"),
        echoed("signed chunks", &[b"3;chunk-signature=", &[b'f'; 64][..], b"\r\nabc\r\n0\r\n\r\n"].concat(), b"abc"),
        echoed("trailer", b"3\r\nabc\r\n0\r\nX-Checksum: 900150983cd24fb0\r\n\r\n", b"abc"),
        echoed("trailers", b"3\r\nabc\r\n0\r\nX:y\r\nX: \t\r\nServer-Timing: a;dur=1\r\n\r\n", b"abc"),
        case("chunked in other letters", post("tRANSFER-eNCODING:\tChUnKeD ", "3\r\nabc\r\n0\r\n\r\n"), &[echo("abc")]),
        case(
            "chunked and expected",
            post("Expect: 100-continue\r\nTransfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
            &[echo("abc")],
        ),
    ]
}

fn connections() -> Vec<Case> {
    let abc = post("Content-Length: 3", "abc");
    let def = chunks("3\r\ndef\r\n0\r\n\r\n");
    let get = line("GET /debug/connections HTTP/1.1");
    let of_1_0 = |connection: &str| {
        format!("POST /debug/echo HTTP/1.0\r\n{connection}Content-Length: 3\r\n\r\nabc").into_bytes()
    };
    vec![
        case("two requests", abc.repeat(2), &[echo("abc"), echo("abc")]),
        case("twenty requests", abc.repeat(20), &vec![echo("abc"); 20]),
        case(
            "requests of all kinds",
            [&abc[..], &get, &def, &abc, &get, &def, &def].concat(),
            &[
                echo("abc"),
                Answer::Status(200),
                echo("def"),
                echo("abc"),
                Answer::Status(200),
                echo("def"),
                echo("def"),
            ],
        ),
        case(
            "answers of all kinds",
            [line("GET /none HTTP/1.1"), abc.clone(), line("X / HTTP/1.1")].concat(),
            &[Answer::Status(404), echo("abc"), Answer::Status(404)],
        ),
        case(
            "trailers and another request",
            [&chunks("0\r\nX: y\r\n\r\n")[..], &abc].concat(),
            &[echo(""), echo("abc")],
        ),
        case("empty line first", [b"\r\n", &abc[..]].concat(), &[echo("abc")]),
        case("empty line between", [&abc[..], b"\r\n", &def].concat(), &[echo("abc"), echo("def")]),
        case("empty line at the end", [&abc[..], b"\r\n"].concat(), &[echo("abc")]),
        case("close", post("Connection: close\r\nContent-Length: 3", "abc"), &[echo("abc")]),
        case(
            "close, and a request behind it",
            [&post("Connection: close\r\nContent-Length: 3", "abc"), &abc[..]].concat(),
            &[echo("abc")],
        ),
        case(
            "close, and garbage behind it",
            [&post("Connection: Close\r\nContent-Length: 3", "abc"), &b"\0\n\r\xff"[..]].concat(),
            &[echo("abc")],
        ),
        case(
            "close among others",
            [&post("Connection: keep-alive, CLOSE ,x\r\nContent-Length: 3", "abc"), &abc[..]].concat(),
            &[echo("abc")],
        ),
        case(
            "close after keep-alive",
            post("Connection: close\r\nConnection: keep-alive\r\nContent-Length: 3", "abc"),
            &[echo("abc")],
        ),
        case(
            "keep-alive said",
            [&post("Connection: keep-alive\r\nContent-Length: 3", "abc"), &abc[..]].concat(),
            &[echo("abc"), echo("abc")],
        ),
        case("1.0", of_1_0(""), &[echo("abc")]),
        case("1.0 ends", [of_1_0(""), abc.clone()].concat(), &[echo("abc")]),
        case(
            "1.0 with keep-alive",
            [of_1_0("Connection: Keep-Alive\r\n"), of_1_0("")].concat(),
            &[echo("abc"), echo("abc")],
        ),
        case(
            "1.0, then 1.1",
            [of_1_0("Host: a\r\nConnection: keep-alive\r\n"), abc.clone()].concat(),
            &[echo("abc"), echo("abc")],
        ),
    ]
}

/// Returns cases with requests that ask for another protocol. The app speaks no other protocol, so it gives the same
/// answers as to requests that do not ask.
fn upgrades() -> Vec<Case> {
    let abc = post("Content-Length: 3", "abc");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    vec![
        case("upgrade", post(upgrade, ""), &[echo("")]),
        case("upgrade, then a request", [post(upgrade, ""), abc.clone()].concat(), &[echo(""), echo("abc")]),
        case(
            "upgrades with bodies",
            [post(format!("{upgrade}\r\nContent-Length: 3"), "abc"), abc.clone()].concat().repeat(2),
            &vec![echo("abc"); 4],
        ),
        case(
            "upgrade with chunks",
            [post(format!("{upgrade}\r\nTransfer-Encoding: chunked"), "3\r\nabc\r\n0\r\n\r\n"), abc.clone()].concat(),
            &[echo("abc"), echo("abc")],
        ),
        case(
            "upgrade that closes",
            [post("Connection: upgrade, close\r\nUpgrade: x", ""), abc.clone()].concat(),
            &[echo("")],
        ),
        case(
            "upgrade without its connection option",
            [post("Upgrade: x", ""), abc.clone()].concat(),
            &[echo(""), echo("abc")],
        ),
        case(
            "upgrade on 1.0",
            "POST /debug/echo HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc",
            &[echo("abc")],
        ),
        case("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[Answer::Status(404)]),
        case("CONNECT, its Host without a port", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", &[Answer::Status(404)]),
    ]
}
