//! Standard output and standard error as an app writes to them, beside the log and the apps of the other workers.
//!
//! Owns: a write that stays in one piece, and the wait for the reader. Refuses: to find the ends of lines. One call
//! writes one piece, which should be one or more whole lines.
//!
//! The kernel keeps a write in one piece for files and terminals, but for a pipe only up to 4096 bytes: if the pipe is
//! full in the middle of a longer write, another process may write next. So the writers of a pipe take turns.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use super::{
    Kind, Output,
    turn::{Before, STDERR, STDOUT},
};
use crate::sys::poll::{Interest, wait};

/// How long a process waits before it asks again for the turn. Each turn is short, unless the reader is slow.
const PAUSE: Duration = Duration::from_micros(200);

/// Standard output or standard error, for a [`Runtime`](crate::Runtime) whose app prints lines of its own.
///
/// The workers and the log of a service often write to the same pipe. What one call of [`write_all`](Self::write_all)
/// writes stays in one piece there, however long it is. With a plain write(2), a pipe may tear every line of more than
/// 4096 bytes.
#[derive(Debug)]
pub struct SharedStream {
    output: Output,
    /// True if writers have to take turns, because the kernel does not keep a write in one piece.
    takes_turns: bool,
}

impl SharedStream {
    /// Opens standard output.
    ///
    /// # Errors
    /// Standard output is closed, or the process has too many open files.
    pub fn stdout() -> io::Result<Self> {
        Self::of(io::stdout(), STDOUT)
    }

    /// Opens standard error.
    ///
    /// # Errors
    /// Standard error is closed, or the process has too many open files.
    pub fn stderr() -> io::Result<Self> {
        Self::of(io::stderr(), STDERR)
    }

    fn of(standard: impl AsFd, writer: &'static str) -> io::Result<Self> {
        let file = File::from(standard.as_fd().try_clone_to_owned()?);
        let takes_turns = match Kind::of(&file)? {
            Kind::Pipe | Kind::LocalSocket | Kind::Stream => true,
            Kind::File | Kind::Terminal | Kind::Messages => false,
        };
        let output = if takes_turns { Output::shared(standard, writer)? } else { Output::plain(file, writer)? };
        Ok(Self { output, takes_turns })
    }

    /// Writes all bytes in one piece. Like write(2), this function waits if the reader is slow. Two threads must not
    /// call it at the same time for the same stream: a lock for them would stay locked in a child that the app forks.
    ///
    /// # Errors
    /// The kernel's errors, such as EPIPE (no process reads) and ENOSPC.
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        if self.takes_turns { self.write_in_turn(bytes) } else { self.write_plain(bytes) }
    }

    fn write_plain(&self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            match (&self.output.file).write(&bytes[written..]) {
                Ok(more) => written += more,
                Err(error) => self.wait_for_room(error)?,
            }
        }
        Ok(())
    }

    fn write_in_turn(&self, bytes: &[u8]) -> io::Result<()> {
        let turn = &self.output.turn;
        let mut piece = Cow::Borrowed(bytes);
        let mut written = 0;
        while written < piece.len() {
            match turn.ask(written > 0) {
                None => {
                    thread::sleep(PAUSE);
                    continue;
                }
                Some(Before::Whole) => {}
                // Another process wrote half a line, and no process will end it.
                Some(Before::Torn) => piece.to_mut().insert(written, b'\n'),
            }
            if self.output.blocks {
                // This write may wait for the reader. Say so now, so that the others do not wait for a turn.
                turn.give_back(true);
            }
            let result = self.output.write(&piece[written..]);
            written += result.as_ref().map_or(0, |more| *more);
            turn.give_back(0 < written && written < piece.len());
            if let Err(error) = result
                && let Err(error) = self.wait_for_room(error)
            {
                turn.give_back(false);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits for room in the output if `error` says that there is none. Returns every other error.
    fn wait_for_room(&self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => wait(&[(self.output.file.as_fd(), Interest::Write)], None).map(drop),
            _ => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::{super::tests::shared, *};
    use crate::log::sink::Sink;

    /// Two apps and the log write to one pipe whose reader is slow. The lines of the apps are longer than a pipe takes
    /// in one piece.
    #[test]
    fn long_lines_of_several_writers_stay_whole_in_a_pipe() {
        const LINES: usize = 1_000;
        let (reader, pipe) = io::pipe().unwrap();
        let streams = [STDOUT, STDERR].map(|writer| SharedStream::of(&pipe, writer).unwrap());
        assert!(streams.iter().all(|stream| stream.takes_turns));
        let mut log = Sink { key: "log.file", output: Some(shared(&pipe)), path: None, rest: Vec::new() };
        let (whole, log_lines) = thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(move || {
                    for number in 0..LINES {
                        let line = format!("<{}>\n", "x".repeat(3_000 + number * 6));
                        stream.write_all(line.as_bytes()).unwrap();
                    }
                });
            }
            let reads = scope.spawn(move || {
                let (mut whole, mut log_lines) = (0, 0);
                for line in BufReader::with_capacity(5_000, reader).lines().map(Result::unwrap) {
                    match line.as_bytes() {
                        b"of the log" => log_lines += 1,
                        [b'<', middle @ .., b'>'] if middle.iter().all(|byte| *byte == b'x') => whole += 1,
                        _ => panic!("a torn line of {} bytes: {:.80}", line.len(), line),
                    }
                    if whole == 2 * LINES {
                        break;
                    }
                }
                (whole, log_lines)
            });
            while !reads.is_finished() {
                log.put("of the log\n");
                thread::sleep(PAUSE);
            }
            reads.join().unwrap()
        });
        assert!(whole == 2 * LINES && log_lines > 0, "{whole} {log_lines}");
    }

    #[test]
    fn a_file_takes_each_piece_at_once_and_a_pipe_without_a_reader_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stream = SharedStream::of(file.as_file(), STDOUT).unwrap();
        assert!(!stream.takes_turns);
        stream.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"one\ntwo\n");
        let (reader, pipe) = io::pipe().unwrap();
        let stream = SharedStream::of(&pipe, STDOUT).unwrap();
        drop(reader);
        for _ in 0..2 {
            assert_eq!(stream.write_all(b"one\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
