//! What a run of the benchmark has seen: the one shape that is measured into, saved, compared and drawn.
//!
//! Owns: the record and its medians. Refuses: measuring, and judging.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::load::Tally;

/// One complete run: what `--save` writes and `--compare` reads.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub machine: Machine,
    /// When it began, RFC 3339 in UTC.
    pub began: String,
    /// The command that repeats it.
    pub command: String,
    pub rounds: usize,
    /// Seconds of one turn.
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// Peers that could not be asked, each with the reason.
    pub missing: BTreeMap<String, String>,
    pub promises: Vec<Promise>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    /// Program → version, of every peer that took part.
    pub versions: BTreeMap<String, String>,
}

/// One scenario with one peer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub scenario: String,
    pub peer: String,
    /// One turn for each round, in order.
    pub turns: Vec<Turn>,
    /// Why this peer cannot do this scenario; empty if it can. There are no turns then.
    #[serde(default)]
    pub not_applicable: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Turn {
    /// What was measured, by name and unit. Loads: `requests_per_second`, `cpu_us_per_request`, `failed`; paced ones
    /// `p50_us`, `p99_us`, `p99_9_us`. Events under load: `failed`, `in_flight`, `lost` (of those in flight), `beyond`
    /// (others that failed), `longest_ms`, `stall_ms`, `longest_less_stalls_ms`, `replacement_ms`, `reload_ms`,
    /// `exit_ms`. At rest: `startup_ms`, `wakeups_per_second`, `cpu_percent`, `master_pss_kib`, `master_rss_kib`,
    /// `worker_pss_kib`, `worker_pss_loaded_kib`, `kib_per_connection`, `syscalls_per_request`, `max_over_mean`. A
    /// figure that a peer does not have is missing.
    pub figures: BTreeMap<String, f64>,
    /// How every request ended: `ok`, and each way to fail by name. A request is in exactly one class.
    pub classes: BTreeMap<String, u64>,
    /// (part of the requests, microseconds), ascending; empty if no latency is measured.
    pub latency: Vec<(f64, f64)>,
    /// What clients saw over time; only for scenarios with events.
    pub timeline: Vec<Tick>,
}

impl Turn {
    /// Classes, latencies and timeline; the caller adds the figures.
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
    /// Since the turn began.
    pub second: f64,
    pub ok: u64,
    pub failed: u64,
    /// The longest wait that ended in this tick, microseconds.
    pub longest_us: f64,
    /// What was done to the server in this tick: `reload`, `kill` …
    #[serde(default)]
    pub deed: String,
}

/// What oxicorn promises of one figure, and what this run saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Promise {
    pub says: String,
    pub reached: f64,
    /// The bound, and whether it is a floor or a ceiling.
    pub bound: f64,
    pub at_least: bool,
}

impl Promise {
    pub fn kept(&self) -> bool {
        if self.at_least { self.reached >= self.bound } else { self.reached <= self.bound }
    }
}

/// The median, the smallest and the largest.
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
