//! The reasons for which the scanner refuses a request, in the words that the client reads.
//!
//! Owns: the status and the sentence of each refusal. Refuses: the response and the log line for it (`connection`).

use std::fmt;

/// Why a request does not reach the app. With HTTP/1 the connection ends after a refusal of the scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// A sentence for the client that names the header or the limit.
    pub(crate) reason: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl std::error::Error for Refusal {}

const fn refusal(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

impl Refusal {
    /// RFC 9112, section 2.2, lets a recipient choose whether a bare LF ends a line. So two readers could see different
    /// lines.
    pub(super) const BARE_LF: Self = refusal(400, "A line must end with CRLF, not with LF alone");
    /// Refuses a request that breaks RFC 9112, section 2.2.
    pub(super) const BARE_CR: Self = refusal(400, "CR is allowed only before LF");
    /// Refuses a request that breaks RFC 9110, section 5.5.
    pub(super) const CONTROL: Self =
        refusal(400, "The request head or the body's framing contains a control character");
    /// A server should ignore at least one empty line (RFC 9112, section 2.2). The scanner ignores one empty line.
    pub(super) const EMPTY_LINES: Self = refusal(400, "More than one empty line comes before the request line");

    /// Refuses a request that breaks RFC 9112, section 3.
    pub(super) const REQUEST_LINE: Self =
        refusal(400, "The request line must be a method, a target and an HTTP version with one space between them");
    /// Refuses a request that breaks RFC 9110, section 9.1.
    pub(super) const METHOD: Self = refusal(400, "The method must be a token");
    /// Refuses a request that breaks RFC 9112, section 3.2.
    pub(super) const TARGET: Self =
        refusal(400, "The request target must be a path, an http or https URL, or * with OPTIONS");
    pub(super) const TARGET_CHARACTER: Self =
        refusal(400, "The request target contains a character that must be percent-encoded");
    /// Refuses a request that breaks RFC 9112, section 3.2.3 or RFC 9110, section 9.3.6.
    pub(super) const CONNECT_TARGET: Self = refusal(400, "The target of CONNECT must be host:port");
    pub(super) const CONNECT_BODY: Self = refusal(400, "A CONNECT request has no body");
    /// The HTTP version is defined in RFC 9112, section 2.3, and the status 505 in RFC 9110, section 15.6.6.
    pub(super) const VERSION: Self = refusal(505, "The HTTP version must be HTTP/1.1 or HTTP/1.0");

    /// Refuses a request that breaks RFC 9112, section 5.2.
    pub(super) const FOLDED: Self = refusal(400, "A header field must not be folded or indented");
    /// Refuses a request that breaks RFC 9112, section 5.1.
    pub(super) const SPACE_BEFORE_COLON: Self =
        refusal(400, "There must be no space between a header's name and its colon");
    /// Refuses a request that breaks RFC 9110, section 5.1.
    pub(super) const FIELD_NAME: Self =
        refusal(400, "A header field must be a name that is a token, a colon and a value");

    /// Refuses a request that breaks RFC 9112, section 3.2.
    pub(crate) const NO_HOST: Self = refusal(400, "The Host header is missing");
    pub(crate) const HOST_REPEATED: Self = refusal(400, "The Host header occurs more than once");
    pub(super) const HOST: Self = refusal(400, "The Host header must be a host with an optional port");
    /// The host in the target counts, not the header (RFC 9112, section 3.2.2). A reader that trusts the header would
    /// see another host.
    pub(crate) const HOST_DIFFERS: Self = refusal(400, "The Host header differs from the host of the request target");

    /// Refuses a request that breaks RFC 9110, section 8.6.
    pub(super) const LENGTH: Self = refusal(400, "The Content-Length header must be one decimal number");
    pub(super) const LENGTH_REPEATED: Self = refusal(400, "The Content-Length header occurs more than once");
    /// Refuses a request that breaks RFC 9112, section 6.1.
    pub(super) const LENGTH_AND_CODING: Self =
        refusal(400, "Content-Length and Transfer-Encoding must not occur in one request");
    /// Without a final `chunked` the end of the body is unknown (RFC 9112, section 6.3).
    pub(super) const CODING: Self = refusal(400, "The Transfer-Encoding header must be \"chunked\" and nothing else");
    pub(super) const CODING_REPEATED: Self = refusal(400, "The Transfer-Encoding header occurs more than once");
    /// Refuses a request that breaks RFC 9112, section 6.1.
    pub(super) const CODING_VERSION: Self = refusal(400, "HTTP/1.0 has no Transfer-Encoding");
    /// RFC 9110, section 10.1.1, gives the status 417 to an expectation that the server cannot meet.
    pub(crate) const EXPECT: Self = refusal(417, "The Expect header must be \"100-continue\"");

    /// Refuses a request that breaks RFC 9112, section 7.1.
    pub(super) const CHUNK_SIZE: Self = refusal(400, "A chunk must begin with its size in 1 to 16 hexadecimal digits");
    /// Refuses a request that breaks RFC 9112, section 7.1.1.
    pub(super) const CHUNK_EXTENSION: Self = refusal(400, "A chunk extension must be ;name or ;name=value");
    pub(super) const CHUNK_EXTENSIONS_LONG: Self = refusal(400, "The chunk extensions of a body are too long");
    pub(super) const CHUNK_END: Self =
        refusal(400, "The data of a chunk must be as long as its size and end with CRLF");
    /// Refuses a request that breaks RFC 9110, section 6.5.1.
    pub(super) const TRAILER: Self = refusal(400, "A header field that must not be a trailer comes after the body");

    /// The status 414 is defined in RFC 9110, section 15.5.15. RFC 9112, section 3, demands it for a target that is too
    /// long.
    pub(crate) const LINE_LONG: Self = refusal(414, "The request line is longer than limit_request_line");
    /// The status 431 is defined in RFC 6585, section 5.
    pub(crate) const FIELD_LONG: Self = refusal(431, "A header field is longer than limit_request_field_size");
    pub(crate) const FIELDS_MANY: Self = refusal(431, "The request has more header fields than limit_request_fields");
    pub(super) const HEAD_LONG: Self = refusal(431, "The request head is longer than 256 KiB");
    /// The status 413 is defined in RFC 9110, section 15.5.14.
    pub(crate) const BODY_LONG: Self = refusal(413, "The request body is longer than limit_request_body");
}
