//! The measurements of one run of the benchmark. The benchmark fills these types, saves them, compares them with an
//! earlier run, and draws plots from them.
//!
//! Owns: the record and its medians. Refuses: to measure and to judge.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::load::Tally;

/// One complete run. `--save` writes it to a file, and `--compare` reads it from there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub machine: Machine,
    /// When the run began, as RFC 3339 in UTC.
    pub began: String,
    /// The command that repeats the run.
    pub command: String,
    pub rounds: usize,
    /// How long one turn took, in seconds.
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// The peers that could not be measured, each with the reason.
    pub missing: BTreeMap<String, String>,
    pub promises: Vec<Promise>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    /// The version of every program that took part, by the name of the program.
    pub versions: BTreeMap<String, String>,
}

/// All results of one peer in one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub scenario: String,
    pub peer: String,
    /// The turns of this peer: one for each round, in order.
    pub turns: Vec<Turn>,
    /// The reason why this peer cannot take part in this scenario. The text is empty if it can. If there is a reason,
    /// `turns` is empty.
    #[serde(default)]
    pub not_applicable: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Turn {
    /// The measured figures by name. Each name contains the unit of its figure. If a peer does not have a figure, the
    /// map does not contain it.
    ///
    /// - A load can have `requests_per_second`, `cpu_us_per_request` and `failed`. A paced load can also have `p50_us`,
    ///   `p99_us` and `p99_9_us`.
    /// - A load with events can have `failed`, `in_flight`, `lost` (of those in flight), `beyond` (others that failed),
    ///   `longest_ms`, `stall_ms`, `longest_less_stalls_ms`, `replacement_ms`, `reload_ms` and `exit_ms`.
    /// - The other scenarios can have `startup_ms`, `wakeups_per_second`, `cpu_percent`, `master_pss_kib`,
    ///   `master_rss_kib`, `worker_pss_kib`, `worker_pss_loaded_kib`, `kib_per_connection`, `syscalls_per_request` and
    ///   `max_over_mean`.
    pub figures: BTreeMap<String, f64>,
    /// The number of requests in each class. The classes are `ok` and the names of the kinds of failure. Every request
    /// is in exactly one class.
    pub classes: BTreeMap<String, u64>,
    /// Pairs of a percentile, as a fraction such as 0.99, and its latency in microseconds, in ascending order. The list
    /// is empty if no latency is measured.
    pub latency: Vec<(f64, f64)>,
    /// What the clients saw in each tick. The list is filled only in scenarios with events.
    pub timeline: Vec<Tick>,
}

impl Turn {
    /// Makes a turn with the classes, latencies and timeline of a load; the caller adds the figures.
    pub fn of(tally: Tally) -> Self {
        let mut turn =
            Self { classes: tally.classes(), latency: tally.latency(), timeline: tally.timeline, ..Self::default() };
        turn.figures.insert(
            "failed".to_owned(),
            turn.classes.iter().filter(|(name, _)| *name != "ok").map(|(_, count)| *count as f64).sum(),
        );
        turn
    }

    pub fn set(&mut self, figure: &str, value: f64) {
        self.figures.insert(figure.to_owned(), value);
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Tick {
    /// When the tick began, in seconds since the turn began.
    pub second: f64,
    pub ok: u64,
    pub failed: u64,
    /// The longest wait that ended in this tick, in microseconds.
    pub longest_us: f64,
    /// What the benchmark did to the server in this tick, such as `reload` or `kill`. The text is empty if it did
    /// nothing.
    #[serde(default)]
    pub event: String,
}

/// What oxicorn promises for one figure, and what this run measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Promise {
    pub says: String,
    pub reached: f64,
    /// The bound of the promise: the smallest allowed value if `at_least` is true, otherwise the largest.
    pub bound: f64,
    pub at_least: bool,
}

impl Promise {
    pub fn kept(&self) -> bool {
        if self.at_least { self.reached >= self.bound } else { self.reached <= self.bound }
    }
}

/// The median, the smallest and the largest of some values.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median, min, max })
    }
}

impl Row {
    pub fn spread(&self, figure: &str) -> Option<Spread> {
        Spread::of(self.turns.iter().filter_map(|turn| turn.figures.get(figure).copied()))
    }
}
