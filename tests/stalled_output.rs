//! Promise: the service never waits for a reader of its log or access log, whatever these logs are written to, and each
//! line is complete. systemd's journal adds a time stamp of its own, so the service gives it priorities instead of a
//! second time stamp.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{OpenptyResult, openpty},
    sys::signal::kill,
    unistd::Pid,
};

use crate::common::{Connection, Launch, PATIENCE, Signal, Supervisor, eventually, free_port, get, metric, request};

/// The length of one line in bytes. The lines are long, so that a terminal without a reader is soon full.
const LONG: usize = 1_000;

/// A service that writes both logs to a terminal.
struct OnTerminal {
    supervisor: Supervisor,
    terminal: File,
    /// The service's side of the terminal. The test keeps it open, because otherwise the terminal would end with the
    /// service, and the unread output would be lost.
    _slave: OwnedFd,
    address: std::net::SocketAddr,
    read: Vec<u8>,
}

impl OnTerminal {
    fn start() -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a pseudo-terminal");
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our own descriptor");
        let path = fs::read_link(format!("/proc/self/fd/{}", slave.as_fd().as_raw_fd())).expect("its name");
        let shell = format!("exec \"$0\" \"$@\" >{} 2>&1", path.display());
        let port = free_port();
        let supervisor = Launch::new()
            .set("server.bind", &format!(r#"["127.0.0.1:{port}"]"#))
            .set("workers.timeout", r#""2s""#)
            .set("http.metrics_path", r#""/metrics""#)
            .set("log.access", r#""-""#)
            .set("log.access_format", r#""<%(m)s %({user-agent}i)s>""#)
            .through(&["sh", "-c", &shell])
            .start();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        eventually("it serves", PATIENCE, || {
            Connection::open(address).ok().and_then(|mut one| one.get("/health").ok())
        });
        Self { supervisor, terminal: File::from(master), _slave: slave, address, read: Vec::new() }
    }

    fn ask(&self, times: usize) {
        let agent = "x".repeat(LONG);
        let mut connection = Connection::open(self.address).expect("a connection");
        for _ in 0..times {
            let answer = connection.ask(&request("GET", "/health", &[("User-Agent", &agent)], b""));
            assert_eq!(answer.expect("an answer").status, 200);
        }
    }

    fn dropped(&self) -> u64 {
        metric(&get(self.address, "/metrics").text(), "oxicorn_access_lines_dropped_total").expect("the counter")
    }

    fn signal(&self, signal: Signal) {
        let pid = self.supervisor.status()["pid"].as_i64().expect("a pid");
        kill(Pid::from_raw(pid.try_into().expect("a pid")), signal).expect("the master can be signalled");
    }

    /// Reads the bytes that are in the terminal now, and does not wait for more.
    fn read(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = self.terminal.read(&mut chunk) {
            self.read.extend_from_slice(&chunk[..count]);
        }
    }

    /// Asserts that all lines are complete, and returns them. Only the last line may be incomplete, because the service
    /// may end in the middle of it.
    #[track_caller]
    fn assert_complete_lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.read).replace("\r\n", "\n");
        let (whole, _) = text.rsplit_once('\n').expect("a line");
        let lines: Vec<_> = whole.lines().map(str::to_owned).collect();
        let agent = "x".repeat(LONG);
        for line in &lines {
            let access = line.strip_prefix("<GET ").and_then(|line| line.strip_suffix('>'));
            let told = line.starts_with("20") && line.contains("Z ") && !line.contains("<GET ");
            assert!(told || access.is_some_and(|of| of == "-" || of == agent), "not a line: {line:?}");
        }
        lines
    }
}

#[test]
fn a_terminal_without_a_reader_blocks_no_process() {
    let mut service = OnTerminal::start();
    service.ask(1_000);
    eventually("lines are dropped and counted", PATIENCE, || (service.dropped() > 0).then_some(()));
    let status = service.supervisor.status();
    assert_eq!(status["workers"].as_array().expect("a list").len(), 2, "{status}");

    let mut hung = Connection::open(service.address).expect("a connection");
    hung.send(&request("GET", "/debug/block/60000", &[], b"")).expect("sent");
    eventually("the worker that hangs is replaced", PATIENCE, || {
        let status = service.supervisor.status();
        let serving = status["workers"].as_array()?.iter().filter(|worker| worker["state"] == "serving").count();
        (status["totals"]["hung"] == 1 && serving == 2).then_some(())
    });
    service.signal(Signal::SIGTERM);
    assert_eq!(service.supervisor.wait_exit(PATIENCE), 0);
    service.read();
    service.assert_complete_lines();
}

#[test]
fn lines_are_complete_when_the_reader_comes_back() {
    let mut service = OnTerminal::start();
    for _ in 0..3 {
        service.ask(700);
        assert!(service.dropped() > 0, "the terminal took every line, so the test met no full terminal");
        for _ in 0..20 {
            service.ask(5);
            service.read();
        }
        std::thread::sleep(Duration::from_millis(300));
        service.read();
    }
    eventually("the log tells what was lost", PATIENCE, || {
        service.read();
        String::from_utf8_lossy(&service.read).contains("event=access_lines_dropped").then_some(())
    });
    service.signal(Signal::SIGTERM);
    let mut code = None;
    eventually("it stops", PATIENCE, || {
        service.read();
        code = (!service.supervisor.is_running()).then_some(());
        code
    });
    service.read();
    let lines = service.assert_complete_lines();
    assert!(lines.last().expect("a line").contains("event=stopped"), "{:?}", lines.last());
}

#[test]
fn the_journal_gets_priorities_and_no_second_time_stamp() {
    let journal = r#"JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$0" "$@""#;
    let mut supervisor = Launch::new().through(&["sh", "-c", journal]).serving(2);
    supervisor.signal(Signal::SIGWINCH);
    supervisor.wait_log("signal_ignored", 1, PATIENCE);
    supervisor.stop();
    let log = supervisor.log().0;
    assert!(log.lines().all(|line| line.starts_with("<6>INFO  ") || line.starts_with("<4>WARN  ")), "{log}");
    assert!(log.contains("<4>WARN  ignored SIGWINCH"), "{log}");

    let other = r#"JOURNAL_STREAM=1:2 exec "$0" "$@""#;
    let supervisor = Launch::new().through(&["sh", "-c", other]).serving(2);
    assert!(supervisor.log().0.starts_with("20"), "stderr is not that stream: {}", supervisor.log().0);
}
