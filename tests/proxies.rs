//! Promise: the app learns its client's address from a proxy only if that proxy is trusted.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use crate::common::{Canary, Connection, Failure, Launch, PATIENCE, Response, Supervisor, now, request};
use serde_json::{Value, json};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\xC6\x33\x64\x01\xDC\x04\x01\xBB";
const V2_SIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0D\xB8\0\0\0\0\0\0\0\0\0\0\0\x07\
                       \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\xDC\x04\x01\xBB";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Launches the test program with one worker. `allowed` lists the proxies that it trusts.
fn trusting(allowed: &str, proxy_protocol: &str) -> Launch {
    Launch::misbehave()
        .set("workers.count", "1")
        .set("http.forwarded_allow_ips", allowed)
        .set("server.proxy_protocol", &format!("\"{proxy_protocol}\""))
}

fn ask_on(mut connection: Connection, first: &[u8], headers: &[(&str, &str)]) -> Result<Response, Failure> {
    connection.send(first)?;
    connection.ask(&request("GET", "/client", headers, b""))
}

/// Connects from the address `source`, and sends the bytes `first` and a request with the given headers. Returns what
/// the app knows about its client.
#[track_caller]
fn told(supervisor: &Supervisor, source: &str, first: &[u8], headers: &[(&str, &str)]) -> Value {
    let source: IpAddr = source.parse().expect("an address");
    let connection = Connection::open_from(source, supervisor.address()).expect("the port is open");
    let response = ask_on(connection, first, headers).expect("an answer");
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// Sends the given bytes on a new connection. Asserts that the answer is a 400 with the given reason, and that the
/// connection then ends cleanly.
#[track_caller]
fn assert_refused(supervisor: &Supervisor, bytes: &[u8], reason: &str) {
    let mut connection = Connection::open(supervisor.address()).expect("the port is open");
    let response = connection.ask(&[bytes, &request("GET", "/client", &[], b"")].concat()).expect("an answer");
    assert_eq!(response.status, 400, "{}: {}", bytes.escape_ascii(), response.text());
    assert!(response.closes());
    assert!(response.text().contains(reason), "{}: {}", bytes.escape_ascii(), response.text());
    assert_eq!(response.json()["type"], "bad_request");
    assert_eq!(connection.wait_eof(), Ok(()));
}

#[track_caller]
fn assert_client(told: &Value, address: &str, port: Option<u16>) {
    assert_eq!((&told["address"], &told["port"]), (&json!(address), &json!(port)), "{told}");
}

const CHAIN: &[(&str, &str)] = &[
    ("X-Forwarded-For", "203.0.113.5, 192.0.2.7"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "example.org"),
    ("X-Forwarded-Port", "8443"),
    ("Forwarded", "for=203.0.113.6;proto=gopher"),
];

#[test]
fn a_proxy_on_this_machine_is_trusted_by_default() {
    let supervisor = Launch::misbehave().set("workers.count", "1").serving(1);
    let seen = told(&supervisor, "127.0.0.1", b"", CHAIN);
    assert_client(&seen, "192.0.2.7", None);
    assert_eq!((&seen["scheme"], &seen["host"]), (&json!("https"), &json!("example.org:8443")));
    assert!(seen["peer"].as_str().expect("a peer").starts_with("127.0.0.1:"), "{seen}");
    assert_eq!(seen["tls"], false);
    assert_eq!(seen["forwarding"].as_array().map(Vec::len), Some(4), "untrusted headers are removed: {seen}");
    let seen =
        told(&supervisor, "127.0.0.1", b"", &[("Forwarded", "for=\"[2001:db8::7]:81\";proto=https;host=a.example")]);
    assert_client(&seen, "2001:db8::7", Some(81));
    assert_eq!((&seen["scheme"], &seen["host"]), (&json!("https"), &json!("a.example")));
    let seen = told(&supervisor, "127.0.0.1", b"", &[("X-Forwarded-For", "rubbish"), ("X-Forwarded-Port", "-1")]);
    assert_eq!((&seen["address"], &seen["host"]), (&json!("127.0.0.1"), &json!("localhost")));
    assert!(supervisor.log().lines_of("settings_warning").next().is_none());
}

#[test]
fn a_proxy_at_another_address_is_not_trusted() {
    let supervisor = trusting(r#"["10.0.0.0/8", "127.8.0.0/16"]"#, "off").serving(1);
    for source in ["127.0.0.1", "127.9.0.1"] {
        let seen = told(&supervisor, source, b"", CHAIN);
        assert_eq!(seen["address"], source);
        assert_eq!((&seen["scheme"], &seen["host"]), (&json!("http"), &json!("localhost")));
        assert_eq!(seen["forwarding"], json!([]), "the app cannot be fooled by what it reads itself");
        let peer: SocketAddr = seen["peer"].as_str().and_then(|peer| peer.parse().ok()).expect("a peer");
        assert_client(&seen, source, Some(peer.port()));
    }
    // The proxy 127.8.4.2 is in a trusted network. This proxy says that its request came from 127.0.0.1. The address
    // 127.0.0.1 is not trusted, so it counts as the client. What it says about other addresses does not count.
    assert_client(&told(&supervisor, "127.8.4.2", b"", CHAIN), "127.0.0.1", None);
}

#[test]
fn every_address_can_be_trusted_and_none() {
    let all = trusting(r#"["*"]"#, "off").serving(1);
    assert_client(&told(&all, "127.3.0.1", b"", CHAIN), "203.0.113.5", None);
    let none = trusting("[]", "auto").serving(1);
    assert_eq!(told(&none, "127.0.0.1", b"", CHAIN)["address"], "127.0.0.1");
    assert_refused(&none, V1, "forwarded_allow_ips");
}

#[test]
fn an_ipv4_proxy_is_trusted_on_a_socket_of_both_families() {
    let supervisor = Launch::misbehave().set("workers.count", "1").set("server.bind", r#"["[::]:0"]"#).serving(1);
    let port = supervisor.address().port();
    for ip in ["127.0.0.1", "::1"] {
        let connection = Connection::open(SocketAddr::new(ip.parse().expect("an address"), port)).expect("open");
        let seen = ask_on(connection, b"", CHAIN).expect("an answer").json();
        assert_client(&seen, "192.0.2.7", None);
        let connection = Connection::open(SocketAddr::new(ip.parse().expect("an address"), port)).expect("open");
        let seen = ask_on(connection, b"", &[]).expect("an answer").json();
        assert_eq!(seen["address"], ip, "no ::ffff: {seen}");
    }
}

#[test]
fn a_proxy_on_a_unix_socket_is_trusted() {
    for (mode, first, address) in
        [("off", &b""[..], "192.0.2.7"), ("v2", V2_LOCAL, "192.0.2.7"), ("auto", V1, "192.0.2.7")]
    {
        let supervisor = trusting("[]", mode).set("server.bind", r#"["unix:{dir}/http.sock"]"#).serving(1);
        let ask = |headers: &[(&str, &str)]| {
            let mut stream = UnixStream::connect(supervisor.path("http.sock")).expect("the socket is open");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let headers = [headers, &[("Connection", "close")]].concat();
            stream.write_all(&[first, &request("GET", "/client", &headers, b"")].concat()).expect("it listens");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
            serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
        };
        let seen = ask(&[("X-Forwarded-For", "203.0.113.5, 192.0.2.7"), ("X-Forwarded-Proto", "https")]);
        assert_eq!((&seen["address"], &seen["peer"]), (&json!(address), &Value::Null), "{mode}: {seen}");
        // In the mode `auto`, the PROXY header names a source that is not trusted, so the forwarding headers of the
        // request do not count.
        assert_eq!(seen["scheme"], if mode == "auto" { "http" } else { "https" }, "{mode}");
        let seen = ask(&[]);
        assert_eq!(seen["address"], if mode == "auto" { json!("192.0.2.7") } else { Value::Null }, "{mode}: {seen}");
    }
}

#[test]
fn a_proxy_header_of_each_version_names_the_client() {
    let usual = r#"["127.0.0.1"]"#;
    for (mode, headers) in [("v1", &[V1][..]), ("v2", &[V2, V2_SIX]), ("auto", &[V1, V2, V2_SIX])] {
        let supervisor = trusting(usual, mode).serving(1);
        for first in headers {
            let seen = told(&supervisor, "127.0.0.1", first, &[]);
            assert_client(&seen, if *first == V2_SIX { "2001:db8::7" } else { "192.0.2.7" }, Some(56324));
            assert!(seen["peer"].as_str().expect("a peer").starts_with("127.0.0.1:"), "{seen}");
            // A proxy that sends PROXY headers does not look at requests, so the client itself wrote the forwarding
            // headers. These headers must not count.
            assert_client(
                &told(&supervisor, "127.0.0.1", first, CHAIN),
                if *first == V2_SIX { "2001:db8::7" } else { "192.0.2.7" },
                Some(56324),
            );
        }
        // One PROXY header is valid for the whole connection. Each request on the connection belongs to the client that
        // the header names.
        let mut connection = Connection::open(supervisor.address()).expect("the port is open");
        connection.send(headers[0]).expect("it listens");
        for _ in 0..3 {
            assert_client(&connection.get("/client").expect("an answer").json(), "192.0.2.7", Some(56324));
        }
    }
}

#[test]
fn a_proxy_may_speak_for_itself_and_for_other_proxies() {
    let supervisor = trusting(r#"["127.0.0.1", "192.0.2.0/24"]"#, "auto").serving(1);
    for first in [V2_LOCAL, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ff:: :: 1 1\r\n"] {
        assert_eq!(told(&supervisor, "127.0.0.1", first, &[])["address"], "127.0.0.1");
        assert_client(
            &told(&supervisor, "127.0.0.1", first, &[("X-Forwarded-For", "203.0.113.5")]),
            "203.0.113.5",
            None,
        );
    }
    assert_client(&told(&supervisor, "127.0.0.1", V1, &[("X-Forwarded-For", "203.0.113.5")]), "203.0.113.5", None);
}

#[test]
fn without_a_proxy_header_only_auto_serves() {
    for mode in ["v1", "v2"] {
        let supervisor = trusting(r#"["127.0.0.1"]"#, mode).serving(1);
        assert_refused(&supervisor, b"", "does not begin with");
        assert_refused(&supervisor, if mode == "v1" { V2 } else { V1 }, "does not begin with");
        let mut stranger =
            Connection::open_from("127.0.0.2".parse().expect("an address"), supervisor.address()).expect("open");
        assert_eq!(stranger.answer().expect("at once").status, 400);
        let mut stranger =
            Connection::open_from("127.0.0.2".parse().expect("an address"), supervisor.address()).expect("open");
        assert_eq!(stranger.ask(V1).expect("an answer").status, 400);
        // The log must tell the operator about the refusals.
        assert!(supervisor.log().count("request_refused") >= 1, "{}", supervisor.log().0);
    }
    let supervisor = trusting(r#"["127.0.0.1"]"#, "auto").serving(1);
    for source in ["127.0.0.1", "127.0.0.2"] {
        assert_eq!(told(&supervisor, source, b"", &[])["address"], source);
    }
    let posted = Connection::open(supervisor.address()).expect("open").ask(&request("POST", "/client", &[], b"x"));
    assert_eq!(posted.expect("P could have been PROXY").status, 405);
}

#[test]
fn a_bad_proxy_header_is_refused() {
    let supervisor = trusting(r#"["127.0.0.1"]"#, "auto").serving(1);
    for (bytes, reason) in [
        (&b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n"[..], "TCP4 or TCP6"),
        (b"PROXY / HTTP/1.1\r\n", "TCP4 or TCP6"),
        (&[b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(), "107"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02xx", "shorter"),
        (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x02xx", "not version 2"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF", "4096"),
    ] {
        assert_refused(&supervisor, bytes, reason);
    }
    let off = trusting(r#"["127.0.0.1"]"#, "off").serving(1);
    let refused = Connection::open(off.address()).expect("open").ask(V1).expect("an answer");
    assert_eq!(refused.status, 400, "a line that is not a request");
}

#[test]
fn a_proxy_header_may_come_byte_by_byte_but_must_end_in_time() {
    let supervisor = trusting(r#"["127.0.0.1"]"#, "auto").set("http.header_timeout", r#""1s""#).serving(1);
    for first in [V1, V2, V2_LOCAL, b""] {
        let mut connection = Connection::open(supervisor.address()).expect("the port is open");
        for byte in [first, &request("GET", "/client", &[], b"")].concat() {
            connection.send(&[byte]).expect("it listens");
        }
        assert_eq!(connection.answer().expect("an answer").status, 200);
    }
    for first in [&V1[..V1.len() - 1], &V2[..5], &V2[..20], b"P", b""] {
        let (canary, began) = (Canary::start(), now());
        let mut connection = Connection::open(supervisor.address()).expect("the port is open");
        connection.send(first).expect("it listens");
        assert_eq!(connection.wait_eof(), Ok(()), "closed without a word");
        let (took, stalled) = (began.elapsed(), canary.longest());
        assert!(took >= Duration::from_millis(990), "{took:?}");
        assert!(took < Duration::from_millis(1500) + 4 * stalled, "{took:?}, stalls of {stalled:?}");
    }
    // The client leaves before it has sent anything. The worker must not wait for it.
    drop(TcpStream::connect(supervisor.address()).expect("the port is open"));
}

#[test]
fn oxicorn_health_sends_a_proxy_header_where_its_service_needs_one() {
    for mode in ["v1", "v2", "auto"] {
        let port = crate::common::free_port();
        let supervisor = Launch::new()
            .set("server.bind", &format!(r#"["127.0.0.1:{port}"]"#))
            .set("server.proxy_protocol", &format!("\"{mode}\""))
            .serving(2);
        let asked = supervisor.ctl(&["health"]);
        assert!(asked.status.success(), "{mode}: {}", String::from_utf8_lossy(&asked.stderr));
    }
}
