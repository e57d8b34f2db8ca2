//! Scenarios in which something happens to a server under load: a reload, a crash, a hang or a stop. They measure what
//! the server's clients notice of it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use oxicorn_testkit::{
    load::{Load, Mark, Running, Tally, Wire},
    record::{Spread, Turn},
};

use super::{Bench, Side};
use crate::{
    common::{Canary, Process, now},
    peers::Need,
    server::{Server, ask},
};

const RELOADS: usize = 10;
const RELOADS_WITHIN: Duration = Duration::from_secs(25);
const RELOAD_PATIENCE: Duration = Duration::from_secs(20);
const CRASHES: usize = 5;
const CRASH_EVERY: Duration = Duration::from_secs(1);
/// How long nothing happens to the server at the beginning and at the end of a turn.
const QUIET: Duration = Duration::from_millis(300);

pub(super) fn reload(_: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let kept = Load::saturating(server.address, 64, side.path).start();
    let wire = Wire { per_request: true, ..Wire::default() };
    let fresh = Load { wire, ..Load::paced(server.address, 8, side.path, 200.0) }.start();
    sleep(QUIET);
    let (begun, mut reloads) = (now(), Vec::new());
    while reloads.len() < RELOADS && begun.elapsed() < RELOADS_WITHIN {
        let old = server.workers();
        let at = now();
        server.reload();
        until("the reload is over", RELOAD_PATIENCE, || {
            let workers = server.workers();
            workers.len() == side.setup.workers && !workers.iter().any(|worker| old.contains(worker))
        })?;
        reloads.push((at, at.elapsed()));
        sleep(QUIET / 3);
    }
    sleep(QUIET);
    let mut tally = finish([kept, fresh]);
    for (at, _) in &reloads {
        tally.event(*at, "reload");
    }
    let longest = tally.longest();
    let mut turn = Turn::of(tally);
    turn.set("longest_ms", ms(longest));
    turn.set("reloads", reloads.len() as f64);
    let took = Spread::of(reloads.iter().map(|(_, took)| ms(*took)));
    turn.set("reload_ms", took.map_or(0.0, |took| took.median));
    Ok(turn)
}

/// Starts a load of quick requests. If the peer can answer slowly, also starts a load of slow requests, so that some
/// requests are in flight at every moment. The loads note which worker answers on each connection.
fn quick_and_slow(address: SocketAddr, side: &Side, mark: &Arc<Mark>, quick: f64, slow: f64) -> Vec<Running> {
    let of = |load: Load| Load { who: true, mark: Arc::clone(mark), ..load }.start();
    let mut loads = vec![of(Load::paced(address, 64, side.path, quick))];
    if side.peer.cannot(Need::AnswerSlowly).is_none() {
        loads.push(of(Load { slow: Some((1, "/slow")), ..Load::paced(address, 16, "/slow", slow) }));
    }
    loads
}

pub(super) fn crash(_: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let mark = Mark::new();
    let loads = quick_and_slow(server.address, side, &mark, 1000.0, 200.0);
    sleep(2 * QUIET);
    let old = server.workers();
    let canary = Canary::start();
    let at = strike(&mark, &old, Signal::SIGKILL)?;
    let replaced = successor(server.address, &old, at, Duration::from_secs(8));
    sleep(Duration::from_secs(1).saturating_sub(at.elapsed()));
    let stall = canary.longest();
    let mut tally = finish(loads);
    tally.event(at, "kill");
    let replaced = earliest(&tally, &old, replaced);
    let (survived, lost, beyond, longest) = (tally.survived, tally.lost, tally.beyond, tally.longest_after);
    let mut turn = Turn::of(tally);
    turn.set("in_flight", (survived + lost) as f64);
    turn.set("lost", lost as f64);
    turn.set("beyond", beyond as f64);
    turn.set("longest_ms", ms(longest));
    turn.set("stall_ms", ms(stall));
    turn.set("longest_less_stalls_ms", ms(longest.saturating_sub(stall)));
    if let Some(replaced) = replaced {
        turn.set("replacement_ms", ms(replaced.saturating_duration_since(at)));
    }
    Ok(turn)
}

pub(super) fn hang(_: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let mark = Mark::new();
    let loads = quick_and_slow(server.address, side, &mark, 500.0, 100.0);
    sleep(2 * QUIET);
    let old = server.workers();
    let at = strike(&mark, &old, Signal::SIGSTOP)?;
    let replaced = successor(server.address, &old, at, Duration::from_secs(8));
    sleep(2 * QUIET);
    let mut tally = finish(loads);
    tally.event(at, "stop a worker");
    let replaced = earliest(&tally, &old, replaced);
    let longest = tally.longest();
    let mut turn = Turn::of(tally);
    turn.set("longest_ms", ms(longest));
    if let Some(replaced) = replaced {
        turn.set("replacement_ms", ms(replaced.saturating_duration_since(at)));
    }
    Ok(turn)
}

/// Crashes a worker every second, as a client with one bad request does. Each check of the service's health uses a
/// connection of its own.
pub(super) fn storm(_: &Bench, side: &Side) -> Result<Turn, String> {
    let server = Server::start(side.peer, &side.setup)?;
    let wire = Wire { per_request: true, ..Wire::default() };
    let checks = Load { wire, ..Load::paced(server.address, 4, side.path, 50.0) }.start();
    let mut kills = Vec::new();
    for _ in 0..CRASHES {
        sleep(CRASH_EVERY);
        let victim = server.workers().first().map(|worker| Pid::from_raw(worker.0.cast_signed()));
        kills.push(now());
        // If no worker is alive at this moment, no signal is sent, because the service is down already.
        let _ = victim.map(|victim| kill(victim, Signal::SIGKILL));
    }
    sleep(CRASH_EVERY);
    let mut tally = checks.finish();
    for at in kills {
        tally.event(at, "kill");
    }
    let longest = tally.longest();
    let mut turn = Turn::of(tally);
    turn.set("longest_ms", ms(longest));
    Ok(turn)
}

pub(super) fn stop(_: &Bench, side: &Side) -> Result<Turn, String> {
    let mut server = Server::start(side.peer, &side.setup)?;
    let mark = Mark::new();
    let load = Load::saturating(server.address, 32, side.path);
    let load = Load { slow: Some((1, side.path)), mark: Arc::clone(&mark), ..load }.start();
    sleep(2 * QUIET);
    let at = mark.set(0);
    server.signal(Signal::SIGTERM);
    let ended = until("it ends", Duration::from_secs(20), || server.exited().is_some());
    let took = at.elapsed();
    let mut tally = load.finish();
    ended?;
    tally.event(at, "stop");
    let (survived, lost) = (tally.survived, tally.lost);
    let mut turn = Turn::of(tally);
    // `failed` is not reported, because it would count clients that connect after the stop, and the server should
    // refuse these clients.
    turn.figures.remove("failed");
    turn.set("in_flight", (survived + lost) as f64);
    turn.set("lost", lost as f64);
    turn.set("exit_ms", ms(took));
    Ok(turn)
}

/// Sets the mark, and sends the signal to the first worker.
fn strike(mark: &Mark, workers: &[Process], signal: Signal) -> Result<Instant, String> {
    let victim = workers.first().ok_or("it has no workers")?.0;
    let at = mark.set(victim);
    kill(Pid::from_raw(victim.cast_signed()), signal).map_err(|error| error.to_string())?;
    Ok(at)
}

/// Returns when a new worker first answered. Each probe has a new connection and a thread of its own, because a hung
/// worker keeps its probe waiting.
fn successor(address: SocketAddr, old: &[Process], at: Instant, within: Duration) -> Option<Instant> {
    let old: BTreeSet<u32> = old.iter().map(|process| process.0).collect();
    let found = AtomicBool::new(false);
    let probe = || {
        while at.elapsed() < within && !found.load(Ordering::Relaxed) {
            let pid = ask(address, "/pid", Duration::from_millis(500)).and_then(|(_, body)| body.trim().parse().ok());
            if pid.is_some_and(|pid| !old.contains(&pid)) {
                found.store(true, Ordering::Relaxed);
                return Some(now());
            }
            sleep(Duration::from_micros(500));
        }
        None
    };
    scope(|threads| {
        let probes: Vec<_> = (0..4).map(|_| threads.spawn(probe)).collect();
        probes.into_iter().filter_map(|thread| thread.join().expect("a probe does not panic")).min()
    })
}

/// Returns when a new worker first answered: a request of the load or a probe, whichever was earlier.
fn earliest(tally: &Tally, old: &[Process], probed: Option<Instant>) -> Option<Instant> {
    let new = tally.servers.iter().filter(|(pid, _)| !old.iter().any(|old| old.0 == **pid));
    new.map(|(_, since)| *since).chain(probed).min()
}

fn finish(loads: impl IntoIterator<Item = Running>) -> Tally {
    loads.into_iter().map(Running::finish).reduce(Tally::with).expect("there is a load")
}

fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = now() + within;
    while !holds() {
        if now() > deadline {
            return Err(format!("not within {within:?}: {what}"));
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
