//! Crashes one worker every second, as one client with a bad request could do. This is the storm. Health checks
//! continue during the storm. oxicorn and Gunicorn are tested side by side.
//!
//! Owns: the two servers, the crashes, the client that sends health checks and never retries, and the time in which no
//! slot served. Refuses: to judge one server alone. Both servers have the same storm at the same time, so that other
//! load of the machine disturbs both.
#![allow(dead_code, unreachable_pub, reason = "the tests use a part, the program another")]

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::common::{
    Cgroup, Connection, Failure, Launch, Log, PATIENCE, Process, events, eventually, field, free_port, now, root,
};

const CRASH_EVERY: Duration = Duration::from_secs(1);
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// The time from a health check to the crash that follows. Each crash comes midway between two checks. The storm
/// measures the time after a crash, and not which check was under way at the crash.
const BETWEEN: Duration = Duration::from_millis(25);
/// How long the client with the bad request waits for an answer.
const CRASH_PATIENCE: Duration = Duration::from_millis(500);
/// The shortest allowed time between two forks for the same slot.
const FLOOR: Duration = Duration::from_millis(100);
/// The additional time that is allowed for a wait, because the machine may have other load.
const SLACK: Duration = Duration::from_millis(100);
/// With more than one worker, no period without a serving slot may be longer than this.
const MOST: Duration = Duration::from_millis(250);
/// The memory limit of each server, in bytes. The master and four workers need less, but the request that allocates
/// much memory needs more.
const MEMORY: u64 = 128 << 20;

/// How the storm kills a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Abort,
    Kill,
    Oom,
}

/// The numbers of workers that are tried. Each number gets its own two servers, and all servers run at the same time.
const WORKERS: [usize; 3] = [1, 2, 4];

/// A period, as its start and its end.
type Span = (Instant, Instant);

/// What the clients of one server saw.
#[derive(Debug, Default)]
struct Seen {
    checks: u64,
    failures: Vec<(Span, Failure)>,
    crashes: Vec<Span>,
}

impl Seen {
    /// Returns the number of failed checks that did not overlap with a crashing request. A dying worker may lose what
    /// it had accepted, so a failed check that overlaps with the crash is no fault.
    fn beyond(&self) -> usize {
        let beside = |&(from, to): &Span| self.crashes.iter().any(|crash| crash.0 <= to && from <= crash.1);
        self.failures.iter().filter(|(span, _)| !beside(span)).count()
    }
}

/// The results of both servers for one number of workers.
#[derive(Debug)]
pub struct Outcome {
    way: Way,
    workers: usize,
    ours: Seen,
    theirs: Seen,
    crashes: usize,
    /// The longest time in which oxicorn had no serving slot.
    gap: Duration,
    most: Duration,
    seconds: u64,
}

/// Runs the storm for all numbers of workers at the same time.
pub fn run(way: Way, seconds: u64) -> Vec<Outcome> {
    thread::scope(|threads| {
        let runs = WORKERS.map(|workers| threads.spawn(move || run_one(way, workers, seconds)));
        runs.into_iter().map(|run| run.join().expect("a storm does not panic")).collect()
    })
}

fn run_one(way: Way, workers: usize, seconds: u64) -> Outcome {
    let window = Duration::from_secs(seconds);
    let groups = (way == Way::Oom).then(|| [Cgroup::make(MEMORY), Cgroup::make(MEMORY)]);
    let wrapper = |nth: usize| groups.as_ref().map(|groups| groups[nth].wrapper());
    let mut launch = Launch::new().set("workers.count", &workers.to_string());
    if let Some(wrapper) = wrapper(0) {
        launch = launch.through(&wrapper.each_ref().map(String::as_str));
    }
    let mut ours = launch.serving(workers);
    let theirs = Gunicorn::start(workers, wrapper(1));
    let begun = now() + CHECK_EVERY;
    let (seen, others) = thread::scope(|threads| {
        let (address, other) = (ours.address(), theirs.address);
        let servers = [(address, ours.master()), (other, theirs.master())];
        let runs = servers.map(|(address, master)| {
            let checks = threads.spawn(move || check(address, begun, window));
            let crashes = threads.spawn(move || crash(way, address, master, begun, window));
            (checks, crashes)
        });
        let [seen, others] = runs.map(|(checks, crashes)| {
            let crashes = crashes.join().expect("a client does not panic");
            Seen { crashes, ..checks.join().expect("a client does not panic") }
        });
        (seen, others)
    });
    ours.wait_serving_at_least(1);
    let log = ours.log();
    ours.stop();
    drop((ours, theirs));
    drop(groups);
    let (gap, boot) = longest_gap(&log);
    Outcome {
        way,
        workers,
        ours: seen,
        theirs: others,
        crashes: log.count(events::EXITED),
        gap,
        most: if workers == 1 { FLOOR + boot + SLACK } else { MOST },
        seconds,
    }
}

/// Waits until the `nth` tick. Returns `None` if this tick lies after the end of the window.
fn tick(begun: Instant, every: Duration, nth: u32, window: Duration) -> Option<()> {
    let at = every * nth;
    (at < window).then(|| thread::sleep((begun + at).saturating_duration_since(now())))
}

/// Sends a health check on a new connection at each tick. If a check takes longer than a tick, the ticks that pass in
/// the meantime are skipped.
fn check(address: SocketAddr, begun: Instant, window: Duration) -> Seen {
    let mut seen = Seen::default();
    let mut nth = 0;
    while tick(begun, CHECK_EVERY, nth, window).is_some() {
        let from = now();
        let asked = Connection::open(address).and_then(|mut connection| {
            connection.patience(Duration::from_secs(5));
            connection.get("/health")
        });
        seen.checks += 1;
        let failure = match asked {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(Failure::BadStatus(answer.status)),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            seen.failures.push(((from, now()), failure));
        }
        nth = (begun.elapsed().as_millis() / CHECK_EVERY.as_millis()) as u32 + 1;
    }
    seen
}

/// Crashes one worker at each tick. Returns the period of each crash.
fn crash(way: Way, address: SocketAddr, master: Process, begun: Instant, window: Duration) -> Vec<Span> {
    let mut crashes = Vec::new();
    let path = match way {
        Way::Abort => "/debug/abort",
        Way::Oom => "/debug/allocate/256",
        Way::Kill => "",
    };
    let mut nth = 1;
    while tick(begun + BETWEEN, CRASH_EVERY, nth, window).is_some() {
        nth += 1;
        let from = now();
        if way == Way::Kill {
            // Chooses another worker each time. If no worker is alive, no signal is sent at this tick.
            let workers = master.children();
            if let Some(victim) = workers.get(nth as usize % workers.len().max(1)) {
                let _ = kill(Pid::from_raw(victim.0.cast_signed()), Signal::SIGKILL);
            }
        } else if let Ok(mut connection) = Connection::open(address) {
            connection.patience(CRASH_PATIENCE);
            // An error is expected here. The request has crashed its worker, so there is no answer.
            let _ = connection.get(path);
        }
        crashes.push((from, now()));
    }
    crashes
}

/// Returns two times that it reads from the log: the longest time in which no worker served, and the longest boot.
fn longest_gap(log: &Log) -> (Duration, Duration) {
    let mut forked: BTreeMap<&str, u64> = BTreeMap::new();
    let mut serving: Vec<&str> = Vec::new();
    let (mut none_since, mut gap, mut boot) = (None, 0, 0);
    for line in log.0.lines() {
        let (Some(at), Some(event), Some(pid)) = (milliseconds(line), field(line, "event"), field(line, "pid")) else {
            continue;
        };
        match event {
            events::FORKED => _ = forked.insert(pid, at),
            events::SERVING => {
                serving.push(pid);
                boot = boot.max(forked.get(pid).map_or(0, |forked| at.saturating_sub(*forked)));
                gap = gap.max(none_since.take().map_or(0, |since| at.saturating_sub(since)));
            }
            events::EXITED => {
                let before = serving.len();
                serving.retain(|other| *other != pid);
                if serving.is_empty() && before > 0 {
                    none_since = Some(at);
                }
            }
            _ => {}
        }
    }
    (Duration::from_millis(gap), Duration::from_millis(boot))
}

/// Returns the time of day of a log line (`2026-11-22T03:38:23.448Z …`), in milliseconds.
fn milliseconds(line: &str) -> Option<u64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let [hours, minutes, rest] = time.split(':').collect::<Vec<_>>().try_into().ok()?;
    let (seconds, millis): (&str, &str) = rest.split_once('.')?;
    let number = |text: &str| text.parse::<u64>().ok();
    Some(((number(hours)? * 60 + number(minutes)?) * 60 + number(seconds)?) * 1_000 + number(millis)?)
}

impl Outcome {
    /// Returns one sentence for each broken promise; the list is empty if all were kept.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(format!("{:?} × {}: {what}", self.way, self.workers));
            }
        };
        let (beyond, theirs) = (self.ours.beyond(), self.theirs.failures.len());
        let failures: Vec<_> = self.ours.failures.iter().map(|(_, failure)| failure).collect();
        must(beyond <= theirs, format!("{beyond} health checks failed, {theirs} of Gunicorn: {failures:?}"));
        must(self.gap <= self.most, format!("{:?} without a serving slot, of at most {:?}", self.gap, self.most));
        let crashes = self.seconds as usize / 2;
        must(self.crashes >= crashes, format!("only {} crashes", self.crashes));
        broken
    }
}

/// Prints one row of the result table.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |seen: &Seen| format!("{} ({}) of {}", seen.failures.len(), seen.beyond(), seen.checks);
        write!(
            f,
            "{:<6} {:>7} {:>8} {:>16} {:>16} {:>8} ms (≤ {} ms)",
            format!("{:?}", self.way).to_lowercase(),
            self.workers,
            self.crashes,
            of(&self.ours),
            of(&self.theirs),
            self.gap.as_millis(),
            self.most.as_millis(),
        )
    }
}

/// The heading of the result table.
pub const HEAD: &str = "crash  workers  crashes  oxicorn failed* Gunicorn failed*  longest without a serving slot\n\
                        * in brackets: not beside the request that crashed";

/// A running Gunicorn with its default settings and its default kind of worker.
struct Gunicorn {
    child: Child,
    wrapped: bool,
    address: SocketAddr,
    _dir: TempDir,
}

impl Gunicorn {
    fn start(workers: usize, wrapper: Option<[String; 3]>) -> Self {
        let root = root();
        let packages = root.join("target/peers-settings");
        assert!(packages.join("gunicorn").is_dir(), "{} is missing: make needs", packages.display());
        let dir = tempfile::Builder::new().prefix("oxicorn-gunicorn-").tempdir().expect("a temporary folder");
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let words = wrapper.clone().map_or_else(Vec::new, Vec::from);
        let words: Vec<_> = words.into_iter().chain(["python3".to_owned()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["-m", "gunicorn", "--no-control-socket", "-b", &address.to_string()]);
        command.args(["-w", &workers.to_string(), "app:app"]);
        let path = std::env::join_paths([packages, root.join("tests/storm")]).expect("paths without colons");
        let log = File::create(dir.path().join("log")).expect("a file in our own folder");
        command.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1").current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let child = command.spawn().expect("python3 can be run");
        let gunicorn = Self { child, wrapped: wrapper.is_some(), address, _dir: dir };
        eventually("Gunicorn serves", 4 * PATIENCE, || {
            let answers = || Connection::open(address).and_then(|mut connection| connection.get("/health")).is_ok();
            (answers() && gunicorn.master().children().len() == workers).then_some(())
        });
        gunicorn
    }

    /// Returns Gunicorn's master process. If it was started through a wrapper, this is the wrapper's child.
    fn master(&self) -> Process {
        let first = Process(self.child.id());
        let child = || first.children().first().copied();
        if self.wrapped { child().unwrap_or(first) } else { first }
    }
}

impl Drop for Gunicorn {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
