//! The other end of the control socket: `oxicorn status`, `scale`, `stop`; and `health`, which asks a worker.
//!
//! Owns: finding the running service that is meant, waiting for its answer, showing it. Refuses: to guess which of two
//! services is meant, and to wait for a master that does not answer.

mod config;
mod draw;
mod health;

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

pub(crate) use self::{
    config::{Differs, differs, print_running},
    health::health,
};
use crate::{
    cli::StatusFormat,
    protocol::{self, Answer, Command, Folder, Meant, Reply, Request, Service, Status},
    settings::{ControlSocket, Whereabouts},
    sys::host,
};

/// What a master may take to answer a status: it never has to wait for anything itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any answer.
const ANSWER_MAX: u64 = 16 << 20;
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Where the service that is meant may answer.
#[derive(Debug)]
pub(crate) enum Place {
    Socket(PathBuf, Meant),
    Search(Search),
    Off,
}

/// Which of the services that answer is meant.
#[derive(Debug)]
pub(crate) struct Search {
    name: String,
    /// The one that the settings name; tried beside the usual places.
    socket: Option<PathBuf>,
    meant: Meant,
    /// Where the command was given: of several services, the one that was started here is meant.
    folder: PathBuf,
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) enum Failed {
    Refused(String),
    /// More than one service answers.
    Ambiguous(String),
    /// The status that was printed says so.
    NotAllServe,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(sentence) | Self::Ambiguous(sentence) => f.write_str(sentence),
            Self::NotAllServe => f.write_str("not all workers serve"),
        }
    }
}

impl Failed {
    fn off() -> Self {
        Self::Refused("control.socket is off, so a running service cannot be asked; signals work".to_owned())
    }
}

/// A connection to the master that is meant.
#[derive(Debug)]
struct Reached {
    stream: UnixStream,
    meant: Meant,
}

impl Reached {
    fn at(path: &Path, meant: &Meant, patience: Duration) -> Result<Self, Failed> {
        let refused = |error| Failed::Refused(format!("no running service answers at {}: {error}", path.display()));
        Ok(Self { stream: connect(path, patience).map_err(refused)?, meant: meant.clone() })
    }
}

/// A service that answers, and at which socket.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    service: Service,
}

impl Place {
    pub(crate) fn of(socket: Option<PathBuf>, whereabouts: Whereabouts) -> Self {
        if let Some(socket) = socket {
            return Self::Socket(socket, Meant::default());
        }
        let Whereabouts { socket, name, name_flag, file, file_is_named, folder } = whereabouts;
        // `--name` is given on purpose; a file that only lies in the folder may be another service's.
        let file = file.filter(|_| file_is_named || name_flag.is_none());
        let file = file.map(|file| file.to_string_lossy().into_owned());
        let meant = Meant { file, name: name_flag };
        let search = |socket| Self::Search(Search { name, socket, meant: meant.clone(), folder });
        match (socket, meant.name.is_some()) {
            (ControlSocket::Auto | ControlSocket::Off, true) | (ControlSocket::Auto, false) => search(None),
            (ControlSocket::Path(socket), true) => search(Some(socket)),
            (ControlSocket::Path(socket), false) => Self::Socket(socket, meant),
            (ControlSocket::Off, false) => Self::Off,
        }
    }

    /// A connection to the one service that is meant. `patience`: for each master that is asked which service it is.
    fn connect(&self, patience: Duration) -> Result<Reached, Failed> {
        match self {
            Self::Off => Err(Failed::off()),
            Self::Search(search) => search.connect(patience),
            Self::Socket(path, meant) => Reached::at(path, meant, patience),
        }
    }
}

impl Search {
    fn connect(&self, patience: Duration) -> Result<Reached, Failed> {
        let (uid, _) = host::effective_ids();
        let folders = protocol::client_folders(&self.name, uid, |name| std::env::var_os(name));
        let mut sockets: Vec<_> = self.socket.clone().into_iter().collect();
        sockets.extend(folders.iter().flat_map(|folder| sockets_in(folder, &self.name, uid)));
        let mut others = Vec::new();
        let mut found = self.meant_among(&sockets, patience, &mut others)?;
        // The usual places come first: no other user's service must stand in for what is found there.
        if found.is_none() {
            found = self.meant_among(&sockets_elsewhere(&self.name, uid), patience, &mut others)?;
        }
        match found {
            Some(path) => Reached::at(&path, &self.meant, patience),
            None => Err(Failed::Refused(self.none(&others, &folders))),
        }
    }

    /// The socket of the service that is meant, if it is among these. Adds the other services to `others`.
    fn meant_among(
        &self,
        sockets: &[PathBuf],
        patience: Duration,
        others: &mut Vec<Found>,
    ) -> Result<Option<PathBuf>, Failed> {
        let mut found = Vec::new();
        let mut silent = Vec::new();
        for path in sockets {
            let Ok(reached) = Reached::at(path, &self.meant, patience) else { continue };
            match converse(&reached, Command::Status, Some(patience), &mut |_| {}) {
                Ok(Answer { ok, service: Some(service), .. }) => {
                    let list = if ok { &mut found } else { &mut *others };
                    // Two paths may lead to one socket.
                    if !list.iter().any(|known| known.service.pid == service.pid) {
                        list.push(Found { path: path.clone(), service });
                    }
                }
                Ok(Answer { service: None, .. }) | Err(_) => silent.push(path.clone()),
            }
        }
        if found.len() > 1 && found.iter().filter(|found| self.is_here(&found.service)).count() == 1 {
            found.retain(|found| self.is_here(&found.service));
        }
        match (found.as_slice(), silent.as_slice()) {
            // Only one, and it does not answer: the command itself will say what is wrong with it.
            ([], [path]) if others.is_empty() => Ok(Some(path.clone())),
            ([], _) => Ok(None),
            ([found], _) => Ok(Some(found.path.clone())),
            (several, _) => Err(Failed::Ambiguous(format!(
                "{} services named {} run; say which by --socket, or give the command in its folder:{}",
                several.len(),
                self.name,
                listed(several)
            ))),
        }
    }

    fn is_here(&self, service: &Service) -> bool {
        let led = |folder: &Path| fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        led(Path::new(&service.folder)) == led(&self.folder)
    }

    fn none(&self, others: &[Found], folders: &[Folder]) -> String {
        let Self { name, meant, .. } = self;
        let tried = folders.iter().map(|folder| match folder {
            Folder::Given(path) | Folder::Private(path) => path.display().to_string(),
        });
        let tried = tried.collect::<Vec<_>>().join(", ");
        let wanted = match &meant.file {
            Some(file) => format!("no running service named {name} serves by {file}"),
            None => format!("no running service named {name} answers"),
        };
        match others {
            [] => format!("{wanted}; looked for {name}.sock in {tried}"),
            others => format!("{wanted}; nothing was done. Others of that name run:{}", listed(others)),
        }
    }
}

fn listed(found: &[Found]) -> String {
    let line =
        |found: &Found| format!("\n  --socket {}  {}", found.path.display(), draw::plain(&found.service.to_string()));
    found.iter().map(line).collect()
}

/// Prints the status, once or until the service is gone. Fails when not all workers serve, but not for a scraper's page.
pub(crate) fn status(place: &Place, format: StatusFormat, watch: bool) -> Result<(), Failed> {
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    loop {
        let reached = place.connect(PATIENCE)?;
        let width = || host::terminal_width().unwrap_or(usize::MAX);
        let told = match format {
            StatusFormat::Json => {
                ask_status(&reached, PATIENCE).map(|status| (protocol::line(&status), status.all_serve()))
            }
            StatusFormat::Table => ask_status(&reached, PATIENCE)
                .map(|status| (draw::draw(&status, width(), colour).into_bytes(), status.all_serve())),
            StatusFormat::Openmetrics => ask_text(&reached, Command::Metrics).map(|page| (page.into_bytes(), true)),
        };
        let (text, all_serve) = told.map_err(Failed::Refused)?;
        let text = if watch && terminal && format == StatusFormat::Table {
            [b"\x1b[H\x1b[2J", text.as_slice()].concat()
        } else {
            text
        };
        // An error here is a reader who has seen enough, such as head.
        if stdout.write_all(&text).and_then(|()| stdout.flush()).is_err() || !watch {
            return if all_serve { Ok(()) } else { Err(Failed::NotAllServe) };
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Asks for something that takes its time, shows how it goes, and prints how it ended.
pub(crate) fn ask(place: &Place, command: Command, json: bool) -> Result<(), Failed> {
    let ends = matches!(command, Command::Stop { .. });
    let reached = place.connect(PATIENCE)?;
    let mut stderr = io::stderr();
    let terminal = stderr.is_terminal();
    let mut show = |text: &str| {
        if terminal {
            // A terminal that is gone is nobody to show it to.
            let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
        }
    };
    let answer = converse(&reached, command, None, &mut show);
    show("");
    let answer = answer.map_err(Failed::Refused)?;
    if ends && answer.ok {
        // The answer is the master's last word; its end is the end of the connection.
        let stream = &reached.stream;
        let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| (&*stream).read(&mut [0]));
    }
    if json {
        // As above, nobody may be there to read it.
        let _ = io::stdout().write_all(&protocol::line(&answer));
    }
    match (answer.ok, json) {
        (true, true) => Ok(()),
        (true, false) => {
            let service = answer.service.map_or_else(String::new, |service| format!("{service}: "));
            let _ = writeln!(io::stdout(), "{}{}", draw::plain(&service), answer.reason);
            Ok(())
        }
        (false, _) => Err(Failed::Refused(answer.reason)),
    }
}

/// What a reload would change in the service of these settings; `None` where it does not run, or another service answers.
pub(crate) fn would_change(place: &Place) -> Option<String> {
    let reached = place.connect(PATIENCE).ok()?;
    ask_status(&reached, PATIENCE).ok()?;
    let reached = place.connect(PATIENCE).ok()?;
    converse(&reached, Command::Changes, Some(PATIENCE), &mut |_| {}).ok().map(|answer| answer.reason)
}

/// The running service, as far as it matters to a start of the same settings.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// Where it listens, as its log names it.
    pub(crate) addresses: Vec<String>,
}

/// `None` where none answers.
pub(crate) fn running(place: &Place) -> Option<Running> {
    let status = ask_status(&place.connect(PATIENCE).ok()?, PATIENCE).ok()?;
    let addresses = status.listeners.into_iter().map(|listener| listener.address).collect();
    Some(Running { pid: status.pid, addresses })
}

fn ask_status(reached: &Reached, patience: Duration) -> Result<Status, String> {
    let answer = converse(reached, Command::Status, Some(patience), &mut |_| {})?;
    answer.status.map(|status| *status).ok_or(answer.reason)
}

fn ask_text(reached: &Reached, command: Command) -> Result<String, String> {
    let answer = converse(reached, command, Some(PATIENCE), &mut |_| {})?;
    if answer.ok { Ok(answer.reason) } else { Err(answer.reason) }
}

/// One request, its progress, its answer. `patience`: for each line; none waits as long as it takes.
fn converse(
    Reached { stream, meant }: &Reached,
    command: Command,
    patience: Option<Duration>,
    show: &mut dyn FnMut(&str),
) -> Result<Answer, String> {
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("the master is there but did not answer within {:?}", patience.unwrap_or(PATIENCE))
        }
        _ => format!("the connection to the master broke: {error}"),
    };
    stream.set_write_timeout(Some(PATIENCE)).and_then(|()| stream.set_read_timeout(patience)).map_err(broken)?;
    let sent = (&*stream).write_all(&protocol::line(&Request::new(command, meant.clone())));
    let mut lines = BufReader::new(stream.take(ANSWER_MAX));
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).map_err(broken)?;
        if line.is_empty() {
            return Err(match &sent {
                Ok(()) => "the master ended before it answered; its log says why".to_owned(),
                Err(error) => format!("the master did not take the request: {error}"),
            });
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Progress { progress }) => show(&progress),
            Ok(Reply::Answer(answer)) => return Ok(answer),
            Err(_) => {
                return Err("the master's answer cannot be read; use the oxicorn program that it runs".to_owned());
            }
        }
    }
}

/// A full queue is a busy master: tried again, but not for ever, as a blocking connect would.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    const TRIES: u32 = 100;
    let address = SockAddr::unix(path)?;
    for _ in 0..TRIES {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => {
                socket.set_nonblocking(false)?;
                return Ok(socket.into());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(patience / TRIES),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, "it takes no connection"))
}

/// The sockets of services of this name in a folder that may be trusted.
fn sockets_in(folder: &Folder, name: &str, uid: u32) -> Vec<PathBuf> {
    let folder = match folder {
        Folder::Private(path) if !crate::sys::file::is_private_folder(path, uid).unwrap_or(false) => return Vec::new(),
        Folder::Private(path) | Folder::Given(path) => path,
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of_name =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|file| protocol::is_socket_of(name, file)));
    let mut sockets: Vec<_> = of_name.map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}

/// The sockets of units whose `RuntimeDirectory=` has another name than the service; and for root, who may ask every
/// service, those of all users. Only sockets that their folder's owner made, in folders that only the owner can write to.
fn sockets_elsewhere(name: &str, uid: u32) -> Vec<PathBuf> {
    let mut folders: Vec<_> = entries("/run").collect();
    if uid == 0 {
        let users: Vec<_> = entries("/run/user").collect();
        folders.extend(users.iter().map(|folder| folder.join(name)));
        folders.extend(users);
        folders.extend(entries("/tmp").filter(|path| path.to_string_lossy().starts_with("/tmp/oxicorn-")));
    }
    let mut sockets = Vec::new();
    for folder in folders {
        let Ok(found) = fs::symlink_metadata(&folder) else { continue };
        if (uid == 0 || found.uid() == uid) && is_owners_alone(&folder, &found) {
            let of_owner = |path: &PathBuf| is_socket_of_user(path, found.uid());
            sockets.extend(sockets_in(&Folder::Given(folder), name, uid).into_iter().filter(of_owner));
        }
    }
    sockets
}

/// In `/tmp` any user can make a folder, also one with another user's number.
fn is_owners_alone(folder: &Path, found: &fs::Metadata) -> bool {
    let owner = found.uid();
    let (named, others) = match () {
        () if folder.starts_with("/tmp") => (folder == Path::new(&format!("/tmp/oxicorn-{owner}")), 0o077),
        () if folder.starts_with("/run/user") => (folder.starts_with(format!("/run/user/{owner}")), 0o022),
        () => (true, 0o022),
    };
    found.is_dir() && named && found.mode() & others == 0
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_socket_of_user(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket() && found.uid() == uid)
}
