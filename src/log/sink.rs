//! Where lines go: a file, a pipe, a socket, a terminal. Each line is one write, whole or not at all.
//!
//! Refuses to wait for a slow reader: what does not fit is dropped and counted. The descriptor is shared by the master
//! and its workers.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use crate::{settings::LogTarget, sys::fd};

/// PIPE_BUF: what a pipe takes in one piece, however many write to it.
const ATOMIC: usize = 4096;
const CUT: &str = "…[cut]\n";

/// The log's file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("log.file: cannot open {}", path.display())]
pub(crate) struct OpenError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Sink {
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
    /// # Errors
    /// The file cannot be opened or made.
    pub(crate) fn open(target: &LogTarget) -> Result<Self, OpenError> {
        let path = match target {
            LogTarget::File(path) => Some(path.clone()),
            LogTarget::Off | LogTarget::Standard => None,
        };
        let output = match target {
            LogTarget::Off => Ok(Output::Off),
            LogTarget::Standard => io::stderr().as_fd().try_clone_to_owned().map(File::from).and_then(Output::of),
            LogTarget::File(path) => open(path),
        };
        let output = output.map_err(|source| failed(path.as_deref().unwrap_or(Path::new("-")), source))?;
        Ok(Self { output, path })
    }

    /// Opens the path again: the old file was moved away. Standard streams stay as they are.
    ///
    /// # Errors
    /// As for [`open`](Self::open); lines still go to the old file.
    pub(crate) fn reopen(&mut self) -> Result<(), OpenError> {
        if let Some(path) = &self.path {
            self.output = open(path).map_err(|source| failed(path, source))?;
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
    pub(super) fn adopt(&mut self, file: File) {
        self.output = Output::File(file);
    }

    /// Writes one line, which ends with its only newline; a line that has to be dropped is counted.
    pub(crate) fn write(&mut self, line: &str) {
        if !self.put(line) {
            super::DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes one line, or says `false`.
    pub(super) fn put(&mut self, line: &str) -> bool {
        match &mut self.output {
            Output::Off => true,
            Output::File(file) => whole(file, line),
            Output::Pipe(pipe) => whole(pipe, &cut(line)),
            Output::SharedPipe(pipe) => fd::has_room(pipe.as_fd()) && whole(pipe, &cut(line)),
            Output::Socket(socket) => fd::send(socket.as_fd(), line.as_bytes()).unwrap_or(false),
        }
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

fn failed(path: &Path, source: io::Error) -> OpenError {
    OpenError { path: path.to_owned(), source }
}

fn open(path: &Path) -> io::Result<Output> {
    Output::of(fd::append_to(path)?)
}

fn whole(file: &mut File, line: &str) -> bool {
    loop {
        match file.write(line.as_bytes()) {
            Ok(written) => return written == line.len(),
            // A terminal that was held back; a signal came first.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// At most [`ATOMIC`] bytes, and if it was more, a mark that says so.
fn cut(line: &str) -> std::borrow::Cow<'_, str> {
    if line.len() <= ATOMIC {
        return line.into();
    }
    let end = (0..=ATOMIC - CUT.len()).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    (line[..end].to_owned() + CUT).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_is_reopened_and_a_bad_path_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut sink = Sink::open(&LogTarget::File(path.clone())).unwrap();
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
            let mut sink = Sink { output, path: None };
            let written = (0..100_000).take_while(|_| sink.put("a line that nobody reads\n")).count();
            assert!((1..100_000).contains(&written), "{written}");
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(cut("short\n"), "short\n");
        let exact = "x".repeat(ATOMIC - 1) + "\n";
        assert_eq!(cut(&exact), exact.as_str());
        for lead in ["", "x"] {
            let long = lead.to_owned() + &"é".repeat(3_000) + "\n";
            let short = cut(&long);
            assert!(short.ends_with("é…[cut]\n") && (ATOMIC - 1..=ATOMIC).contains(&short.len()), "{}", short.len());
        }
    }
}
