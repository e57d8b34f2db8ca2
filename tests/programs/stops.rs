//! `make soak-stop`: hundreds of stops under load, in every way in which a stop comes.
//!
//! Prints a line for each way; the last line is the verdict with its figures. Exit code 1 when a client lost an
//! established connection, or when a loss was not counted.

#[path = "../common/mod.rs"]
mod common;
#[path = "../stops/mod.rs"]
mod stops;

use std::process::ExitCode;

use clap::Parser;
use stops::{Way, stop_many};

/// Stops services under load and counts what their clients lose.
#[derive(Debug, Parser)]
struct Arguments {
    /// Stops of each way that needs nothing installed.
    #[arg(long, default_value_t = 200)]
    stops: usize,
    /// Stops through each of dumb-init and supervisord.
    #[arg(long, default_value_t = 30)]
    through: usize,
}

fn main() -> ExitCode {
    let Arguments { stops, through } = Arguments::parse();
    let (mut all, mut lost, mut uncounted, mut wrong) = (0, 0, 0, 0);
    let ways = Way::PLAIN.map(|way| (way, stops)).into_iter().chain(Way::THROUGH.map(|way| (way, through)));
    for (way, stops) in ways {
        let outcome = stop_many(way, stops);
        println!("{way:?}: {outcome}");
        all += outcome.stops;
        lost += outcome.lost.values().sum::<u64>();
        uncounted += outcome.uncounted;
        wrong += outcome.wrong.len();
    }
    let clean = lost + uncounted == 0 && wrong == 0;
    let verdict = if clean { "Nothing was lost" } else { "BROKEN" };
    println!(
        "{verdict}: {all} stops under 16 clients, {lost} resets of established connections, \
         {uncounted} stops with uncounted losses, {wrong} that did not end in order"
    );
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
