//! The process beside the master that executes what an operator has written in Python for the master: the configuration
//! file and its hooks.
//!
//! Owns: its start, the lines to it and from it, and its end. Refuses: to know what the lines mean (`compat`, `hooks`).

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The variables by which a service manager speaks to the master.
const FOR_THE_MASTER: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The most bytes of a line that are read. A process that sends more without an end of line counts as ended.
const LINE_MAX: usize = 16 << 20;

/// Variables of the environment that differ from those of this process. `None` is a variable that was removed.
pub(crate) type Overlay = BTreeMap<String, Option<String>>;

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
    /// It never blocks, except in [`wait`](Self::wait).
    stream: Rc<UnixStream>,
    /// What has come of the next line.
    unread: Vec<u8>,
    /// The rest of a line that did not fit into the socket.
    unsent: Vec<u8>,
    has_ended: bool,
}

/// Returns the present time of the clock that never goes back.
#[expect(clippy::disallowed_methods, reason = "the clock of the library is not public")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

impl Helper {
    /// Starts the process in `folder`, and sends it its first line. `overlay` has variables that replace those of this
    /// process.
    ///
    /// # Errors
    /// The sentence that says why it could not be started.
    pub(crate) fn begin(launch: &Launch, folder: &Path, line: &str, overlay: &Overlay) -> Result<Self, String> {
        Self::try_begin(launch, folder, line, overlay)
            .map_err(|error| format!("the process that executes it could not be started: {error}"))
    }

    fn try_begin(launch: &Launch, folder: &Path, line: &str, overlay: &Overlay) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        // Without a standard output of the master, its standard error takes that place.
        let stdout =
            io::stdout().as_fd().try_clone_to_owned().or_else(|_| io::stderr().as_fd().try_clone_to_owned())?;
        let mut command = Command::new(&launch.executable);
        command.args(&launch.options).args(["-m", "oxicorn._compat.process"]);
        for fd in [theirs.as_fd(), stdout.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            command.arg(fd.as_raw_fd().to_string());
        }
        command.current_dir(folder).env("PWD", folder);
        for (name, value) in overlay {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        for name in FOR_THE_MASTER {
            command.env_remove(name);
        }
        // What the file prints must not mix with the output of a command; hooks print to the output of the master. A
        // signal of the terminal is for the master.
        command.stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
        let (child, stream) = (command.spawn()?, Rc::new(stream));
        let mut helper = Self { child, stream, unread: Vec::new(), unsent: Vec::new(), has_ended: false };
        helper.send(line);
        Ok(helper)
    }

    /// Returns the socket for a poll.
    pub(crate) fn stream(&self) -> Rc<UnixStream> {
        Rc::clone(&self.stream)
    }

    /// Returns true once the process has closed its end of the socket.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sends a line. Returns false if the process has not read the lines before, so that this one is dropped.
    pub(crate) fn send(&mut self, line: &str) -> bool {
        self.flush();
        if !self.unsent.is_empty() {
            return false;
        }
        self.unsent.extend_from_slice(line.as_bytes());
        self.unsent.push(b'\n');
        self.flush();
        true
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.has_ended {
            match (&*self.stream).write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.has_ended = true,
            }
        }
    }

    /// Returns the next line, if it has come.
    pub(crate) fn line(&mut self) -> Option<String> {
        self.flush();
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.drain(..=end).take(end).collect::<Vec<u8>>();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            let mut chunk = [0; 16 * 1024];
            match (&*self.stream).read(&mut chunk) {
                Ok(len @ 1..) if self.unread.len() < LINE_MAX => self.unread.extend(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Ok(_) | Err(_) => {
                    self.has_ended = true;
                    return None;
                }
            }
        }
    }

    /// Waits for the next line. Returns `None` if it does not come in time, or if the process has ended.
    pub(crate) fn wait(&mut self, until: Instant) -> Option<String> {
        let mut left = until.saturating_duration_since(now());
        let mut line = None;
        while line.is_none() && !left.is_zero() && !self.has_ended {
            // These calls do not fail: the socket is open, and the time is not zero.
            let _ = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.set_nonblocking(false));
            line = self.line();
            left = until.saturating_duration_since(now());
        }
        let _ = self.stream.set_nonblocking(true);
        line
    }

    /// Returns a sentence that says how the process has ended before it answered.
    pub(crate) fn why_ended(&mut self) -> String {
        // It closes its end of the socket just before it ends. If it does not end, it is ended here.
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) if status.signal() == Some(libc::SIGKILL) => {
                "the process that executes it was killed, or has closed the descriptor for its answer".to_owned()
            }
            Ok(status) => format!("the process that executes it ended before it answered ({status})"),
            // The master has reaped it.
            Err(_) => "the process that executes it ended before it answered".to_owned(),
        }
    }

    /// Ends the process, which does not answer, and returns a sentence that says so.
    pub(crate) fn give_up(&mut self, time: Duration) -> String {
        // If this fails, the process has ended meanwhile. The master reaps it.
        let _ = self.child.kill();
        format!("it did not end within {} s", time.as_secs())
    }
}
