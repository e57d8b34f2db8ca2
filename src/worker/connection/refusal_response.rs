//! The responses that the worker makes itself, in place of the app.
//!
//! Owns: the reasons that do not come from the scanner, and the form of the response (its body has the form that the
//! API contract gives for errors). Refuses: the decision to refuse a request (`http1`, `exchange`).

use http::{HeaderValue, Response, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

use super::reply::ResponseBody;
use crate::{scoreboard::QUARANTINE_MS, worker::scanner::Refusal};

/// RFC 9110, section 15.5.9, defines the status 408 for a request that is not complete in time.
pub(super) const HEAD_LATE: Refusal =
    Refusal { status: 408, reason: "The request head did not arrive within header_timeout" };
pub(super) const BODY_LATE: Refusal =
    Refusal { status: 408, reason: "The request body stopped for longer than body_timeout" };
/// The client that gets this response is mostly a browser, or a proxy that is set up for plain HTTP by mistake.
pub(super) const PLAIN_HTTP: Refusal =
    Refusal { status: 400, reason: "This port speaks TLS, but the request is plain HTTP" };
pub(super) const OVERLOADED: Refusal =
    Refusal { status: 503, reason: "The server has as many requests in flight as limit_concurrency allows" };
pub(super) const QUARANTINED: Refusal =
    Refusal { status: 503, reason: "This request was in flight when workers died (http.quarantine)" };
/// The status 504 belongs to gateways (RFC 9110, section 15.6.5). It fits, because the worker stands before the app as
/// a gateway does.
pub(super) const TOO_SLOW: Refusal =
    Refusal { status: 504, reason: "The request was not answered within request_timeout" };
pub(super) const FAILED: Refusal = Refusal { status: 500, reason: "The request failed inside the server" };

pub(super) fn body(refusal: Refusal) -> String {
    let kind = match refusal.status {
        400 => "bad_request",
        408 => "request_timeout",
        413 => "payload_too_large",
        414 => "uri_too_long",
        417 => "expectation_failed",
        431 => "header_fields_too_large",
        503 => "unavailable",
        504 => "gateway_timeout",
        505 => "http_version_not_supported",
        _ => "internal_error",
    };
    serde_json::json!({ "error": refusal.reason, "type": kind, "details": [] }).to_string()
}

pub(super) fn status(refusal: Refusal) -> StatusCode {
    StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Returns the refusal as a response that hyper can send.
pub(super) fn response<B>(refusal: Refusal) -> Response<ResponseBody<B>> {
    let mut response = Response::new(ResponseBody::own(body(refusal)));
    *response.status_mut() = status(refusal);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if refusal.status == 503 {
        let seconds = if refusal == QUARANTINED { QUARANTINE_MS / 1_000 } else { 1 };
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Returns true if the request that begins with `head` is a HEAD request. The response to it has no body.
pub(super) fn is_to_head(head: &[u8]) -> bool {
    head.strip_prefix(b"\r\n").unwrap_or(head).starts_with(b"HEAD ")
}

/// Returns the bytes of a whole response, for a connection on which hyper sends nothing more. `head` holds the bytes of
/// the request that have arrived.
pub(super) fn message(refusal: Refusal, head: &[u8]) -> Vec<u8> {
    let (status, body) = (status(refusal), body(refusal));
    let sent = if is_to_head(head) { "" } else { &body };
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()).unwrap_or_default();
    format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\nDate: {date}\r\n\r\n{sent}",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        body.len()
    )
    .into_bytes()
}
