//! Reads the framing of a body in chunks.
//!
//! Owns: the framing of RFC 9112, section 7.1, with its extensions and its trailer. Refuses: the content of the body.

use super::{Refusal, SizeLimits, class, lines::LineScanner, request_head::split_field};

/// The most bytes of chunk extensions in one body. hyper refuses a body with 16 KiB of extensions, so the limit is one
/// byte less.
const EXTENSIONS_MAX: usize = 16 * 1024 - 1;

/// The most hexadecimal digits of a chunk's size. A number of 64 bits has this many.
const DIGITS_MAX: usize = 16;

/// Fields that a trailer must not have. They frame, route, authenticate or describe a message, so a reader needs them
/// before the body (RFC 9110, section 6.5.1).
const NOT_IN_TRAILERS: [&str; 27] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "expires",
    "forwarded",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "max-forwards",
    "pragma",
    "proxy-authorization",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
];

/// The state of reading a chunked body.
#[derive(Debug)]
pub(super) struct ChunkedBody {
    part: ChunkPart,
    line: LineScanner,
    /// The sum of the sizes of all chunks so far.
    content: u64,
    /// The number of bytes in all extensions so far.
    extensions: usize,
    /// The number of fields in the head and in the trailer so far.
    fields: u32,
}

#[derive(Clone, Copy, Debug)]
enum ChunkPart {
    Size,
    /// The data of a chunk. The number says how many bytes of the data are still to come.
    Data(u64),
    DataEnd,
    Trailer,
}

impl ChunkedBody {
    pub(super) fn new(fields: u32) -> Self {
        Self { part: ChunkPart::Size, line: LineScanner::default(), content: 0, extensions: 0, fields }
    }

    /// Returns how many of the next bytes are data of a chunk; `None` if a line comes next.
    pub(super) fn chunk_left(&self) -> Option<u64> {
        match self.part {
            ChunkPart::Data(left) => Some(left),
            ChunkPart::Size | ChunkPart::DataEnd | ChunkPart::Trailer => None,
        }
    }

    pub(super) fn skip(&mut self, bytes: u64) {
        if let ChunkPart::Data(left) = self.part {
            self.part = if bytes < left { ChunkPart::Data(left - bytes) } else { ChunkPart::DataEnd };
        }
    }

    /// Verifies the next line or the next piece of data. Returns the length of this line or piece, or 0 if more bytes
    /// are needed. The second value is true if the body has ended with this line or piece.
    pub(super) fn scan(&mut self, bytes: &[u8], limits: &SizeLimits) -> Result<(usize, bool), Refusal> {
        let (limit, too_long) = match self.part {
            ChunkPart::Data(left) => {
                let verified = left.min(bytes.len() as u64);
                self.skip(verified);
                return Ok((verified as usize, false));
            }
            ChunkPart::Size => (DIGITS_MAX + EXTENSIONS_MAX - self.extensions, Refusal::CHUNK_EXTENSIONS_LONG),
            ChunkPart::DataEnd => (0, Refusal::CHUNK_END),
            ChunkPart::Trailer => {
                let is_field = bytes.first().is_some_and(|&first| first != b'\r');
                if is_field && self.fields as usize >= limits.fields {
                    return Err(Refusal::FIELDS_MANY);
                }
                (limits.field_size, Refusal::FIELD_LONG)
            }
        };
        let line = self.line.next(bytes, limit).map_err(|error| error.refusal(too_long))?;
        let Some(line) = line else { return Ok((0, false)) };
        // Each line passes by itself, so the caller next offers bytes that begin with the next line.
        let verified = std::mem::take(&mut self.line).begin();
        let line = &bytes[line];
        match self.part {
            ChunkPart::Size => self.read_size(line, limits)?,
            ChunkPart::Trailer if line.is_empty() => return Ok((verified, true)),
            ChunkPart::Trailer => self.read_trailer(line)?,
            ChunkPart::DataEnd | ChunkPart::Data(_) => self.part = ChunkPart::Size,
        }
        Ok((verified, false))
    }

    fn read_size(&mut self, line: &[u8], limits: &SizeLimits) -> Result<(), Refusal> {
        let end = line.iter().position(|sign| !sign.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extensions) = line.split_at(end);
        if !(1..=DIGITS_MAX).contains(&digits.len()) {
            return Err(Refusal::CHUNK_SIZE);
        }
        let value = |digit: &u8| u64::from((*digit as char).to_digit(16).unwrap_or_default());
        let size = digits.iter().fold(0, |size, digit| size << 4 | value(digit));
        self.extensions += extensions.len();
        if self.extensions > EXTENSIONS_MAX {
            return Err(Refusal::CHUNK_EXTENSIONS_LONG);
        }
        check_extensions(extensions)?;
        self.content = self.content.saturating_add(size);
        if self.content > limits.body {
            return Err(Refusal::BODY_LONG);
        }
        self.part = if size == 0 { ChunkPart::Trailer } else { ChunkPart::Data(size) };
        Ok(())
    }

    fn read_trailer(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.fields = self.fields.saturating_add(1);
        let (name, _) = split_field(line)?;
        if NOT_IN_TRAILERS.iter().any(|not| name.eq_ignore_ascii_case(not.as_bytes())) {
            return Err(Refusal::TRAILER);
        }
        Ok(())
    }
}

/// Checks the extensions of a chunk (RFC 9112, section 7.1.1): `*( BWS ";" BWS name [ BWS "=" BWS ( token /
/// quoted-string ) ] )`.
fn check_extensions(mut rest: &[u8]) -> Result<(), Refusal> {
    while !rest.is_empty() {
        let [b';', extension @ ..] = class::trim_start(rest) else { return Err(Refusal::CHUNK_EXTENSION) };
        rest = word(class::trim_start(extension)).ok_or(Refusal::CHUNK_EXTENSION)?;
        if let [b'=', value @ ..] = class::trim_start(rest) {
            let value = class::trim_start(value);
            rest = quoted(value).or_else(|| word(value)).ok_or(Refusal::CHUNK_EXTENSION)?;
        }
    }
    Ok(())
}

/// Returns the bytes behind the token at the front, or `None` if no token is there.
fn word(bytes: &[u8]) -> Option<&[u8]> {
    let length = class::run(bytes, class::TOKEN);
    (length > 0).then(|| &bytes[length..])
}

/// Returns the bytes behind the quoted string at the front (RFC 9110, section 5.6.4), or `None` if none is there.
fn quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', _, rest @ ..] | [_, rest @ ..] => rest,
            [] => return None,
        };
    }
}
