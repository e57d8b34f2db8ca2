//! Checks a request of HTTP/2 for the faults that h2 does not look for. With HTTP/1 the scanner looks for these faults.
//!
//! Owns: the checks of the limits, of `Host` beside `:authority`, and of `Expect`. These checks do no IO and read no
//! clock. Refuses: frames and header blocks, which h2 judges, and responses (`connection::exchange`).

use http::{
    Request,
    header::{CONTENT_LENGTH, EXPECT, HOST},
};

use super::Refusal;
use crate::settings::Http;

/// Looks for the faults of a request that h2 does not look for. Returns the first fault, or `None` if there is none.
pub(crate) fn http2_fault<B>(request: &Request<B>, http: &Http) -> Option<Refusal> {
    let headers = request.headers();
    let over = |size: usize, limit: usize| limit > 0 && size > limit;
    let mut hosts = headers.get_all(HOST).iter();
    let (host, authority) = (hosts.next(), request.uri().authority());
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if hosts.next().is_some() {
        Some(Refusal::HOST_REPEATED)
    } else if host.is_none() && authority.is_none() {
        Some(Refusal::NO_HOST)
    } else if host
        .zip(authority)
        .is_some_and(|(host, named)| !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()))
    {
        // A `Host` that differs from `:authority` makes a request malformed (RFC 9113, section 8.3.1).
        Some(Refusal::HOST_DIFFERS)
    } else if over(target, http.limit_request_line) {
        Some(Refusal::LINE_LONG)
    } else if over(headers.len(), http.limit_request_fields) {
        Some(Refusal::FIELDS_MANY)
    } else if headers
        .iter()
        .any(|(name, value)| over(name.as_str().len() + 2 + value.len(), http.limit_request_field_size))
    {
        Some(Refusal::FIELD_LONG)
    } else if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        Some(Refusal::EXPECT)
    } else if http.limit_request_body > 0 && length.is_some_and(|length: u64| length > http.limit_request_body) {
        Some(Refusal::BODY_LONG)
    } else {
        None
    }
}
