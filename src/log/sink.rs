//! Where lines go: a file, a pipe, a socket, a terminal. What is written at once is whole lines, or not at all.
//!
//! Refuses to wait for a slow reader: what does not fit is the caller's to drop and count. The descriptor is shared by
//! the master and its workers.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use crate::{settings::LogTarget, sys::fd};

/// PIPE_BUF: what a pipe takes in one piece, however many write to it.
const ATOMIC: usize = 4096;
const CUT: &str = "…[cut]\n";

/// The file of a log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot open {}", path.display())]
pub(crate) struct OpenError {
    key: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Sink {
    /// The setting that says where.
    key: &'static str,
    output: Output,
    /// What [`reopen`](Sink::reopen) opens.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Output {
    Off,
    /// A file or a terminal.
    File(File),
    /// Non-blocking, and ours alone.
    Pipe(File),
    /// A pipe that could not be opened a second time, so it blocks, for us and for all who share it.
    SharedPipe(File),
    Socket(File),
}

impl Sink {
    /// `standard` is what `-` means.
    ///
    /// # Errors
    /// The file cannot be opened or made.
    pub(crate) fn open(key: &'static str, target: &LogTarget, standard: impl AsFd) -> Result<Self, OpenError> {
        let path = match target {
            LogTarget::File(path) => Some(path.clone()),
            LogTarget::Off | LogTarget::Standard => None,
        };
        let output = match target {
            LogTarget::Off => Ok(Output::Off),
            LogTarget::Standard => standard.as_fd().try_clone_to_owned().map(File::from).and_then(Output::of),
            LogTarget::File(path) => open(path),
        };
        let failed = |source| OpenError { key, path: path.clone().unwrap_or_else(|| "-".into()), source };
        Ok(Self { key, output: output.map_err(failed)?, path })
    }

    /// Takes lines, and throws them away.
    pub(super) fn off(key: &'static str) -> Self {
        Self { key, output: Output::Off, path: None }
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(self.output, Output::Off)
    }

    /// Opens the path again: the old file was moved away. Standard streams stay as they are.
    ///
    /// # Errors
    /// As for [`open`](Self::open); lines still go to the old file.
    pub(super) fn reopen(&mut self) -> Result<(), OpenError> {
        if let Some(path) = &self.path {
            self.output = open(path).map_err(|source| OpenError { key: self.key, path: path.clone(), source })?;
        }
        Ok(())
    }

    /// The file that lines go to, for another process; `None` where the output is not a file of its own.
    pub(super) fn file(&self) -> Option<&File> {
        match (&self.output, &self.path) {
            (Output::File(file), Some(_)) => Some(file),
            _ => None,
        }
    }

    /// Writes to a file that somebody else opened from now on.
    pub(crate) fn adopt(&mut self, file: File) {
        self.output = Output::File(file);
    }

    /// Writes one line, which ends with its only newline, or says `false`.
    pub(super) fn put(&mut self, line: &str) -> bool {
        let cut = self.cut(line.as_bytes());
        self.put_all(cut.as_deref().unwrap_or(line.as_bytes())).1.is_none()
    }

    /// A line that is longer than what a pipe takes in one piece, and goes to one, cut and marked.
    pub(crate) fn cut(&self, line: &[u8]) -> Option<Vec<u8>> {
        match &self.output {
            Output::Pipe(_) | Output::SharedPipe(_) => cut(line),
            Output::Off | Output::File(_) | Output::Socket(_) => None,
        }
    }

    /// Writes lines, none of which needs a [`cut`](Self::cut), as many as go in now: the bytes that were taken, and why no more. A file
    /// takes them all at once, and only on a full disk a part of a line; others take whole lines, a page at a time.
    pub(crate) fn put_all(&mut self, lines: &[u8]) -> (usize, Option<io::ErrorKind>) {
        let mut taken = 0;
        while taken < lines.len() {
            let rest = &lines[taken..];
            let written = match &mut self.output {
                Output::Off => Ok(rest.len()),
                Output::File(file) => file.write(rest),
                Output::Pipe(pipe) => pipe.write(page(rest)),
                Output::SharedPipe(pipe) if fd::has_room(pipe.as_fd()) => pipe.write(page(rest)),
                Output::SharedPipe(_) => Err(io::ErrorKind::WouldBlock.into()),
                Output::Socket(socket) => {
                    let page = page(rest);
                    fd::send(socket.as_fd(), page).map(|sent| if sent { page.len() } else { 0 })
                }
            };
            match written {
                // A terminal that was held back; a signal came first.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (taken, Some(error.kind())),
                Ok(0) => return (taken, Some(io::ErrorKind::WouldBlock)),
                Ok(written) => taken += written,
            }
        }
        (taken, None)
    }
}

impl Output {
    fn of(file: File) -> io::Result<Self> {
        let found = file.metadata()?.file_type();
        Ok(if found.is_fifo() {
            match fd::reopen_nonblocking(file.as_fd()) {
                Ok(again) => Self::Pipe(again),
                Err(_) => Self::SharedPipe(file),
            }
        } else if found.is_socket() {
            Self::Socket(file)
        } else {
            Self::File(file)
        })
    }
}

fn open(path: &Path) -> io::Result<Output> {
    Output::of(fd::append_to(path)?)
}

/// Of some lines, the first that are together at most [`ATOMIC`] bytes; the first of all in any case.
fn page(lines: &[u8]) -> &[u8] {
    let end = lines.len().min(ATOMIC);
    let ends = |lines: &[u8]| lines.iter().rposition(|byte| *byte == b'\n');
    let last = ends(&lines[..end]).or_else(|| lines.iter().position(|byte| *byte == b'\n'));
    last.map_or(lines, |last| &lines[..=last])
}

/// Of a line longer than [`ATOMIC`], as many bytes with a mark at their end.
fn cut(line: &[u8]) -> Option<Vec<u8>> {
    // Where a character of UTF-8 begins.
    let begins = |at: &usize| line[*at] & 0b1100_0000 != 0b1000_0000;
    (line.len() > ATOMIC).then(|| {
        let end = (0..=ATOMIC - CUT.len()).rev().find(begins).unwrap_or(0);
        [&line[..end], CUT.as_bytes()].concat()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_is_reopened_and_a_bad_path_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut sink = Sink::open("log.file", &LogTarget::File(path.clone()), io::stderr()).unwrap();
        assert!(sink.put("one\n"));
        std::fs::rename(&path, &moved).unwrap();
        assert!(sink.put("two\n"));
        sink.reopen().unwrap();
        assert!(sink.put("three\n"));
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = sink.reopen().unwrap_err();
        assert_eq!(error.to_string(), format!("log.file: cannot open {}", path.display()));
        assert!(sink.put("four\n"));
    }

    #[test]
    fn sockets_and_pipes_that_cannot_be_reopened_do_not_block_either() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (_reader, pipe) = io::pipe().unwrap();
        let socket = Output::of(File::from(std::os::fd::OwnedFd::from(ours))).unwrap();
        assert!(matches!(socket, Output::Socket(_)));
        let shared = Output::SharedPipe(File::from(std::os::fd::OwnedFd::from(pipe)));
        for output in [socket, shared] {
            let mut sink = Sink { key: "log.file", output, path: None };
            let written = (0..100_000).take_while(|_| sink.put("a line that nobody reads\n")).count();
            assert!((1..100_000).contains(&written), "{written}");
        }
    }

    /// What a pipe takes in one piece is whole lines, so that other writers' lines come between and never inside.
    #[test]
    fn many_lines_go_a_page_at_a_time_and_no_further_than_there_is_room() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let output = Output::of(File::from(std::os::fd::OwnedFd::from(pipe))).unwrap();
        let mut sink = Sink { key: "log.access", output, path: None };
        let lines = (0..10_000).map(|number| format!("line {number}\n")).collect::<String>().into_bytes();
        let (taken, why) = sink.put_all(&lines);
        assert_eq!((why, lines[taken - 1]), (Some(io::ErrorKind::WouldBlock), b'\n'));
        let mut read = vec![0; taken];
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert_eq!(read, lines[..taken]);
        assert_eq!(sink.put_all(&lines[taken..]), (lines.len() - taken, None));

        assert_eq!(page(b"a\nb"), b"a\n");
        let long = "x".repeat(ATOMIC) + "\n";
        assert_eq!(page((long.clone() + "y\n").as_bytes()), long.as_bytes());
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        let full = File::options().append(true).open("/dev/full").unwrap();
        let mut sink = Sink { key: "log.access", output: Output::of(full).unwrap(), path: None };
        assert_eq!(sink.put_all(b"a\n"), (0, Some(io::ErrorKind::StorageFull)));
        assert!(!sink.put("a\n"));
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(cut(b"short\n"), None);
        assert_eq!(cut(("x".repeat(ATOMIC - 1) + "\n").as_bytes()), None);
        for lead in ["", "x"] {
            let long = lead.to_owned() + &"é".repeat(3_000) + "\n";
            let short = String::from_utf8(cut(long.as_bytes()).unwrap()).unwrap();
            assert!(short.ends_with("é…[cut]\n") && (ATOMIC - 1..=ATOMIC).contains(&short.len()), "{}", short.len());
        }
    }
}
