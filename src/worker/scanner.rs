//! Judges every byte of an HTTP/1 connection before hyper sees it.
//!
//! Owns: the grammar of a request and where its body ends, from one request to the next (RFC 9112); the limits on its
//! size. Pure: bytes in, verdict out. Refuses: IO, clocks and the answer to what it refuses (`connection`), and HTTP/2.
//!
//! hyper reads what it is given with some indulgence: it takes a bare LF for the end of a line, forgets a
//! `Content-Length` beside a `Transfer-Encoding`, cuts a fragment off a target. A proxy in front that reads such a
//! request otherwise would disagree with us about where the next one begins. So what two readers can read differently
//! is refused, and of a refused head not one byte is passed on.

mod chunked;
mod class;
mod http2;
mod lines;
mod refusal;
mod request_head;
mod target;

#[cfg(any(test, fuzzing))]
pub(crate) mod checks;
#[cfg(test)]
mod tests;

use self::{
    chunked::ChunkedBody,
    request_head::{AfterBody, BodyFraming, RequestHead},
};
pub(crate) use self::{http2::http2_fault, refusal::Refusal};

/// The longest line there is, limits or not: `http::Uri` and `http::HeaderName` hold no more.
const LINE_MAX: usize = 65_534;

/// The most bytes a head has, limits or not: they wait in memory until the last of them is judged. hyper itself stops
/// at 408 KiB.
const HEAD_MAX: usize = 256 * 1024;

/// What a request may be at most; 0 = no limit but the scanner's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the request line without its CRLF; `http.limit_request_line`. At most 65,534.
    pub(crate) request_line: usize,
    /// Fields of the head and the trailer together; `http.limit_request_fields`.
    pub(crate) fields: usize,
    /// Bytes of one field line without its CRLF; `http.limit_request_field_size`. At most 65,534.
    pub(crate) field_size: usize,
    /// Bytes of content; `http.limit_request_body`.
    pub(crate) body: u64,
}

impl Limits {
    /// Without the zeros: each limit is then one comparison.
    fn in_force(self) -> Self {
        let or = |limit, most| if limit == 0 { most } else { limit };
        Self {
            request_line: or(self.request_line, LINE_MAX).min(LINE_MAX),
            fields: or(self.fields, usize::MAX),
            field_size: or(self.field_size, LINE_MAX).min(LINE_MAX),
            body: if self.body == 0 { u64::MAX } else { self.body },
        }
    }
}

/// What became of the bytes that were offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// So many bytes from the front are verified and may go on.
    pub(crate) pass: usize,
    pub(crate) verdict: Verdict,
}

/// What comes after the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The rest, if any, is offered again, in front of what arrives next.
    More,
    /// The rest is never to be passed, nor anything that follows it.
    Refuse(Refusal),
}

/// Where in the stream of requests the scanner is.
///
/// ```text
///            ┌──────────────────────────────┐
///            ▼                              │ (next)
///  ───►  Head ──► Length, Chunked, or no body ──► Held
///                                           │      (upgrade)
///                                           └──► Ended
/// ```
#[derive(Debug)]
enum ScanState {
    Head(RequestHead),
    /// So many bytes of a body with `Content-Length` are still to come.
    Length(u64),
    Chunked(ChunkedBody),
    /// The answer decides whether what follows is another request or another protocol.
    Held,
    Ended,
    Refused {
        refusal: Refusal,
        /// Its head was passed.
        in_body: bool,
    },
}

/// The scanner of one connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    limits: Limits,
    state: ScanState,
    /// What follows the body under way.
    then: AfterBody,
}

impl Scanner {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits: limits.in_force(), state: ScanState::Head(RequestHead::default()), then: AfterBody::default() }
    }

    /// Judges what was not passed before and what is new behind it. Whatever the pieces, the same bytes get the same
    /// verdict, and each is looked at once.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut pass = 0;
        loop {
            match self.step(bytes.get(pass..).unwrap_or_default()) {
                Ok(0) => return Scan { pass, verdict: Verdict::More },
                Ok(verified) => {
                    pass += verified;
                    if pass == bytes.len() {
                        return Scan { pass, verdict: Verdict::More };
                    }
                }
                Err(refusal) => {
                    let in_body =
                        matches!(self.state, ScanState::Chunked(_) | ScanState::Refused { in_body: true, .. });
                    self.state = ScanState::Refused { refusal, in_body };
                    return Scan { pass, verdict: Verdict::Refuse(refusal) };
                }
            }
        }
    }

    /// Verifies the next head, or the next piece of a body; 0 when it needs more.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.state {
            ScanState::Head(head) => {
                let Some((length, framing)) = head.scan(bytes, &self.limits)? else { return Ok(0) };
                self.then = framing.then;
                match framing.body {
                    BodyFraming::Length(0) => self.body_ended(),
                    BodyFraming::Length(left) => self.state = ScanState::Length(left),
                    BodyFraming::Chunked { fields } => self.state = ScanState::Chunked(ChunkedBody::new(fields)),
                }
                Ok(length)
            }
            ScanState::Length(left) => {
                let verified = (*left).min(bytes.len() as u64);
                self.skip(verified);
                Ok(verified as usize)
            }
            ScanState::Chunked(body) => {
                let (verified, ended) = body.scan(bytes, &self.limits)?;
                if ended {
                    self.body_ended();
                }
                Ok(verified)
            }
            ScanState::Held | ScanState::Ended => Ok(0),
            ScanState::Refused { refusal, .. } => Err(*refusal),
        }
    }

    fn body_ended(&mut self) {
        self.state = match self.then {
            AfterBody::Next => ScanState::Head(RequestHead::default()),
            AfterBody::End => ScanState::Ended,
            AfterBody::Hold { .. } => ScanState::Held,
        };
    }

    /// Whether a head has begun and is not complete. An empty line before it is not its beginning.
    pub(crate) fn in_head(&self) -> bool {
        matches!(&self.state, ScanState::Head(head) if head.has_begun())
    }

    /// Whether a body has begun and is not complete.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self.state, ScanState::Length(_) | ScanState::Chunked(_) | ScanState::Refused { in_body: true, .. })
    }

    /// How many bytes come next that are content and nothing else, of a body with `Content-Length` or of a chunk. They
    /// may be read past the scanner, if it is told by [`skip`](Self::skip).
    pub(crate) fn body_left(&self) -> Option<u64> {
        match &self.state {
            ScanState::Length(left) => Some(*left),
            ScanState::Chunked(body) => body.chunk_left(),
            _ => None,
        }
    }

    /// So many bytes of [`body_left`](Self::body_left) were read past the scanner.
    pub(crate) fn skip(&mut self, bytes: u64) {
        match &mut self.state {
            ScanState::Length(left) => {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    self.body_ended();
                }
            }
            ScanState::Chunked(body) => body.skip(bytes),
            _ => {}
        }
    }

    /// Whether the request asked for another protocol and its body is over: what the client sends now is kept until
    /// [`resume`](Self::resume) is told, or belongs to that protocol and is no longer scanned.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.state, ScanState::Held)
    }

    /// Whether the last request of the connection is over: what the client sends now is no request, and thrown away.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, ScanState::Ended)
    }

    /// Whether what was refused is the body of a request whose head was passed.
    pub(crate) fn refused_in_body(&self) -> bool {
        matches!(self.state, ScanState::Refused { in_body: true, .. })
    }

    /// The request that asked for another protocol was answered as any other. Without effect on any other request.
    pub(crate) fn resume(&mut self) {
        if let AfterBody::Hold { last } = self.then {
            self.then = if last { AfterBody::End } else { AfterBody::Next };
            if self.is_held() {
                self.body_ended();
            }
        }
    }
}
