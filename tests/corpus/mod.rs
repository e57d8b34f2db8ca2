//! Raw requests, hostile and legal, and the answer that each of them must get.
//!
//! Owns: the cases, which assume the default limits. The scanner's own tests, the tests of the server
//! (`tests/strictness.rs`) and the fuzzer (`fuzz/`) use them. Refuses: to decide how the bytes reach the server.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each user takes a part")]

mod hostile;
mod legal;

/// The bytes that one connection sends, and the answers that it must get, in order. After the last answer the
/// connection ends.
pub struct Case {
    pub name: &'static str,
    pub raw: Vec<u8>,
    pub answers: Vec<Answer>,
}

/// What must happen to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The app answers 200, and its answer repeats the content of the request, which is given here.
    Echo(Vec<u8>),
    /// The app answers with this status.
    Status(u16),
    /// The server refuses the request with this status, and the app does not see it.
    Refused(u16),
    /// The server refuses the request with this status in the middle of the body. The app sees a request whose body
    /// ends with an error.
    Broken(u16),
}

impl Answer {
    pub fn reaches_the_app(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Returns the status with which the server must refuse the request. Returns `None` if the server must not refuse
    /// it.
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

/// Returns a POST to the route that echoes. `fields` are further field lines, with CRLF between them. `rest` is what
/// follows the head, such as a body.
fn post(fields: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [b"POST /debug/echo HTTP/1.1\r\nHost: a\r\n", fields.as_ref(), b"\r\n\r\n", rest.as_ref()].concat()
}

/// Returns a whole request with the request line `line`, a Host field, and no body.
fn line(line: impl AsRef<[u8]>) -> Vec<u8> {
    [line.as_ref(), b"\r\nHost: a\r\n\r\n"].concat()
}

/// Returns a POST with the chunked body `body`, which already contains the chunk sizes.
fn chunks(body: impl AsRef<[u8]>) -> Vec<u8> {
    post("Transfer-Encoding: chunked", body)
}

fn echo(content: impl AsRef<[u8]>) -> Answer {
    Answer::Echo(content.as_ref().to_vec())
}
