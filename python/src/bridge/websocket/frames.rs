//! The frames of a web socket (RFC 6455, section 5).
//!
//! Owns: the messages that the client's frames make, the rules that frames must keep, and the frames of the worker's
//! own messages. It does no IO. Refuses: the order in which both sides close (`connection`).

use std::io::Cursor;

use bytes::{Buf, Bytes, BytesMut};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use super::deflate::{Deflate, InflateError};

/// The longest payload of a control frame (RFC 6455, section 5.5).
const CONTROL_MAX: usize = 125;

/// The longest header of a frame.
const HEADER_MAX: usize = 14;

/// What the client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A whole message. The bytes of a text are valid UTF-8.
    Message {
        is_text: bool,
        data: Bytes,
    },
    Ping(Bytes),
    Pong(Bytes),
    /// The client closes; the code is `None` if the client gave none.
    Close(Option<u16>, String),
}

/// Why the worker must close, as a code of RFC 6455, section 7.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

const fn violation(code: CloseCode, reason: &'static str) -> Violation {
    let code = match code {
        CloseCode::Invalid => 1007,
        CloseCode::Size => 1009,
        _ => 1002,
    };
    Violation { code, reason }
}

/// Reads the frames of a client.
pub(super) struct Decoder {
    max_size: usize,
    header: Option<(FrameHeader, usize)>,
    message: Option<Unfinished>,
}

/// A message whose last frame has not come.
struct Unfinished {
    is_text: bool,
    is_compressed: bool,
    data: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(max_size: usize) -> Self {
        Self { max_size, header: None, message: None }
    }

    /// Takes the next message or control frame out of `input`; `None` if it has not come whole.
    ///
    /// # Errors
    /// The client breaks a rule, so the web socket must be closed.
    pub(super) fn next(
        &mut self,
        input: &mut BytesMut,
        deflate: Option<&mut Deflate>,
    ) -> Result<Option<Received>, Violation> {
        let can_inflate = deflate.is_some();
        loop {
            let (header, length) = match self.header.take() {
                Some(known) => known,
                None => match self.read_header(input, can_inflate)? {
                    Some(header) => header,
                    None => return Ok(None),
                },
            };
            if input.len() < length {
                input.reserve(length - input.len());
                self.header = Some((header, length));
                return Ok(None);
            }
            let mut payload = input.split_to(length);
            // A frame without a mask was refused with its header.
            unmask(&mut payload, header.mask.unwrap_or_default());
            match header.opcode {
                OpCode::Control(control) => return control_frame(control, payload.freeze()).map(Some),
                OpCode::Data(data) => {
                    if self.message.is_none() && header.is_final && !header.rsv1 {
                        // Nearly every message is one frame.
                        return whole(data == Data::Text, payload.freeze()).map(Some);
                    }
                    let message = self.message.get_or_insert_with(|| Unfinished {
                        is_text: data == Data::Text,
                        is_compressed: header.rsv1,
                        data: Vec::new(),
                    });
                    message.data.extend_from_slice(&payload);
                    if !header.is_final {
                        continue;
                    }
                }
            }
            let Some(Unfinished { is_text, is_compressed, mut data }) = self.message.take() else { continue };
            if is_compressed && let Some(deflate) = deflate {
                data = deflate.decompress(data, self.max_size).map_err(|error| match error {
                    InflateError::TooLong => TOO_LONG,
                    InflateError::Malformed => violation(CloseCode::Invalid, "a compressed message cannot be read"),
                })?;
            }
            return whole(is_text, data.into()).map(Some);
        }
    }

    /// Takes the header of the next frame out of `input`, and checks it before its payload is waited for.
    fn read_header(&self, input: &mut BytesMut, can_inflate: bool) -> Result<Option<(FrameHeader, usize)>, Violation> {
        let broken = |reason| Err(violation(CloseCode::Protocol, reason));
        let mut cursor = Cursor::new(input.get(..HEADER_MAX.min(input.len())).unwrap_or_default());
        let Ok(parsed) = FrameHeader::parse(&mut cursor) else { return broken("an unknown opcode") };
        let Some((header, length)) = parsed else { return Ok(None) };
        let size = usize::try_from(cursor.position()).unwrap_or(HEADER_MAX);
        let begins = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
        if header.mask.is_none() {
            return broken("a frame without a mask");
        }
        if header.rsv2 || header.rsv3 || header.rsv1 && !(begins && can_inflate) {
            return broken("a reserved bit is set");
        }
        let Ok(length) = usize::try_from(length) else { return Err(TOO_LONG) };
        if let OpCode::Control(_) = header.opcode {
            if !header.is_final || length > CONTROL_MAX {
                return broken("a control frame is in pieces or too long");
            }
        } else {
            if begins == self.message.is_some() {
                return broken("a message begins inside another one, or goes on that did not begin");
            }
            let before = self.message.as_ref().map_or(0, |message| message.data.len());
            if length.saturating_add(before) > self.max_size {
                return Err(TOO_LONG);
            }
        }
        input.advance(size);
        Ok(Some((header, length)))
    }
}

const TOO_LONG: Violation = violation(CloseCode::Size, "a message is longer than python.ws_max_size");

fn whole(is_text: bool, data: Bytes) -> Result<Received, Violation> {
    if is_text && std::str::from_utf8(&data).is_err() {
        return Err(violation(CloseCode::Invalid, "a text is not UTF-8"));
    }
    Ok(Received::Message { is_text, data })
}

fn control_frame(control: Control, mut payload: Bytes) -> Result<Received, Violation> {
    match control {
        Control::Ping => Ok(Received::Ping(payload)),
        Control::Pong | Control::Reserved(_) => Ok(Received::Pong(payload)),
        Control::Close if payload.is_empty() => Ok(Received::Close(None, String::new())),
        Control::Close if payload.len() == 1 => Err(violation(CloseCode::Protocol, "a close frame of one byte")),
        Control::Close => {
            let code = payload.get_u16();
            if !CloseCode::from(code).is_allowed() {
                return Err(violation(CloseCode::Protocol, "the code of a close frame is not allowed"));
            }
            let reason = std::str::from_utf8(&payload);
            let reason =
                reason.map_err(|_| violation(CloseCode::Invalid, "the reason of a close frame is not UTF-8"))?;
            Ok(Received::Close(Some(code), reason.to_owned()))
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(word) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
        }
    }
    chunks.into_remainder().iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

/// Appends a frame of the worker, which has no mask.
pub(super) fn encode(out: &mut BytesMut, opcode: OpCode, is_compressed: bool, payload: &[u8]) {
    let header = FrameHeader { opcode, rsv1: is_compressed, ..FrameHeader::default() };
    let mut head = [0; HEADER_MAX];
    let mut cursor = Cursor::new(&mut head[..]);
    // A header always fits into its longest length.
    _ = header.format(payload.len() as u64, &mut cursor);
    let length = usize::try_from(cursor.position()).unwrap_or(HEADER_MAX);
    out.reserve(length + payload.len());
    out.extend_from_slice(head.get(..length).unwrap_or_default());
    out.extend_from_slice(payload);
}

/// Appends a close frame.
pub(super) fn encode_close(out: &mut BytesMut, code: Option<u16>, reason: &str) {
    let mut payload = Vec::with_capacity(2 + reason.len());
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    encode(out, OpCode::Control(Control::Close), false, &payload);
}

/// Returns true if a close frame can carry this code and reason.
pub(super) fn is_closing(code: u16, reason: &str) -> bool {
    CloseCode::from(code).is_allowed() && reason.len() <= CONTROL_MAX - 2
}
