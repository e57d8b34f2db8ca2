//! The process beside the master that executes what an operator has written in Python for the master: the configuration
//! file and its hooks.
//!
//! Owns: its start, the lines to it and from it, and its end. Refuses: to know what the lines mean (`compat`), and to
//! wait for it in the master of a running service.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The variables by which a service manager speaks to the master.
const FOR_THE_MASTER: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// How to start the process.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) executable: PathBuf,
    /// The interpreter's own options.
    pub(crate) options: Vec<OsString>,
}

/// The process. It ends when the socket to it is closed.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    stream: UnixStream,
    /// What has come of the next line.
    unread: Vec<u8>,
}

/// Returns the present time of the clock that never goes back.
#[expect(clippy::disallowed_methods, reason = "the clock of the library is not public")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

impl Helper {
    /// Starts the process in `folder`, and sends it its first line.
    ///
    /// # Errors
    /// The sentence that says why it could not be started.
    pub(crate) fn begin(launch: &Launch, folder: &Path, line: &str) -> Result<Self, String> {
        Self::try_begin(launch, folder, line)
            .map_err(|error| format!("the process that executes it could not be started: {error}"))
    }

    fn try_begin(launch: &Launch, folder: &Path, line: &str) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(&launch.executable);
        command.args(&launch.options).args(["-m", "oxicorn._compat.process"]).arg(theirs.as_raw_fd().to_string());
        command.current_dir(folder).env("PWD", folder);
        for name in FOR_THE_MASTER {
            command.env_remove(name);
        }
        // What the file prints must not mix with the output of a command. A signal of the terminal is for the master.
        command.stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
        let mut helper = Self { child: command.spawn()?, stream, unread: Vec::new() };
        helper.stream.write_all(line.as_bytes())?;
        helper.stream.write_all(b"\n")?;
        Ok(helper)
    }

    /// Waits for the next line. Returns `None` if it does not come in time.
    ///
    /// # Errors
    /// The sentence that says how the process has ended before the line.
    pub(crate) fn wait(&mut self, until: Instant) -> Result<Option<String>, String> {
        loop {
            let left = until.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(None);
            }
            // It does not fail: the time is not zero.
            let _ = self.stream.set_read_timeout(Some(left));
            match self.read() {
                Ok(Some(line)) => return Ok(Some(line)),
                Ok(None) => {}
                Err(()) => return Err(self.ended()),
            }
        }
    }

    /// Reads what has come. Returns a line if there is a whole one. The error is the end of the process.
    fn read(&mut self) -> Result<Option<String>, ()> {
        if let Some(line) = self.line() {
            return Ok(Some(line));
        }
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(()),
            Ok(len) => {
                self.unread.extend(&chunk[..len]);
                Ok(self.line())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(_) => Err(()),
        }
    }

    fn line(&mut self) -> Option<String> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        let line = self.unread.drain(..=end).take(end).collect();
        Some(String::from_utf8(line).unwrap_or_default())
    }

    /// Says how the process has ended.
    fn ended(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => format!("the process that executes it ended before it answered ({status})"),
            // The master has reaped it.
            Err(_) => "the process that executes it ended before it answered".to_owned(),
        }
    }

    pub(crate) fn kill(&mut self) {
        // If this fails, it has ended meanwhile.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
