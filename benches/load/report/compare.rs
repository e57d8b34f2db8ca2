//! Compares two runs, figure by figure.
//!
//! Owns: the words for the difference between two figures. Refuses: to judge whether a figure has become better.

use oxicorn_testkit::record::{Record, Row, Spread};

use super::{
    figures::{Column, number, scenarios},
    text::{fold, plain, table},
};

/// Writes one table for each scenario, with the rows of both runs. Rows that only one run has are listed below the
/// tables.
#[must_use]
pub fn compare(old: &Record, new: &Record) -> String {
    let mut out = String::new();
    let setting =
        |run: &Record| (run.machine.cpu.clone(), run.machine.cores, run.machine.kernel.clone(), run.seconds.to_bits());
    if setting(old) != setting(new) {
        out += "The machine, its kernel or the length of a turn is not the same: the figures do not compare.\n";
    }
    for scenario in scenarios(new) {
        let mut lines = vec![["", "figure", "old", "new", "ratio", ""].map(String::from).to_vec()];
        for column in scenario.columns() {
            let both = |row: &&Row| {
                Some((twin(old, row)?, twin(old, row)?.spread(column.figure)?, row.spread(column.figure)?))
            };
            for (row, (before, was, is)) in scenario.rows.iter().filter_map(|row| Some((row, both(row)?))) {
                lines.push(line(&column, row, row.turns.len().min(before.turns.len()), was, is));
            }
        }
        if lines.len() > 1 {
            out += &format!("\n{}\n{}", plain(scenario.name), table(&lines));
        }
    }
    out + &only(old, new, "old") + &only(new, old, "new")
}

fn twin<'a>(record: &'a Record, row: &Row) -> Option<&'a Row> {
    record.rows.iter().find(|other| other.scenario == row.scenario && other.peer == row.peer)
}

fn only(record: &Record, other: &Record, run: &str) -> String {
    let mut out = String::new();
    let mut name = |row: &Row, what: &str| {
        out +=
            &fold(&format!("  only in the {run} run: "), &plain(&format!("{} under {}{what}", row.scenario, row.peer)));
    };
    for scenario in scenarios(record) {
        for row in &scenario.rows {
            let Some(twin) = twin(other, row) else {
                name(row, "");
                continue;
            };
            for column in scenario.columns() {
                if row.spread(column.figure).is_some() && twin.spread(column.figure).is_none() {
                    name(row, &format!(": {}", column.label));
                }
            }
        }
    }
    out
}

fn line(column: &Column, row: &Row, rounds: usize, old: Spread, new: Spread) -> Vec<String> {
    let ratio = if old.median == new.median { 1.0 } else { new.median / old.median };
    let verdict = if old.min <= new.max && new.min <= old.max {
        "within noise"
    } else if rounds < 2 {
        "one round"
    } else if new.median > old.median {
        "higher"
    } else {
        "lower"
    };
    let [old, new] = [old, new].map(|spread| column.number(spread.median));
    vec![plain(&row.peer), column.head(), old, new, format!("×{}", number(ratio)), verdict.into()]
}
