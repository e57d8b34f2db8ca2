//! Raw requests, hostile and legal, and what must become of them.
//!
//! Owns: the cases, for the scanner's own tests, for those of the server (`tests/strictness.rs`) and for the fuzzer
//! (`fuzz/`). The limits are the defaults. Refuses: how the bytes travel.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each user takes a part")]

mod hostile;
mod legal;

/// The bytes that one connection sends, and the answers in their order. The connection ends after the last one.
pub struct Case {
    pub name: &'static str,
    pub raw: Vec<u8>,
    pub answers: Vec<Answer>,
}

/// What becomes of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200, and the content of the request.
    Echo(Vec<u8>),
    /// The app's own answer with this status.
    Status(u16),
    /// Refused with this status; the app did not see the request.
    Refused(u16),
    /// Refused with this status in the middle of its body: the app saw a request whose body ended in an error.
    Broken(u16),
}

impl Answer {
    pub fn reaches_the_app(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Returns the status of a refusal.
    pub fn refusal(&self) -> Option<u16> {
        match self {
            Self::Refused(status) | Self::Broken(status) => Some(*status),
            Self::Echo(_) | Self::Status(_) => None,
        }
    }
}

impl Case {
    pub fn is_hostile(&self) -> bool {
        self.answers.iter().any(|answer| answer.refusal().is_some())
    }
}

/// Returns all cases, hostile and legal.
pub fn cases() -> Vec<Case> {
    let mut cases = hostile::cases();
    cases.extend(legal::cases());
    cases
}

fn case(name: &'static str, raw: impl AsRef<[u8]>, answers: &[Answer]) -> Case {
    Case { name, raw: raw.as_ref().to_vec(), answers: answers.to_vec() }
}

/// Returns a POST to the route that echoes, with these field lines (CRLF between them) and with what follows the head.
fn post(fields: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [b"POST /debug/echo HTTP/1.1\r\nHost: a\r\n", fields.as_ref(), b"\r\n\r\n", rest.as_ref()].concat()
}

/// Returns a request with this request line and a Host.
fn line(line: impl AsRef<[u8]>) -> Vec<u8> {
    [line.as_ref(), b"\r\nHost: a\r\n\r\n"].concat()
}

/// Returns a POST with this chunked body, which is sent as it is.
fn chunks(body: impl AsRef<[u8]>) -> Vec<u8> {
    post("Transfer-Encoding: chunked", body)
}

fn echo(content: impl AsRef<[u8]>) -> Answer {
    Answer::Echo(content.as_ref().to_vec())
}
