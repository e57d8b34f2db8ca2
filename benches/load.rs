//! Measures oxicorn beside the servers that its users would otherwise choose, on this machine, in one run: `make
//! bench`, `cargo bench --bench load`.
//!
//! Every peer answers the same client in the same rounds, so that other load of the machine disturbs all peers. In each
//! round every peer takes its turn, after a warm-up of its own, and the order of the peers rotates. Results are
//! medians. Two peers are compared by the median of the rounds' ratios. The exit code is 1 if a promise is broken.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a benchmark reads clocks and starts threads")]
#![allow(unreachable_pub, reason = "a program has no users outside")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "load/peers.rs"]
mod peers;
#[path = "load/promises.rs"]
mod promises;
#[path = "load/report.rs"]
mod report;
#[path = "load/rounds.rs"]
mod rounds;
#[path = "load/scenarios.rs"]
mod scenarios;
#[path = "load/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use oxicorn_testkit::record::{self, Machine, Record};

use self::{
    common::root,
    peers::Peer,
    scenarios::{Bench, Scenario},
};

/// Measures oxicorn beside its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The scenarios to measure: one or more names that --list prints, or "all". Without this flag, those that --list
    /// marks with a star are measured.
    #[arg(long, num_args = 1..)]
    scenario: Vec<String>,
    /// The peers to measure: one or more names that --list prints. Without this flag, all peers are measured.
    #[arg(long, num_args = 1..)]
    peer: Vec<String>,
    /// The number of turns that each peer takes in a scenario.
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// The length of one turn, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Write the record of this run, as JSON, to this file as well as to the folder target/bench.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Show what has changed since an earlier run, whose record is this file (see --save).
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Print the names of the scenarios and of the peers, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Cargo passes this flag to every benchmark; it has no effect here.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the benchmark, and returns true if all measured promises are kept.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let known = scenarios::all();
    if arguments.list {
        list(&known);
        return Ok(true);
    }
    let scenarios = chosen_scenarios(known, &arguments.scenario)?;
    let peers = chosen_peers(&arguments.peer)?;
    let before = match &arguments.compare {
        Some(file) => Some(read(file)?),
        None => None,
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|error| error.to_string())?;

    let missing: BTreeMap<Peer, String> = peers.iter().filter_map(|&peer| Some((peer, peer.missing()?))).collect();
    let present: Vec<_> = peers.into_iter().filter(|peer| !missing.contains_key(peer)).collect();
    let mut record = Record {
        machine: machine(&present),
        began: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        command: command(arguments),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        rows: Vec::new(),
        missing: missing.into_iter().map(|(peer, why)| (peer.name().to_owned(), why)).collect(),
        promises: Vec::new(),
    };
    let bench = Bench::new(arguments.seconds);
    rounds::run(&bench, &scenarios, &present, arguments.rounds, &mut record);
    record.promises = promises::of(&record);

    let dir = root().join("target/bench");
    report::print(&record);
    report::write(&record, &dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if let Some(file) = &arguments.save {
        let text = serde_json::to_string_pretty(&record).map_err(|error| error.to_string())?;
        fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if let Some(before) = &before {
        print!("{}", report::compare(before, &record));
    }
    println!("complete record and charts: {}", dir.display());
    Ok(record.promises.iter().all(record::Promise::kept))
}

fn list(scenarios: &[Scenario]) {
    println!("scenarios (* without --scenario):");
    for scenario in scenarios {
        println!("  {} {:<16} {}", if scenario.default { '*' } else { ' ' }, scenario.name, scenario.about);
    }
    println!("peers:");
    for peer in Peer::ALL {
        println!("    {:<28} {}", peer.name(), peer.missing().unwrap_or_else(|| peer.about().to_owned()));
    }
}

fn chosen_scenarios(known: Vec<Scenario>, names: &[String]) -> Result<Vec<Scenario>, String> {
    // A name also stands for the scenarios that begin with it and a dash: `steady` means steady-8, steady-64 and so on.
    let fits = |scenario: &Scenario, name: &str| {
        name == "all"
            || scenario.name == name
            || scenario.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    };
    if let Some(name) = names.iter().find(|name| !known.iter().any(|scenario| fits(scenario, name))) {
        return Err(format!("there is no scenario {name:?}; --list names them"));
    }
    let wanted = |scenario: &Scenario| match names.is_empty() {
        true => scenario.default,
        false => names.iter().any(|name| fits(scenario, name)),
    };
    Ok(known.into_iter().filter(wanted).collect())
}

fn chosen_peers(names: &[String]) -> Result<Vec<Peer>, String> {
    if names.is_empty() {
        return Ok(Peer::ALL.to_vec());
    }
    let named = |name: &String| Peer::ALL.into_iter().find(|peer| peer.name().eq_ignore_ascii_case(name));
    names
        .iter()
        .map(|name| named(name).ok_or_else(|| format!("there is no peer {name:?}; --list names them")))
        .collect()
}

fn read(file: &Path) -> Result<Record, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn machine(peers: &[Peer]) -> Machine {
    let after = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_matches(|sign: char| sign.is_whitespace() || sign == ':').to_owned()
    };
    let kib: f64 = after("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    Machine {
        cpu: after("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib: kib / 1024.0 / 1024.0,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        versions: peers.iter().flat_map(|peer| peer.versions()).collect(),
    }
}

fn command(arguments: &Arguments) -> String {
    let mut command = "cargo bench --bench load --".to_owned();
    for name in &arguments.scenario {
        command += &format!(" --scenario {name}");
    }
    for name in &arguments.peer {
        command += &format!(" --peer {name:?}");
    }
    command + &format!(" --rounds {} --seconds {}", arguments.rounds, arguments.seconds)
}
