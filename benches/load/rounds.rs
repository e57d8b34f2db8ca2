//! The rounds of a run: in each round every peer of a scenario takes its turn, and the order rotates.
//!
//! Owns: the decision which server runs when, and the progress that is shown. Refuses: to end the run when one peer
//! fails. The report shows the failure instead.

use indicatif::{ProgressBar, ProgressStyle};

use oxicorn_testkit::record::{Record, Row, Turn};

use crate::{
    peers::{Peer, Setup},
    scenarios::{Bench, Kind, Scenario, Side},
    server::Server,
};

/// The servers that keep running from one scenario to the next. If the next scenario needs the same peer with the same
/// setup, it uses the running server.
#[derive(Default)]
struct Kept(Vec<(Peer, Setup, Server)>);

impl Kept {
    fn only_for(&mut self, sides: &[&Side]) {
        self.0.retain(|(peer, setup, _)| sides.iter().any(|side| (side.peer, &side.setup) == (*peer, setup)));
    }

    fn find(&self, side: &Side) -> Option<&Server> {
        let (_, _, server) = self.0.iter().find(|(peer, setup, _)| (side.peer, &side.setup) == (*peer, setup))?;
        Some(server)
    }

    fn start(&mut self, side: &Side) -> Result<(), String> {
        if self.find(side).is_none() {
            self.0.push((side.peer, side.setup.clone(), Server::start(side.peer, &side.setup)?));
        }
        Ok(())
    }
}

pub fn run(bench: &Bench, scenarios: &[Scenario], present: &[Peer], rounds: usize, record: &mut Record) {
    let sides_of = |scenario: &Scenario| {
        let rounds = rounds.min(scenario.rounds);
        rounds * scenario.sides.iter().filter(|side| present.contains(&side.peer) && side.cannot.is_none()).count()
    };
    let bar = ProgressBar::new(scenarios.iter().map(sides_of).sum::<usize>() as u64);
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len}, {eta} left  {msg}");
    bar.set_style(style.expect("a sound template"));
    let mut kept = Kept::default();
    for scenario in scenarios {
        // If the output is a log, no progress bar is shown, so print the name of each scenario instead.
        if bar.is_hidden() {
            eprintln!("load: {}", scenario.name);
        }
        let taking_part: Vec<_> = scenario.sides.iter().filter(|side| present.contains(&side.peer)).collect();
        let (able, unable): (Vec<_>, Vec<_>) = taking_part.into_iter().partition(|side| side.cannot.is_none());
        let mut rows: Vec<_> = able.iter().map(|side| row(scenario, side, "")).collect();
        measure(bench, scenario, &able, rounds.min(scenario.rounds), &mut rows, &mut kept, &bar);
        record.rows.extend(rows);
        record.rows.extend(unable.iter().map(|side| row(scenario, side, side.cannot.unwrap_or_default())));
    }
    bar.finish_and_clear();
}

fn row(scenario: &Scenario, side: &Side, not_applicable: &str) -> Row {
    Row {
        scenario: scenario.name.to_owned(),
        peer: side.label.clone(),
        turns: Vec::new(),
        not_applicable: not_applicable.to_owned(),
    }
}

fn measure(
    bench: &Bench,
    scenario: &Scenario,
    sides: &[&Side],
    rounds: usize,
    rows: &mut [Row],
    kept: &mut Kept,
    bar: &ProgressBar,
) {
    // A failed turn removes all results of its peer in this scenario, because ratios need the turns of the same round.
    let fail = |row: &mut Row, why: String| {
        bar.suspend(|| eprintln!("load: {}, {}: {why}", row.scenario, row.peer));
        row.turns.clear();
        row.not_applicable = format!("it failed: {why}");
    };
    let is_fresh = matches!(scenario.kind, Kind::Fresh(_));
    kept.only_for(if is_fresh { &[] } else { sides });
    for (side, row) in sides.iter().zip(rows.iter_mut()).filter(|_| !is_fresh) {
        bar.set_message(format!("{}: {} starts", scenario.name, side.label));
        if let Err(why) = kept.start(side) {
            fail(row, why);
        }
    }
    for round in 0..rounds {
        if let Kind::Together(act) = &scenario.kind {
            bar.set_message(format!("{}, round {}", scenario.name, round + 1));
            let started: Vec<_> = (0..sides.len()).filter(|&at| kept.find(sides[at]).is_some()).collect();
            let servers: Vec<_> = started.iter().filter_map(|&at| kept.find(sides[at])).collect();
            for (at, turn) in started.iter().zip(act(&servers)) {
                rows[*at].turns.push(turn);
            }
            bar.inc(sides.len() as u64);
            continue;
        }
        for at in (0..sides.len()).map(|at| (at + round) % sides.len()) {
            let (side, row) = (sides[at], &mut rows[at]);
            bar.set_message(format!("{}: {}, round {}", scenario.name, side.label, round + 1));
            if row.not_applicable.is_empty() {
                let turn: Result<Turn, String> = match &scenario.kind {
                    Kind::Kept(act) => {
                        kept.find(side).ok_or("it is gone".to_owned()).and_then(|it| act(bench, side, it))
                    }
                    Kind::Fresh(act) => act(bench, side),
                    Kind::Together(_) => continue,
                };
                match turn {
                    Ok(turn) => row.turns.push(turn),
                    Err(why) => fail(row, why),
                }
            }
            bar.inc(1);
        }
    }
}
