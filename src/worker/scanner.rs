//! Judges every byte of an HTTP/1 connection before hyper sees it.
//!
//! Owns: the grammar of a request and where its body ends, from one request to the next (RFC 9112); the limits on its
//! size. Pure: bytes in, verdict out. Refuses: IO, clocks, the response to what it refuses (`connection`), and HTTP/2
//! except for the checks in `http2`.
//!
//! hyper is lenient: it takes a bare LF for the end of a line, ignores a `Content-Length` beside a `Transfer-Encoding`,
//! and cuts a fragment off a target. A proxy in front that reads such a request otherwise would disagree with us about
//! where the next one begins. So the scanner refuses everything that two readers can read differently, and passes on no
//! byte of a refused head.

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

/// The longest line, even without a limit: `http::Uri` and `http::HeaderName` hold no more.
const LINE_MAX: usize = 65_534;

/// The most bytes of a head, even without a limit: they wait in memory until the last of them is judged. hyper itself
/// stops at 408 KiB.
const HEAD_MAX: usize = 256 * 1024;

/// The limits of a request. 0 means no limit except the scanner's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeLimits {
    /// Bytes of the request line without its CRLF; `http.limit_request_line`. At most 65,534.
    pub(crate) request_line: usize,
    /// Fields of the head and the trailer together; `http.limit_request_fields`.
    pub(crate) fields: usize,
    /// Bytes of one field line without its CRLF; `http.limit_request_field_size`. At most 65,534.
    pub(crate) field_size: usize,
    /// Bytes of content; `http.limit_request_body`.
    pub(crate) body: u64,
}

impl SizeLimits {
    /// Replaces the zeros, so that each limit is one comparison.
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
    /// How many bytes from the front are verified and may go on.
    pub(crate) pass: usize,
    pub(crate) verdict: Verdict,
}

/// What comes after the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The rest, if any, is offered again, in front of what arrives next.
    More,
    /// The rest is never passed, nor anything that follows it.
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
    /// How many bytes of a body with `Content-Length` are still to come.
    Length(u64),
    Chunked(ChunkedBody),
    /// The response decides whether another request follows, or another protocol.
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
    limits: SizeLimits,
    state: ScanState,
    /// What follows the present body.
    then: AfterBody,
}

impl Scanner {
    pub(crate) fn new(limits: SizeLimits) -> Self {
        Self { limits: limits.in_force(), state: ScanState::Head(RequestHead::default()), then: AfterBody::default() }
    }

    /// Judges what was not passed before and what is new behind it. However the bytes are split, the same bytes get the
    /// same verdict, and each is looked at once.
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

    /// Verifies the next head, or the next piece of a body. Returns 0 if it needs more.
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

    /// Whether a head has begun and is not complete. An empty line before it does not begin it.
    pub(crate) fn in_head(&self) -> bool {
        matches!(&self.state, ScanState::Head(head) if head.has_begun())
    }

    /// Whether a body has begun and is not complete.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self.state, ScanState::Length(_) | ScanState::Chunked(_) | ScanState::Refused { in_body: true, .. })
    }

    /// Returns how many bytes come next that are only content, of a body with `Content-Length` or of a chunk. They may
    /// be read past the scanner; then call [`skip`](Self::skip).
    pub(crate) fn body_left(&self) -> Option<u64> {
        match &self.state {
            ScanState::Length(left) => Some(*left),
            ScanState::Chunked(body) => body.chunk_left(),
            _ => None,
        }
    }

    /// Notes that this many bytes of [`body_left`](Self::body_left) were read past the scanner.
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

    /// Whether the request asked for another protocol and its body is over. What the client sends now is kept until
    /// [`resume`](Self::resume) is called, or it belongs to that protocol and is no longer scanned.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.state, ScanState::Held)
    }

    /// Whether the last request of the connection is over: what the client sends now is not a request, and is
    /// discarded.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, ScanState::Ended)
    }

    /// Whether the refused bytes are in the body of a request whose head was passed.
    pub(crate) fn refused_in_body(&self) -> bool {
        matches!(self.state, ScanState::Refused { in_body: true, .. })
    }

    /// Notes that the request that asked for another protocol was answered as any other. It has no effect after any
    /// other request.
    pub(crate) fn resume(&mut self) {
        if let AfterBody::Hold { last } = self.then {
            self.then = if last { AfterBody::End } else { AfterBody::Next };
            if self.is_held() {
                self.body_ended();
            }
        }
    }
}
