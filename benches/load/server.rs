//! A running peer: its processes, what the kernel says about them, and what the benchmark does to them.
//!
//! Owns: the start and the end of the processes. Refuses: to end processes by name. It ends them by process group,
//! because each of its child processes has a group of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    common::{Process, free_port, now},
    peers::{Peer, Setup},
};

/// How long a server may take to start. Python with FastAPI needs seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    pub address: SocketAddr,
    /// When the first process was started.
    pub begun: Instant,
    children: Vec<Child>,
    has_master: bool,
    workers: usize,
    dir: TempDir,
}

impl Server {
    /// Starts the server, and returns at once.
    pub fn spawn(peer: Peer, setup: &Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("oxicorn-bench-").tempdir().expect("a temporary folder");
        let port = free_port();
        let recipe = peer.recipe(port, setup, dir.path());
        let begun = now();
        let spawn = |mut command: std::process::Command| {
            let log = |name: &str| {
                let path = dir.path().join(name);
                File::options().append(true).create(true).open(path).expect("a file in our own folder")
            };
            // Stdout and stderr go to two files, because only the end of stderr is quoted as the error. A log line for
            // each request goes to stdout, because it is not an error.
            command.current_dir(dir.path()).stdin(Stdio::null()).stdout(log("stdout.log")).stderr(log("stderr.log"));
            command.process_group(0).spawn().unwrap_or_else(|error| panic!("{}: {error}", peer.name()))
        };
        let children = recipe.commands.into_iter().map(spawn).collect();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Self { address, begun, children, has_master: recipe.has_master, workers: setup.workers, dir }
    }

    /// Starts the server, and waits until it has all its workers, answers, and is idle.
    pub fn start(peer: Peer, setup: &Setup) -> Result<Self, String> {
        let mut server = Self::spawn(peer, setup);
        server.settle()?;
        Ok(server)
    }

    pub fn settle(&mut self) -> Result<(), String> {
        let deadline = now() + PATIENCE;
        let mut spent = Duration::ZERO;
        loop {
            let before = std::mem::replace(&mut spent, self.cpu_time());
            let idle = spent.saturating_sub(before) < Duration::from_millis(5);
            if idle && self.workers().len() == self.workers && TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.exited() {
                return Err(format!("it ended with {status}: {}", self.last_words()));
            }
            if now() > deadline {
                let workers = self.workers().len();
                return Err(format!(
                    "it did not serve with {} workers, {workers} are there: {}",
                    self.workers,
                    self.last_words()
                ));
            }
            // A worker that still imports modules uses CPU time, and this pause is long enough to notice that.
            sleep(Duration::from_millis(50));
        }
    }

    /// Returns how the first process ended; `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.children[0].try_wait().ok().flatten()
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.path("stderr.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn master(&self) -> Option<Process> {
        self.has_master.then(|| Process(self.children[0].id()))
    }

    /// Returns every living process of the server: the processes that were started here, and their descendants.
    pub fn processes(&self) -> Vec<Process> {
        let groups: Vec<_> = self.children.iter().map(Child::id).collect();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process));
        processes.filter(|one| one.group().is_some_and(|group| groups.contains(&group)) && one.is_alive()).collect()
    }

    /// Returns the processes that serve, without the helpers of Python's multiprocessing.
    pub fn workers(&self) -> Vec<Process> {
        let serves =
            |process: &Process| Some(*process) != self.master() && !process.title().contains("resource_tracker");
        self.processes().into_iter().filter(serves).collect()
    }

    pub fn cpu_time(&self) -> Duration {
        self.processes().into_iter().map(Process::cpu_time).sum()
    }

    pub fn signal(&self, signal: Signal) {
        for child in &self.children {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Returns the number of context switches of each process, in all its threads, voluntary or not.
    pub fn switches(&self) -> BTreeMap<u32, u64> {
        self.processes().into_iter().map(|process| (process.0, switches_of(process))).collect()
    }

    /// Tells the server to reload, by SIGHUP. This is also nginx's signal for a reload.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = now() + Duration::from_secs(3);
        while now() < deadline && self.children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
            sleep(Duration::from_millis(5));
        }
        for child in &mut self.children {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

pub fn switches_of(process: Process) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", process.0)).into_iter().flatten().flatten();
    let of = |thread: fs::DirEntry| -> u64 {
        let text = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let counts = text.lines().filter(|line| line.contains("ctxt_switches"));
        counts.filter_map(|line| line.rsplit_once(':')?.1.trim().parse::<u64>().ok()).sum()
    };
    threads.map(of).sum()
}

/// Sends one request on a new connection, without an async runtime, and returns the status and the body.
pub fn ask(address: SocketAddr, path: &str, patience: Duration) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
