//! `make soak-stop`: hundreds of stops under load, in every way in which a stop can come.
//!
//! Prints a line for each way, and the verdict with its figures as the last line. Exits with code 1 when a client lost
//! an established connection, or when the service did not count a loss.

#[path = "../common/mod.rs"]
mod common;
#[path = "../stops/mod.rs"]
mod stops;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use stops::{Outcome, Way, pack_image, stop_many};

/// Stops services under load and counts what their clients lose.
#[derive(Debug, Parser)]
struct Arguments {
    /// The number of stops for each way that needs no installed program.
    #[arg(long, default_value_t = 200)]
    stops: u64,
    /// The number of stops through each of dumb-init, supervisord, docker, and docker with its init.
    #[arg(long, default_value_t = 30)]
    through: u64,
}

fn main() -> ExitCode {
    let Arguments { stops, through } = Arguments::parse();
    if through > 0 {
        pack_image();
    }
    let began = Instant::now();
    let mut all = Outcome::default();
    let ways = Way::PLAIN.map(|way| (way, stops)).into_iter().chain(Way::THROUGH.map(|way| (way, through)));
    for (way, stops) in ways {
        let outcome = stop_many(way, stops);
        println!("{way:?}: {outcome}, after {} s", began.elapsed().as_secs());
        all.add(outcome);
    }
    let verdict = if all.is_clean() { "Nothing was lost" } else { "BROKEN" };
    println!("{verdict}: {all}");
    if all.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
