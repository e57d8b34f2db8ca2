//! Tests that every atom has Gunicorn's meaning, and that no client can end the quotes around a value.

use http::Request;
use proptest::prelude::*;

use super::*;
use crate::settings::{AccessFormat, Form};

fn timestamps() -> TimestampCache {
    let mut timestamps =
        TimestampCache { zone: Some(jiff::tz::Offset::constant(2).to_time_zone()), ..TimestampCache::default() };
    timestamps.update("2026-11-22T05:13:51.042Z".parse().unwrap());
    timestamps
}

fn parts(format: &str) -> Vec<Part> {
    match AccessFormat::parse(format).unwrap().form {
        Form::Text(parts) => parts,
        Form::Json => panic!("{format}"),
    }
}

/// Returns the facts of a request that was answered with status 201 and a body of 17 bytes after 3.0456789 seconds.
fn facts(request: &Request<()>) -> AccessFacts {
    let mut answer = HeaderMap::new();
    answer.insert("x-answer", HeaderValue::from_static("42"));
    AccessFacts {
        client: Some("192.0.2.7".parse().unwrap()),
        request: Some((request.method().clone(), request.uri().clone(), request.version())),
        request_headers: request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        response_headers: keep(&[HeaderName::from_static("x-answer")], &answer),
        status: Some(StatusCode::CREATED),
        bytes: 17,
        took_ns: 3_045_678_900,
    }
}

fn render(format: &str, facts: &AccessFacts) -> String {
    let mut line = Vec::new();
    text(&mut line, &parts(format), facts, &timestamps(), 4711);
    let line = String::from_utf8(line).unwrap();
    line.strip_suffix('\n').unwrap().to_owned()
}

fn object(facts: &AccessFacts, most: usize) -> (String, serde_json::Value) {
    let mut line = Vec::new();
    json(&mut line, facts, &timestamps(), 4711, most);
    let line = String::from_utf8(line).unwrap();
    (line.clone(), serde_json::from_str(&line).unwrap())
}

fn full() -> Request<()> {
    Request::post("/a%20b?c=d&e")
        .header("Authorization", "basic YWxhZGRpbjpvcGVuIHNlc2FtZTp4")
        .header("Host", "example.org")
        .header("Referer", "http://example.org/")
        .header("User-Agent", "curl/8")
        .header("X-Request-Id", "abc")
        .header("Content-Type", "text/plain")
        .body(())
        .unwrap()
}

#[test]
fn each_atom_has_gunicorns_meaning() {
    let facts = facts(&full());
    for (atom, shown) in [
        ("h", "192.0.2.7"),
        ("l", "-"),
        ("u", "aladdin"),
        ("t", "[22/Nov/2026:07:13:51 +0200]"),
        ("r", "POST /a%20b?c=d&e HTTP/1.1"),
        ("m", "POST"),
        ("U", "/a%20b"),
        ("q", "c=d&e"),
        ("H", "HTTP/1.1"),
        ("s", "201"),
        ("B", "17"),
        ("b", "17"),
        ("f", "http://example.org/"),
        ("a", "curl/8"),
        ("T", "3"),
        ("D", "3045678"),
        ("M", "3045"),
        ("L", "3.045678"),
        ("p", "<4711>"),
        ("{x-request-ID}i", "abc"),
        ("{x-none}i", "-"),
        ("{X-Answer}o", "42"),
        ("{x-none}o", "-"),
        ("{REQUEST_METHOD}e", "POST"),
        ("{raw_uri}e", "/a%20b?c=d&e"),
        ("{PATH_INFO}e", "/a%20b"),
        ("{QUERY_STRING}e", "c=d&e"),
        ("{SERVER_PROTOCOL}e", "HTTP/1.1"),
        ("{REMOTE_ADDR}e", "192.0.2.7"),
        ("{CONTENT_TYPE}e", "text/plain"),
        ("{CONTENT_LENGTH}e", "-"),
        ("{HTTP_HOST}e", "example.org"),
    ] {
        assert_eq!(render(&format!("%({atom})s"), &facts), shown, "{atom}");
    }
    assert_eq!(
        render("combined", &facts),
        "192.0.2.7 - aladdin [22/Nov/2026:07:13:51 +0200] \"POST /a%20b?c=d&e HTTP/1.1\" 201 17 \
         \"http://example.org/\" \"curl/8\""
    );
}

#[test]
fn a_missing_value_is_a_dash() {
    let every = "%(h)s %(u)s %(r)s %(m)s %(U)s %(q)s %(H)s %(s)s %(B)s %(b)s %(f)s %(a)s %({RAW_URI}e)s";
    let refused = AccessFacts { status: Some(StatusCode::BAD_REQUEST), ..AccessFacts::default() };
    assert_eq!(render(every, &refused), "- - - - - - - 400 0 0 - - -");
    // There is no status, because the client left before the response.
    assert_eq!(render("%(s)s %(B)s %(b)s", &AccessFacts::default()), "499 0 -");
    // If a request has no query, the query is shown as empty, as in WSGI.
    assert_eq!(render("[%(q)s]", &facts(&Request::new(()))), "[]");
}

#[test]
fn targets_of_every_form_are_shown_as_sent() {
    for (target, version, shown) in [
        ("*", Version::HTTP_11, "*"),
        ("http://example.org/a?b", Version::HTTP_11, "http://example.org/a?b"),
        ("https://example.org/a?b", Version::HTTP_2, "/a?b"),
        ("example.org:443", Version::HTTP_11, "example.org:443"),
    ] {
        let request = Request::get(target).version(version).body(()).unwrap();
        assert_eq!(render("%(r)s", &facts(&request)), format!("GET {shown} {version:?}"));
    }
}

#[test]
fn only_a_basic_user_with_a_name_is_shown() {
    for (credentials, shown) in [
        ("Basic YTo=", "a"),
        ("Basic Og==", "-"),
        ("Basic YQ==", "-"),
        ("Basic !", "-"),
        ("Bearer YTo=", "-"),
        ("Basic", "-"),
        ("é", "-"),
        // The first credentials have no colon when they are decoded. The user name in the second credentials consists
        // of the bytes a, LF, b, a quote, and 0xff.
        ("Basic YQpi", "-"),
        ("Basic YQpiIv86eA==", r#"a\x0ab\"\xff"#),
    ] {
        let request = Request::get("/").header("Authorization", credentials).body(()).unwrap();
        assert_eq!(render("%(u)s", &facts(&request)), shown, "{credentials}");
    }
}

#[test]
fn no_client_can_break_out_of_its_quotes() {
    let odd = HeaderValue::from_bytes(b"\\\" 200 \t\xe2\x80\xa8\xff").unwrap();
    let request = Request::get("/\"{é}").header("User-Agent", odd).body(()).unwrap();
    let facts = facts(&request);
    assert_eq!(render("\"%(r)s\"", &facts), r#""GET /\"{\xc3\xa9} HTTP/1.1""#);
    assert_eq!(render("\"%(a)s\"", &facts), r#""\\\" 200 \x09\xe2\x80\xa8\xff""#);
    let (line, read) = object(&facts, usize::MAX);
    assert_eq!(read["user_agent"], "\\\" 200 \t\u{2028}\u{fffd}");
    assert_eq!(read["path"], "/\"{é}");
    assert!(line.contains(r#"\" 200 \u0009\u2028"#), "{line}");
}

#[test]
fn the_json_object_has_every_field() {
    let (_, read) = object(&facts(&full()), usize::MAX);
    assert_eq!(
        read,
        serde_json::json!({
            "timestamp": "2026-11-22T05:13:51.042Z", "client": "192.0.2.7", "user": "aladdin", "method": "POST",
            "path": "/a%20b", "query": "c=d&e", "protocol": "HTTP/1.1", "status": 201, "bytes": 17,
            "duration_s": 3.045678, "host": "example.org", "referer": "http://example.org/", "user_agent": "curl/8",
            "request_id": "abc", "pid": 4711,
        })
    );
    let (_, read) = object(&AccessFacts::default(), usize::MAX);
    assert_eq!((&read["client"], &read["path"], &read["status"]), (&().into(), &().into(), &499.into()));
}

#[test]
fn the_longest_object_fits_into_what_a_pipe_takes() {
    let long = "\u{1}\"é".repeat(5_000);
    let header = HeaderValue::from_str(&"\"é".repeat(5_000)).unwrap();
    let mut request = Request::get(format!("/{}?{}", "x".repeat(9_000), "y".repeat(9_000)));
    for name in [HOST, REFERER, USER_AGENT] {
        request = request.header(name, header.clone());
    }
    let credentials = format!("Basic {}", BASE64_STANDARD.encode(long + ":"));
    let mut request = request.header(AUTHORIZATION, credentials).body(()).unwrap();
    request.headers_mut().insert(&X_REQUEST_ID, HeaderValue::from_str(&"x".repeat(128)).unwrap());
    *request.method_mut() = Method::from_bytes(&[b'M'; 2_000]).unwrap();
    let mut facts = facts(&request);
    facts.client = Some("2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap());
    (facts.bytes, facts.took_ns) = (u64::MAX, u64::MAX);
    let (line, read) = object(&facts, SHORT);
    assert!(line.len() <= 4096, "{}", line.len());
    assert!(read["query"].as_str().unwrap().ends_with('…'));
    assert_eq!(read["request_id"].as_str().unwrap().len(), 128);
}

#[test]
fn a_refused_request_shows_its_line_if_it_has_one() {
    let shown = |head: &[u8]| {
        let facts = AccessFacts { request: request_line(head), ..AccessFacts::default() };
        render("%(r)s", &facts)
    };
    assert_eq!(shown(b"\r\nGET /a?b HTTP/1.1\r\nHost : x"), "GET /a?b HTTP/1.1");
    for head in [&b""[..], b"GET / HTTP/1.1", b"GET  / HTTP/1.1\r\n", b"GET / HTTP/3\n", b"G(T / HTTP/1.1\n", b"\r\n"] {
        assert_eq!(shown(head), "-", "{}", head.escape_ascii());
    }
}

#[test]
fn the_time_is_formatted_once_a_second() {
    let mut timestamps = timestamps();
    timestamps.update("2026-11-22T05:13:51.999Z".parse().unwrap());
    assert_eq!((timestamps.utc.as_str(), timestamps.milliseconds), ("2026-11-22T05:13:51", 999));
    timestamps.update("2026-11-22T05:13:52.000Z".parse().unwrap());
    assert_eq!(
        (timestamps.utc.as_str(), timestamps.local.as_str()),
        ("2026-11-22T05:13:52", "[22/Nov/2026:07:13:52 +0200]")
    );
}

proptest! {
    #[test]
    fn any_request_is_logged_as_exactly_one_line(
        target in "/[!-~é\u{85}\u{2028}]{0,40}",
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 5),
        basic in prop::collection::vec(any::<u8>(), 0..40),
        most in 1_usize..100,
    ) {
        let Ok(uri) = Uri::try_from(target.as_str()) else { return Ok(()) };
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        for (name, value) in [HOST, REFERER, USER_AGENT, X_REQUEST_ID.clone()].into_iter().zip(&values) {
            let Ok(value) = HeaderValue::from_bytes(value) else { continue };
            request.headers_mut().insert(name, value);
        }
        let credentials = format!("Basic {}", BASE64_STANDARD.encode(basic));
        request.headers_mut().insert(AUTHORIZATION, credentials.parse().unwrap());
        let facts = facts(&request);

        let line = render("\"%(r)s\" \"%(u)s\" \"%(f)s\" \"%(a)s\" \"%(U)s\" \"%(q)s\"", &facts);
        prop_assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        let unescaped = line.replace("\\\\", "").replace("\\\"", "");
        prop_assert_eq!(unescaped.matches('"').count(), 12, "{}", line);

        for most in [most, usize::MAX] {
            let (line, read) = object(&facts, most);
            prop_assert!(line.find(char::is_control) == Some(line.len() - 1), "{line}");
            prop_assert_eq!(read.as_object().unwrap().len(), 15);
        }
    }
}
