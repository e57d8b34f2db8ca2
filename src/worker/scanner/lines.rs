//! Lines that arrive in pieces.
//!
//! Owns: where a line ends, and that it holds no control character but its CRLF. Refuses: what it says.

use std::ops::Range;

use super::{Refusal, class};

/// A place in bytes that are offered again and again, each time with more behind them.
#[derive(Debug, Default)]
pub(super) struct LineScanner {
    /// Where the present line begins.
    begin: u32,
    /// Up to here it holds no control character.
    seen: u32,
}

/// Why it is not a line.
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
    /// Returns the next line without its CRLF, or `None` while it is incomplete. A line of more than `limit` bytes is
    /// too long, as soon as that is certain.
    #[inline(always)] // It is most of what a head costs, and with two callers it would be a call.
    pub(super) fn next(&mut self, bytes: &[u8], limit: usize) -> Result<Option<Range<usize>>, LineError> {
        let (begin, seen) = (self.begin as usize, self.seen as usize);
        // The CR must stand here at the latest.
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

    /// Where the present line begins: behind all that were returned.
    pub(super) fn begin(&self) -> usize {
        self.begin as usize
    }

    pub(super) fn has_begun(&self) -> bool {
        self.seen > self.begin
    }
}
