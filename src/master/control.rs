//! The control socket. The master has only one poll, which watches this socket together with all other descriptors.
//!
//! Owns: the file of the socket, its clients and their limits (how many clients, how many bytes, how long). A
//! connection carries one request. Refuses: to interpret a request (the shell does this), and to make the master wait
//! or fail, because the service must work even without a control socket.

mod passed;

use std::{
    fs::DirBuilder,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

pub(super) use self::passed::PassedControl;
use super::core::{Caller, Millis};
use crate::{
    protocol::{self, ControlCommand, ControlResponse, Folder, Reply, Request},
    settings::ControlSocket,
    sys::{
        fd,
        file::{self, FileId},
        host,
        poll::Interest,
        socket_file::{self, Occupant},
    },
};

/// The most clients at the same time. When a further client comes, the oldest client that has not sent its request is
/// dropped.
const CLIENTS_MAX: usize = 32;
/// The most clients that wait for a reply. These clients are never dropped, so their number is limited to leave room
/// for a client that asks for the status.
const WAITING_MAX: usize = 16;
const REQUEST_MAX: usize = 64 * 1024;
/// How long a client may take to send its request, and how long it may then take to read the response.
const PATIENCE_MS: u64 = 5_000;
/// How many clients are accepted in one turn, so that signals and workers do not have to wait for all of them.
const ACCEPTS_MAX: usize = 64;
/// How long the listener is not polled after an accept has failed because no descriptor was left. The listener stays
/// readable, so without this pause every poll would return at once.
const DEAF_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct ControlServer {
    listener: ControlListener,
    uid: u32,
    clients: Vec<ControlClient>,
    next: u64,
    deaf_until: Option<Millis>,
    progress: String,
    /// True if the file of the socket is gone and could not be made again, and the log already says so.
    lost: bool,
}

/// The facts that decide where the file of the control socket is.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) socket: &'a ControlSocket,
    /// The name of the service, from which the name of the file is made.
    pub(super) name: &'a str,
    /// The folder in which the service was started.
    pub(super) folder: &'a Path,
}

/// The listening socket and its file.
#[derive(Debug)]
struct ControlListener {
    socket: UnixListener,
    path: PathBuf,
    /// Identifies the file that this master made, because another process may put its own file at this path later.
    file: FileId,
}

#[derive(Debug)]
struct ControlClient {
    id: Caller,
    stream: UnixStream,
    stage: ClientStage,
    input: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClientStage {
    Asking {
        until: Millis,
    },
    Waiting,
    /// The response is in `output`. The connection ends once the client has read the response.
    Reading {
        until: Millis,
    },
    Gone,
}

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
enum ControlOpenError {
    #[error("another master answers on {}; give this service another name (process.name)", path.display())]
    Taken { path: PathBuf },
    #[error("{} exists and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("the folder {} can be used by others: it must belong to uid {uid} and have mode 0700", path.display())]
    Shared { path: PathBuf, uid: u32 },
    #[error("the folder {} could not be created", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{} could not be read", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

impl Site<'_> {
    fn open(&self, uid: u32) -> Option<Result<ControlListener, ControlOpenError>> {
        match self.socket {
            ControlSocket::Off => None,
            ControlSocket::Path(path) => Some(ControlListener::at(path.clone())),
            ControlSocket::Auto => Some(self.auto(uid)),
        }
    }

    /// Opens the socket in the first folder in which this is possible, under the first name that no other service has.
    fn auto(&self, uid: u32) -> Result<ControlListener, ControlOpenError> {
        let mut refused = None;
        for folder in protocol::server_folders(uid, |name| std::env::var_os(name)) {
            let folder = match folder {
                Folder::Given(path) if path.is_dir() => Ok(path),
                Folder::Given(_) => continue,
                Folder::Private(path) => make_private(&path, uid).map(|()| path),
            };
            match folder.and_then(|folder| self.within(&folder)) {
                Ok(listener) => return Ok(listener),
                // Only the error of the first folder is reported. This folder is the best one, so its problem is the
                // one that the operator has to correct.
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        Err(refused
            .unwrap_or_else(|| ControlOpenError::Folder { path: PathBuf::new(), source: ErrorKind::NotFound.into() }))
    }

    /// Opens the socket in this folder, under the first name that no other service has.
    fn within(&self, place: &Path) -> Result<ControlListener, ControlOpenError> {
        let mut taken = None;
        for name in protocol::socket_names(self.name, self.folder) {
            match ControlListener::at(place.join(name)) {
                Err(ControlOpenError::Taken { path }) => drop(taken.get_or_insert(ControlOpenError::Taken { path })),
                Ok(listener) => {
                    if let Some(ControlOpenError::Taken { path: other }) = taken {
                        tracing::info!(
                            event = "control_socket",
                            socket = %listener.path.display(),
                            other = %other.display(),
                            "another service named {} runs; commands find this one from its folder, by -c, or by \
                             --socket",
                            self.name
                        );
                    }
                    return Ok(listener);
                }
                Err(error) => return Err(error),
            }
        }
        Err(taken
            .unwrap_or_else(|| ControlOpenError::Folder { path: place.to_owned(), source: ErrorKind::NotFound.into() }))
    }
}

impl ControlListener {
    fn at(path: PathBuf) -> Result<Self, ControlOpenError> {
        match socket_file::occupant(&path) {
            Ok(Occupant::Nothing) => {}
            Ok(Occupant::Stale(file)) => socket_file::remove(&path, file)
                .map_err(|source| ControlOpenError::Listen { path: path.clone(), source })?,
            Ok(Occupant::NotASocket) => return Err(ControlOpenError::NotASocket { path }),
            Ok(Occupant::Server(_)) => return Err(ControlOpenError::Taken { path }),
            Err(source) => return Err(ControlOpenError::Look { path, source }),
        }
        // Mode 0600: no other user may connect.
        let bound = socket_file::bind(&path, 0o600);
        match bound.and_then(|(socket, file)| SockRef::from(&socket).listen(128).map(|()| (socket, file))) {
            Ok((socket, file)) => Ok(Self { socket, path, file }),
            // Another master has bound this path in the meantime.
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(ControlOpenError::Taken { path }),
            Err(source) => Err(ControlOpenError::Listen { path, source }),
        }
    }

    fn is_still_there(&self) -> bool {
        socket_file::is_still_there(&self.path, self.file)
    }
}

impl ControlServer {
    /// Opens the control socket. Returns `None` if the settings switch the socket off. If the socket cannot be made,
    /// logs a warning and returns `None` too.
    pub(super) fn open(site: &Site<'_>) -> Option<Self> {
        let (uid, _) = host::effective_ids();
        match site.open(uid)? {
            Ok(listener) => {
                tracing::debug!(
                    event = "control_socket",
                    socket = %listener.path.display(),
                    "listening for oxicorn status and its like"
                );
                Some(Self::new(listener, uid))
            }
            Err(error) => {
                tracing::warn!(
                    event = "control_socket",
                    error = &error as &dyn std::error::Error,
                    "control.socket: could not open it; status, scale, stop and the other commands will not work, \
                     signals will"
                );
                None
            }
        }
    }

    fn new(listener: ControlListener, uid: u32) -> Self {
        let (clients, progress) = (Vec::new(), String::new());
        Self { listener, uid, clients, next: 0, deaf_until: None, progress, lost: false }
    }

    /// Tries again to make the socket that could not be made at the start, because a folder that was missing then may
    /// exist now. If the socket still cannot be made, nothing is logged, because the reason was logged at the start.
    pub(super) fn open_late(site: &Site<'_>) -> Option<Self> {
        let (uid, _) = host::effective_ids();
        let listener = site.open(uid)?.ok()?;
        tracing::info!(
            event = "control_socket",
            socket = %listener.path.display(),
            "opened the control socket, which could not be opened at the start"
        );
        Some(Self::new(listener, uid))
    }

    /// Makes the file of the socket again if the file is gone. A cleaner of `/tmp` may remove it, and a logout removes
    /// the folder in `XDG_RUNTIME_DIR`. The clients stay connected.
    pub(super) fn look_after(&mut self, site: &Site<'_>) {
        if self.listener.is_still_there() {
            return;
        }
        match site.open(self.uid) {
            None => {}
            Some(Ok(listener)) => {
                tracing::info!(
                    event = "control_socket",
                    gone = %self.listener.path.display(),
                    socket = %listener.path.display(),
                    "the file of the control socket was gone; the master has made it again"
                );
                (self.listener, self.lost) = (listener, false);
            }
            Some(Err(error)) if !self.lost => {
                self.lost = true;
                tracing::warn!(
                    event = "control_socket",
                    error = &error as &dyn std::error::Error,
                    "the file of the control socket is gone and cannot be made again; the master tries again every ten \
                     seconds, and signals work meanwhile"
                );
            }
            Some(Err(_)) => {}
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.listener.path
    }

    /// Returns the descriptors that the master's poll should watch. [`turn`](Self::turn) takes the results in the same
    /// order.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let listener = match self.deaf_until {
            Some(_) => Interest::Hangup,
            None => Interest::Read,
        };
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), client.interest()));
        std::iter::once((self.listener.socket.as_fd(), listener)).chain(clients)
    }

    /// Returns when [`turn`](Self::turn) must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.clients.iter().filter_map(ControlClient::until).chain(self.deaf_until).min()
    }

    /// Accepts, reads and writes what is possible without waiting, and returns the new requests.
    pub(super) fn turn(&mut self, ready: &[bool], now: Millis) -> Vec<(Caller, Request)> {
        let mut asked = Vec::new();
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        let (accepts, of_clients) = ready.split_first().map_or((false, ready), |(first, rest)| (*first, rest));
        for at in 0..self.clients.len() {
            if of_clients.get(at).is_some_and(|ready| *ready) {
                asked.extend(self.attend(at, now));
            }
            let client = &mut self.clients[at];
            if client.until().is_some_and(|until| until <= now) {
                client.stage = ClientStage::Gone;
            }
        }
        self.forget_gone();
        if accepts {
            self.accept(now, &mut asked);
        }
        asked
    }

    fn accept(&mut self, now: Millis, asked: &mut Vec<(Caller, Request)>) {
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.deaf_until = Some(now.after(DEAF_MS));
                        tracing::warn!(
                            event = "control_socket",
                            %error,
                            "could not accept on the control socket; it accepts no client for a second"
                        );
                        return;
                    }
                },
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let known = fd::peer(stream.as_fd()).is_ok_and(|(_, uid)| uid == 0 || uid == self.uid);
            if !known {
                // If this client does not get the refusal, nothing is lost.
                let refused = ControlResponse::refused(format!("only root and uid {} may ask this master", self.uid));
                let _ = (&stream).write(&protocol::line(&refused));
            } else if self.has_room() {
                self.next += 1;
                let (id, stage) = (Caller(self.next), ClientStage::Asking { until: now.after(PATIENCE_MS) });
                self.clients.push(ControlClient { id, stream, stage, input: Vec::new(), output: Vec::new() });
                // The request is read at once, because most clients have sent it by now. A client can no longer be
                // dropped for another client once its request has been read.
                asked.extend(self.attend(self.clients.len() - 1, now));
                self.forget_gone();
            }
        }
    }

    fn has_room(&mut self) -> bool {
        if self.clients.len() < CLIENTS_MAX {
            return true;
        }
        let idle = self.clients.iter().position(|client| matches!(client.stage, ClientStage::Asking { .. }));
        idle.map(|at| self.clients.remove(at)).is_some()
    }

    /// Reads from or writes to one client. Returns its request if the shell has to answer it.
    fn attend(&mut self, at: usize, now: Millis) -> Option<(Caller, Request)> {
        let waiting = self.clients.iter().filter(|client| client.stage == ClientStage::Waiting).count();
        let client = &mut self.clients[at];
        match client.stage {
            ClientStage::Asking { .. } => {}
            // Clients in these stages have sent their request. The poll reports such a client because it has left, or
            // because it can take more output.
            ClientStage::Waiting if client.output.is_empty() => client.stage = ClientStage::Gone,
            ClientStage::Waiting | ClientStage::Reading { .. } => client.flush(),
            ClientStage::Gone => {}
        }
        if !matches!(client.stage, ClientStage::Asking { .. }) {
            return None;
        }
        let line = client.read()?;
        let refused = match line.and_then(|line| Request::read(&line)) {
            Ok(Request {
                command:
                    ControlCommand::Scale(_)
                    | ControlCommand::Reload
                    | ControlCommand::Upgrade { .. }
                    | ControlCommand::Stop { .. },
                ..
            }) if waiting >= WAITING_MAX => {
                format!("{WAITING_MAX} other commands wait already; nothing was changed")
            }
            Ok(request) => {
                // The shell answers a request for the status or the settings before the next poll, so this client only
                // has to read.
                client.stage = ClientStage::Reading { until: now.after(PATIENCE_MS) };
                let command = &request.command;
                if !matches!(command, ControlCommand::Status | ControlCommand::Config { .. }) {
                    client.stage = ClientStage::Waiting;
                    let (pid, uid) = fd::peer(client.stream.as_fd()).unwrap_or_default();
                    tracing::info!(
                        event = "control_socket",
                        pid,
                        uid,
                        ?command,
                        "got a command over the control socket"
                    );
                    // Forget the last progress, so that this client gets the next message even if its text is the same.
                    self.progress.clear();
                }
                return Some((client.id, request));
            }
            Err(refused) => refused,
        };
        client.answer(&ControlResponse::refused(refused), now);
        None
    }

    /// Sends the response to a caller, unless the caller has left.
    pub(super) fn answer(&mut self, caller: Caller, answer: &ControlResponse, now: Millis) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == caller) {
            client.answer(answer, now);
            self.forget_gone();
        }
    }

    /// Returns true if this caller still waits.
    pub(super) fn has(&self, caller: Caller) -> bool {
        self.clients.iter().any(|client| client.id == caller)
    }

    fn forget_gone(&mut self) {
        self.clients.retain(|client| client.stage != ClientStage::Gone);
    }

    /// Sends the progress to all clients that wait, each time the progress changes. A client that does not read misses
    /// some messages.
    pub(super) fn send_progress(&mut self, progress: &str) {
        if self.progress == progress {
            return;
        }
        progress.clone_into(&mut self.progress);
        let line = protocol::line(&Reply::Progress { progress: progress.to_owned() });
        for client in self.clients.iter_mut().filter(|client| client.stage == ClientStage::Waiting) {
            if client.output.len() < REQUEST_MAX {
                client.output.extend(&line);
                client.flush();
            }
        }
    }

    /// Responds to all clients that wait, and removes the file of the socket if it still belongs to this master.
    pub(super) fn close(mut self, last_words: &ControlResponse, now: Millis) {
        for client in self.clients.iter_mut().filter(|client| client.stage == ClientStage::Waiting) {
            client.answer(last_words, now);
        }
        if let Err(error) = socket_file::remove(&self.listener.path, self.listener.file) {
            tracing::warn!(
                event = "control_socket",
                path = %self.listener.path.display(),
                %error,
                "could not remove the control socket; remove it by hand"
            );
        }
    }
}

impl ControlClient {
    fn interest(&self) -> Interest {
        match self.stage {
            ClientStage::Asking { .. } => Interest::Read,
            ClientStage::Waiting if self.output.is_empty() => Interest::Hangup,
            ClientStage::Waiting | ClientStage::Reading { .. } | ClientStage::Gone => Interest::Write,
        }
    }

    fn until(&self) -> Option<Millis> {
        match self.stage {
            ClientStage::Asking { until } | ClientStage::Reading { until } => Some(until),
            ClientStage::Waiting | ClientStage::Gone => None,
        }
    }

    /// Returns the line of the request once the line is complete, or a refusal once it is too long. Returns `None` if
    /// the rest of the line is still to come, or if the client has left.
    fn read(&mut self) -> Option<Result<Vec<u8>, String>> {
        let mut chunk = [0; 4096];
        while self.input.len() <= REQUEST_MAX {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.stage = ClientStage::Gone;
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
                    self.stage = ClientStage::Gone;
                    return None;
                }
            }
        }
        Some(Err(format!("a request has at most {REQUEST_MAX} bytes")))
    }

    fn answer(&mut self, answer: &ControlResponse, now: Millis) {
        self.output.extend(protocol::line(answer));
        self.stage = ClientStage::Reading { until: now.after(PATIENCE_MS) };
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.stage = ClientStage::Gone;
                    return;
                }
            }
        }
        if matches!(self.stage, ClientStage::Reading { .. }) {
            self.stage = ClientStage::Gone;
        }
    }
}

fn make_private(folder: &Path, uid: u32) -> Result<(), ControlOpenError> {
    let path = || folder.to_owned();
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            return Err(ControlOpenError::Folder { path: path(), source });
        }
        Ok(()) | Err(_) => {}
    }
    match file::is_private_folder(folder, uid) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ControlOpenError::Shared { path: path(), uid }),
        Err(source) => Err(ControlOpenError::Look { path: path(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::Shutdown, os::unix::fs::PermissionsExt, time::Duration};

    use super::*;
    use crate::{protocol::Scale, sys::poll::wait};
    use oxicorn_testkit::random::Random;

    fn open(path: &Path) -> Result<ControlServer, ControlOpenError> {
        ControlListener::at(path.to_owned()).map(|listener| ControlServer::new(listener, host::effective_ids().0))
    }

    /// A control socket under test, with a clock that only the test moves.
    struct Stage {
        control: ControlServer,
        now: Millis,
        dir: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { control: open(&dir.path().join("s")).unwrap(), now: Millis(1_000), dir }
        }

        fn client(&self) -> UnixStream {
            let client = UnixStream::connect(self.dir.path().join("s")).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        fn turn(&mut self) -> Vec<(Caller, ControlCommand)> {
            let fds: Vec<_> = self.control.watched().collect();
            let ready = wait(&fds, Some(Duration::ZERO)).unwrap();
            self.control.turn(&ready, self.now).into_iter().map(|(caller, request)| (caller, request.command)).collect()
        }

        /// Answers all new requests, as the shell answers a request for the status.
        fn serve(&mut self) {
            for (caller, _) in self.turn() {
                self.control.answer(caller, &ControlResponse::done("served"), self.now);
            }
        }
    }

    fn say(mut client: &UnixStream, bytes: &[u8]) {
        client.write_all(bytes).unwrap();
    }

    /// Returns everything that can be read now, and true if the connection has ended.
    fn heard(mut client: &UnixStream) -> (String, bool) {
        let mut bytes = Vec::new();
        let end = match client.read_to_end(&mut bytes) {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        (String::from_utf8(bytes).unwrap(), end)
    }

    fn request(command: ControlCommand) -> Vec<u8> {
        protocol::line(&Request::new(command, protocol::Meant::default()))
    }

    #[test]
    fn the_socket_has_mode_0600_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let control = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(open(&path), Err(ControlOpenError::Taken { .. })));
        control.close(&ControlResponse::done(""), Millis(0));
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_file_of_another_process_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let control = open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        control.close(&ControlResponse::done(""), Millis(0));
        assert!(path.exists(), "the socket of another process was removed");
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a letter").unwrap();
        assert!(matches!(open(&path), Err(ControlOpenError::NotASocket { .. })));
        assert!(matches!(open(Path::new("/proc/s")), Err(ControlOpenError::Listen { .. })));
    }

    #[test]
    fn a_missing_socket_file_is_made_again_and_waiting_clients_stay_connected() {
        let mut stage = Stage::new();
        let path = stage.dir.path().join("s");
        let client = stage.client();
        say(&client, &request(ControlCommand::Scale(Scale::By(1))));
        assert_eq!(stage.turn().len(), 1);
        let socket = ControlSocket::Path(path.clone());
        let site = Site { socket: &socket, name: "a", folder: Path::new("/") };
        let before = stage.control.listener.file;
        stage.control.look_after(&site);
        assert_eq!(stage.control.listener.file, before, "it stood");
        fs::remove_file(&path).unwrap();
        stage.control.look_after(&site);
        let second = stage.client();
        say(&second, &request(ControlCommand::Status));
        stage.serve();
        assert!(heard(&second).0.contains("served"));
        stage.control.send_progress("1 of 2");
        assert!(heard(&client).0.contains("1 of 2"));

        fs::remove_file(&path).unwrap();
        fs::write(&path, "a letter").unwrap();
        stage.control.look_after(&site);
        assert!(stage.control.lost);
        fs::remove_file(&path).unwrap();
        stage.control.look_after(&site);
        assert!(!stage.control.lost);
        drop(stage.client());
    }

    #[test]
    fn a_second_service_with_the_same_name_uses_the_next_socket_name() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { socket: &ControlSocket::Auto, name: "a", folder: Path::new("/srv/b") };
        let names: Vec<_> = protocol::socket_names("a", site.folder).collect();
        let listeners: Vec<_> = names.iter().map(|_| site.within(dir.path()).unwrap()).collect();
        assert_eq!(
            listeners.iter().map(|listener| dir.path().join(&names[0]) == listener.path).filter(|first| *first).count(),
            1
        );
        assert_eq!(listeners[1].path, dir.path().join(&names[1]));
        assert!(matches!(site.within(dir.path()), Err(ControlOpenError::Taken { .. })));
    }

    #[test]
    fn a_private_folder_belongs_to_this_user_and_is_not_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (uid, _) = host::effective_ids();
        let folder = dir.path().join("a");
        make_private(&folder, uid).unwrap();
        make_private(&folder, uid).unwrap();
        assert!(matches!(make_private(&folder, uid + 1), Err(ControlOpenError::Shared { .. })));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(make_private(&folder, uid), Err(ControlOpenError::Shared { .. })));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&folder, dir.path().join("b")).unwrap();
        assert!(matches!(make_private(&dir.path().join("b"), uid), Err(ControlOpenError::Shared { .. })));
    }

    #[test]
    fn a_connection_has_one_request_and_one_response() {
        let mut stage = Stage::new();
        let client = stage.client();
        say(&client, &request(ControlCommand::Status));
        say(&client, &request(ControlCommand::Stop { now: true }));
        let asked = stage.turn();
        let [(caller, ControlCommand::Status)] = asked[..] else { panic!("{asked:?}") };
        stage.control.answer(caller, &ControlResponse::done("fine"), stage.now);
        assert_eq!(heard(&client), (r#"{"ok":true,"reason":"fine"}"#.to_owned() + "\n", true));
        assert_eq!(stage.control.clients.len(), 0);
        stage.control.answer(caller, &ControlResponse::done("again"), stage.now);
    }

    #[test]
    fn a_waiting_client_gets_each_progress_once_and_may_leave() {
        let mut stage = Stage::new();
        let (patient, hasty) = (stage.client(), stage.client());
        for client in [&patient, &hasty] {
            say(client, &request(ControlCommand::Scale(Scale::By(1))));
        }
        assert_eq!(stage.turn().len(), 2);
        for progress in ["1 of 2", "1 of 2", "2 of 2"] {
            stage.control.send_progress(progress);
        }
        assert_eq!(heard(&patient), ("{\"progress\":\"1 of 2\"}\n{\"progress\":\"2 of 2\"}\n".to_owned(), false));
        drop(hasty);
        assert_eq!(stage.turn(), []);
        assert_eq!(stage.control.clients.len(), 1);
        assert_eq!(stage.control.deadline(), None, "a waiting client has no time limit");
        patient.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stage.turn(), []);
        stage.control.close(&ControlResponse::done("over"), stage.now);
        assert_eq!(heard(&patient), ("{\"ok\":true,\"reason\":\"over\"}\n".to_owned(), true));
    }

    #[test]
    fn a_client_has_five_seconds_for_its_whole_request() {
        let mut stage = Stage::new();
        let (half, silent) = (stage.client(), stage.client());
        say(&half, b"{\"version\":1,");
        assert_eq!(stage.turn(), []);
        let until = stage.control.deadline().unwrap();
        assert_eq!(until.since(stage.now), PATIENCE_MS);
        stage.now = Millis(until.0 - 1);
        say(&half, b"\"command\":");
        assert_eq!(stage.turn(), []);
        assert_eq!(stage.control.deadline(), Some(until), "a byte buys no time");
        stage.now = until;
        assert_eq!(stage.turn(), []);
        assert_eq!((heard(&half).1, heard(&silent).1), (true, true));
        assert_eq!((stage.control.clients.len(), stage.control.deadline()), (0, None));
    }

    #[test]
    fn a_request_that_is_too_long_is_refused() {
        let mut stage = Stage::new();
        let client = stage.client();
        say(&client, &[b'x'; REQUEST_MAX + 1]);
        assert_eq!(stage.turn(), []);
        let (told, end) = heard(&client);
        assert!(told.contains("at most 65536 bytes") && end, "{told}");
    }

    #[test]
    fn a_client_has_five_seconds_to_read_the_response() {
        let mut stage = Stage::new();
        let client = stage.client();
        say(&client, &request(ControlCommand::Status));
        let [(caller, _)] = stage.turn()[..] else { panic!() };
        stage.control.answer(caller, &ControlResponse::done("x".repeat(4 << 20)), stage.now);
        assert_eq!(stage.control.clients.len(), 1);
        stage.now = stage.control.deadline().unwrap();
        assert_eq!(stage.turn(), []);
        assert_eq!(stage.control.clients.len(), 0);
    }

    #[test]
    fn clients_without_a_request_make_room_and_waiting_clients_stay() {
        let mut stage = Stage::new();
        let waiting: Vec<_> = (0..=WAITING_MAX)
            .map(|_| {
                let client = stage.client();
                say(&client, &request(ControlCommand::Stop { now: false }));
                assert!(stage.turn().len() <= 1);
                client
            })
            .collect();
        let (told, end) = heard(&waiting[WAITING_MAX]);
        assert!(told.contains("16 other commands wait") && end, "{told}");
        let silent: Vec<_> = (0..100).map(|_| stage.client()).collect();
        let client = stage.client();
        say(&client, &request(ControlCommand::Status));
        for _ in 0..2 {
            stage.serve();
            assert!(stage.control.clients.len() <= CLIENTS_MAX);
        }
        assert!(heard(&client).0.contains("served"));
        assert_eq!(silent.iter().filter(|client| heard(client).1).count(), 100 - (CLIENTS_MAX - WAITING_MAX) + 1);
        assert!(waiting[..WAITING_MAX].iter().all(|client| !heard(client).1));
    }

    /// Sends any bytes, split in any way. Asserts that the client gets a response, or a refusal and the end of the
    /// connection, or nothing yet.
    #[test]
    fn any_bytes_get_a_response_or_a_refusal() {
        let mut random = Random::new(1);
        let mut below = |most: usize| random.below(most.max(1) as u64) as usize;
        let mut stage = Stage::new();
        for round in 0..2_000 {
            let mut bytes = request(ControlCommand::Scale(Scale::To(4)));
            for _ in 0..below(4) {
                let at = below(bytes.len());
                if bytes.is_empty() {
                    break;
                }
                match below(3) {
                    0 => bytes[at] = below(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let client = stage.client();
            let (first, rest) = bytes.split_at(below(bytes.len()));
            say(&client, first);
            let mut asked = stage.turn();
            // This write fails if the master has closed the connection already, which the test allows.
            let _ = (&client).write(rest);
            asked.extend(stage.turn());
            let (told, end) = heard(&client);
            match (&asked[..], told.as_str(), end) {
                ([_], "", false) => stage.control.answer(asked[0].0, &ControlResponse::done(""), stage.now),
                ([], "", false) => assert!(!bytes.contains(&b'\n'), "round {round}: no word to a whole line"),
                ([], told, true) => assert!(told.starts_with("{\"ok\":false"), "round {round}: {told}"),
                other => panic!("round {round}: {other:?} to {}", String::from_utf8_lossy(&bytes)),
            }
            drop(client);
        }
        stage.turn();
        stage.turn();
        assert_eq!(stage.control.clients.len(), 0);
    }
}
