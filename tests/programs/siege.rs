//! Promise: a thousand clients that are slow on purpose, or ten thousand that send nothing, do not disturb other
//! clients.
//!
//! `make siege` does one round of two attacks. `make soak-siege` does three rounds of each attack and measures idle
//! clients, which takes minutes. Both targets install slowhttptest.

#[path = "../common/mod.rs"]
mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{
    Bare, Canary, Connection, Launch, Load, Mode, PATIENCE, Process, Supervisor, Tally, build_release_example,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const SLOW: u64 = 1000;
const WINDOW: Duration = Duration::from_secs(5);

/// A running slowhttptest with its slow connections. Dropping this value kills the program.
struct Attack(Child);

impl Attack {
    /// Starts the attack. Returns once the workers hold at least 90 % of its connections.
    fn begin(supervisor: &Supervisor, mode: &[&str], path: &str) -> Self {
        let url = format!("http://{}{path}", supervisor.address());
        let child = Command::new("slowhttptest")
            .args(mode)
            .args(["-c", &SLOW.to_string(), "-r", "1000", "-l", "30", "-p", "5", "-u", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("slowhttptest can be run (Debian's slowhttptest)");
        let attack = Self(child);
        common::eventually("slowhttptest holds its connections", PATIENCE, || {
            (connections(supervisor) >= SLOW * 9 / 10).then_some(())
        });
        attack
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connections(supervisor: &Supervisor) -> u64 {
    let status = supervisor.status();
    let workers = status["workers"].as_array().expect("a list");
    workers.iter().map(|worker| worker["connections"].as_u64().expect("a count")).sum()
}

fn well_behaved(address: SocketAddr) -> Tally {
    let kept = Load::start(address, "/health", 4, Mode::KeepAlive { think_ms: 4 });
    let fresh = Load::start(address, "/health", 2, Mode::PerRequest { think_ms: 4 });
    common::observe_for(WINDOW);
    let tally = kept.finish().with(fresh.finish());
    tally.assert_nothing_lost();
    tally
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(3, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

/// Alternates calm rounds and rounds under attack. Asserts that no request fails and that the p99 under attack is at
/// most three times the calm p99.
fn besiege(mode: &[&str], path: &str) {
    let supervisor = Launch::new().serving(2);
    let (mut calm, mut besieged) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        common::eventually("the last siege is over", 2 * PATIENCE, || (connections(&supervisor) == 0).then_some(()));
        calm.push(well_behaved(supervisor.address()).p99());
        let attack = Attack::begin(&supervisor, mode, path);
        besieged.push(well_behaved(supervisor.address()).p99());
        let held = connections(&supervisor);
        assert!(held >= SLOW / 2, "only {held} slow connections were left at the end: the attack was too weak");
        drop(attack);
    }
    let (calm, besieged) = (median(calm), median(besieged));
    println!("slowhttptest {}: p99 {besieged:?}, calm {calm:?}", mode.join(" "));
    // One round of a quiet second may have a p99 far below a millisecond, which any other process on the machine spoils.
    assert!(besieged <= 3 * calm.max(Duration::from_millis(1)), "p99 {besieged:?} besieged, {calm:?} calm");
    assert_eq!(supervisor.log().count(common::events::EXITED), 0, "no worker died of it");
}

#[test]
fn slow_heads_do_not_disturb_other_clients() {
    besiege(&["-H", "-i", "5"], "/health");
}

#[test]
fn slow_bodies_do_not_disturb_other_clients() {
    besiege(&["-B", "-t", "POST", "-s", "8192", "-i", "5", "-x", "10"], "/debug/echo");
}

#[test]
fn slow_readers_do_not_disturb_other_clients() {
    besiege(&["-X", "-w", "256", "-y", "512", "-n", "5", "-z", "32", "-k", "3"], "/docs/swagger-ui-bundle.js");
}

const IDLE: usize = 10_000;

/// Opens all idle connections, from several source addresses. Sends one request on each connection, and keeps all
/// connections open.
fn idle(address: SocketAddr) -> Vec<Connection> {
    let open = |n: usize| {
        let source = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + n % 8).expect("few"));
        let mut connection = Connection::open_from(IpAddr::V4(source), address).expect("a connection");
        assert_eq!(connection.get("/health").expect("an answer").status, 200);
        connection
    };
    (0..IDLE).map(open).collect()
}

fn pss(processes: &[Process]) -> u64 {
    processes.iter().map(|process| process.pss_kib()).sum()
}

/// Returns how many KiB each idle connection costs. Asserts that every connection is still served at the end.
fn memory_of_idle(address: SocketAddr, processes: &[Process]) -> f64 {
    for _ in 0..100 {
        assert_eq!(common::get(address, "/").status, 200);
    }
    let before = pss(processes);
    let mut connections = idle(address);
    let after = pss(processes);
    let canary = Canary::start();
    let begun = common::now();
    for connection in &mut connections {
        assert_eq!(connection.get("/health").expect("it is still served").status, 200);
    }
    println!("{IDLE} idle connections asked again in {:?}, stalled {:?}", begun.elapsed(), canary.longest());
    after.saturating_sub(before) as f64 / IDLE as f64
}

#[test]
fn ten_thousand_idle_connections_are_served_afterwards() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(hard >= IDLE as u64 + 500, "{IDLE} connections need a higher hard limit of open files than {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let bare = Bare::start();
    let of_hyper = memory_of_idle(bare.address, &[bare.process()]);
    drop(bare);
    let supervisor = Launch::of(build_release_example("plain"))
        .set("http.worker_connections", "8000")
        .set("http.keep_alive", r#""10m""#)
        .serving(2);
    let pids = supervisor.serving_pids();
    let workers: Vec<_> = pids.iter().map(|&pid| Process(pid)).collect();
    let ours = memory_of_idle(supervisor.address(), &workers);
    println!("memory for each idle connection (PSS): {ours:.1} KiB, bare hyper {of_hyper:.1} KiB");
    assert_eq!(supervisor.serving_pids(), pids, "no worker was replaced");
    assert!(ours <= 2.0 * of_hyper, "{ours:.1} KiB a connection, bare hyper {of_hyper:.1} KiB");
}
