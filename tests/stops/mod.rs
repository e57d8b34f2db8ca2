//! Stops services under load, in each way in which services are stopped in practice. The tests count what the clients
//! lose, and check that the service counts all of these losses.
//!
//! Owns: the ways, the clients and the verdict. `tests/stop.rs` does ten stops of each way, and `make soak-stop` does
//! two hundred.
#![allow(dead_code, unreachable_pub, reason = "each program that stops services uses a part")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    process::Command,
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
use socket2::SockRef;

use crate::common::{
    Connection, Failure, Launch, PATIENCE, Supervisor, binary, events, eventually, field, request, root,
};

/// The number of clients of one service. Half of the clients keep their connection. The others open a new connection
/// for each request.
const CLIENTS: usize = 16;

/// The number of services that run and are stopped at the same time. Stopping them together saves time, because a stop
/// mostly waits.
const SIDE_BY_SIDE: u64 = 10;

/// The path of a request that takes longer than a quick stop allows.
const LONG: &str = "/debug/sleep/2500";

/// The name of the image that [`pack_image`] makes.
const IMAGE: &str = "oxicorn-test/stops";

/// Which processes get the SIGTERM of a stop, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Master,
    /// The whole process group gets the SIGTERM, as from `kill -- -PGID` and many inits.
    Group,
    /// The master gets the SIGTERM twice within a moment, while a request is in flight that takes longer than a quick
    /// stop allows.
    Twice,
    /// The master gets the SIGTERM first, then each worker. systemd sends the signal in this order.
    MasterThenWorkers,
    /// Each worker gets the SIGTERM first, then the master. This happens when a program signals the pids in the order
    /// of cgroup.procs, and the master is not the first entry.
    WorkersThenMaster,
    /// dumb-init gets the SIGTERM, and signals its child's session.
    DumbInit,
    /// supervisord gets the SIGTERM, with the setting `stopasgroup`, and signals the service's process group.
    Supervisord,
    /// `docker stop` sends the SIGTERM to the service, which is the container's PID 1.
    Docker,
    /// `docker stop` sends the SIGTERM to the init of `docker run --init`, below which the service runs.
    DockerInit,
}

impl Way {
    /// The ways that need no other installed program.
    pub const PLAIN: [Self; 5] =
        [Self::Master, Self::Group, Self::Twice, Self::MasterThenWorkers, Self::WorkersThenMaster];
    pub const THROUGH: [Self; 4] = [Self::DumbInit, Self::Supervisord, Self::Docker, Self::DockerInit];

    fn is_docker(self) -> bool {
        matches!(self, Self::Docker | Self::DockerInit)
    }

    /// Starts a service and returns once both workers serve.
    fn start(self) -> (Supervisor, SocketAddr) {
        if !self.is_docker() {
            let supervisor = self.launch().serving(2);
            let address = supervisor.address();
            return (supervisor, address);
        }
        let supervisor = self.launch().start();
        supervisor.wait_log(events::SERVING, 2, 4 * PATIENCE);
        // Clients use the container's address in the bridge network. A published port would lead to Docker's proxy,
        // which accepts connections even when no server takes them.
        let ip = docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &container(&supervisor)]);
        (supervisor, format!("{ip}:8000").parse().expect("docker tells an address"))
    }

    fn launch(self) -> Launch {
        let launch = match self.is_docker() {
            false => Launch::new(),
            true => Launch::of("/usr/local/bin/oxicorn".into())
                .set("server.bind", r#"["0.0.0.0:8000"]"#)
                .set("service.sqlite_path", r#""/data/facts.db""#)
                .set("control.socket", r#""/data/control.sock""#),
        };
        let launch = launch.set("workers.count", "2");
        match self {
            Self::DumbInit => launch.through(&["dumb-init"]),
            Self::Supervisord => {
                let script = root().join("tests/stops/supervisord.sh");
                launch.through(&["sh", script.to_str().expect("a path in UTF-8")]).log_to("app.log")
            }
            Self::Docker | Self::DockerInit => {
                let settings = format!("{}:/etc/oxicorn/supervisor.toml:ro", launch.path("supervisor.toml").display());
                let id = launch.path(CONTAINER).display().to_string();
                let mut run = vec!["docker", "run", "--rm", "--cidfile", &id, "--volume", &settings];
                run.extend((self == Self::DockerInit).then_some("--init"));
                run.push(IMAGE);
                launch.through(&run)
            }
            // Runs the service without capabilities, as in a container, because a stop must not need a capability.
            _ => launch.through(&["setpriv", "--bounding-set=-all"]),
        }
    }

    fn stop(self, supervisor: &Supervisor) {
        let pid = |pid: u32| Pid::from_raw(pid.cast_signed());
        // If this fails, the process is already gone, which is not a fault here.
        let term = |to: u32| {
            let _ = kill(pid(to), Signal::SIGTERM);
        };
        match self {
            Self::Master => term(supervisor.pid()),
            Self::Group => killpg(pid(supervisor.pid()), Signal::SIGTERM).expect("a process group"),
            Self::Twice => {
                term(supervisor.pid());
                thread::sleep(Duration::from_millis(5));
                term(supervisor.pid());
            }
            Self::MasterThenWorkers => {
                let workers = supervisor.worker_pids();
                term(supervisor.pid());
                workers.into_iter().for_each(term);
            }
            Self::WorkersThenMaster => {
                supervisor.worker_pids().into_iter().for_each(term);
                thread::sleep(Duration::from_millis(2));
                term(supervisor.pid());
            }
            Self::Docker | Self::DockerInit => {
                docker(&["stop", "--time", "45", &container(supervisor)]);
            }
            Self::DumbInit | Self::Supervisord => supervisor.signal_group_leader(Signal::SIGTERM),
        }
    }
}

/// The name of the file in the service's folder that holds its container's id.
const CONTAINER: &str = "container";

fn container(supervisor: &Supervisor) -> String {
    fs::read_to_string(supervisor.path(CONTAINER)).expect("docker run wrote it")
}

/// Runs docker and returns its output. Docker must succeed.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker can be run");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Makes the docker image that contains the binary under test.
pub fn pack_image() {
    let script = root().join("tests/stops/image.sh");
    let status = Command::new(script).arg(binary()).arg(IMAGE).status().expect("it can be run");
    assert!(status.success(), "there is no image to stop");
}

/// The results of one or several stops.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub stops: u64,
    pub answered: u64,
    /// The connections that were established but got no complete answer, by kind of failure.
    pub lost: BTreeMap<Failure, u64>,
    /// The number of stops in which the service counted fewer losses than its clients saw.
    pub uncounted: u64,
    /// For each stop that did not end in order, a text that says what was wrong.
    pub wrong: Vec<String>,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.uncounted == 0 && self.wrong.is_empty()
    }

    pub fn add(&mut self, other: Self) {
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

/// Starts `stops` services and stops each of them in the given way, several at the same time.
pub fn stop_many(way: Way, stops: u64) -> Outcome {
    let begun = AtomicU64::new(0);
    let one_after_another = &|nth| {
        let mut outcome = Outcome::default();
        while begun.fetch_add(1, Relaxed) < stops {
            // The wait before the stop differs from thread to thread, so that SIGTERM comes at different points of the
            // clients' requests.
            outcome.add(stop_one(way, Duration::from_millis(3 * nth)));
        }
        outcome
    };
    let mut outcome = Outcome::default();
    thread::scope(|scope| {
        let running: Vec<_> = (0..SIDE_BY_SIDE).map(|nth| scope.spawn(move || one_after_another(nth))).collect();
        running.into_iter().for_each(|stops| outcome.add(stops.join().expect("a stop does not panic")));
    });
    outcome
}

fn stop_one(way: Way, wait: Duration) -> Outcome {
    let (mut supervisor, address) = way.start();
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS).map(|client| start_client(address, client % 2 == 0, &answered)).collect();
    eventually("the load runs", 2 * PATIENCE, || (answered.load(Relaxed) >= 50).then_some(()));
    let long = (way == Way::Twice).then(|| {
        let mut connection = Connection::open(address).expect("a connection");
        connection.send(&request("GET", LONG, &[], b"")).expect("sent");
        connection
    });
    thread::sleep(wait);
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

/// Opens a connection that the client will end with a reset. Without the reset, the kernel would keep each ended
/// connection for two minutes. The tests open hundreds of thousands of connections, and a machine with docker drops
/// packets when its table of connections is full.
fn open(address: SocketAddr) -> Result<Connection, Failure> {
    let connection = Connection::open(address)?;
    SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO)).expect("a socket of ours");
    Ok(connection)
}

/// Starts a client that asks until nothing listens any more or the container is gone. Its thread returns the losses. A
/// refused connection is not a loss, because it was never established.
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
                None => open(address),
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
