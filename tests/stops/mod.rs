//! Stops under load, in the ways in which stops really come: what the clients lose, and whether all of it is counted.
//!
//! Owns: the ways, the clients, and the verdict. `tests/stop.rs` does ten stops of each way, `make soak-stop` two hundred.
#![allow(dead_code, unreachable_pub, reason = "each program that stops services uses a part")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::common::{Connection, Failure, Launch, PATIENCE, Supervisor, eventually, field, request};

/// Clients of one service: half of them on keep-alive connections, half with a connection for each request.
const CLIENTS: usize = 16;

/// Services that are stopped at the same time.
const SIDE_BY_SIDE: usize = 5;

/// A request that outlasts what a quick stop leaves.
const LONG: &str = "/debug/sleep/2500";

/// Who gets the SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Master,
    /// The process group, as `kill -- -PGID` and many an init does.
    Group,
    /// The master twice within a moment; a request in flight needs longer than a quick stop leaves.
    Twice,
    /// The master, then each worker: systemd's order.
    MasterThenWorkers,
    /// Each worker, then the master: the order of those that go by cgroup.procs, the master not first.
    WorkersThenMaster,
    /// Through dumb-init, which signals its child's session.
    DumbInit,
    /// Through supervisord with `stopasgroup`.
    Supervisord,
}

impl Way {
    /// Those that need nothing installed.
    pub const PLAIN: [Self; 5] =
        [Self::Master, Self::Group, Self::Twice, Self::MasterThenWorkers, Self::WorkersThenMaster];
    pub const THROUGH: [Self; 2] = [Self::DumbInit, Self::Supervisord];

    fn launch(self) -> Launch {
        let launch = Launch::new().set("workers.count", "2");
        match self {
            Self::DumbInit => launch.through(&["dumb-init"]),
            Self::Supervisord => {
                let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stops/supervisord.sh");
                launch.through(&["sh", script.to_str().expect("a path in UTF-8")]).log_to("app.log")
            }
            _ => launch,
        }
    }

    fn stop(self, supervisor: &Supervisor) {
        let pid = |pid: u32| Pid::from_raw(pid.cast_signed());
        // Of those who may be gone: that is no failure here.
        let term = |to: u32| {
            let _ = kill(pid(to), Signal::SIGTERM);
        };
        let master = supervisor.pid();
        match self {
            Self::Master => term(master),
            Self::Group => killpg(pid(master), Signal::SIGTERM).expect("a process group"),
            Self::Twice => {
                term(master);
                thread::sleep(Duration::from_millis(5));
                term(master);
            }
            Self::MasterThenWorkers => {
                let workers = supervisor.worker_pids();
                term(master);
                workers.into_iter().for_each(term);
            }
            Self::WorkersThenMaster => {
                supervisor.worker_pids().into_iter().for_each(term);
                thread::sleep(Duration::from_millis(2));
                term(master);
            }
            Self::DumbInit | Self::Supervisord => supervisor.signal_group_leader(Signal::SIGTERM),
        }
    }
}

/// What came of some stops.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub stops: u64,
    pub answered: u64,
    /// Connections that were established and got no whole answer.
    pub lost: BTreeMap<Failure, u64>,
    /// Stops in which the service counted fewer losses than its clients had.
    pub uncounted: u64,
    /// Stops that did not end in order, and what was wrong.
    pub wrong: Vec<String>,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.uncounted == 0 && self.wrong.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.stops += other.stops;
        self.answered += other.answered;
        self.uncounted += other.uncounted;
        self.wrong.extend(other.wrong);
        for (failure, count) in other.lost {
            *self.lost.entry(failure).or_default() += count;
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stops, answered, lost, uncounted, wrong } = self;
        let lost: u64 = lost.values().sum();
        write!(
            f,
            "{stops} stops, {answered} requests answered, {lost} established connections lost ({:?}), ",
            self.lost
        )?;
        write!(f, "{uncounted} stops with uncounted losses, {} that did not end in order", wrong.len())?;
        wrong.iter().try_for_each(|what| write!(f, "\n  {what}"))
    }
}

/// Stops so many services in this way, several at a time.
pub fn stop_many(way: Way, stops: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let mut left = stops;
    while left > 0 {
        let now = left.min(SIDE_BY_SIDE);
        let running: Vec<_> = (0..now).map(|nth| thread::spawn(move || stop_one(way, nth as u64))).collect();
        running.into_iter().for_each(|stop| outcome.add(stop.join().expect("a stop does not panic")));
        left -= now;
    }
    outcome
}

fn stop_one(way: Way, nth: u64) -> Outcome {
    let mut supervisor = way.launch().serving(2);
    let address = supervisor.address();
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS).map(|client| start_client(address, client % 2 == 0, &answered)).collect();
    eventually("the load runs", 2 * PATIENCE, || (answered.load(Relaxed) >= 50).then_some(()));
    let long = (way == Way::Twice).then(|| {
        let mut connection = Connection::open(address).expect("a connection");
        connection.send(&request("GET", LONG, &[], b"")).expect("sent");
        connection
    });
    // Not all at the same point of their life.
    thread::sleep(Duration::from_millis(3 * nth));
    way.stop(&supervisor);

    let mut outcome = Outcome { stops: 1, ..Outcome::default() };
    if let Some(mut long) = long
        && let Err(failure) = long.answer()
    {
        *outcome.lost.entry(failure).or_default() += 1;
    }
    for failure in clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")) {
        *outcome.lost.entry(failure).or_default() += 1;
    }
    outcome.answered = answered.load(Relaxed);
    let code = supervisor.wait_exit(2 * PATIENCE);
    let log = supervisor.log();
    if code != 0 || log.count("stopped") != 1 {
        outcome.wrong.push(format!("{way:?}: exit code {code}, {} times stopped", log.count("stopped")));
    }
    let counted = log.lines_of("totals").last().and_then(|line| field(line, "cut")?.parse().ok()).unwrap_or(0);
    outcome.uncounted = u64::from(outcome.lost.values().sum::<u64>() > counted);
    if !outcome.is_clean() {
        eprintln!("--- {way:?}: {outcome}\n{}", log.tail(60));
    }
    outcome
}

/// Asks until nobody listens any more. What was lost: a connection that was refused was never established.
fn start_client(address: SocketAddr, keeps: bool, answered: &Arc<AtomicU64>) -> JoinHandle<Vec<Failure>> {
    let answered = Arc::clone(answered);
    let ask = match keeps {
        true => request("GET", "/health", &[], b""),
        false => request("GET", "/health", &[("Connection", "close")], b""),
    };
    thread::spawn(move || {
        let mut lost = Vec::new();
        let mut kept: Option<Connection> = None;
        loop {
            let connection = match kept.take().filter(|connection| !connection.is_over()) {
                Some(connection) => Ok(connection),
                None => Connection::open(address),
            };
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(Failure::Refused) => return lost,
                Err(failure) => {
                    lost.push(failure);
                    return lost;
                }
            };
            match connection.ask(&ask) {
                Ok(answer) if answer.status == 200 => {
                    answered.fetch_add(1, Relaxed);
                    kept = (keeps && !answer.closes()).then_some(connection);
                }
                Ok(answer) => lost.push(Failure::BadStatus(answer.status)),
                Err(failure) => lost.push(failure),
            }
        }
    })
}
