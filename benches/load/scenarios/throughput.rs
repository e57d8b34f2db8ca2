//! Scenarios in which a load runs without events. They measure how many requests are answered, how much CPU time a
//! request costs, and how long an answer takes.

use std::time::Duration;

use oxicorn_testkit::{
    load::{Load, Wire},
    record::Turn,
};

use super::{Bench, Kind};
use crate::server::Server;

const CONNECTIONS: usize = 64;
const RATE: f64 = 1000.0;

/// Runs one turn: the warm-up, then the load. Also measures the CPU time of the server during the load.
fn turn(bench: &Bench, server: &Server, load: Load) -> Result<Turn, String> {
    load.clone().run(Duration::from_secs_f64((bench.seconds / 4.0).min(0.5)));
    let before = server.cpu_time();
    let tally = load.run(Duration::from_secs_f64(bench.seconds));
    let spent = server.cpu_time().saturating_sub(before);
    if tally.ok == 0 {
        return Err(format!("not one answer: {:?}", tally.classes()));
    }
    let (ok, time) = (tally.ok as f64, tally.time.as_secs_f64());
    let mut turn = Turn::of(tally);
    turn.timeline.clear();
    turn.set("requests_per_second", ok / time);
    turn.set("cpu_us_per_request", spent.as_secs_f64() * 1e6 / ok);
    Ok(turn)
}

pub(super) fn saturate(connections: usize) -> Kind {
    Kind::Kept(Box::new(move |bench, side, server| {
        turn(bench, server, Load::saturating(server.address, connections, side.path))
    }))
}

/// Measures a server that recycles workers. Its CPU time is not reported, because the time of workers that have ended
/// can no longer be read.
pub(super) fn recycling() -> Kind {
    Kind::Kept(Box::new(|bench, side, server| {
        let mut turn = turn(bench, server, Load::saturating(server.address, CONNECTIONS, side.path))?;
        turn.figures.remove("cpu_us_per_request");
        Ok(turn)
    }))
}

/// Runs a turn with a given pace. Requests in a second are not reported, because the pace determines them.
fn paced(bench: &Bench, server: &Server, load: Load) -> Result<Turn, String> {
    let mut turn = turn(bench, server, load)?;
    turn.figures.remove("requests_per_second");
    for (part, waited) in turn.latency.clone() {
        match part {
            0.5 => turn.set("p50_us", waited),
            0.99 => turn.set("p99_us", waited),
            0.999 => turn.set("p99_9_us", waited),
            _ => {}
        }
    }
    Ok(turn)
}

pub(super) fn latency() -> Kind {
    Kind::Kept(Box::new(|bench, side, server| {
        paced(bench, server, Load::paced(server.address, CONNECTIONS, side.path, RATE))
    }))
}

pub(super) fn mixed() -> Kind {
    Kind::Kept(Box::new(|bench, side, server| {
        let load = Load::paced(server.address, CONNECTIONS, side.path, RATE);
        paced(bench, server, Load { slow: Some((100, "/slow")), ..load })
    }))
}

pub(super) fn new_connections() -> Kind {
    Kind::Kept(Box::new(|bench, side, server| {
        let wire = Wire { per_request: true, ..Wire::default() };
        turn(bench, server, Load { wire, ..Load::saturating(server.address, CONNECTIONS, side.path) })
    }))
}

pub(super) fn bodies(body: usize) -> Kind {
    Kind::Kept(Box::new(move |bench, side, server| {
        turn(bench, server, Load { body, ..Load::saturating(server.address, 16, side.path) })
    }))
}

pub(super) fn over_tls() -> Kind {
    Kind::Kept(Box::new(|bench, side, server| {
        let wire = Wire { tls: Some(bench.tls(false)), ..Wire::default() };
        turn(bench, server, Load { wire, ..Load::saturating(server.address, CONNECTIONS, side.path) })
    }))
}

pub(super) fn http2(tls: bool) -> Kind {
    Kind::Kept(Box::new(move |bench, side, server| {
        let wire = Wire { tls: tls.then(|| bench.tls(true)), streams: Some(8), ..Wire::default() };
        turn(bench, server, Load { wire, ..Load::saturating(server.address, 8, side.path) })
    }))
}
