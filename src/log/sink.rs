//! The output to which the lines of a log go: a file, a pipe, a socket or a terminal.
//!
//! Owns: writing lines whole and without waiting for a reader. Refuses: to keep lines; the caller drops and counts the
//! lines that the output did not take.
//!
//! The master and its workers share the descriptor of the output. If the output took only a part of a line, the rest of
//! that line is written before everything else, and no other process of the service writes in between.

mod shared_stream;
mod turn;

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockRef, Type};

pub use self::shared_stream::SharedStream;
use self::turn::Turn;
use crate::{settings::LogTarget, sys::fd};

/// PIPE_BUF of pipe(7): a pipe takes at most this number of bytes in one piece, however many processes write to it.
const ATOMIC: usize = 4096;
const CUT: &str = "…[cut]\n";

/// The number of bytes that a terminal takes without waiting if it has any room. A pseudo-terminal counts its room in
/// blocks of 256 bytes, and may replace a newline by two bytes.
const PIECE: usize = 128;

/// The error that the file of a log cannot be opened. `key` is the setting that names the file.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot open {}", path.display())]
pub(crate) struct OpenError {
    key: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Sink {
    /// The key of the setting that names the output: `log.file` or `log.access`.
    key: &'static str,
    /// The output; `None` if the log is off.
    output: Option<Output>,
    /// The path of the file, which [`reopen`](Sink::reopen) opens again; `None` for a standard stream.
    path: Option<PathBuf>,
    /// The end of a line of which the output took only the beginning. This end is written before the next line.
    rest: Vec<u8>,
}

#[derive(Debug)]
struct Output {
    file: File,
    kind: Kind,
    /// True if a write may block, because other programs share the open file and this process could not make it
    /// non-blocking. In this case the sink asks the kernel before each write whether there is room.
    blocks: bool,
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file or a device. It takes all bytes at once. Only if the disk is full, it may take a part of them.
    File,
    Pipe,
    Terminal,
    /// A stream to a program on this machine, such as the journal. It takes the lines of one write all together or not
    /// at all.
    LocalSocket,
    /// A stream to another machine, which may take only a part of the bytes.
    Stream,
    /// A socket that sends messages, such as datagrams. Each line is one message.
    Messages,
}

impl Sink {
    /// Opens the output that the setting `key` names. If the setting is `-`, the output is `standard`.
    ///
    /// # Errors
    /// The file cannot be opened, or it is missing and cannot be made.
    pub(crate) fn open(key: &'static str, target: &LogTarget, standard: impl AsFd) -> Result<Self, OpenError> {
        let path = match target {
            LogTarget::File(path) => Some(path.clone()),
            LogTarget::Off | LogTarget::Standard => None,
        };
        let output = match target {
            LogTarget::Off => Ok(None),
            LogTarget::Standard => Output::shared(standard, key).map(Some),
            LogTarget::File(path) => open(path, key).map(Some),
        };
        let failed = |source| OpenError { key, path: path.clone().unwrap_or_else(|| "-".into()), source };
        Ok(Self { key, output: output.map_err(failed)?, path, rest: Vec::new() })
    }

    /// Makes a sink that discards all lines.
    pub(super) fn off(key: &'static str) -> Self {
        Self { key, output: None, path: None, rest: Vec::new() }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.output.is_none()
    }

    /// Returns true if the output is the stream with the device and the inode that `stream` names, in the form
    /// "device:inode". A service manager sets `stream` as the value of the variable JOURNAL_STREAM.
    pub(super) fn is_journal(&self, stream: &str) -> bool {
        let found = self.output.as_ref().and_then(|output| output.file.metadata().ok());
        found.is_some_and(|found| stream == format!("{}:{}", found.dev(), found.ino()))
    }

    /// Opens the file of the log again, after an operator has moved it away. Standard streams stay as they are.
    ///
    /// # Errors
    /// The file cannot be opened, or it is missing and cannot be made. Lines then still go to the old file.
    pub(super) fn reopen(&mut self) -> Result<(), OpenError> {
        if let Some(path) = &self.path {
            let failed = |source| OpenError { key: self.key, path: path.clone(), source };
            let output = open(path, self.key).map_err(failed)?;
            self.turn_to(output);
        }
        Ok(())
    }

    /// Returns the file to which lines go, so that the caller can pass it to another process. The result is `None` if
    /// the output is not a file that this sink has opened.
    pub(super) fn file(&self) -> Option<&File> {
        let output = self.output.as_ref().filter(|output| output.kind == Kind::File && self.path.is_some())?;
        Some(&output.file)
    }

    /// Writes from now on to a file that another process has opened. Returns `false` if the old file did not take the
    /// end of a line, which is then lost.
    pub(crate) fn adopt(&mut self, file: File) -> bool {
        let turn = Turn::of(&file, self.key);
        self.turn_to(Output { file, kind: Kind::File, blocks: false, turn })
    }

    fn turn_to(&mut self, output: Output) -> bool {
        let finished = self.finish();
        self.abandon_rest();
        self.output = Some(output);
        finished
    }

    /// Writes the rest of a line of which the output took only the beginning. Returns true if every line is whole now.
    pub(crate) fn finish(&mut self) -> bool {
        self.rest.is_empty() || self.put_all(b"").1.is_none()
    }

    /// Returns true if the output took only the beginning of a line, and the rest still has to be written.
    pub(crate) fn is_torn(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Drops the rest of a line of which the output took only the beginning.
    pub(crate) fn abandon_rest(&mut self) {
        self.rest.clear();
    }

    /// Writes one line, which ends with its only newline. Returns `false` if the output did not take the line.
    pub(super) fn put(&mut self, line: &str) -> bool {
        let cut = self.cut(line.as_bytes());
        let line = cut.as_deref().unwrap_or(line.as_bytes());
        self.put_all(line).0 == line.len()
    }

    /// Cuts a line that is longer than the output takes in one piece, and marks the cut. `None` if the line fits.
    pub(crate) fn cut(&self, line: &[u8]) -> Option<Vec<u8>> {
        match self.output.as_ref()?.kind {
            Kind::Pipe | Kind::Messages => cut(line),
            Kind::File | Kind::Terminal | Kind::LocalSocket | Kind::Stream => None,
        }
    }

    /// Writes as many lines as the output takes now. The caller must [`cut`](Self::cut) the lines before this call.
    /// Returns how many bytes of `lines` were taken, and the reason if not all were taken. A line that the output took
    /// in part counts as taken, because the next call writes the rest of it first.
    pub(crate) fn put_all(&mut self, lines: &[u8]) -> (usize, Option<io::ErrorKind>) {
        let Some(output) = &mut self.output else { return (lines.len(), None) };
        let whole = output.is_whole();
        if !whole {
            match output.turn.take(output.kind != Kind::File, !self.rest.is_empty()) {
                None => return (0, Some(io::ErrorKind::WouldBlock)),
                Some(turn::Before::Whole) => {}
                // The output ends with half a line that no process will complete, because the process that wrote it is
                // gone or has given up the rest. So begin a new line.
                Some(turn::Before::Torn) => self.rest.insert(0, b'\n'),
            }
        }
        let mut taken = 0;
        let stopped = loop {
            let rest = !self.rest.is_empty();
            let next = if rest { &self.rest[..] } else { output.page(&lines[taken..]) };
            if next.is_empty() {
                break None;
            }
            match output.write(next) {
                Ok(0) => break Some(io::ErrorKind::WouldBlock),
                Ok(written) if rest => drop(self.rest.drain(..written)),
                Ok(written) => {
                    let whole = next[written - 1] == b'\n';
                    let end = if whole { written } else { written + end_of_line(&next[written..]) };
                    self.rest = next[written..end].to_vec();
                    taken += end;
                }
                // A signal interrupted the write: try again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error.kind()),
            }
        };
        if !whole {
            output.turn.give_back(!self.rest.is_empty());
        }
        (taken, stopped)
    }
}

impl Output {
    /// Makes an output of an open file that other programs share. A pipe or a terminal is opened a second time, in
    /// non-blocking mode. If that fails, the shared file is used unchanged. This function does not set O_NONBLOCK on
    /// the shared file, because the flag would also apply to the shell that started the program.
    fn shared(standard: impl AsFd, key: &'static str) -> io::Result<Self> {
        let file = File::from(standard.as_fd().try_clone_to_owned()?);
        let kind = Kind::of(&file)?;
        let (file, blocks) = match kind {
            Kind::Pipe | Kind::Terminal => match fd::reopen_nonblocking(file.as_fd()) {
                Ok(again) => (again, false),
                Err(_) => (file, true),
            },
            Kind::File | Kind::LocalSocket | Kind::Stream | Kind::Messages => (file, false),
        };
        Ok(Self { turn: Turn::of(&file, key), file, kind, blocks })
    }

    /// Makes an output that writes to this open file as it is.
    fn plain(file: File, key: &'static str) -> io::Result<Self> {
        Ok(Self { kind: Kind::of(&file)?, turn: Turn::of(&file, key), file, blocks: false })
    }

    /// Returns true if the output never takes only a part of a line, and no other writer does so. An app may write lines
    /// to a pipe that the pipe takes in parts (see [`SharedStream`]).
    fn is_whole(&self) -> bool {
        match self.kind {
            Kind::LocalSocket | Kind::Messages => true,
            Kind::File | Kind::Pipe | Kind::Terminal | Kind::Stream => false,
        }
    }

    /// Returns the first lines that can be written in one piece; at least the first line.
    fn page<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        match self.kind {
            Kind::File => lines,
            Kind::Pipe | Kind::Terminal | Kind::LocalSocket | Kind::Stream => page(lines),
            Kind::Messages => &lines[..end_of_line(lines)],
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.blocks && !fd::has_room(self.file.as_fd()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.kind {
            Kind::File | Kind::Pipe => (&self.file).write(bytes),
            Kind::Terminal if self.blocks => fd::write_terminal(&self.file, &bytes[..bytes.len().min(PIECE)]),
            Kind::Terminal => fd::write_terminal(&self.file, bytes),
            Kind::LocalSocket | Kind::Stream | Kind::Messages => fd::send_some(self.file.as_fd(), bytes),
        }
    }
}

impl Kind {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?.file_type();
        Ok(if found.is_fifo() {
            Self::Pipe
        } else if found.is_socket() {
            let socket = SockRef::from(file);
            match (socket.r#type()?, socket.domain()?) {
                (Type::STREAM, Domain::UNIX) => Self::LocalSocket,
                (Type::STREAM, _) => Self::Stream,
                _ => Self::Messages,
            }
        } else if io::IsTerminal::is_terminal(file) {
            Self::Terminal
        } else {
            Self::File
        })
    }
}

fn open(path: &Path, key: &'static str) -> io::Result<Output> {
    match fd::append_to(path) {
        Ok(file) => Output::plain(file, key),
        // A socket cannot be opened by its file path, and this process may lack the right to open a pipe or terminal of
        // another user. If the file path means a standard stream, use the stream that is already open.
        Err(error) => match path.to_str() {
            Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => Output::shared(io::stdout(), key),
            Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => Output::shared(io::stderr(), key),
            _ => Err(error),
        },
    }
}

/// Returns the length of the first line, its newline included.
fn end_of_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1)
}

/// Returns as many of the first lines as fit into [`ATOMIC`] bytes together; at least the first line.
fn page(lines: &[u8]) -> &[u8] {
    let end = lines.len().min(ATOMIC);
    let ends = |lines: &[u8]| lines.iter().rposition(|byte| *byte == b'\n');
    let last = ends(&lines[..end]).or_else(|| lines.iter().position(|byte| *byte == b'\n'));
    last.map_or(lines, |last| &lines[..=last])
}

/// Cuts a line that is longer than [`ATOMIC`] bytes to this length, with a mark at its end. `None` if the line is not
/// longer.
fn cut(line: &[u8]) -> Option<Vec<u8>> {
    // Cut only where a character of UTF-8 begins, so that the part of the line that is kept is valid UTF-8.
    let begins = |at: &usize| line[*at] & 0b1100_0000 != 0b1000_0000;
    (line.len() > ATOMIC).then(|| {
        let end = (0..=ATOMIC - CUT.len()).rev().find(begins).unwrap_or(0);
        [&line[..end], CUT.as_bytes()].concat()
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        os::{
            fd::OwnedFd,
            unix::net::{UnixDatagram, UnixStream},
        },
    };

    use nix::{
        fcntl::{FcntlArg, OFlag, fcntl},
        pty::openpty,
        sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    };

    use super::*;
    use crate::sys::clock;

    #[test]
    fn a_file_is_reopened_and_a_path_that_cannot_be_opened_changes_nothing() {
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

    fn sink(output: Output) -> Sink {
        Sink { key: "log.file", output: Some(output), path: None, rest: Vec::new() }
    }

    pub(super) fn shared(fd: impl AsFd) -> Output {
        Output::shared(fd, "log.file").unwrap()
    }

    #[test]
    fn sockets_and_pipes_that_cannot_be_reopened_do_not_block() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (_reader, pipe) = io::pipe().unwrap();
        let (messages, _reads) = UnixDatagram::pair().unwrap();
        let kinds = [shared(&ours).kind, shared(&pipe).kind, shared(&messages).kind];
        assert_eq!(kinds, [Kind::LocalSocket, Kind::Pipe, Kind::Messages]);
        let file = File::from(pipe.as_fd().try_clone_to_owned().unwrap());
        let pipe = Output { turn: Turn::of(&file, "log.file"), file, kind: Kind::Pipe, blocks: true };
        for output in [shared(&ours), pipe, shared(&messages)] {
            let mut sink = sink(output);
            let written = (0..100_000).take_while(|_| sink.put("a line without a reader\n")).count();
            assert!((1..100_000).contains(&written), "{written}");
        }
    }

    /// The log writes to a pipe in pages: as many whole lines as the pipe takes in one piece. So the lines of other
    /// writers come between pages and never inside a line.
    #[test]
    fn many_lines_are_written_a_page_at_a_time_while_there_is_room() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let mut sink = sink(shared(&pipe));
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
    fn each_message_of_a_socket_is_one_line() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut sink = sink(shared(&ours));
        assert_eq!(sink.put_all(b"one\ntwo\n"), (8, None));
        for line in [b"one\n", b"two\n"] {
            let mut read = [0; 100];
            assert_eq!(theirs.recv(&mut read).unwrap(), 4);
            assert_eq!(read[..4], line[..]);
        }
        assert!(sink.cut(&[b'x'; ATOMIC + 1]).is_some());
    }

    /// A stream and a terminal may take a part of a line. Even with two writers and a late reader, every line stays
    /// whole.
    #[test]
    fn the_rest_of_a_line_that_was_taken_in_part_comes_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Limit both buffers. Otherwise the kernel lets them grow until all lines fit, and the output is never full.
        SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&tcp).set_send_buffer_size(64 << 10).unwrap();
        let peer = File::from(OwnedFd::from(listener.accept().unwrap().0));
        lines_stay_whole(shared(&tcp), &peer);

        let terminal = openpty(None, None).unwrap();
        raw(&terminal.slave);
        let reader = File::from(terminal.master);
        lines_stay_whole(shared(&terminal.slave), &reader);
        let file = File::from(terminal.slave.try_clone().unwrap());
        let turn = Turn::of(&file, "log.file");
        lines_stay_whole(Output { file, kind: Kind::Terminal, blocks: true, turn }, &reader);
    }

    fn lines_stay_whole(output: Output, mut reader: &File) {
        const LINES: usize = 10_000;
        let kind = (output.kind, output.blocks);
        let (file, turn) = (output.file.try_clone().unwrap(), Turn::of(&output.file, "log.access"));
        let mut sinks = [sink(Output { file, turn, ..output }), sink(output)];
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let (mut read, mut chunk, mut taken) = (Vec::new(), [0; 1_000], 0);
        for number in 0..LINES {
            let line = format!("<{number} {}>\n", "x".repeat(number % 3_000));
            taken += usize::from(sinks[number % 2].put(&line));
            // The reader reads nothing for the first tenth of the lines, so that the output is full, and then it reads
            // a little at a time.
            if number > LINES / 10
                && let Ok(count) = reader.read(&mut chunk)
            {
                read.extend_from_slice(&chunk[..count]);
            }
        }
        assert!(taken < LINES, "{kind:?} took all");
        let began = clock::now();
        let newlines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
        let mut came = newlines(&read);
        while sinks.iter_mut().any(|sink| !sink.finish()) || came < taken {
            if let Ok(count) = reader.read(&mut chunk) {
                came += newlines(&chunk[..count]);
                read.extend_from_slice(&chunk[..count]);
            }
            assert!(clock::now() - began < 10_000, "{kind:?}: the end does not come");
        }
        let text = String::from_utf8(read).unwrap();
        assert_eq!(text.lines().count(), taken, "{kind:?}");
        assert!(
            text.ends_with('\n') && text.lines().all(|line| line.starts_with('<') && line.ends_with('>')),
            "{kind:?}"
        );
    }

    /// Switches the terminal to raw mode, so that it does not change newlines.
    fn raw(terminal: &OwnedFd) {
        let mut modes = tcgetattr(terminal).unwrap();
        cfmakeraw(&mut modes);
        tcsetattr(terminal, SetArg::TCSANOW, &modes).unwrap();
    }

    #[test]
    fn a_full_disk_is_reported_as_full() {
        let full = File::options().append(true).open("/dev/full").unwrap();
        let mut sink = sink(shared(&full));
        assert_eq!(sink.put_all(b"a\n"), (0, Some(io::ErrorKind::StorageFull)));
        assert!(!sink.put("a\n"));
    }

    #[test]
    fn a_fifo_without_a_reader_is_opened_and_keeps_the_lines_that_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut sink = Sink::open("log.file", &LogTarget::File(path.clone()), io::stderr()).unwrap();
        let kept = (0..100_000).take_while(|_| sink.put("a line without a reader\n")).count();
        assert!((1..100_000).contains(&kept), "{kept}");
        let mut read = [0; 24];
        File::open(&path).unwrap().read_exact(&mut read).unwrap();
        assert_eq!(&read, b"a line without a reader\n");
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
