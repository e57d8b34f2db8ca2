//! The control socket, inside the master's one poll.
//!
//! Owns: its file, its clients and their bounds: how many, how many bytes, how long. One request a connection. Refuses:
//! what a request means (the shell), and to be a reason to wait or to fail: without a socket the service goes on.

use std::{
    fs::{self, DirBuilder},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::core::{Caller, Instant};
use crate::{
    protocol::{self, Answer, Command, Reply, Request},
    settings::{self, ControlSocket},
    sys::{fd, host, poll::Interest, process},
};

/// At the limit whoever has not asked anything yet makes room for the next, the oldest first.
const CLIENTS_MAX: usize = 32;
/// Callers who wait for something to be done: they are never sent away, and must not crowd out a status.
const WAITING_MAX: usize = 16;
const REQUEST_MAX: usize = 64 * 1024;
/// What a client may take to send a whole request, and again to read the whole answer.
const PATIENCE_MS: u64 = 5_000;
/// Taken from the queue in one turn; signals and workers come in between.
const ACCEPTS_MAX: usize = 64;
/// After a failed accept (no descriptors left): a listener that stays readable would make every poll return at once.
const DEAF_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: by the end the path may be somebody else's.
    file: (u64, u64),
    uid: u32,
    clients: Vec<Client>,
    next: u64,
    deaf_until: Option<Instant>,
    progress: String,
}

#[derive(Debug)]
struct Client {
    id: Caller,
    stream: UnixStream,
    turn: Turn,
    input: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Asking {
        until: Instant,
    },
    Waiting,
    /// The answer is in `output`; then the connection ends.
    Reading {
        until: Instant,
    },
    Gone,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{} is answered by another master; give this one a name of its own (process.name)", path.display())]
    Taken { path: PathBuf },
    #[error("{} exists and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("the folder {} is not only ours: it must belong to uid {uid} and have mode 0700", path.display())]
    Shared { path: PathBuf, uid: u32 },
    #[error("the folder {} could not be made", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{} could not be looked at", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

impl Control {
    /// `None`, with a warning in the log, where it cannot be made.
    pub(super) fn open(settings: &settings::Control, name: &str) -> Option<Self> {
        let (uid, _) = host::effective_ids();
        let opened = match &settings.socket {
            ControlSocket::Off => return None,
            ControlSocket::Path(path) => Self::listen(path.clone(), uid),
            ControlSocket::Auto => auto(name, uid).and_then(|path| Self::listen(path, uid)),
        };
        match opened {
            Ok(control) => {
                tracing::debug!(event = "control", socket = %control.path.display(), "listening for oxicorn status and its like");
                Some(control)
            }
            Err(error) => {
                tracing::warn!(
                    event = "control",
                    error = &error as &dyn std::error::Error,
                    "control.socket: there is none, so oxicorn status, scale and stop will not work; signals do"
                );
                None
            }
        }
    }

    fn listen(path: PathBuf, uid: u32) -> Result<Self, OpenError> {
        if is_stale(&path)? {
            fs::remove_file(&path).map_err(|source| OpenError::Listen { path: path.clone(), source })?;
        }
        let opened = bind(&path).and_then(|listener| Ok((listener, identity(&path)?)));
        let (listener, file) = opened.map_err(|source| OpenError::Listen { path: path.clone(), source })?;
        let (clients, progress) = (Vec::new(), String::new());
        Ok(Self { listener, path, file, uid, clients, next: 0, deaf_until: None, progress })
    }

    /// What the master's poll should wait for; [`turn`](Self::turn) wants the outcome in the same order.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let listener = match self.deaf_until {
            Some(_) => Interest::Hangup,
            None => Interest::Read,
        };
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), client.interest()));
        std::iter::once((self.listener.as_fd(), listener)).chain(clients)
    }

    /// When to call [`turn`](Self::turn) at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(Client::until).chain(self.deaf_until).min()
    }

    /// Does what can be done without waiting; what was asked meanwhile.
    pub(super) fn turn(&mut self, ready: &[bool], now: Instant) -> Vec<(Caller, Command)> {
        let mut asked = Vec::new();
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        let (accepts, of_clients) = ready.split_first().map_or((false, ready), |(first, rest)| (*first, rest));
        for at in 0..self.clients.len() {
            if of_clients.get(at).is_some_and(|ready| *ready) {
                asked.extend(self.attend(at, now));
            }
            let client = &mut self.clients[at];
            if client.until().is_some_and(|until| until <= now) {
                client.turn = Turn::Gone;
            }
        }
        self.forget_gone();
        if accepts {
            self.accept(now, &mut asked);
        }
        asked
    }

    fn accept(&mut self, now: Instant, asked: &mut Vec<(Caller, Command)>) {
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.deaf_until = Some(now.after(DEAF_MS));
                        tracing::warn!(event = "control", %error, "the control socket accepts nobody for a second");
                        return;
                    }
                },
            };
            let uid = fd::peer(stream.as_fd()).map(|(_, uid)| uid);
            let known = uid.is_ok_and(|uid| uid == 0 || uid == self.uid);
            if known && stream.set_nonblocking(true).is_ok() && self.has_room() {
                self.next += 1;
                let (id, turn) = (Caller(self.next), Turn::Asking { until: now.after(PATIENCE_MS) });
                self.clients.push(Client { id, stream, turn, input: Vec::new(), output: Vec::new() });
                // Most have asked by now, and cannot be sent away any more.
                asked.extend(self.attend(self.clients.len() - 1, now));
                self.forget_gone();
            }
        }
    }

    fn has_room(&mut self) -> bool {
        if self.clients.len() < CLIENTS_MAX {
            return true;
        }
        let idle = self.clients.iter().position(|client| matches!(client.turn, Turn::Asking { .. }));
        idle.map(|at| self.clients.remove(at)).is_some()
    }

    /// One client's turn; what it asks for, if that is for the shell to answer.
    fn attend(&mut self, at: usize, now: Instant) -> Option<(Caller, Command)> {
        let waiting = self.clients.iter().filter(|client| client.turn == Turn::Waiting).count();
        let client = &mut self.clients[at];
        match client.turn {
            Turn::Asking { .. } => {}
            // Neither has more to say: it left, or can take more of what it is told.
            Turn::Waiting if client.output.is_empty() => client.turn = Turn::Gone,
            Turn::Waiting | Turn::Reading { .. } => client.flush(),
            Turn::Gone => {}
        }
        if !matches!(client.turn, Turn::Asking { .. }) {
            return None;
        }
        let line = client.read()?;
        let refused = match line.and_then(|line| Request::read(&line)) {
            Ok(Command::Scale(_) | Command::Stop { .. }) if waiting >= WAITING_MAX => {
                format!("{WAITING_MAX} others wait already; nothing was changed")
            }
            Ok(command) => {
                // A status is answered before the next poll.
                client.turn = Turn::Reading { until: now.after(PATIENCE_MS) };
                if !matches!(command, Command::Status) {
                    client.turn = Turn::Waiting;
                    let (pid, uid) = fd::peer(client.stream.as_fd()).unwrap_or_default();
                    tracing::info!(event = "control", pid, uid, ?command, "asked over the control socket");
                    // It hears the next progress, also if others have heard it before.
                    self.progress.clear();
                }
                return Some((client.id, command));
            }
            Err(refused) => refused,
        };
        client.answer(&Answer::refused(refused), now);
        None
    }

    /// The last word to a caller; nothing, if it left.
    pub(super) fn answer(&mut self, caller: Caller, answer: &Answer, now: Instant) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == caller) {
            client.answer(answer, now);
            self.forget_gone();
        }
    }

    fn forget_gone(&mut self) {
        self.clients.retain(|client| client.turn != Turn::Gone);
    }

    /// Tells all who wait, once each time it changes. Who does not read misses some.
    pub(super) fn tell(&mut self, progress: &str) {
        if self.progress == progress {
            return;
        }
        progress.clone_into(&mut self.progress);
        let line = protocol::line(&Reply::Progress { progress: progress.to_owned() });
        for client in self.clients.iter_mut().filter(|client| client.turn == Turn::Waiting) {
            if client.output.len() < REQUEST_MAX {
                client.output.extend(&line);
                client.flush();
            }
        }
    }

    /// The end: answers all who wait, and removes the socket if it is still ours.
    pub(super) fn close(mut self, last_words: &Answer, now: Instant) {
        for client in self.clients.iter_mut().filter(|client| client.turn == Turn::Waiting) {
            client.answer(last_words, now);
        }
        if identity(&self.path).is_ok_and(|found| found == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(event = "control", path = %self.path.display(), %error, "the control socket stays behind");
        }
    }
}

impl Client {
    fn interest(&self) -> Interest {
        match self.turn {
            Turn::Asking { .. } => Interest::Read,
            Turn::Waiting if self.output.is_empty() => Interest::Hangup,
            Turn::Waiting | Turn::Reading { .. } | Turn::Gone => Interest::Write,
        }
    }

    fn until(&self) -> Option<Instant> {
        match self.turn {
            Turn::Asking { until } | Turn::Reading { until } => Some(until),
            Turn::Waiting | Turn::Gone => None,
        }
    }

    /// The request's line, once it is whole; or why there will be none.
    fn read(&mut self) -> Option<Result<Vec<u8>, String>> {
        let mut chunk = [0; 4096];
        while self.input.len() <= REQUEST_MAX {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.turn = Turn::Gone;
                    return None;
                }
                Ok(len) => {
                    self.input.extend(&chunk[..len]);
                    if let Some(end) = chunk[..len].iter().position(|byte| *byte == b'\n') {
                        self.input.truncate(self.input.len() - len + end);
                        return Some(Ok(std::mem::take(&mut self.input)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.turn = Turn::Gone;
                    return None;
                }
            }
        }
        Some(Err(format!("a request has at most {REQUEST_MAX} bytes")))
    }

    fn answer(&mut self, answer: &Answer, now: Instant) {
        self.output.extend(protocol::line(answer));
        self.turn = Turn::Reading { until: now.after(PATIENCE_MS) };
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.turn = Turn::Gone;
                    return;
                }
            }
        }
        if matches!(self.turn, Turn::Reading { .. }) {
            self.turn = Turn::Gone;
        }
    }
}

/// The first folder that is there; our private one is made.
fn auto(name: &str, uid: u32) -> Result<PathBuf, OpenError> {
    let paths = protocol::server_sockets(name, uid, |name| std::env::var_os(name));
    let private = protocol::private_folder(uid);
    for path in paths {
        match path.parent() {
            Some(folder) if folder == private => {
                make_private(folder, uid)?;
                return Ok(path);
            }
            Some(folder) if folder.is_dir() => return Ok(path),
            Some(_) | None => {}
        }
    }
    Err(OpenError::Folder { path: private, source: ErrorKind::NotFound.into() })
}

fn make_private(folder: &Path, uid: u32) -> Result<(), OpenError> {
    let path = || folder.to_owned();
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            return Err(OpenError::Folder { path: path(), source });
        }
        Ok(()) | Err(_) => {}
    }
    // Not through a link: whoever set it could set it anew.
    let found = fs::symlink_metadata(folder).map_err(|source| OpenError::Look { path: path(), source })?;
    let private = found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0;
    if private { Ok(()) } else { Err(OpenError::Shared { path: path(), uid }) }
}

/// Whether a socket lies there that nobody answers.
fn is_stale(path: &Path) -> Result<bool, OpenError> {
    let look = |source| OpenError::Look { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(look(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(OpenError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    // Non-blocking: where the other's queue is full, that is an answer too.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(look)?;
    let address = SockAddr::unix(path).map_err(look)?;
    match socket.connect(&address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(look(error)),
        Ok(()) | Err(_) => Err(OpenError::Taken { path: path.to_owned() }),
    }
}

/// Mode 0600 from its first moment.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let before = process::umask(0o177);
    let bound = socket.bind(&address);
    process::umask(before);
    bound?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
