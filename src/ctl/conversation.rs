//! One connection to a master. This module connects, sends one request, shows the progress and reads the answer.
//!
//! Owns: each wait for a master, and the messages for failures. Refuses: to choose the master (`endpoint` does), and to
//! interpret an answer.

use std::{
    fmt,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::protocol::{self, ControlCommand, ControlResponse, Meant, Reply, Request, Status};

/// The time that a master has to answer a request for its status. A master answers such a request without waiting for
/// anything, so this time is long enough.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The largest number of bytes that a command reads from a master. Even the longest answer is shorter. The limit
/// protects the command from a master that sends without end.
const ANSWER_MAX: u64 = 16 << 20;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The command cannot be done, or the master refused it. The text is a sentence that gives the reason.
    Refused(String),
    /// More than one service answers, and it is not clear which one is meant.
    Ambiguous(String),
    /// Not all workers serve. The status, which was printed before, shows which workers do not serve.
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
    pub(super) fn off() -> Self {
        Self::Refused("control.socket is off, so a running service cannot be asked; signals work".to_owned())
    }
}

/// A connection to a master, and the data that identify the service which the command means. The master compares these
/// data with its own.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) stream: UnixStream,
    meant: Meant,
}

impl Reached {
    pub(super) fn at(path: &Path, meant: &Meant, patience: Duration) -> Result<Self, Failed> {
        let refused = |error| Failed::Refused(format!("no running service answers at {}: {error}", path.display()));
        Ok(Self { stream: connect(path, patience).map_err(refused)?, meant: meant.clone() })
    }
}

pub(super) fn ask_status(reached: &Reached, patience: Duration) -> Result<Status, String> {
    let answer = converse(reached, ControlCommand::Status, Some(patience), &mut |_| {})?;
    answer.status.map(|status| *status).ok_or(answer.reason)
}

pub(super) fn ask_text(reached: &Reached, command: ControlCommand) -> Result<String, String> {
    let answer = converse(reached, command, Some(PATIENCE), &mut |_| {})?;
    if answer.ok { Ok(answer.reason) } else { Err(answer.reason) }
}

/// Sends one request, passes each line of progress to `show`, and returns the answer. `patience` is the longest wait
/// for each line; `None` means no limit.
pub(super) fn converse(
    Reached { stream, meant }: &Reached,
    command: ControlCommand,
    patience: Option<Duration>,
    show: &mut dyn FnMut(&str),
) -> Result<ControlResponse, String> {
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("the master runs but did not answer within {:?}", patience.unwrap_or(PATIENCE))
        }
        _ => format!("the connection to the master failed: {error}"),
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
                Err(error) => format!("the master did not accept the request: {error}"),
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

/// Connects with a time limit. If the accept queue is full, the master is busy, and this function tries again until
/// `patience` is over. A blocking connect would wait for the queue without a limit.
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
    Err(io::Error::new(ErrorKind::TimedOut, "it accepts no connection"))
}
