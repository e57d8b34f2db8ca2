//! The commands that ask a running service over its control socket, such as `oxicorn status`, `scale` and `stop`. The
//! command `oxicorn health` is here too, but it asks a worker over HTTP.
//!
//! Owns: finding the service, waiting for its answer, and showing the answer. Refuses: to guess which of two services
//! is meant, and to wait without a limit for a master that does not answer.

mod config;
mod conversation;
mod draw;
mod endpoint;
mod health;

use std::{
    io::{self, IsTerminal, Read, Write},
    time::Duration,
};

use self::conversation::{PATIENCE, ask_status, ask_text, converse};
pub(crate) use self::{
    config::{Differs, differs, print_running},
    conversation::Failed,
    endpoint::ControlEndpoint,
    health::health,
};
use crate::{
    cli::StatusFormat,
    log::terminal::plain,
    protocol::{self, ControlCommand},
    sys::host,
};

const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Prints the status once. If `watch` is set, it prints the status every second until the service is gone. Fails if not
/// all workers serve, except in the format `Openmetrics`.
pub(crate) fn status(endpoint: &ControlEndpoint, format: StatusFormat, watch: bool) -> Result<(), Failed> {
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    loop {
        let reached = endpoint.connect(PATIENCE)?;
        let width = || host::terminal_width().unwrap_or(usize::MAX);
        let told = match format {
            StatusFormat::Json => {
                ask_status(&reached, PATIENCE).map(|status| (protocol::line(&status), status.all_serve()))
            }
            StatusFormat::Table => ask_status(&reached, PATIENCE)
                .map(|status| (draw::draw(&status, width(), colour).into_bytes(), status.all_serve())),
            StatusFormat::Openmetrics => {
                ask_text(&reached, ControlCommand::Metrics).map(|page| (page.into_bytes(), true))
            }
        };
        let (text, all_serve) = told.map_err(Failed::Refused)?;
        let text = if watch && terminal && format == StatusFormat::Table {
            [b"\x1b[H\x1b[2J", text.as_slice()].concat()
        } else {
            text
        };
        // If the write fails, the program that reads this output, such as `head`, has closed the pipe. Then there is
        // nothing more to do.
        if stdout.write_all(&text).and_then(|()| stdout.flush()).is_err() || !watch {
            return if all_serve { Ok(()) } else { Err(Failed::NotAllServe) };
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Sends a command to the master, shows the master's progress on the terminal, and prints the answer. Some commands,
/// such as a reload, take long.
pub(crate) fn ask(endpoint: &ControlEndpoint, command: ControlCommand, json: bool) -> Result<(), Failed> {
    let ends = matches!(command, ControlCommand::Stop { .. });
    let reached = endpoint.connect(PATIENCE)?;
    let mut stderr = io::stderr();
    let terminal = stderr.is_terminal();
    let mut show = |text: &str| {
        if terminal {
            // If this fails, the terminal is gone, and the progress is not shown.
            let _ = write!(stderr, "\r\x1b[K{}", plain(text)).and_then(|()| stderr.flush());
        }
    };
    let answer = converse(&reached, command, None, &mut show);
    show("");
    let answer = answer.map_err(Failed::Refused)?;
    if ends && answer.ok {
        // Wait until the master has ended. Its answer to `stop` is the last data that it sends. When the master ends,
        // the kernel closes the connection, and this read returns.
        let stream = &reached.stream;
        let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| (&*stream).read(&mut [0]));
    }
    if json {
        // If this fails, the program that reads this output has closed the pipe. Then there is nothing more to do.
        let _ = io::stdout().write_all(&protocol::line(&answer));
    }
    match (answer.ok, json) {
        (true, true) => Ok(()),
        (true, false) => {
            let service = answer.service.map_or_else(String::new, |service| format!("{service}: "));
            let _ = writeln!(io::stdout(), "{}{}", plain(&service), plain(&answer.reason));
            Ok(())
        }
        (false, _) => Err(Failed::Refused(answer.reason)),
    }
}

/// Returns a sentence that says what a reload would change in the running service. The result is `None` if the service
/// does not run, or if another service answers.
pub(crate) fn would_change(endpoint: &ControlEndpoint) -> Option<String> {
    let reached = endpoint.connect(PATIENCE).ok()?;
    ask_status(&reached, PATIENCE).ok()?;
    let reached = endpoint.connect(PATIENCE).ok()?;
    converse(&reached, ControlCommand::Changes, Some(PATIENCE), &mut |_| {}).ok().map(|answer| answer.reason)
}

/// The facts about the running service that `check --deep` needs when it rehearses a start with the same settings.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// The addresses at which the service listens, as its log writes them.
    pub(crate) addresses: Vec<String>,
}

/// Asks the running service for its pid and its addresses; `None` if no service answers.
pub(crate) fn running(endpoint: &ControlEndpoint) -> Option<Running> {
    let status = ask_status(&endpoint.connect(PATIENCE).ok()?, PATIENCE).ok()?;
    let addresses = status.listeners.into_iter().map(|listener| listener.address).collect();
    Some(Running { pid: status.pid, addresses })
}
