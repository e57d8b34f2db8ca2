//! Loads a server until its standard input ends, for programs that are not written in Rust:
//! `load ADDRESS PATH KEPT FRESH`, with KEPT saturating keep-alive connections, and FRESH clients that open a connection
//! for each request. Prints one line of JSON: how each request ended, and which numbers the answers' bodies had.
//!
//! Owns: the command line and the line that it prints. Refuses: to send a request again (`load::Load` does).

use std::{collections::BTreeMap, env, io, net::SocketAddr, process::ExitCode};

use oxicorn_testkit::load::{Load, Running, Tally, Wire};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    /// The number of requests by the way in which they ended: "ok", "refused connect" and so on.
    ends: BTreeMap<String, u64>,
    longest_ms: f64,
    /// The numbers that were bodies of answers, such as the version of the app.
    numbers: Vec<u32>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [address, path, kept, fresh] = words.as_slice() else { return usage() };
    let (Ok(address), Ok(kept), Ok(fresh)) = (address.parse::<SocketAddr>(), kept.parse(), fresh.parse()) else {
        return usage();
    };
    let path: &'static str = path.clone().leak();
    let kept = Load { who: true, ..Load::saturating(address, kept, path) };
    let wire = Wire { per_request: true, ..Wire::default() };
    let fresh = Load { who: true, wire, ..Load::saturating(address, fresh, path) };
    let loads = [kept, fresh].into_iter().filter(|load| load.connections > 0).map(Load::start);
    let running: Vec<Running> = loads.collect();
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    let Some(tally) = running.into_iter().map(Running::finish).reduce(Tally::with) else { return usage() };
    let report = Report {
        ends: tally.classes(),
        longest_ms: tally.longest().as_secs_f64() * 1000.0,
        numbers: tally.servers.keys().copied().collect(),
    };
    match serde_json::to_string(&report) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("load ADDRESS PATH KEPT FRESH");
    ExitCode::from(2)
}
