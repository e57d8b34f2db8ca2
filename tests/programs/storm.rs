//! The crash storm as a program: `make soak-storm`, or `cargo test --release --test storm -- --seconds 60`.
//!
//! Crashes a worker every second by abort, by SIGKILL and by lack of memory. Each of these storms runs with 1, 2 and 4
//! workers. The same storms run with Gunicorn at the same time. Prints a table, and the verdict as the last line. Exits
//! with code 1 when a promise was broken.

#[path = "../common/mod.rs"]
mod common;
#[path = "../storm/mod.rs"]
mod storm;

use std::process::ExitCode;

use clap::Parser;

/// Crashes the workers of oxicorn and of Gunicorn once a second, and counts the health checks that fail.
#[derive(Debug, Parser)]
struct Arguments {
    /// Length of each of the three storms.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

fn main() -> ExitCode {
    let Arguments { seconds } = Arguments::parse();
    println!("{}", storm::HEAD);
    let mut broken = Vec::new();
    for way in [storm::Way::Abort, storm::Way::Kill, storm::Way::Oom] {
        for outcome in storm::run(way, seconds) {
            println!("{outcome}");
            broken.extend(outcome.broken());
        }
    }
    for what in &broken {
        println!("broken: {what}");
    }
    match broken.len() {
        0 => {
            println!("storm: all kept");
            ExitCode::SUCCESS
        }
        count => {
            println!("storm: {count} promises broken");
            ExitCode::FAILURE
        }
    }
}
