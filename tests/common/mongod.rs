//! A real MongoDB server for one test. The server uses a free port and a temporary folder, and is killed at the end of
//! the test.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{
    PATIENCE,
    harness::{eventually, free_port, root},
};

pub struct Mongod {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Mongod {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("oxicorn-mongod-").tempdir().expect("a temporary folder");
        let port = free_port();
        let child = spawn(port, dir.path());
        let mut mongod = Self { child, port, dir };
        mongod.wait_listening();
        mongod
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("our own child can be signalled");
    }

    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("our own child can be waited for");
    }

    /// Starts the server again after a [`kill`](Self::kill), on the same port and with the same data.
    pub fn start_again(&mut self) {
        self.child = spawn(self.port, self.dir.path());
        self.wait_listening();
    }

    fn wait_listening(&mut self) {
        eventually("mongod listens", 4 * PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = fs::read_to_string(self.dir.path().join("mongod.log")).unwrap_or_default();
                panic!("mongod ended with {status}:\n{log}");
            }
            TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop)
        });
    }
}

fn spawn(port: u16, dir: &Path) -> Child {
    let program = root().join("target/mongod/fiftyone/db/bin/mongod");
    assert!(program.is_file(), "there is no {}: run `make needs`", program.display());
    // setpriv makes the kernel kill the server when the test dies, so the server does not outlive a killed test.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .args(["--quiet", "--nounixsocket", "--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", "0.25"])
        .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
        .args(["--port", &port.to_string()])
        .arg("--dbpath")
        .arg(dir)
        .arg("--logpath")
        .arg(dir.join("mongod.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("setpriv(1) of util-linux can be run")
}

impl Drop for Mongod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
