//! Finds the lines of a head or of a chunked body, which may arrive in pieces.
//!
//! Owns: the search for the end of a line, and the refusal of control characters in a line, except the CRLF at its end.
//! Refuses: the meaning of a line.

use std::ops::Range;

use super::{Refusal, class};

/// Finds lines in bytes that arrive in pieces. The caller offers the same bytes again, each time with more bytes behind
/// them, and the scanner remembers how far it has looked.
#[derive(Debug, Default)]
pub(super) struct LineScanner {
    /// The index of the first byte of the present line.
    begin: u32,
    /// The index before which the present line is known to hold no control character.
    seen: u32,
}

/// Why the bytes are not a valid line.
#[derive(Clone, Copy, Debug)]
pub(super) enum LineError {
    TooLong,
    BareCr,
    BareLf,
    Control,
}

impl LineError {
    pub(super) fn refusal(self, too_long: Refusal) -> Refusal {
        match self {
            Self::TooLong => too_long,
            Self::BareCr => Refusal::BARE_CR,
            Self::BareLf => Refusal::BARE_LF,
            Self::Control => Refusal::CONTROL,
        }
    }
}

impl LineScanner {
    /// Returns the range of the next line without its CRLF, or `None` while it is incomplete. A line that has more than
    /// `limit` bytes is an error, even before its end has come.
    // This function makes most of the cost of scanning a head, so it should be inlined. It has two callers, so the
    // compiler would not inline it by itself.
    #[inline(always)]
    pub(super) fn next(&mut self, bytes: &[u8], limit: usize) -> Result<Option<Range<usize>>, LineError> {
        let (begin, seen) = (self.begin as usize, self.seen as usize);
        // The last index at which the CR of this line may be.
        let last = begin + limit;
        let visible = bytes.get(seen..bytes.len().min(last + 1)).unwrap_or_default();
        let Some(found) = class::first_control(visible) else {
            self.seen = (seen + visible.len()) as u32;
            return if bytes.len() > last { Err(LineError::TooLong) } else { Ok(None) };
        };
        let end = seen + found;
        match &bytes[end..] {
            [b'\r', b'\n', ..] => {
                self.begin = end as u32 + 2;
                self.seen = self.begin;
                Ok(Some(begin..end))
            }
            [b'\r'] => {
                self.seen = end as u32;
                Ok(None)
            }
            [b'\r', ..] => Err(LineError::BareCr),
            [b'\n', ..] => Err(LineError::BareLf),
            _ => Err(LineError::Control),
        }
    }

    /// Returns the index at which the present line begins, which is behind all lines that were returned.
    pub(super) fn begin(&self) -> usize {
        self.begin as usize
    }

    pub(super) fn has_begun(&self) -> bool {
        self.seen > self.begin
    }
}
