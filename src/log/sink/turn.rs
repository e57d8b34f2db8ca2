//! Lets processes take turns at writing to an output that may take only a part of a line.
//!
//! Owns: for each file, one word of shared memory that names the process whose line is half written. Refuses: to wait
//! for a reader. A process that has begun a line and cannot end it now keeps the turn until it has ended the line, or
//! until it dies.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::sys::{process, shm::Mapping};

/// The number of words, which is larger than the number of log files of a service. If two files share a word, the
/// writers of one file only wait for the writers of the other.
const WORDS: usize = 61;

/// The writers of a process that are not its logs: standard output and standard error of the app.
pub(super) const STDOUT: &str = "stdout";
pub(super) const STDERR: &str = "stderr";

/// The writers of one process. The number of a writer is its place in this list.
const WRITERS: [&str; 4] = ["log.file", "log.access", STDOUT, STDERR];
const WRITER_BITS: u32 = 2;

/// The bit of a shared word that is set if the process that the word names has written only the beginning of a line.
const TORN: u64 = 1 << 63;

/// How many times a process reads the shared word again while another process writes. The write of that process does
/// not block, so it ends within a few milliseconds.
const TRIES: u32 = 2_000;
/// The same for a writer that can wait.
const TRIES_OF_A_WAITER: u32 = 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// The word of the file. `None` if there is no shared memory; then processes do not take turns.
    word: Option<&'static AtomicU64>,
    /// Says which of the [`WRITERS`] of a process this is.
    writer: u64,
}

/// Says how the output ends before the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Whole,
    /// The output may end with half a line, because the process that wrote it has died or has given up the rest.
    Torn,
}

/// The memory with the words. The master makes it before the first fork, so that the workers share it. In an upgrade,
/// the new program makes memory of its own.
static SHARED: OnceLock<Option<Mapping>> = OnceLock::new();

impl Turn {
    pub(super) fn of(file: &File, key: &str) -> Self {
        let words = SHARED.get_or_init(|| Mapping::create(WORDS).ok()).as_ref().map(Mapping::words);
        let of_file = file.metadata().map_or(0, |found| found.dev().wrapping_mul(31).wrapping_add(found.ino()));
        let word = words.and_then(|words| words.get(usize::try_from(of_file % WORDS as u64).unwrap_or(0)));
        Self { word, writer: WRITERS.iter().position(|writer| *writer == key).unwrap_or(0) as u64 }
    }

    /// Returns the value that the word has while this writer of this process has the turn. It is computed each time,
    /// because the pid changes with a fork.
    fn me(&self) -> u64 {
        u64::from(std::process::id()) << WRITER_BITS | self.writer
    }

    /// Takes the turn, and returns how the output ends. The result is `None` if another process has the turn. If `hold`
    /// is true, no other process gets the turn until this process gives it back. For files `hold` is false: the caller
    /// may write, but a free turn stays free. Half a line is rare in a file, and if writers had to take turns, a slow
    /// disk would delay all of them. `resumes` is true if the rest of this log's own line is written next.
    pub(super) fn take(&self, hold: bool, resumes: bool) -> Option<Before> {
        self.try_to_take(TRIES, hold, resumes)
    }

    /// Takes the turn as [`take`](Self::take) does with `hold`, for a writer that waits and asks again if the result is
    /// `None`.
    pub(super) fn ask(&self, resumes: bool) -> Option<Before> {
        self.try_to_take(TRIES_OF_A_WAITER, true, resumes)
    }

    fn try_to_take(&self, tries: u32, hold: bool, resumes: bool) -> Option<Before> {
        let (Some(word), me) = (self.word, self.me()) else { return Some(Before::Whole) };
        for _ in 0..tries {
            let found = word.load(Ordering::Relaxed);
            if found == 0 && !hold {
                return Some(Before::Whole);
            }
            if found & !TORN == me {
                return Some(if found == me || resumes { Before::Whole } else { Before::Torn });
            }
            let take = || word.compare_exchange(found, me, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if found == 0 {
                if take() {
                    return Some(Before::Whole);
                }
            } else if !process::exists((found & !TORN) >> WRITER_BITS) {
                if take() {
                    return Some(Before::Torn);
                }
            } else if found & TORN != 0 {
                return None;
            }
            thread::yield_now();
        }
        None
    }

    /// Gives the turn back. If `torn` is true, the process keeps the turn instead, because it still has to write the
    /// end of its line.
    pub(super) fn give_back(&self, torn: bool) {
        let (Some(word), me) = (self.word, self.me()) else { return };
        let found = word.load(Ordering::Relaxed);
        if torn && (found == 0 || found & !TORN == me) {
            word.store(me | TORN, Ordering::Release);
        } else if found & !TORN == me {
            word.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_begun_a_line_keeps_the_turn_until_it_ends_or_dies() {
        let file = tempfile::tempfile().unwrap();
        let (first, second) = (Turn::of(&file, "log.file"), Turn::of(&file, "log.access"));
        assert_eq!(first.take(true, false), Some(Before::Whole));
        assert_eq!(second.take(true, false), None, "another log holds the turn");
        first.give_back(true);
        assert_eq!(
            (second.take(false, false), first.take(true, true)),
            (None, Some(Before::Whole)),
            "half a line is out"
        );
        assert_eq!(first.take(true, false), Some(Before::Torn), "its rest was given up");
        first.give_back(false);
        assert_eq!(second.take(true, false), Some(Before::Whole));
        second.give_back(false);

        let mut child = std::process::Command::new("true").spawn().unwrap();
        first.word.unwrap().store(u64::from(child.id()) << WRITER_BITS | TORN, Ordering::Relaxed);
        child.wait().unwrap();
        assert_eq!(second.take(true, false), Some(Before::Torn), "its process is gone");
        second.give_back(false);
    }
}
