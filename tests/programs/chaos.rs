//! The proof of zero loss as a program: `make chaos`, or `cargo test --release --test chaos -- --seconds 60 --seed 7`.
//!
//! Runs a storm over a service of the built binary twice, first without and then with SIGKILLs. For comparison, it also
//! reloads nginx under load. Prints what was done and what was lost. Exits with code 1 when a promise was broken. It
//! also exits with code 1 when the clients saw no loss with nginx, because then they could not see a loss with oxicorn
//! either.

#[path = "../chaos/mod.rs"]
mod chaos;
#[path = "../common/mod.rs"]
mod common;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use chaos::{Bind, Plan, nginx};
use clap::Parser;
use common::Launch;

/// Runs a storm over a service under load and counts what its clients lose.
#[derive(Debug, Parser)]
struct Arguments {
    /// Length of the run without kills. The run with kills takes half as long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The seed that determines the order of the actions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The kind of socket: own (a listener for each worker), shared (one listener for all), unix, or dual (one on
    /// [::]).
    #[arg(long, default_value = "own", value_parser = bind)]
    bind: Bind,
    /// Make the kernel refuse steering (SO_ATTACH_REUSEPORT_CBPF).
    #[arg(long)]
    no_steering: bool,
    /// Write the supervisor's logs to this folder.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn bind(word: &str) -> Result<Bind, &'static str> {
    match word {
        "own" => Ok(Bind::Own),
        "shared" => Ok(Bind::Shared),
        "unix" => Ok(Bind::Unix),
        "dual" => Ok(Bind::Dual),
        _ => Err("own, shared, unix or dual"),
    }
}

/// The least number of requests in a minute. A run with fewer requests, or with fewer actions than `DEEDS_A_MINUTE`,
/// proves little.
const REQUESTS_A_MINUTE: u64 = 200_000;
const DEEDS_A_MINUTE: usize = 20;

fn main() -> ExitCode {
    let Arguments { seconds, seed, bind, no_steering, log } = Arguments::parse();
    let mut broken = Vec::new();
    let mut logs = String::new();
    let calm = Plan::without_kills(bind, Duration::from_secs(seconds), seed);
    let bloody = Plan::with_kills(bind, Duration::from_secs(seconds).div_f64(2.0), seed);
    for (plan, must_bring) in [(calm, true), (bloody, false)] {
        let launch = Launch::new();
        let report = plan.run(if no_steering { launch.without_steering() } else { launch });
        println!("{report}{}", report.leads());
        broken.extend(report.broken());
        logs += report.log();
        if must_bring && seconds >= 60 {
            if report.requests() < REQUESTS_A_MINUTE {
                broken.push(format!("only {} requests were made, {REQUESTS_A_MINUTE} are needed", report.requests()));
            }
            for (name, times) in report.deeds() {
                if times < DEEDS_A_MINUTE {
                    broken.push(format!("{name} was done only {times} times, {DEEDS_A_MINUTE} are needed"));
                }
            }
        }
    }
    let witness = nginx::reloaded(20, Duration::from_millis(200), seed);
    println!("nginx, 20 reloads, the same clients\n{witness}");
    if witness.losses().is_empty() {
        broken.push("the clients saw nginx lose nothing: they are blind, and prove nothing".to_owned());
    }
    if let Some(path) = log
        && let Err(error) = fs::write(&path, logs)
    {
        broken.push(format!("{} cannot be written: {error}", path.display()));
    }
    for sentence in &broken {
        println!("BROKEN: {sentence}");
    }
    if broken.is_empty() {
        println!("Nothing was lost that had to be kept.");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
