//! The file in memory in which a worker writes where it hangs, or where it crashed.
//!
//! Owns: the file, and the lines of the log that quote it. Refuses: to interpret what the worker has written, and to read
//! the file before the worker has ended.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
};

use super::core::{Generation, Pid, SlotId};
use crate::sys::exec;

/// How many bytes at the beginning of the file, and how many at its end, go to the log.
const BYTES: usize = 32 * 1024;
/// How many lines at the beginning of the file, and how many at its end, go to the log.
const LINES: usize = 250;

/// A file in memory that the master shares with one worker. A worker that hangs cannot send a message, but the handler of
/// a signal can still write to this file. The master reads it once the worker has ended, so it gets the text whole.
#[derive(Debug)]
pub(super) struct HangReport {
    file: File,
    /// The length of the file when the master sent SIGABRT, if the worker had written anything by then.
    end: Option<u64>,
}

/// The parts of the file that go to the log, as ranges of bytes.
#[derive(Debug, PartialEq, Eq)]
struct Excerpt {
    head: Range<u64>,
    tail: Range<u64>,
}

impl HangReport {
    /// Makes an empty file. Returns it together with a second descriptor of it, which is for the worker.
    ///
    /// # Errors
    /// The kernel's errors, such as EMFILE, ENFILE and ENOMEM.
    pub(super) fn create() -> io::Result<(Self, OwnedFd)> {
        let file = exec::memory(b"")?;
        let theirs = file.as_fd().try_clone_to_owned()?;
        Ok((Self { file, end: None }, theirs))
    }

    /// Takes the file over from the program that made it.
    ///
    /// # Errors
    /// EBADF: the descriptor was not passed.
    pub(super) fn adopt(number: RawFd) -> io::Result<Self> {
        Ok(Self { file: exec::received(number)?.into(), end: None })
    }

    /// Ends the report here if the worker has already written one. A runtime may write its stack at SIGABRT as well, and
    /// the same stack a second time would only hide the first.
    pub(super) fn ends_if_written(&mut self) {
        self.end = self.file.metadata().ok().map(|found| found.len()).filter(|len| *len > 0);
    }

    /// Logs what the worker has written, line by line. If the text is long, its middle is left out, because the thread
    /// that matters most comes first or last.
    pub(super) fn log(&self, pid: Pid, slot: SlotId, generation: Generation) {
        let say = |line: &str| {
            tracing::error!(event = "worker_stack", slot = slot.0, pid = pid.0, generation = generation.0, "{line}");
        };
        let Ok(Excerpt { head, tail }) = self.excerpt() else { return };
        for line in self.text(&head).lines().filter(|line| !line.is_empty()) {
            say(line);
        }
        let left_out = tail.start - head.end;
        if left_out > 0 {
            say(&format!("… {left_out} bytes are left out here"));
        }
        for line in self.text(&tail).lines().filter(|line| !line.is_empty()) {
            say(line);
        }
    }

    fn excerpt(&self) -> io::Result<Excerpt> {
        let len = self.file.metadata()?.len();
        let len = self.end.map_or(len, |end| end.min(len));
        let half = BYTES as u64;
        let head = begin_of(&self.read(0..len.min(half)));
        let tail = end_of(&self.read(len.saturating_sub(half)..len));
        let (head, tail) = (head as u64, len - tail as u64);
        Ok(Excerpt { head: 0..head, tail: tail.max(head)..len })
    }

    fn text(&self, range: &Range<u64>) -> String {
        String::from_utf8_lossy(&self.read(range.clone())).into_owned()
    }

    /// Reads these bytes. If the worker has made the file shorter, the result is shorter too.
    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
        let read = self.file.read_at(&mut bytes, range.start).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }
}

/// Gives the descriptor, so that the master can pass it to its next program.
impl AsFd for HangReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the length of the first [`LINES`] lines.
fn begin_of(bytes: &[u8]) -> usize {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    ends.clone().nth(LINES - 1).unwrap_or(bytes.len())
}

/// Returns the length of the last [`LINES`] lines.
fn end_of(bytes: &[u8]) -> usize {
    let last = bytes.len().saturating_sub(1);
    let begins = (0..last).rev().filter(|at| bytes[*at] == b'\n').map(|at| at + 1);
    bytes.len() - begins.take(LINES).nth(LINES - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn report(text: &[u8]) -> HangReport {
        let (report, theirs) = HangReport::create().unwrap();
        File::from(theirs).write_all(text).unwrap();
        report
    }

    /// Returns the lines that go to the log, and how many bytes are left out between them.
    fn said(report: &HangReport) -> (Vec<String>, u64) {
        let Excerpt { head, tail } = report.excerpt().unwrap();
        let text = report.text(&head) + &report.text(&tail);
        (text.lines().map(str::to_owned).collect(), tail.start - head.end)
    }

    #[test]
    fn a_short_report_is_whole() {
        assert_eq!(said(&report(b"")), (vec![], 0));
        assert_eq!(said(&report(b"one\n  two\nthree")), (vec!["one".into(), "  two".into(), "three".into()], 0));
        let lines: String = (0..2 * LINES).map(|line| format!("line {line}\n")).collect();
        let (said, left_out) = said(&report(lines.as_bytes()));
        assert_eq!((said.len(), left_out), (2 * LINES, 0));
        assert!(said.iter().enumerate().all(|(at, line)| *line == format!("line {at}")), "{said:?}");
    }

    #[test]
    fn a_long_report_keeps_its_first_and_last_lines() {
        let lines: String = (0..2 * LINES + 10).map(|line| format!("line {line}\n")).collect();
        let (kept, left_out) = said(&report(lines.as_bytes()));
        assert_eq!((kept.len(), left_out), (2 * LINES, 10 * "line 250\n".len() as u64));
        assert_eq!((&*kept[LINES - 1], &*kept[LINES]), ("line 249", "line 260"));
        assert_eq!(kept.last().unwrap(), "line 509");

        let (kept, left_out) = said(&report(&vec![b'x'; 3 * BYTES]));
        assert_eq!((kept.concat().len(), left_out), (2 * BYTES, BYTES as u64));
    }

    #[test]
    fn what_comes_after_sigabrt_counts_only_if_nothing_came_before() {
        for (before, after, expected) in [("first\n", "second\n", "first"), ("", "second\n", "second")] {
            let mut report = report(before.as_bytes());
            report.ends_if_written();
            (&report.file).write_all(after.as_bytes()).unwrap();
            assert_eq!(said(&report).0, [expected]);
        }
    }
}
