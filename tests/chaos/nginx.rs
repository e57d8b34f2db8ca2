//! A comparison with nginx. The reload of nginx is known to lose requests. The clients are the same as in the runs with
//! oxicorn.
//!
//! Owns: starting, reloading and ending nginx. If the clients saw no loss here, they could not see a loss in oxicorn
//! either, and the proof would be worth nothing.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use super::swarm::{Manner, Outcome, Swarm, Target};
use crate::common::{PATIENCE, eventually, free_port, observe_for};

const PROGRAM: &str = "nginx";

/// Starts nginx and reloads it `times` times under load, once every `pace`. Returns what its clients saw.
pub fn reloaded(times: u32, pace: Duration, seed: u64) -> Outcome {
    let nginx = Nginx::start();
    let manners = [
        Manner::KeepAlive { clients: 32, think_ms: 0 },
        Manner::KeepAlive { clients: 64, think_ms: 100 },
        Manner::PerRequest { clients: 4 },
    ];
    let swarm = Swarm::start(Target::Tcp(vec![nginx.address]), "/", &manners, seed);
    for _ in 0..times {
        observe_for(pace);
        kill(nginx.master(), Signal::SIGHUP).expect("nginx runs");
    }
    observe_for(pace);
    swarm.finish()
}

struct Nginx {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Nginx {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("oxicorn-nginx-").tempdir().expect("a temporary folder");
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let root = dir.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|kind| format!("  {kind}_temp_path {root}/{kind};\n")).concat();
        let settings = format!(
            "daemon off;\npid {root}/pid;\nerror_log {root}/error.log;\nworker_processes 2;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n{temporary}\
             server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 '{{\"pid\":$pid}}'; }} }}\n}}\n"
        );
        fs::write(dir.path().join("nginx.conf"), settings).expect("the settings are written");
        let child = Command::new(PROGRAM)
            .arg("-p")
            .arg(dir.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("nginx cannot be started ({error}): apt-get install nginx-light"));
        let mut nginx = Self { child, address, _dir: dir };
        eventually("nginx listens", PATIENCE, || {
            if let Ok(Some(status)) = nginx.child.try_wait() {
                panic!("nginx ended with {status}");
            }
            TcpStream::connect(address).ok().map(drop)
        });
        nginx
    }

    fn master(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Kills the whole process group, because nginx's workers belong to it too.
        let _ = killpg(self.master(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
