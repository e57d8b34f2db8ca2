//! The handshake of a web socket.
//!
//! Owns: which requests ask for a web socket, the check of the client's part (RFC 6455, section 4.2.1; RFC 8441 for
//! HTTP/2), and the head of the answer that accepts. Refuses: the choice of a subprotocol, which is the app's, and the
//! parameters of the compression (`deflate`).

use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    request::Parts,
};
use hyper::ext::Protocol;
use tungstenite::handshake::derive_accept_key;

use super::deflate::Offer;
use crate::bridge::exchange::Head;

/// The one version of the protocol that exists (RFC 6455).
const VERSION: &str = "13";

/// What is wrong with the client's part of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client speaks another version.
    Version,
    /// The key is not the Base64 of 16 bytes.
    Key,
}

/// Returns true if a request asks for a web socket. A request of HTTP/1.1 that has a body does not: the bytes of the
/// body would be taken for frames.
pub(in crate::bridge) fn asks_for_web_socket(request: &Parts) -> bool {
    if request.version >= Version::HTTP_2 {
        return request.method == Method::CONNECT
            && request.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    }
    request.version == Version::HTTP_11
        && request.method == Method::GET
        && has_word(&request.headers, UPGRADE, "websocket")
        && has_word(&request.headers, CONNECTION, "upgrade")
}

/// Checks the client's part of a handshake.
pub(super) fn check(request: &Parts) -> Result<(), Refusal> {
    if request.headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(Refusal::Version);
    }
    let is_key = |key: &HeaderValue| {
        let key = key.as_bytes();
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        key.len() == 24 && key.ends_with(b"==") && key.iter().take(22).all(is_digit)
    };
    // The stream of HTTP/2 needs no key: it is a web socket by its pseudo-header.
    if request.version < Version::HTTP_2 && !request.headers.get(SEC_WEBSOCKET_KEY).is_some_and(is_key) {
        return Err(Refusal::Key);
    }
    Ok(())
}

/// Returns the subprotocols that the client offers, in its order.
pub(in crate::bridge) fn subprotocols(headers: &HeaderMap) -> Vec<String> {
    words(headers, SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect()
}

/// Completes the head of the answer that accepts.
pub(super) fn accept(head: &mut Head, request: &Parts, subprotocol: Option<HeaderValue>, deflate: Option<&Offer>) {
    let headers = &mut head.headers;
    if request.version < Version::HTTP_2 {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let key = request.headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        // The key is Base64, so it is always a valid value.
        if let Some(key) = key.and_then(|key| HeaderValue::from_str(&key).ok()) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, key);
        }
    }
    if let Some(subprotocol) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    // The worker alone knows which extensions it speaks.
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    if let Some(deflate) = deflate {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, deflate.answer());
    }
}

/// Returns the answer to a handshake that cannot be accepted.
pub(super) fn refuse(refusal: Refusal) -> (Head, &'static str) {
    let mut headers = HeaderMap::new();
    let (status, text) = match refusal {
        Refusal::Version => {
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
            (StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13")
        }
        Refusal::Key => (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be the Base64 of 16 bytes"),
    };
    (Head { status, headers, ..Head::default() }, text)
}

fn has_word(headers: &HeaderMap, name: http::HeaderName, wanted: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted))
}

/// Returns the words of a list in the headers, which can be split over several headers.
fn words(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}
