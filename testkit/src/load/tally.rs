//! The counts and times of a load.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{End, Outcome};
use crate::record::Tick;

const TICK: Duration = Duration::from_millis(100);
/// A request that ends within this time after the load's `Mark` shows the effect of what was done to the server.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The percentiles that are reported, as fractions. For 0.99, the report gives the latency that 99 % of the requests
/// stay below.
const PARTS: [f64; 9] = [0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0];

pub struct Tally {
    begun: Instant,
    /// How long the load ran, from its start until it was told to stop.
    pub time: Duration,
    pub ok: u64,
    failures: BTreeMap<String, u64>,
    /// The latencies of the successful requests, in microseconds. A latency counts from the time when the request was
    /// due. Requests for the slow path are left out.
    latency: Histogram<u64>,
    pub timeline: Vec<Tick>,
    /// How many requests were sent before the mark and answered well after it. If there is a victim, only requests that
    /// the victim answered count.
    pub survived: u64,
    /// How many requests were lost on connections to the victim. Sometimes there is no victim, or the worker of a
    /// connection is unknown. A lost request then counts here only if it was sent before the mark.
    pub lost: u64,
    /// How many requests failed without counting as `lost`: those on connections to other workers, and those on new
    /// connections.
    pub beyond: u64,
    /// The longest wait of a successful request that ended within `AFTERMATH` after the mark.
    pub longest_after: Duration,
    /// The pids of the workers that answered, each with the time of its first answer.
    pub servers: BTreeMap<u32, Instant>,
}

impl Tally {
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            time: Duration::ZERO,
            ok: 0,
            failures: BTreeMap::new(),
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds"),
            timeline: Vec::new(),
            survived: 0,
            lost: 0,
            beyond: 0,
            longest_after: Duration::ZERO,
            servers: BTreeMap::new(),
        }
    }

    pub(super) fn note(&mut self, outcome: &Outcome, ended: Instant, mark: Option<(Instant, u32)>) {
        let well = outcome.end == End::Ok;
        let wait = ended - outcome.due;
        let tick = self.tick((ended - self.begun).as_millis() as usize / TICK.as_millis() as usize);
        if well {
            tick.ok += 1;
            if !outcome.slow {
                tick.longest_us = tick.longest_us.max(wait.as_secs_f64() * 1e6);
                self.latency.saturating_record(wait.as_micros() as u64);
            }
            self.ok += 1;
            if let Some(server) = outcome.server {
                self.servers.entry(server).or_insert(ended);
            }
        } else {
            tick.failed += 1;
            *self.failures.entry(outcome.end.name().into_owned()).or_default() += 1;
        }
        let Some((at, victim)) = mark else { return };
        let before = outcome.sent <= at;
        let on_the_victim = victim != 0 && outcome.server == Some(victim);
        let nobody_known = victim == 0 || outcome.server.is_none();
        match well {
            true => self.survived += u64::from(before && (victim == 0 || on_the_victim)),
            false if on_the_victim || (before && nobody_known) => self.lost += 1,
            false => self.beyond += 1,
        }
        if well && !outcome.slow && ended - at < AFTERMATH {
            self.longest_after = self.longest_after.max(wait);
        }
    }

    fn tick(&mut self, index: usize) -> &mut Tick {
        while self.timeline.len() <= index {
            let second = (TICK * self.timeline.len() as u32).as_secs_f64();
            self.timeline.push(Tick { second, ok: 0, failed: 0, longest_us: 0.0, event: String::new() });
        }
        &mut self.timeline[index]
    }

    /// Notes in the timeline that `what` was done to the server at the time `at`.
    pub fn event(&mut self, at: Instant, what: &str) {
        let index = (at - self.begun).as_millis() as usize / TICK.as_millis() as usize;
        self.tick(index).event = what.to_owned();
    }

    pub fn with(mut self, other: Self) -> Self {
        self.time = self.time.max(other.time);
        self.ok += other.ok;
        for (name, count) in other.failures {
            *self.failures.entry(name).or_default() += count;
        }
        self.latency.add(&other.latency).expect("the same bounds");
        for (index, theirs) in other.timeline.iter().enumerate() {
            let tick = self.tick(index);
            tick.ok += theirs.ok;
            tick.failed += theirs.failed;
            tick.longest_us = tick.longest_us.max(theirs.longest_us);
        }
        self.survived += other.survived;
        self.lost += other.lost;
        self.beyond += other.beyond;
        self.longest_after = self.longest_after.max(other.longest_after);
        for (server, since) in other.servers {
            let first = self.servers.entry(server).or_insert(since);
            *first = since.min(*first);
        }
        self
    }

    pub fn classes(&self) -> BTreeMap<String, u64> {
        let mut classes = self.failures.clone();
        classes.insert(End::Ok.name().into_owned(), self.ok);
        classes
    }

    pub fn latency(&self) -> Vec<(f64, f64)> {
        if self.latency.is_empty() {
            return Vec::new();
        }
        PARTS.iter().map(|&part| (part, self.latency.value_at_quantile(part) as f64)).collect()
    }

    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.latency.max())
    }
}
