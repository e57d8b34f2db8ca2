//! Formats the lines of the access log.
//!
//! Owns: Gunicorn's atoms, the JSON object, the escapes that stop a client from forging or breaking a line, and the
//! time of day as text. Refuses: the moment at which a line is written (`access_log`).

#[cfg(test)]
mod tests;

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

use crate::{log::terminal::is_unsafe, scoreboard::X_REQUEST_ID, settings::Part};

/// If a JSON object is too long for its reader, each of its values is cut to this many bytes. The whole object then
/// fits into the 4096 bytes that a pipe takes in one piece.
pub(super) const SHORT: usize = 480;

/// The status that a line shows if the connection ended before the response. nginx uses the same number.
const NOT_ANSWERED: u16 = 499;

/// The headers that a line shows, with their values.
pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// What a line of the access log can show about a request.
#[derive(Debug, Default)]
pub(super) struct AccessFacts {
    pub(super) client: Option<IpAddr>,
    /// Method, target and version of the request; `None` if its request line could not be read.
    pub(super) request: Option<(Method, Uri, Version)>,
    pub(super) request_headers: Headers,
    pub(super) response_headers: Headers,
    /// The status of the response; `None` if there was no response.
    pub(super) status: Option<StatusCode>,
    /// How many bytes of the response's body were handed to the connection.
    pub(super) bytes: u64,
    pub(super) took_ns: u64,
}

/// Returns the headers of `all` whose name is in `names`. If a header occurs several times, its last value is
/// returned, as Gunicorn does.
pub(super) fn keep(names: &[HeaderName], all: &HeaderMap) -> Headers {
    names.iter().filter_map(|name| Some((name.clone(), all.get_all(name).iter().next_back()?.clone()))).collect()
}

fn value<'a>(headers: &'a Headers, name: &HeaderName) -> Option<&'a [u8]> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_bytes())
}

/// Parses the request line of a refused request, which no other parser has read. Returns `None` if the request line is
/// incomplete or not valid.
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

/// Returns the user name that the client sent by HTTP's Basic scheme (RFC 7617). The worker does not know whether the
/// password was right.
fn user(headers: &Headers) -> Option<Vec<u8>> {
    let (scheme, credentials) = value(headers, &AUTHORIZATION)?.split_at_checked(6)?;
    let mut pair = scheme
        .eq_ignore_ascii_case(b"basic ")
        .then(|| BASE64_STANDARD.decode(credentials.trim_ascii()).ok())
        .flatten()?;
    pair.truncate(pair.iter().position(|byte| *byte == b':')?);
    (!pair.is_empty()).then_some(pair)
}

impl AccessFacts {
    fn status(&self) -> u16 {
        self.status.map_or(NOT_ANSWERED, |status| status.as_u16())
    }

    /// Writes the target of the request as the client sent it. HTTP/2 sends a target in pieces, so for HTTP/2 this
    /// writes only path and query. An unknown target is written as a dash.
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

/// Appends a line of text that consists of `parts`, and a newline.
pub(super) fn text(to: &mut Vec<u8>, parts: &[Part], facts: &AccessFacts, timestamps: &TimestampCache, pid: u32) {
    for part in parts {
        atom(to, part, facts, timestamps, pid);
    }
    to.push(b'\n');
}

fn atom(to: &mut Vec<u8>, part: &Part, facts: &AccessFacts, timestamps: &TimestampCache, pid: u32) {
    let micros = facts.took_ns / 1_000;
    let request = facts.request.as_ref();
    let _infallible = match part {
        Part::Literal(text) => to.write_all(text.as_bytes()),
        Part::Client => match facts.client {
            Some(address) => write!(to, "{address}"),
            None => to.write_all(b"-"),
        },
        Part::User => escaped(to, user(&facts.request_headers).as_deref()),
        Part::Time => to.write_all(timestamps.local.as_bytes()),
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

/// Writes the bytes of a value with escapes, or a dash if there is no value.
fn escaped(to: &mut Vec<u8>, bytes: Option<&[u8]>) -> std::io::Result<()> {
    Escape(to).bytes(bytes.unwrap_or(b"-"));
    Ok(())
}

/// Writes bytes with escapes: printable ASCII as it is, a backslash before a quote or backslash, and `\xHH` for any
/// other byte.
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

/// Returns true if the byte is printable ASCII and has no meaning inside quotes.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// Returns the headers that [`json`] shows.
pub(super) fn json_headers() -> Vec<HeaderName> {
    vec![AUTHORIZATION, HOST, REFERER, USER_AGENT, X_REQUEST_ID.clone()]
}

/// Appends a line that is a JSON object, and a newline. A missing value is null. Each value is cut to `most` bytes, or
/// a few more.
pub(super) fn json(to: &mut Vec<u8>, facts: &AccessFacts, timestamps: &TimestampCache, pid: u32, most: usize) {
    let mut object = Object { to, most };
    let request = facts.request.as_ref();
    object.number("{\"timestamp", format_args!("\"{}.{:03}Z\"", timestamps.utc, timestamps.milliseconds));
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
    /// Adds a key, and a value that needs no escapes. `key` begins with the comma or brace before the key, and ends
    /// before its closing quote.
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
                sign if is_unsafe(sign) => write!(self.to, "\\u{:04x}", u32::from(sign)),
                sign => write!(self.to, "{sign}"),
            };
        }
    }
}

/// The time of day as text. It is formatted only once a second.
#[derive(Debug, Default)]
pub(super) struct TimestampCache {
    second: i64,
    milliseconds: i32,
    /// The local time in Common Log Format, with its brackets.
    local: String,
    /// The time in UTC in the format of RFC 3339, without parts of a second and without the zone.
    utc: String,
    /// The time zone of the machine, or of `TZ`; `None` until the first line needs it.
    zone: Option<TimeZone>,
}

impl TimestampCache {
    pub(super) fn update(&mut self, now: Timestamp) {
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
