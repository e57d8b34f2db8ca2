//! What oxicorn costs: `make cost`, or `cargo test --test cost -- --rounds 12`.
//!
//! The CPU time a request takes in the process that serves it (`/proc/<pid>/schedstat`, user and kernel), of the same
//! service on bare hyper, under oxicorn with everything on, and with the access log too; h2load asks. The three take
//! turns in each round, so that what else the machine does falls on all of them; the median of the rounds' ratios
//! counts. Exit code 1 when a goal is missed.

#[path = "../common/mod.rs"]
mod common;

use std::{
    net::SocketAddr,
    process::{Command, ExitCode},
};

use clap::Parser;
use common::{Bare, Launch, Process, build_release_example};

/// Measures the CPU time of a request on bare hyper and under oxicorn.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each takes its turn.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Requests of one turn.
    #[arg(long, default_value_t = 40_000)]
    requests: u32,
}

/// Of bare hyper's requests per second of CPU time, what is left under oxicorn, its access log off …
const GOAL: f64 = 0.90;
/// … and of that with the access log on.
const GOAL_WITH_LOG: f64 = 0.85;

/// One worker, and every limit and clock that there is.
fn everything_on() -> Launch {
    Launch::of(build_release_example("plain"))
        .set("workers.count", "1")
        .set("workers.max_requests", "1000000000")
        .set("http.limit_concurrency", "1000")
        .set("http.request_timeout", r#""30s""#)
        .set("http.metrics_path", r#""/metrics""#)
        .set("log.access", r#""off""#)
}

struct Side {
    name: &'static str,
    address: SocketAddr,
    process: Process,
    /// Nanoseconds a request, of each round.
    costs: Vec<f64>,
}

impl Side {
    fn take_turn(&mut self, requests: u32) {
        ask(self.address, requests / 10);
        let before = self.process.cpu_time();
        ask(self.address, requests);
        let spent = self.process.cpu_time() - before;
        self.costs.push(spent.as_nanos() as f64 / f64::from(requests));
    }
}

fn ask(address: SocketAddr, requests: u32) {
    let output = Command::new("h2load")
        .args(["--h1", "-t", "1", "-c", "32", "-n", &requests.to_string(), &format!("http://{address}/")])
        .output()
        .expect("h2load can be run (Debian's nghttp2-client)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("{requests} succeeded, 0 failed")), "{said}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    (below + above) / 2.0
}

/// How much cheaper `one` is than `other`, round by round.
fn ratio(one: &Side, other: &Side) -> f64 {
    median(one.costs.iter().zip(&other.costs).map(|(one, other)| one / other).collect())
}

fn main() -> ExitCode {
    let Arguments { rounds, requests } = Arguments::parse();
    let bare = Bare::start();
    let quiet = everything_on().serving(1);
    let logging = everything_on().set("log.access", r#""{dir}/access.log""#).serving(1);
    let side = |name, address, pid| Side { name, address, process: Process(pid), costs: Vec::new() };
    let mut sides = [
        side("bare hyper", bare.address, bare.pid()),
        side("everything on", quiet.address(), quiet.serving_pids()[0]),
        side("with access log", logging.address(), logging.serving_pids()[0]),
    ];
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let next = (round + turn) % sides.len();
            sides[next].take_turn(requests);
        }
    }
    for side in &sides {
        println!("{:<16} {:6.2} us of CPU a request", side.name, median(side.costs.clone()) / 1000.0);
    }
    let [bare, quiet, logging] = &sides;
    let mut missed = false;
    for (name, reached, goal) in
        [("everything on", ratio(bare, quiet), GOAL), ("access log on", ratio(quiet, logging), GOAL_WITH_LOG)]
    {
        println!("{name}: {reached:.3} (goal {goal:.2}), the median of {rounds} rounds");
        missed |= reached < goal;
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
