//! Reads the frames of HTTP/2 as they pass (RFC 9113, section 4).
//!
//! Owns: the search for the beginnings and ends of frames, however the bytes are split; the meaning of the frames that
//! concern the end of a connection; and the frames that we send ourselves. Refuses: IO, clocks, the content of header
//! blocks, and the check whether a frame is valid, which h2 makes.

use std::borrow::Cow;

const HEAD: usize = 9;

/// The longest payload of a frame that h2 accepts. A longer frame is passed on unread, and h2 ends the connection with
/// an error.
const LENGTH_MAX: usize = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// The error code CANCEL of RST_STREAM: the sender no longer needs the stream (RFC 9113, section 7).
const CANCEL: u32 = 8;

pub(super) type Payload = [u8; 8];

/// A frame that has passed, with the data that this program needs. A header block that comes in several frames is
/// reported once, when its last frame has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum H2Frame {
    Headers { stream: u32, ends: bool },
    Data { stream: u32, length: u32, ends: bool },
    Reset { stream: u32 },
    InitialWindow { size: u32 },
    Ping { ack: bool, payload: Payload },
    WindowUpdate { stream: u32, by: u32 },
    Other,
}

/// A piece of the bytes that pass, and the frame that ends with this piece, if one does. A frame that may be hidden
/// from h2 comes whole, in one piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) frame: Option<H2Frame>,
}

#[derive(Clone, Copy, Debug)]
struct H2FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl H2FrameHeader {
    fn of(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Self { length, kind, flags, stream: number(&stream) & 0x7fff_ffff })
    }

    /// Returns true if the reader keeps the bytes of the frame until all its payload has come, and then passes the
    /// frame on in one piece.
    fn comes_whole(&self) -> bool {
        matches!(self.kind, RST_STREAM | SETTINGS | PING | WINDOW_UPDATE) && self.length <= LENGTH_MAX
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Returns the first four bytes as a big-endian number; 0 if there are fewer.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Reads the frames of one direction of one connection.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    /// The bytes that have arrived of an incomplete frame head, or of an incomplete frame that is returned in one
    /// piece.
    partial: Vec<u8>,
    /// The frame that is passing in several pieces, and how many of its bytes are missing.
    passing: Option<(H2FrameHeader, usize)>,
    /// The stream whose header block is not complete yet, and whether that block ends the stream.
    block: Option<(u32, bool)>,
}

impl FrameReader {
    /// Takes the next piece off the bytes, or returns `None` if all bytes are taken. The bytes of an incomplete frame
    /// head or frame are kept, and come in one piece with the bytes that complete them.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        if let Some((head, left)) = self.passing {
            let now = take(bytes, left)?;
            let left = left - now.len();
            self.passing = (left > 0).then_some((head, left));
            let frame = (left == 0).then(|| self.ended(head, &[]));
            return Some(Piece { bytes: now.into(), frame });
        }
        loop {
            let seen = if self.partial.is_empty() { *bytes } else { &self.partial };
            let head = H2FrameHeader::of(seen);
            let size = HEAD + head.filter(H2FrameHeader::comes_whole).map_or(0, |head| head.length);
            if let Some(head) = head
                && seen.len() >= size
            {
                let unit = match std::mem::take(&mut self.partial) {
                    partial if partial.is_empty() => take(bytes, size)?.into(),
                    partial => Cow::from(partial),
                };
                let left = HEAD + head.length - size;
                self.passing = (left > 0).then_some((head, left));
                let frame = (left == 0).then(|| self.ended(head, unit.get(HEAD..).unwrap_or_default()));
                return Some(Piece { bytes: unit, frame });
            }
            let more = take(bytes, size - self.partial.len())?;
            self.partial.extend_from_slice(more);
        }
    }

    /// Returns true if another frame can be inserted now: the last frame has passed completely, and no header block is
    /// incomplete.
    pub(super) fn is_between(&self) -> bool {
        self.partial.is_empty() && self.passing.is_none() && self.block.is_none()
    }

    fn ended(&mut self, head: H2FrameHeader, payload: &[u8]) -> H2Frame {
        let H2FrameHeader { stream, length, .. } = head;
        match head.kind {
            DATA => H2Frame::Data { stream, length: length as u32, ends: head.has(END_STREAM) },
            HEADERS => self.block_goes_on(head, (stream, head.has(END_STREAM))),
            CONTINUATION => match self.block {
                Some(begun) => self.block_goes_on(head, begun),
                None => H2Frame::Other,
            },
            RST_STREAM if length == 4 => H2Frame::Reset { stream },
            WINDOW_UPDATE if length == 4 => H2Frame::WindowUpdate { stream, by: number(payload) & 0x7fff_ffff },
            PING => payload
                .first_chunk()
                .map_or(H2Frame::Other, |payload| H2Frame::Ping { ack: head.has(ACK), payload: *payload }),
            SETTINGS => {
                let (settings, _) = payload.as_chunks::<6>();
                let size = settings.iter().rfind(|[a, b, ..]| u16::from_be_bytes([*a, *b]) == INITIAL_WINDOW_SIZE);
                size.map_or(H2Frame::Other, |[_, _, size @ ..]| H2Frame::InitialWindow { size: number(size) })
            }
            _ => H2Frame::Other,
        }
    }

    fn block_goes_on(&mut self, head: H2FrameHeader, (stream, ends): (u32, bool)) -> H2Frame {
        if head.has(END_HEADERS) {
            self.block = None;
            H2Frame::Headers { stream, ends }
        } else {
            self.block = Some((stream, ends));
            H2Frame::Other
        }
    }
}

/// Takes at most `most` bytes off the front, or returns `None` if `bytes` is empty.
fn take<'a>(bytes: &mut &'a [u8], most: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
    *bytes = rest;
    (!first.is_empty()).then_some(first)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns a GOAWAY frame without an error. `last` is the number of the last stream that is served; later streams are
/// ignored.
pub(super) fn goaway(last: u32) -> Vec<u8> {
    const NO_ERROR: u32 = 0;
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat())
}

pub(super) fn ping(ack: bool, payload: Payload) -> Vec<u8> {
    frame(PING, if ack { ACK } else { 0 }, 0, &payload)
}

pub(super) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` in pieces of `size` bytes, and asserts that the reader passes all of them on unchanged.
    fn read(bytes: &[u8], size: usize) -> (Vec<H2Frame>, FrameReader) {
        let (mut frames, mut seen, mut passed) = (FrameReader::default(), Vec::new(), Vec::new());
        for mut chunk in bytes.chunks(size) {
            while let Some(piece) = frames.next(&mut chunk) {
                passed.extend_from_slice(&piece.bytes);
                seen.extend(piece.frame);
            }
        }
        assert_eq!(passed, bytes[..bytes.len() - frames.partial.len()]);
        (seen, frames)
    }

    #[test]
    fn however_the_bytes_are_split_the_frames_are_the_same() {
        let settings = [[0, 3, 0, 0, 0, 100], [0, 4, 0, 1, 0, 0]].concat();
        let bytes = [
            frame(SETTINGS, 0, 0, &settings),
            frame(SETTINGS, ACK, 0, &[]),
            frame(HEADERS, END_STREAM, 1, b"half"),
            frame(CONTINUATION, 0, 1, b"and"),
            frame(CONTINUATION, END_HEADERS, 1, b"half"),
            frame(HEADERS, END_HEADERS, 3, b"whole"),
            frame(DATA, 0, 3, &[7; 300]),
            frame(DATA, END_STREAM, 3, &[]),
            frame(WINDOW_UPDATE, 0, 5, &70_000_u32.to_be_bytes()),
            cancel(5),
            ping(true, *b"payloads"),
            goaway(7),
            frame(99, 255, 9, b"unknown"),
        ]
        .concat();
        let expected = [
            H2Frame::InitialWindow { size: 65_536 },
            H2Frame::Other,
            H2Frame::Other,
            H2Frame::Other,
            H2Frame::Headers { stream: 1, ends: true },
            H2Frame::Headers { stream: 3, ends: false },
            H2Frame::Data { stream: 3, length: 300, ends: false },
            H2Frame::Data { stream: 3, length: 0, ends: true },
            H2Frame::WindowUpdate { stream: 5, by: 70_000 },
            H2Frame::Reset { stream: 5 },
            H2Frame::Ping { ack: true, payload: *b"payloads" },
            H2Frame::Other,
            H2Frame::Other,
        ];
        for size in 1..=bytes.len() {
            let (seen, frames) = read(&bytes, size);
            assert_eq!(seen, expected, "in pieces of {size}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn no_frame_can_be_put_into_another_or_into_a_header_block() {
        let whole = [frame(HEADERS, 0, 1, b"half"), frame(CONTINUATION, END_HEADERS, 1, b"half")].concat();
        for length in 0..=whole.len() {
            let (_, frames) = read(&whole[..length], 5);
            assert_eq!(frames.is_between(), length == 0 || length == whole.len(), "after {length} bytes");
        }
    }

    #[test]
    fn a_frame_that_may_be_withheld_comes_in_one_piece() {
        let bytes = ping(false, *b"12345678");
        let mut frames = FrameReader::default();
        let (mut first, mut second) = bytes.split_at(12);
        assert_eq!(frames.next(&mut first), None);
        let piece = frames.next(&mut second).expect("whole");
        assert_eq!((&*piece.bytes, piece.frame.is_some()), (&*bytes, true));
    }

    #[test]
    fn frames_of_a_wrong_length_have_no_effect() {
        let bytes = [
            frame(PING, 0, 0, b"short"),
            frame(RST_STREAM, 0, 1, b"toolong"),
            frame(WINDOW_UPDATE, 0, 1, b""),
            frame(CONTINUATION, END_HEADERS, 1, b""),
            frame(SETTINGS, 0, 0, &vec![0; LENGTH_MAX + 6]),
        ]
        .concat();
        assert_eq!(read(&bytes, 4_000).0, [H2Frame::Other; 5]);
    }
}
