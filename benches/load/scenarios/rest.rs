//! What a server costs at its start, while it is idle, for each connection, and for each request.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use oxicorn_testkit::{load::Load, record::Turn};

use super::{Bench, Side};
use crate::{
    common::{Connection, Process, now},
    server::{Server, ask},
};

pub(super) fn start_up(_: &Bench, side: &Side) -> Result<Turn, String> {
    let mut server = Server::spawn(side.peer, &side.setup);
    let patience = Duration::from_secs(30);
    loop {
        if ask(server.address, side.path, patience).is_some_and(|(status, _)| status == 200) {
            break;
        }
        if server.begun.elapsed() > patience || server.exited().is_some() {
            return Err("it does not answer".to_owned());
        }
        sleep(Duration::from_micros(300));
    }
    let took = server.begun.elapsed();
    // Wait until all workers exist, because the server is ended when this function returns.
    server.settle()?;
    let mut turn = Turn::default();
    turn.set("startup_ms", took.as_secs_f64() * 1000.0);
    Ok(turn)
}

pub(super) fn memory(bench: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let mut turn = Turn::default();
    let largest = || server.workers().into_iter().map(Process::pss_kib).max().unwrap_or(0) as f64;
    if let Some(master) = server.master() {
        turn.set("master_pss_kib", master.pss_kib() as f64);
        turn.set("master_rss_kib", master.rss_kib() as f64);
    }
    turn.set("worker_pss_kib", largest());
    Load::saturating(server.address, 64, side.path).run(Duration::from_secs_f64(bench.seconds));
    // During this pause the connections are closed, and the server may give freed memory back to the kernel.
    sleep(Duration::from_millis(500));
    turn.set("worker_pss_loaded_kib", largest());
    turn.set("pss_loaded_kib", pss(&server));
    Ok(turn)
}

fn pss(server: &Server) -> f64 {
    server.processes().into_iter().map(Process::pss_kib).sum::<u64>() as f64
}

const IDLE: usize = 10_000;

pub(super) fn idle_connections(_: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let mut connections = Vec::with_capacity(IDLE);
    let mut open = |number: usize| {
        // The connections come from several addresses, because one address has too few ports for all turns of a run.
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + (number % 8) as u8));
        let failure = |error| format!("connection {number}: {error:?}");
        let mut connection = Connection::open_from(source, server.address).map_err(failure)?;
        let answer = connection.get(side.path).map_err(failure)?;
        connections.push(connection);
        if answer.status == 200 { Ok(()) } else { Err(format!("connection {number}: status {}", answer.status)) }
    };
    (0..100).try_for_each(&mut open)?;
    let before = pss(&server);
    (100..IDLE).try_for_each(&mut open)?;
    let after = pss(&server);
    let mut turn = Turn::default();
    turn.set("kib_per_connection", (after - before).max(0.0) / (IDLE - 100) as f64);
    let served = connections.iter_mut().step_by(10).filter_map(|connection| connection.get(side.path).ok());
    turn.set("served_afterwards", served.filter(|answer| answer.status == 200).count() as f64);
    Ok(turn)
}

const WINDOW: Duration = Duration::from_secs(10);

pub(super) fn idle(servers: &[&Server]) -> Vec<Turn> {
    // During this pause the server finishes what the last load left, such as connections that have to be closed.
    sleep(Duration::from_secs(1));
    let look = |server: &&Server| (server.switches(), server.cpu_time());
    let (begun, before): (_, Vec<_>) = (now(), servers.iter().map(look).collect());
    sleep(WINDOW);
    let after: Vec<_> = servers.iter().map(look).collect();
    let time = begun.elapsed().as_secs_f64();
    let turn_of = |((switched, spent), (switches, cpu)): (_, &(BTreeMap<u32, u64>, Duration))| {
        let (switched, spent): (&BTreeMap<u32, u64>, &Duration) = (switched, spent);
        let grown = switches.iter().map(|(pid, count)| count - switched.get(pid).unwrap_or(&0));
        let mut turn = Turn::default();
        turn.set("wakeups_per_second", grown.max().unwrap_or(0) as f64 / time);
        turn.set("cpu_percent", cpu.saturating_sub(*spent).as_secs_f64() / time * 100.0);
        turn
    };
    before.iter().map(|(switched, spent)| (switched, spent)).zip(&after).map(turn_of).collect()
}

/// An strace that is attached to a worker. Dropping this value ends strace.
struct Strace(Child);

impl Strace {
    fn attach(worker: Process, file: &std::path::Path) -> Result<Self, String> {
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-p", &worker.0.to_string(), "-o"]).arg(file).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("strace: {error}"))?;
        let mut said = String::new();
        let output = child.stderr.take().expect("its output is ours");
        BufReader::new(output).read_line(&mut said).map_err(|error| error.to_string())?;
        let strace = Self(child);
        if said.contains("attached") { Ok(strace) } else { Err(format!("strace: {said}")) }
    }

    /// Detaches strace, which then writes its counts.
    fn detach(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.detach();
    }
}

pub(super) fn syscalls(bench: &Bench, side: &Side, server: &Server) -> Result<Turn, String> {
    let worker = *server.workers().first().ok_or("it has no worker")?;
    let time = Duration::from_secs_f64(bench.seconds.min(2.0));
    for _ in 0..3 {
        let mut strace = Strace::attach(worker, &server.path("strace.txt"))?;
        let tally = Load::saturating(server.address, 1, side.path).run(time);
        strace.detach();
        let text = fs::read_to_string(server.path("strace.txt")).map_err(|error| error.to_string())?;
        // The line is `100.00    0.012345       2     678     9 total`: share, seconds, microseconds a call, calls, and
        // perhaps errors.
        let total = text.lines().find(|line| line.ends_with(" total"));
        let calls: Option<f64> = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
        let calls = calls.ok_or_else(|| format!("strace saw nothing: {text}"))?;
        // strace may say that it is attached and still see nothing. A count below the number of answers is therefore
        // wrong: no server answers without a system call.
        if tally.ok > 0 && calls >= tally.ok as f64 {
            let mut turn = Turn::default();
            turn.set("syscalls_per_request", calls / tally.ok as f64);
            return Ok(turn);
        }
    }
    Err("strace saw less than a system call for each request".to_owned())
}

const CONNECTIONS: usize = 100;
/// The time between two new connections, so that 400 connections begin in a second.
pub(super) const APART: Duration = Duration::from_micros(2500);

pub(super) fn balance(side: &Side, server: &Server, apart: Duration) -> Result<Turn, String> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    let mut ask = |connection: &mut Connection| {
        let answer = connection.get(side.path).map_err(|error| format!("{error:?}"))?;
        *held.entry(String::from_utf8_lossy(&answer.body).trim().to_owned()).or_default() += 1;
        Ok::<_, String>(())
    };
    let begun = now();
    for number in 0..CONNECTIONS {
        sleep((apart * number as u32).saturating_sub(begun.elapsed()));
        let mut connection = Connection::open(server.address).map_err(|error| format!("{error:?}"))?;
        if !apart.is_zero() {
            ask(&mut connection)?;
        }
        connections.push(connection);
    }
    if apart.is_zero() {
        connections.iter_mut().try_for_each(ask)?;
    }
    let mean = CONNECTIONS as f64 / side.setup.workers as f64;
    let mut turn = Turn::default();
    turn.set("max_over_mean", held.values().max().copied().unwrap_or(0) as f64 / mean);
    turn.set("workers_that_hold", held.len() as f64);
    drop(connections);
    sleep(Duration::from_millis(100));
    Ok(turn)
}
