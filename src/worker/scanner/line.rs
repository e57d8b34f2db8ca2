//! Lines that arrive in pieces.
//!
//! Owns: where a line ends, and that nothing but its CRLF controls it. Refuses: what it says.

use std::ops::Range;

use super::{Refusal, class};

/// A place in bytes that are offered again and again, each time with more behind them.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Where the line under way begins.
    begin: u32,
    /// Up to here nothing controls it.
    seen: u32,
}

impl Line {
    /// The next line without its CRLF, or `None` while it is incomplete. One of more than `limit` bytes is `too_long`,
    /// as soon as that is certain.
    #[inline]
    pub(super) fn next(
        &mut self,
        bytes: &[u8],
        limit: usize,
        too_long: Refusal,
    ) -> Result<Option<Range<usize>>, Refusal> {
        let (begin, seen) = (self.begin as usize, self.seen as usize);
        // Here its CR must stand at the latest.
        let last = begin + limit;
        let visible = bytes.get(seen..bytes.len().min(last + 1)).unwrap_or_default();
        let Some(found) = class::first_control(visible) else {
            self.seen = (seen + visible.len()) as u32;
            return if bytes.len() > last { Err(too_long) } else { Ok(None) };
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
            [b'\r', ..] => Err(Refusal::BARE_CR),
            [b'\n', ..] => Err(Refusal::BARE_LF),
            _ => Err(Refusal::CONTROL),
        }
    }

    /// Where the line under way begins: behind all that were returned.
    pub(super) fn begin(&self) -> usize {
        self.begin as usize
    }

    pub(super) fn has_begun(&self) -> bool {
        self.seen > self.begin
    }
}
