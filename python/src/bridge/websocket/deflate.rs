//! The compression of messages, `permessage-deflate` (RFC 7692).
//!
//! Owns: the choice among the client's offers, and the compressed form of one message. Refuses: frames (`frames`).

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};

/// The largest window of the worker's own compression, in bits. It takes some 150 KiB for each web socket that sends a
/// compressed message; with 15 bits it would be 270 KiB. The library `websockets` uses 12 as well.
const WINDOW_BITS: u8 = 12;

/// The smallest window that zlib has for data without its own header.
const LEAST_WINDOW_BITS: u8 = 9;

/// A shorter message is sent as it is, because it gains little and costs as much as a larger one.
const LEAST: usize = 64;

/// Every compressed message ends with these bytes, which are not sent (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// What the client and the worker have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    window_bits: u8,
    /// Each message of the worker is compressed for itself.
    server_forgets: bool,
    /// Each message of the client is compressed for itself.
    client_forgets: bool,
}

impl Offer {
    /// Returns the first of the client's offers that the worker can accept; `None` if there is none.
    pub(super) fn choose(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).find_map(Self::parse)
    }

    /// Reads one offer. An unknown parameter or a value that is not allowed means that the offer must be declined.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut offer = Self { window_bits: WINDOW_BITS, server_forgets: false, client_forgets: false };
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(value.trim().trim_matches('"'))),
                None => (part, None),
            };
            let bits = value.map(|value| value.parse::<u8>().ok().filter(|bits| (8..=15).contains(bits)));
            match (name, bits) {
                ("server_no_context_takeover", None) => offer.server_forgets = true,
                ("client_no_context_takeover", None) => offer.client_forgets = true,
                // The worker reads any window, so it asks for none.
                ("client_max_window_bits", None | Some(Some(_))) => {}
                ("server_max_window_bits", Some(Some(bits))) if bits >= LEAST_WINDOW_BITS => {
                    offer.window_bits = bits.min(WINDOW_BITS);
                }
                _ => return None,
            }
        }
        Some(offer)
    }

    /// Returns the value of the header with which the worker accepts.
    pub(super) fn answer(&self) -> HeaderValue {
        let mut answer = format!("permessage-deflate; server_max_window_bits={}", self.window_bits);
        if self.server_forgets {
            answer.push_str("; server_no_context_takeover");
        }
        if self.client_forgets {
            answer.push_str("; client_no_context_takeover");
        }
        HeaderValue::from_str(&answer).unwrap_or_else(|_| HeaderValue::from_static("permessage-deflate"))
    }
}

/// The compression of one web socket. Each direction gets its memory with its first compressed message.
pub(super) struct Deflate {
    offer: Offer,
    compress: Option<Compress>,
    decompress: Option<Decompress>,
}

/// Why a compressed message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    /// It is longer than the limit.
    TooLong,
    Malformed,
}

impl Deflate {
    pub(super) fn new(offer: Offer) -> Self {
        Self { offer, compress: None, decompress: None }
    }

    /// Returns the compressed form of a message; `None` if the message is sent as it is.
    ///
    /// # Errors
    /// zlib failed.
    pub(super) fn compress(&mut self, message: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if message.len() < LEAST {
            return Ok(None);
        }
        let bits = self.offer.window_bits;
        let compress =
            self.compress.get_or_insert_with(|| Compress::new_with_window_bits(Compression::fast(), false, bits));
        let mut out = Vec::with_capacity(message.len() / 2 + LEAST);
        let before = compress.total_in();
        loop {
            let read = usize::try_from(compress.total_in() - before).unwrap_or(message.len());
            let rest = message.get(read..).unwrap_or_default();
            compress.compress_vec(rest, &mut out, FlushCompress::Sync)?;
            // zlib has flushed all if it did not fill the buffer.
            if out.len() < out.capacity() && compress.total_in() - before == message.len() as u64 {
                break;
            }
            out.reserve(out.capacity());
        }
        if self.offer.server_forgets {
            compress.reset();
        }
        if out.ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        Ok(Some(out))
    }

    /// Returns the message that a compressed form stands for. `limit` is the largest length of a message.
    pub(super) fn decompress(&mut self, mut compressed: Vec<u8>, limit: usize) -> Result<Vec<u8>, InflateError> {
        compressed.extend_from_slice(&TAIL);
        let decompress = self.decompress.get_or_insert_with(|| Decompress::new(false));
        let mut out = Vec::with_capacity((compressed.len() * 4).min(limit + 1));
        let before = decompress.total_in();
        loop {
            let read = usize::try_from(decompress.total_in() - before).unwrap_or(compressed.len());
            let rest = compressed.get(read..).unwrap_or_default();
            let status = decompress.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            if out.len() > limit {
                return Err(InflateError::TooLong);
            }
            match status {
                Err(_) => return Err(InflateError::Malformed),
                // A final block ends the stream. What the client sends next is a stream of its own.
                Ok(Status::StreamEnd) => {
                    decompress.reset(false);
                    break;
                }
                Ok(Status::Ok | Status::BufError) if out.len() == out.capacity() => {
                    out.reserve(out.capacity().clamp(LEAST, (limit + 1).saturating_sub(out.len()).max(LEAST)));
                }
                Ok(Status::Ok | Status::BufError) => {
                    if decompress.total_in() - before < compressed.len() as u64 {
                        return Err(InflateError::Malformed);
                    }
                    break;
                }
            }
        }
        if self.offer.client_forgets {
            decompress.reset(false);
        }
        Ok(out)
    }
}
