//! Judges every byte of an HTTP/1 connection before hyper sees it.
//!
//! Owns: the grammar of requests, the position at which each body ends (RFC 9112), and the limits on size. The scanner
//! is pure: it gets bytes and returns a verdict. Refuses: IO, clocks, the response to a refused request (`connection`),
//! and HTTP/2 except for the checks in `http2`.
//!
//! hyper is lenient: it takes a bare LF for the end of a line, ignores a `Content-Length` beside a `Transfer-Encoding`,
//! and cuts a fragment off a target. A proxy in front of us that reads such a request differently would disagree with
//! us about where the next request begins. So the scanner refuses everything that two readers can read differently, and
//! passes on no byte of a refused head.

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

/// The most bytes of a line, even if the settings set no limit, because `http::Uri` and `http::HeaderName` hold no
/// more.
const LINE_MAX: usize = 65_534;

/// The most bytes of a head, even if the settings set no limit, because all bytes of a head wait in memory until the
/// last one is judged. hyper itself stops at 408 KiB.
const HEAD_MAX: usize = 256 * 1024;

/// The limits on the size of a request. A limit of 0 is off. In its place only the scanner's own limit holds, if there
/// is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeLimits {
    /// The most bytes of the request line without its CRLF: `http.limit_request_line`, and never more than 65,534.
    pub(crate) request_line: usize,
    /// The most fields of the head and the trailer together: `http.limit_request_fields`.
    pub(crate) fields: usize,
    /// The most bytes of one field line without its CRLF: `http.limit_request_field_size`, and never more than 65,534.
    pub(crate) field_size: usize,
    /// The most bytes of content in one body: `http.limit_request_body`.
    pub(crate) body: u64,
}

impl SizeLimits {
    /// Replaces each 0 by the largest value, so that a check of a limit is one comparison.
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

/// The result for the bytes that were offered to the scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// How many bytes from the front are verified, and may be passed on.
    pub(crate) pass: usize,
    pub(crate) verdict: Verdict,
}

/// What happens to the bytes behind those that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The scanner needs more bytes. The caller offers the rest again, in front of what arrives next.
    More,
    /// The bytes behind those that pass are refused. They and all later bytes never pass.
    Refuse(Refusal),
}

/// The point that the scanner has reached in the stream of requests.
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
    /// The scanner is in a body with `Content-Length`, of which this many bytes are still to come.
    Length(u64),
    Chunked(ChunkedBody),
    /// The request asked for another protocol. Its response decides whether another request or that protocol follows.
    Held,
    Ended,
    Refused {
        refusal: Refusal,
        /// True if the refused bytes are in the body of a request whose head was passed.
        in_body: bool,
    },
}

/// The scanner of one connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    limits: SizeLimits,
    state: ScanState,
    /// What follows when the present body has ended.
    then: AfterBody,
}

impl Scanner {
    pub(crate) fn new(limits: SizeLimits) -> Self {
        Self { limits: limits.in_force(), state: ScanState::Head(RequestHead::default()), then: AfterBody::default() }
    }

    /// Judges `bytes`. The caller must begin them with the bytes that did not pass in the last call, and append the
    /// bytes that have arrived since then. The same bytes get the same verdict, however they are split, and the scanner
    /// looks at each byte once.
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

    /// Verifies the next head, or the next piece of a body. Returns how many bytes were verified; 0 if more bytes are
    /// needed.
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

    /// Returns true if a head has begun and is not complete. An empty line before a head does not count as its
    /// beginning.
    pub(crate) fn in_head(&self) -> bool {
        matches!(&self.state, ScanState::Head(head) if head.has_begun())
    }

    /// Returns true if a body has begun and is not complete.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self.state, ScanState::Length(_) | ScanState::Chunked(_) | ScanState::Refused { in_body: true, .. })
    }

    /// Returns how many of the next bytes are pure content of a body with `Content-Length` or of a chunk. The caller
    /// may read these bytes without offering them to the scanner, and must call [`skip`](Self::skip) after that.
    pub(crate) fn body_left(&self) -> Option<u64> {
        match &self.state {
            ScanState::Length(left) => Some(*left),
            ScanState::Chunked(body) => body.chunk_left(),
            _ => None,
        }
    }

    /// Notes that the caller has read this many bytes of [`body_left`](Self::body_left) without offering them to the
    /// scanner.
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

    /// Returns true if the last request asked for another protocol and its body is over. The caller keeps what the
    /// client sends now until the response is known. If HTTP continues after the response, the caller calls
    /// [`resume`](Self::resume). If not, the bytes belong to the other protocol and are no longer scanned.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.state, ScanState::Held)
    }

    /// Returns true if the last request of the connection is over. What the client sends now is not a request, and is
    /// discarded.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, ScanState::Ended)
    }

    /// Returns true if the refused bytes are in the body of a request whose head was passed.
    pub(crate) fn refused_in_body(&self) -> bool {
        matches!(self.state, ScanState::Refused { in_body: true, .. })
    }

    /// Notes that a request for another protocol was answered like any other request. If the last request did not ask
    /// for another protocol, this has no effect.
    pub(crate) fn resume(&mut self) {
        if let AfterBody::Hold { last } = self.then {
            self.then = if last { AfterBody::End } else { AfterBody::Next };
            if self.is_held() {
                self.body_ended();
            }
        }
    }
}
