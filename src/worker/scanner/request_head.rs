//! Reads and checks the head of a request.
//!
//! Owns: the request line, the fields, and their meaning for the body and the connection. Refuses: the body itself.

use super::{HEAD_MAX, Refusal, SizeLimits, class, lines::LineScanner, target};

/// What a verified head says about the bytes that follow it.
#[derive(Debug)]
pub(super) struct MessageFraming {
    pub(super) body: BodyFraming,
    pub(super) then: AfterBody,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// The body has this many bytes; 0 means that there is no body.
    Length(u64),
    /// The body is chunked. `fields` is the number of fields in the head. The fields of the trailer are added to this
    /// number, and the sum must not exceed the limit.
    Chunked { fields: u32 },
}

/// What follows the body of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AfterBody {
    #[default]
    Next,
    /// Nothing follows, because this was the last request.
    End,
    /// The request asks for another protocol, and the response decides whether that protocol follows. If it does not
    /// follow and `last` is true, this was the last request.
    Hold { last: bool },
}

/// The state of reading a head, and what the lines of the head have said so far.
#[derive(Debug, Default)]
pub(super) struct RequestHead {
    line: LineScanner,
    begun: HeadProgress,
    fields: u32,
    /// The range of the target's authority in the bytes of the head; `None` if the target has no authority.
    authority: Option<(u32, u32)>,
    length: Option<u64>,
    connect: bool,
    http_11: bool,
    host: bool,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum HeadProgress {
    #[default]
    No,
    /// An empty line has come, but no request line.
    Empty,
    /// The request line has been read.
    Yes,
}

impl RequestHead {
    /// Reads the lines that have come. Once the head is complete, returns its length and what it says about the bytes
    /// behind it; `None` before.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        limits: &SizeLimits,
    ) -> Result<Option<(usize, MessageFraming)>, Refusal> {
        let (bytes, cut) = match bytes.get(..HEAD_MAX) {
            Some(most) => (most, bytes.len() > HEAD_MAX),
            None => (bytes, false),
        };
        let incomplete = || if cut { Err(Refusal::HEAD_LONG) } else { Ok(None) };
        while self.begun != HeadProgress::Yes {
            let line = self.line.next(bytes, limits.request_line).map_err(|error| error.refusal(Refusal::LINE_LONG))?;
            let Some(line) = line else { return incomplete() };
            match (&self.begun, &bytes[line.clone()]) {
                // One empty line before the request line is ignored (RFC 9112, section 2.2).
                (HeadProgress::No, []) => self.begun = HeadProgress::Empty,
                (HeadProgress::Empty, []) => return Err(Refusal::EMPTY_LINES),
                (_, request_line) => {
                    self.read_request_line(request_line, line.start)?;
                    self.begun = HeadProgress::Yes;
                }
            }
        }
        loop {
            // If the head has as many fields as the limit allows, another field is refused as soon as its first byte
            // has come.
            let is_field = bytes.get(self.line.begin()).is_some_and(|&first| first != b'\r');
            if is_field && self.fields as usize >= limits.fields {
                return Err(Refusal::FIELDS_MANY);
            }
            let line = self.line.next(bytes, limits.field_size).map_err(|error| error.refusal(Refusal::FIELD_LONG))?;
            let Some(line) = line else { return incomplete() };
            if line.is_empty() {
                return self.framing().map(|framing| Some((self.line.begin(), framing)));
            }
            self.read_field(&bytes[line], bytes, limits)?;
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun == HeadProgress::Yes || self.line.has_begun()
    }

    /// Reads a request line: a method, a target and a version, with one space between them and none around them (RFC
    /// 9112, section 3).
    fn read_request_line(&mut self, line: &[u8], begin: usize) -> Result<(), Refusal> {
        let (method, rest) = line.split_at(class::run(line, class::TOKEN));
        let [b' ', rest @ ..] = rest else { return Err(not_a_method(line)) };
        if method.is_empty() {
            return Err(not_a_method(line));
        }
        let Some((target, [b' ', version @ ..])) = rest.split_last_chunk::<9>() else {
            return Err(Refusal::REQUEST_LINE);
        };
        self.http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(if target.contains(&b' ') { Refusal::REQUEST_LINE } else { Refusal::VERSION });
            }
            _ => return Err(Refusal::REQUEST_LINE),
        };
        let from = begin + method.len() + 1;
        let authority = match target::check(method, target) {
            Err(_) if target.contains(&b' ') => return Err(Refusal::REQUEST_LINE),
            checked => checked?,
        };
        self.authority = authority.map(|at| ((from + at.start) as u32, (from + at.end) as u32));
        self.connect = method == b"CONNECT";
        Ok(())
    }

    fn read_field(&mut self, line: &[u8], head: &[u8], limits: &SizeLimits) -> Result<(), Refusal> {
        self.fields += 1;
        let (name, value) = split_field(line)?;
        match (name.len(), name[0] | 0x20) {
            (4, b'h') if name.eq_ignore_ascii_case(b"host") => self.read_host(value, head),
            (14, b'c') if name.eq_ignore_ascii_case(b"content-length") => self.read_length(value, limits),
            (17, b't') if name.eq_ignore_ascii_case(b"transfer-encoding") => self.read_coding(value),
            (10, b'c') if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|&sign| sign == b',').map(class::trim) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                Ok(())
            }
            // HTTP/1.0 has no upgrades (RFC 9110, section 7.8). With HTTP/1.1 hyper lets the app upgrade by this field
            // alone, even if the option `upgrade` is missing in `Connection`.
            (7, b'u') if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade |= self.http_11;
                Ok(())
            }
            // An expectation other than `100-continue` is refused, also with HTTP/1.0. With HTTP/1.0 hyper ignores
            // `100-continue`, as RFC 9110, section 10.1.1, demands.
            (6, b'e') if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
                Err(Refusal::EXPECT)
            }
            _ => Ok(()),
        }
    }

    /// Reads a `Host` header. It must occur once, be valid, and name the host of the target (RFC 9112, section 3.2).
    fn read_host(&mut self, value: &[u8], head: &[u8]) -> Result<(), Refusal> {
        if std::mem::replace(&mut self.host, true) {
            return Err(Refusal::HOST_REPEATED);
        }
        target::split_authority(value).ok_or(Refusal::HOST)?;
        let Some((from, to)) = self.authority else { return Ok(()) };
        let authority = head.get(from as usize..to as usize).unwrap_or_default();
        // With CONNECT the port belongs to the target, and `Host` may leave the port out (RFC 9110, section 9.3.6).
        let host = target::split_authority(authority).map(|(host, _)| host).filter(|_| self.connect);
        if value.eq_ignore_ascii_case(authority) || host.is_some_and(|host| value.eq_ignore_ascii_case(host)) {
            Ok(())
        } else {
            Err(Refusal::HOST_DIFFERS)
        }
    }

    /// Reads a `Content-Length` header (RFC 9110, section 8.6). A recipient may accept or refuse a list of equal
    /// lengths; this function refuses it. A length of more than 63 bits is refused, because no program can hold such a
    /// body.
    fn read_length(&mut self, value: &[u8], limits: &SizeLimits) -> Result<(), Refusal> {
        if self.chunked {
            return Err(Refusal::LENGTH_AND_CODING);
        }
        if self.length.is_some() {
            return Err(Refusal::LENGTH_REPEATED);
        }
        let digits = Some(value).filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
        let length = digits
            .and_then(|digits| {
                digits.iter().try_fold(0i64, |length, digit| length.checked_mul(10)?.checked_add((digit - b'0').into()))
            })
            .ok_or(Refusal::LENGTH)?
            .unsigned_abs();
        if length > limits.body {
            return Err(Refusal::BODY_LONG);
        }
        self.length = Some(length);
        Ok(())
    }

    /// Reads a `Transfer-Encoding` header (RFC 9112, sections 6.1 and 6.3).
    fn read_coding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if !self.http_11 {
            return Err(Refusal::CODING_VERSION);
        }
        if self.length.is_some() {
            return Err(Refusal::LENGTH_AND_CODING);
        }
        if std::mem::replace(&mut self.chunked, true) {
            return Err(Refusal::CODING_REPEATED);
        }
        if value.eq_ignore_ascii_case(b"chunked") { Ok(()) } else { Err(Refusal::CODING) }
    }

    /// Returns what the whole head says about the bytes that follow it.
    fn framing(&self) -> Result<MessageFraming, Refusal> {
        if self.http_11 && !self.host {
            return Err(Refusal::NO_HOST);
        }
        let length = self.length.unwrap_or(0);
        // CONNECT has no body (RFC 9110, section 9.3.6). If a body were allowed, two readers could disagree about where
        // the tunnel begins.
        if self.connect && (self.chunked || length > 0) {
            return Err(Refusal::CONNECT_BODY);
        }
        let body =
            if self.chunked { BodyFraming::Chunked { fields: self.fields } } else { BodyFraming::Length(length) };
        // A connection of HTTP/1.1 continues unless the client says `close`. A connection of HTTP/1.0 ends unless the
        // client says `keep-alive` (RFC 9112, section 9.3).
        let last = self.close || !self.http_11 && !self.keep_alive;
        let then = match (self.upgrade || self.connect, last) {
            (true, last) => AfterBody::Hold { last },
            (false, true) => AfterBody::End,
            (false, false) => AfterBody::Next,
        };
        Ok(MessageFraming { body, then })
    }
}

/// Returns the refusal of a request line that does not begin with a method and a space.
fn not_a_method(line: &[u8]) -> Refusal {
    if line.iter().filter(|sign| **sign == b' ').count() == 2 { Refusal::METHOD } else { Refusal::REQUEST_LINE }
}

/// Splits a field line of a head or a trailer into its name and its value. The name is not empty.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let (name, rest) = line.split_at(class::run(line, class::TOKEN));
    match (name, rest) {
        ([_, ..], [b':', value @ ..]) => Ok((name, class::trim(value))),
        ([], [b' ' | b'\t', ..]) => Err(Refusal::FOLDED),
        (_, [b' ' | b'\t', ..]) => Err(Refusal::SPACE_BEFORE_COLON),
        _ => Err(Refusal::FIELD_NAME),
    }
}
