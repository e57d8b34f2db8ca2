//! How a line of the access log reads.
//!
//! Owns: Gunicorn's atoms, the JSON object, the escapes that keep a client from forging or breaking a line, and the time
//! of day as text. Refuses: when a line is written (`access_log`).

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    net::IpAddr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{AUTHORIZATION, HOST, REFERER, USER_AGENT},
};
use jiff::{Timestamp, tz::TimeZone};

use crate::{scoreboard::X_REQUEST_ID, settings::Part};

/// Of an object that is too long for its reader, each value is cut to so many bytes: all of them together then fit into
/// the 4096 that a pipe takes in one piece.
pub(super) const SHORT: usize = 480;

/// What the connection ended before: nothing was answered. The number is nginx's.
const NOT_ANSWERED: u16 = 499;

/// The headers that are shown, with their values.
pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// What a line tells.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) client: Option<IpAddr>,
    /// `None` for one that could not be read.
    pub(super) request: Option<(Method, Uri, Version)>,
    pub(super) request_headers: Headers,
    pub(super) response_headers: Headers,
    /// `None` without an answer.
    pub(super) status: Option<StatusCode>,
    /// Of the body, as handed to the connection.
    pub(super) bytes: u64,
    pub(super) took_ns: u64,
}

/// Of `all`, those that lines show; of several of one name the first.
pub(super) fn keep(names: &[HeaderName], all: &HeaderMap) -> Headers {
    names.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect()
}

fn value<'a>(headers: &'a Headers, name: &HeaderName) -> Option<&'a [u8]> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_bytes())
}

/// What a request line says that nobody else has read.
pub(super) fn request_line(head: &[u8]) -> Option<(Method, Uri, Version)> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let line = &head[..head.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?];
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        _ => return None,
    };
    words.next().is_none().then_some(())?;
    Some((Method::from_bytes(method).ok()?, Uri::try_from(target).ok()?, version))
}

/// The user of HTTP's Basic scheme (RFC 7617), whatever became of the password.
fn user(headers: &Headers) -> Option<Vec<u8>> {
    let (scheme, credentials) = value(headers, &AUTHORIZATION)?.split_at_checked(6)?;
    let mut pair = scheme
        .eq_ignore_ascii_case(b"basic ")
        .then(|| BASE64_STANDARD.decode(credentials.trim_ascii()).ok())
        .flatten()?;
    pair.truncate(pair.iter().position(|byte| *byte == b':')?);
    (!pair.is_empty()).then_some(pair)
}

impl Facts {
    fn status(&self) -> u16 {
        self.status.map_or(NOT_ANSWERED, |status| status.as_u16())
    }

    /// The target as it was sent, as far as it can be told: of HTTP/2, which sends it in pieces, path and query.
    fn target(&self, to: &mut impl fmt::Write) -> fmt::Result {
        match &self.request {
            None => to.write_char('-'),
            Some((_, uri, version)) => match uri.path_and_query() {
                Some(target) if uri.scheme().is_none() || *version >= Version::HTTP_2 => to.write_str(target.as_str()),
                _ => write!(to, "{uri}"),
            },
        }
    }
}

/// Adds a line of these parts, with its newline.
pub(super) fn text(to: &mut Vec<u8>, parts: &[Part], facts: &Facts, calendar: &Calendar, pid: u32) {
    for part in parts {
        atom(to, part, facts, calendar, pid);
    }
    to.push(b'\n');
}

fn atom(to: &mut Vec<u8>, part: &Part, facts: &Facts, calendar: &Calendar, pid: u32) {
    let micros = facts.took_ns / 1_000;
    let request = facts.request.as_ref();
    let _infallible = match part {
        Part::Literal(text) => to.write_all(text.as_bytes()),
        Part::Client => match facts.client {
            Some(address) => write!(to, "{address}"),
            None => to.write_all(b"-"),
        },
        Part::User => escaped(to, user(&facts.request_headers).as_deref()),
        Part::Time => to.write_all(calendar.local.as_bytes()),
        Part::RequestLine => match request {
            Some((method, _, version)) => {
                let mut escape = Escape(to);
                let _ = write!(escape, "{method} ").and_then(|()| facts.target(&mut escape));
                write!(to, " {version:?}")
            }
            None => to.write_all(b"-"),
        },
        Part::Method => escaped(to, request.map(|(method, _, _)| method.as_str().as_bytes())),
        Part::Target => {
            let _ = facts.target(&mut Escape(to));
            Ok(())
        }
        Part::Path => escaped(to, request.map(|(_, uri, _)| uri.path().as_bytes())),
        Part::Query => escaped(to, request.map(|(_, uri, _)| uri.query().unwrap_or_default().as_bytes())),
        Part::Protocol => match request {
            Some((_, _, version)) => write!(to, "{version:?}"),
            None => to.write_all(b"-"),
        },
        Part::Status => write!(to, "{}", facts.status()),
        Part::Bytes { dash: true } if facts.status.is_none() => to.write_all(b"-"),
        Part::Bytes { .. } => write!(to, "{}", facts.bytes),
        Part::Seconds => write!(to, "{}", micros / 1_000_000),
        Part::Milliseconds => write!(to, "{}", micros / 1_000),
        Part::Microseconds => write!(to, "{micros}"),
        Part::DecimalSeconds => write!(to, "{}.{:06}", micros / 1_000_000, micros % 1_000_000),
        Part::Pid => write!(to, "<{pid}>"),
        Part::RequestHeader(name) => escaped(to, value(&facts.request_headers, name)),
        Part::ResponseHeader(name) => escaped(to, value(&facts.response_headers, name)),
    };
}

/// What was missing is a dash.
fn escaped(to: &mut Vec<u8>, bytes: Option<&[u8]>) -> std::io::Result<()> {
    Escape(to).bytes(bytes.unwrap_or(b"-"));
    Ok(())
}

/// Lets through what is printable ASCII; a quote and a backslash get a backslash, all else becomes `\xHH`.
struct Escape<'a>(&'a mut Vec<u8>);

impl Escape<'_> {
    fn bytes(&mut self, mut bytes: &[u8]) {
        while let Some(at) = bytes.iter().position(|byte| !is_plain(*byte)) {
            self.0.extend_from_slice(&bytes[..at]);
            match bytes[at] {
                byte @ (b'"' | b'\\') => self.0.extend_from_slice(&[b'\\', byte]),
                byte => self.0.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            }
            bytes = &bytes[at + 1..];
        }
        self.0.extend_from_slice(bytes);
    }
}

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

/// Printable ASCII that means nothing inside of quotes.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// The headers that [`json`] shows.
pub(super) fn json_headers() -> Vec<HeaderName> {
    vec![AUTHORIZATION, HOST, REFERER, USER_AGENT, X_REQUEST_ID.clone()]
}

/// Adds an object and a newline. What was missing is null; each value is cut to `most` bytes or a few more.
pub(super) fn json(to: &mut Vec<u8>, facts: &Facts, calendar: &Calendar, pid: u32, most: usize) {
    let mut object = Object { to, most };
    let request = facts.request.as_ref();
    object.number("{\"timestamp", format_args!("\"{}.{:03}Z\"", calendar.utc, calendar.milliseconds));
    match facts.client {
        Some(address) => object.number(",\"client", format_args!("\"{address}\"")),
        None => object.text(",\"client", None),
    }
    object.text(",\"user", user(&facts.request_headers).as_deref());
    object.text(",\"method", request.map(|(method, _, _)| method.as_str().as_bytes()));
    object.text(",\"path", request.map(|(_, uri, _)| uri.path().as_bytes()));
    object.text(",\"query", request.and_then(|(_, uri, _)| uri.query()).map(str::as_bytes));
    match request {
        Some((_, _, version)) => object.number(",\"protocol", format_args!("\"{version:?}\"")),
        None => object.text(",\"protocol", None),
    }
    object.number(",\"status", facts.status());
    object.number(",\"bytes", facts.bytes);
    let micros = facts.took_ns / 1_000;
    object.number(",\"duration_s", format_args!("{}.{:06}", micros / 1_000_000, micros % 1_000_000));
    for (key, header) in
        [(",\"host", &HOST), (",\"referer", &REFERER), (",\"user_agent", &USER_AGENT), (",\"request_id", &X_REQUEST_ID)]
    {
        object.text(key, value(&facts.request_headers, header));
    }
    object.number(",\"pid", pid);
    to.extend_from_slice(b"}\n");
}

struct Object<'a> {
    to: &'a mut Vec<u8>,
    most: usize,
}

impl Object<'_> {
    /// Of what needs no escapes. A key comes with all that stands before its closing quote.
    fn number(&mut self, key: &str, value: impl fmt::Display) {
        let _infallible = write!(self.to, "{key}\":{value}");
    }

    fn text(&mut self, key: &str, value: Option<&[u8]>) {
        self.to.extend_from_slice(key.as_bytes());
        match value {
            None => self.to.extend_from_slice(b"\":null"),
            Some(value) => {
                self.to.extend_from_slice(b"\":\"");
                self.escaped(value);
                self.to.push(b'"');
            }
        }
    }

    fn escaped(&mut self, value: &[u8]) {
        if value.len() <= self.most && value.iter().all(|byte| is_plain(*byte)) {
            self.to.extend_from_slice(value);
            return;
        }
        let full = self.to.len().saturating_add(self.most);
        for sign in String::from_utf8_lossy(value).chars() {
            if self.to.len() >= full {
                self.to.extend_from_slice("…".as_bytes());
                return;
            }
            let _infallible = match sign {
                '"' | '\\' => write!(self.to, "\\{sign}"),
                // The last two end a line for some.
                sign if sign.is_control() || matches!(sign, '\u{2028}' | '\u{2029}') => {
                    write!(self.to, "\\u{:04x}", u32::from(sign))
                }
                sign => write!(self.to, "{sign}"),
            };
        }
    }
}

/// The time of day as text, made anew once a second.
#[derive(Debug, Default)]
pub(super) struct Calendar {
    second: i64,
    milliseconds: i32,
    /// Common Log Format, in brackets.
    local: String,
    /// RFC 3339 up to the seconds.
    utc: String,
    /// Of the machine, or `TZ`; looked up by the first line.
    zone: Option<TimeZone>,
}

impl Calendar {
    pub(super) fn turn_to(&mut self, now: Timestamp) {
        self.milliseconds = now.subsec_millisecond();
        if self.zone.is_some() && self.second == now.as_second() {
            return;
        }
        let zone = self.zone.get_or_insert_with(TimeZone::system).clone();
        self.second = now.as_second();
        self.utc = now.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        self.local = now.to_zoned(zone).strftime("[%d/%b/%Y:%H:%M:%S %z]").to_string();
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::settings::{AccessFormat, Form};

    fn calendar() -> Calendar {
        let mut calendar = Calendar { zone: Some(jiff::tz::Offset::constant(2).to_time_zone()), ..Calendar::default() };
        calendar.turn_to("2026-11-22T05:13:51.042Z".parse().unwrap());
        calendar
    }

    fn parts(format: &str) -> Vec<Part> {
        match AccessFormat::parse(format).unwrap().form {
            Form::Text(parts) => parts,
            Form::Json => panic!("{format}"),
        }
    }

    /// The line of a request that was answered 201 with 17 bytes after 3.0456789 seconds.
    fn facts(request: &Request<()>) -> Facts {
        let mut answer = HeaderMap::new();
        answer.insert("x-answer", HeaderValue::from_static("42"));
        Facts {
            client: Some("192.0.2.7".parse().unwrap()),
            request: Some((request.method().clone(), request.uri().clone(), request.version())),
            request_headers: request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            response_headers: keep(&[HeaderName::from_static("x-answer")], &answer),
            status: Some(StatusCode::CREATED),
            bytes: 17,
            took_ns: 3_045_678_900,
        }
    }

    fn render(format: &str, facts: &Facts) -> String {
        let mut line = Vec::new();
        text(&mut line, &parts(format), facts, &calendar(), 4711);
        let line = String::from_utf8(line).unwrap();
        line.strip_suffix('\n').unwrap().to_owned()
    }

    fn object(facts: &Facts, most: usize) -> (String, serde_json::Value) {
        let mut line = Vec::new();
        json(&mut line, facts, &calendar(), 4711, most);
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
    fn each_atom_is_gunicorns() {
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
    fn what_is_not_known_is_a_dash() {
        let every = "%(h)s %(u)s %(r)s %(m)s %(U)s %(q)s %(H)s %(s)s %(B)s %(b)s %(f)s %(a)s %({RAW_URI}e)s";
        let refused = Facts { status: Some(StatusCode::BAD_REQUEST), ..Facts::default() };
        assert_eq!(render(every, &refused), "- - - - - - - 400 0 0 - - -");
        // Left before the answer.
        assert_eq!(render("%(s)s %(B)s %(b)s", &Facts::default()), "499 0 -");
        // No query is an empty one, as in WSGI.
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
            // a LF b, a quote and 0xff.
            ("Basic YQpi", "-"),
            ("Basic YQpiIv86eA==", r#"a\x0ab\"\xff"#),
        ] {
            let request = Request::get("/").header("Authorization", credentials).body(()).unwrap();
            assert_eq!(render("%(u)s", &facts(&request)), shown, "{credentials}");
        }
    }

    #[test]
    fn nothing_a_client_sends_leaves_its_quotes() {
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
    fn json_has_a_field_for_everything() {
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
        let (_, read) = object(&Facts::default(), usize::MAX);
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
            let facts = Facts { request: request_line(head), ..Facts::default() };
            render("%(r)s", &facts)
        };
        assert_eq!(shown(b"\r\nGET /a?b HTTP/1.1\r\nHost : x"), "GET /a?b HTTP/1.1");
        for head in
            [&b""[..], b"GET / HTTP/1.1", b"GET  / HTTP/1.1\r\n", b"GET / HTTP/3\n", b"G(T / HTTP/1.1\n", b"\r\n"]
        {
            assert_eq!(shown(head), "-", "{}", head.escape_ascii());
        }
    }

    #[test]
    fn the_time_turns_with_the_second() {
        let mut calendar = calendar();
        calendar.turn_to("2026-11-22T05:13:51.999Z".parse().unwrap());
        assert_eq!((calendar.utc.as_str(), calendar.milliseconds), ("2026-11-22T05:13:51", 999));
        calendar.turn_to("2026-11-22T05:13:52.000Z".parse().unwrap());
        assert_eq!(
            (calendar.utc.as_str(), calendar.local.as_str()),
            ("2026-11-22T05:13:52", "[22/Nov/2026:07:13:52 +0200]")
        );
    }

    proptest! {
        #[test]
        fn a_line_is_one_line_whatever_was_sent(
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
}
