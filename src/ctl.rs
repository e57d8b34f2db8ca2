//! The other end of the control socket: `oxicorn status`, `scale`, `stop`; and `health`, which asks a worker.
//!
//! Owns: finding the running service, waiting for its answer, showing it. Refuses: to guess which of two services is
//! meant, and to wait for a master that does not answer.

mod draw;
mod health;

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

pub(crate) use self::health::health;
use crate::{
    cli::Format,
    protocol::{self, Answer, Command, Reply, Request, Status},
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
    Socket(PathBuf),
    /// `unread`: the settings are not valid, and may have named another place.
    Usual {
        name: String,
        sockets: Vec<PathBuf>,
        unread: bool,
    },
    Off,
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) enum Failed {
    Refused(String),
    /// More than one service answers.
    Ambiguous(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(sentence) | Self::Ambiguous(sentence) => f.write_str(sentence),
        }
    }
}

impl Place {
    pub(crate) fn of(socket: Option<PathBuf>, whereabouts: Whereabouts) -> Self {
        let Whereabouts { socket: settled, name, unread } = whereabouts;
        match (socket, settled) {
            (Some(socket), _) | (None, ControlSocket::Path(socket)) => Self::Socket(socket),
            (None, ControlSocket::Off) => Self::Off,
            (None, ControlSocket::Auto) => {
                let (uid, _) = host::effective_ids();
                let mut sockets = protocol::client_sockets(&name, uid, |name| std::env::var_os(name));
                let private = protocol::private_folder(uid);
                sockets.retain(|socket| socket.parent() != Some(&private) || is_private(&private, uid));
                Self::Usual { name, sockets, unread }
            }
        }
    }

    /// A connection to the one service that answers.
    fn connect(&self) -> Result<UnixStream, Failed> {
        let refused = |sentence: String| Err(Failed::Refused(sentence));
        let (name, sockets, unread) = match self {
            Self::Socket(path) => {
                return connect(path)
                    .or_else(|error| refused(format!("no running service answers at {}: {error}", path.display())));
            }
            Self::Off => {
                return refused("control.socket is off, so a running service cannot be asked; signals work".to_owned());
            }
            Self::Usual { name, sockets, unread } => (name, sockets, unread),
        };
        let mut found: Vec<_> = sockets.iter().filter_map(|path| Some((path, connect(path).ok()?))).collect();
        if found.len() > 1 {
            let mut services: Vec<_> =
                found.iter().filter_map(|(path, stream)| Some((*path, ask_status(stream).ok()?))).collect();
            // Two paths may lead to one socket.
            services.sort_by_key(|(_, status)| status.pid);
            services.dedup_by_key(|(_, status)| status.pid);
            if services.len() > 1 {
                return Err(Failed::Ambiguous(ambiguous(name, &services)));
            }
            found = found.into_iter().filter_map(|(path, _)| Some((path, connect(path).ok()?))).collect();
        }
        match found.into_iter().next() {
            Some((_, stream)) => Ok(stream),
            None => {
                let tried: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
                let hint =
                    if *unread { "; the settings are not valid (see oxicorn check) and were not read" } else { "" };
                refused(format!("no running service named {name} answers; tried {}{hint}", tried.join(", ")))
            }
        }
    }
}

/// Prints the status, once or until the service is gone.
pub(crate) fn status(place: &Place, format: Format, watch: bool) -> Result<(), Failed> {
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    loop {
        let stream = place.connect()?;
        let text = match format {
            Format::Json => ask_status(&stream).map(|status| protocol::line(&status)),
            Format::Table => ask_status(&stream)
                .map(|status| draw::draw(&status, host::terminal_width().unwrap_or(usize::MAX), colour).into_bytes()),
            Format::Openmetrics => converse(&stream, Command::Metrics, Some(PATIENCE), &mut |_| {})
                .map(|answer| answer.reason.into_bytes()),
        };
        let text = text.map_err(Failed::Refused)?;
        let text = if watch && terminal && format == Format::Table {
            [b"\x1b[H\x1b[2J", text.as_slice()].concat()
        } else {
            text
        };
        // An error here is a reader who has seen enough, such as head.
        if stdout.write_all(&text).and_then(|()| stdout.flush()).is_err() || !watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Asks for something that takes its time, shows how it goes, and prints how it ended.
pub(crate) fn ask(place: &Place, command: Command, json: bool) -> Result<(), Failed> {
    let ends = matches!(command, Command::Stop { .. });
    let stream = place.connect()?;
    let mut stderr = io::stderr();
    let terminal = stderr.is_terminal();
    let mut show = |text: &str| {
        if terminal {
            // A terminal that is gone is nobody to show it to.
            let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
        }
    };
    let answer = converse(&stream, command, None, &mut show);
    show("");
    let answer = answer.map_err(Failed::Refused)?;
    if ends && answer.ok {
        // The answer is the master's last word; its end is the end of the connection.
        let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| (&stream).read(&mut [0]));
    }
    if json {
        // As above, nobody may be there to read it.
        let _ = io::stdout().write_all(&protocol::line(&answer));
    }
    match (answer.ok, json) {
        (true, true) => Ok(()),
        (true, false) => {
            let _ = writeln!(io::stdout(), "{}", answer.reason);
            Ok(())
        }
        (false, _) => Err(Failed::Refused(answer.reason)),
    }
}

/// What a reload would change in the service that runs, where one does and says so.
pub(crate) fn would_change(place: &Place) -> Option<String> {
    let stream = place.connect().ok()?;
    converse(&stream, Command::Changes, Some(PATIENCE), &mut |_| {}).ok().map(|answer| answer.reason)
}

fn ask_status(stream: &UnixStream) -> Result<Status, String> {
    let answer = converse(stream, Command::Status, Some(PATIENCE), &mut |_| {})?;
    answer.status.map(|status| *status).ok_or(answer.reason)
}

/// One request, its progress, its answer. `patience`: for each line; none waits as long as it takes.
fn converse(
    stream: &UnixStream,
    command: Command,
    patience: Option<Duration>,
    show: &mut dyn FnMut(&str),
) -> Result<Answer, String> {
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("the master is there but did not answer within {PATIENCE:?}")
        }
        _ => format!("the connection to the master broke: {error}"),
    };
    stream.set_write_timeout(Some(PATIENCE)).and_then(|()| stream.set_read_timeout(patience)).map_err(broken)?;
    let sent = (&*stream).write_all(&protocol::line(&Request::new(command)));
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
fn connect(path: &Path) -> io::Result<UnixStream> {
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
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PATIENCE / TRIES),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, "it takes no connection"))
}

fn is_private(folder: &Path, uid: u32) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}

fn ambiguous(name: &str, services: &[(&PathBuf, Status)]) -> String {
    let mut sentence = format!("{} services named {name} run; say which by --socket:", services.len());
    for (path, status) in services {
        let addresses: Vec<_> = status.listeners.iter().map(|listener| listener.address.as_str()).collect();
        sentence += &format!("\n  --socket {}  (pid {}, {})", path.display(), status.pid, addresses.join(", "));
    }
    sentence
}
