//! Gives each figure its label and its unit, says whether a higher value is better, and writes numbers as people read
//! them.
//!
//! Owns: names and numbers. Refuses: to list the figures that exist. It needs no list, because it makes each label from
//! the figure's name.

use std::collections::BTreeMap;

use oxicorn_testkit::record::{Record, Row, Spread, Turn};

/// The rows of one scenario, with the peers in the record's order. Rows without measurements are kept apart.
pub struct Scenario<'a> {
    pub name: &'a str,
    pub rows: Vec<&'a Row>,
    pub not_applicable: Vec<&'a Row>,
}

pub fn scenarios(record: &Record) -> Vec<Scenario<'_>> {
    let named = |name| {
        let rows = record.rows.iter().filter(|row| row.scenario == name);
        let (rows, not_applicable) = rows.partition(|row| row.not_applicable.is_empty());
        Scenario { name, rows, not_applicable }
    };
    distinct(record.rows.iter().map(|row| row.scenario.as_str())).into_iter().map(named).collect()
}

/// The name of a peer, and its look, which is the same in every plot.
pub type Peer<'a> = (&'a str, Look);

/// The colour of a peer in plots, and the variant of that colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub hue: usize,
    pub variant: usize,
}

/// Returns the peers with their looks. Peers whose names begin with the same word share a colour and differ in its
/// variant, because readers cannot tell a dozen colours apart.
pub fn peers(record: &Record) -> Vec<Peer<'_>> {
    let names = distinct(record.rows.iter().map(|row| row.peer.as_str()));
    let family = |name: &'_ str| name.split(|sign: char| !sign.is_alphanumeric()).next().unwrap_or("").to_lowercase();
    let mut families: Vec<(String, usize)> = Vec::new();
    let mut look = |name| {
        let known = families.iter().position(|(of, _)| *of == family(name));
        let hue = known.unwrap_or(families.len());
        if known.is_none() {
            families.push((family(name), 0));
        }
        families[hue].1 += 1;
        Look { hue, variant: families[hue].1 - 1 }
    };
    names.into_iter().map(|name| (name, look(name))).collect()
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.fold(Vec::new(), |mut seen, name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
        seen
    })
}

impl<'a> Scenario<'a> {
    /// Returns the peers without measurements in this scenario, and the reasons.
    pub fn excused(&self) -> Vec<(String, &'a str)> {
        let whys = distinct(self.not_applicable.iter().map(|row| row.not_applicable.as_str()));
        let who = |why: &str| {
            let rows = self.not_applicable.iter().filter(|row| row.not_applicable == why);
            rows.map(|row| row.peer.as_str()).collect::<Vec<_>>().join(", ")
        };
        whys.into_iter().map(|why| (who(why), why)).collect()
    }

    /// Returns the columns of figures measured in this scenario, in reading order: throughput, failures, times, memory,
    /// costs.
    pub fn columns(&self) -> Vec<Column<'a>> {
        let turns = self.rows.iter().flat_map(|row| &row.turns);
        let mut names = distinct(turns.flat_map(|turn| turn.figures.keys().map(String::as_str)));
        let place = |name: &str| {
            let timed = matches!(unit_in(name), Some("us" | "ms")) && !name.contains("_per_");
            let kinds = [
                more_is_better(name),
                ["failed", "syscalls_per_request"].contains(&name),
                unit_in(name).is_none(),
                timed,
                name.ends_with("_kib"),
            ];
            kinds.iter().position(|is| *is).unwrap_or(kinds.len())
        };
        names.sort_by_key(|name| (place(name), label(name)));
        names.into_iter().map(|figure| Column::of(figure, &self.rows)).collect()
    }
}

/// One column of a table: the values of one figure, all in the same unit.
pub struct Column<'a> {
    pub figure: &'a str,
    pub label: String,
    pub unit: &'static str,
    pub divisor: f64,
}

impl<'a> Column<'a> {
    pub fn of(figure: &'a str, rows: &[&Row]) -> Self {
        let largest = rows.iter().filter_map(|row| row.spread(figure)).map(|spread| spread.median).fold(0.0, f64::max);
        // The unit is chosen for a tenth of the column's largest value, so that small values in the column keep their
        // digits.
        let (unit, divisor) = scale(figure, largest / 10.0);
        Self { figure, label: label(figure), unit, divisor }
    }

    pub fn head(&self) -> String {
        if self.unit.is_empty() { self.label.clone() } else { format!("{} ({})", self.label, self.unit) }
    }

    pub fn number(&self, value: f64) -> String {
        number(value / self.divisor)
    }

    /// Returns the lowest and the highest value as a text, if they differ.
    pub fn range(&self, spread: Spread) -> Option<String> {
        let (min, max) = (self.number(spread.min), self.number(spread.max));
        (min != max).then(|| format!("{min}–{max}"))
    }
}

pub fn more_is_better(figure: &str) -> bool {
    figure.ends_with("_per_second") && !figure.starts_with("wakeups")
}

/// Returns the largest unit in which the value `largest` is at least one. Also returns the divisor that converts a
/// value to this unit.
pub fn scale(figure: &str, largest: f64) -> (&'static str, f64) {
    let units: &[(&str, f64)] = match unit_in(figure) {
        Some("us") => &[("µs", 1.0), ("ms", 1e3), ("s", 1e6)],
        Some("ms") => &[("ms", 1.0), ("s", 1e3)],
        Some("seconds") => &[("s", 1.0)],
        Some("percent") => &[("%", 1.0)],
        Some("bytes") => &[("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0)],
        Some("kib") => &[("KiB", 1.0), ("MiB", 1024.0), ("GiB", 1_048_576.0)],
        _ => &[("", 1.0)],
    };
    *units.iter().rev().find(|(_, size)| largest >= *size).unwrap_or(&units[0])
}

fn unit_in(figure: &str) -> Option<&str> {
    figure.split('_').find(|word| ["us", "ms", "seconds", "percent", "bytes", "kib"].contains(word))
}

/// Returns the label of a figure: `cpu_us_per_request` becomes `CPU/request`, and `p99_9_us` becomes `p99.9`.
pub fn label(figure: &str) -> String {
    let mut label = if figure.starts_with("kib_per_") { "memory".to_string() } else { String::new() };
    for word in figure.split('_').filter(|word| Some(*word) != unit_in(figure)) {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let after_number = label.strip_prefix('p').is_some_and(digits) && digits(word);
        let joint = if after_number { "." } else { " " };
        label += if label.is_empty() || label.ends_with('/') || word == "per" { "" } else { joint };
        label += match word {
            "per" => "/",
            "second" => "s",
            "cpu" => "CPU",
            "pss" => "PSS",
            "rss" => "RSS",
            _ => word,
        };
    }
    label
}

/// Writes a number with three significant digits, and with separators between thousands.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    let decimals = match size {
        _ if size.fract() == 0.0 || size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        _ => (2.0 - size.log10().floor()).min(6.0) as usize,
    };
    let plain = format!("{size:.decimals$}");
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{}{text}{fraction}", if value < 0.0 { "-" } else { "" })
}

/// Writes a time, given in microseconds, in the unit that suits it.
pub fn time(us: f64) -> String {
    let (unit, divisor) = scale("us", us);
    format!("{} {unit}", number(us / divisor))
}

/// Returns how many requests of each class failed, over all turns, and how many requests there were in all.
pub fn failures(row: &Row) -> (BTreeMap<&str, u64>, u64) {
    let (mut failed, mut all) = (BTreeMap::new(), 0);
    for (class, &count) in row.turns.iter().flat_map(|turn| &turn.classes) {
        all += count;
        if class != "ok" && count > 0 {
            *failed.entry(class.as_str()).or_default() += count;
        }
    }
    (failed, all)
}

/// Returns a text such as `12 reset, 3 timeout of 45,678 requests`, or `None` if no request failed.
pub fn failed_line(row: &Row) -> Option<String> {
    let (failed, all) = failures(row);
    let named: Vec<_> = failed.iter().map(|(class, &count)| format!("{} {class}", number(count as f64))).collect();
    (!named.is_empty()).then(|| format!("{} of {} requests", named.join(", "), number(all as f64)))
}

/// Writes a part of the requests as a percentile: 0.999 becomes `99.9`.
pub fn percentile(part: f64) -> String {
    ((part * 1e6).round() / 1e4).to_string()
}

/// Returns, for each percentile, the median of the rounds. Leaves out a percentile if, in any round, less than one
/// request lies beyond it.
pub fn percentiles(row: &Row, parts: &[f64]) -> Vec<(f64, f64)> {
    let reach = |turn: &Turn, part: f64| {
        let all: u64 = turn.classes.values().sum();
        let known = all == 0 || (1.0 - part) * all as f64 >= 1.0;
        turn.latency.iter().find(|point| known && point.0 >= part).map(|point| point.1)
    };
    let median = |part| {
        let values: Option<Vec<_>> = row.turns.iter().map(|turn| reach(turn, part)).collect();
        Some((part, Spread::of(values?)?.median))
    };
    parts.iter().filter_map(|&part| median(part)).collect()
}

/// Returns the index and the turn of the round with the most failed requests. If several rounds have equally many, it
/// returns the round with the longest wait.
pub fn worst(row: &Row) -> Option<(usize, &Turn)> {
    let timed = row.turns.iter().enumerate().filter(|(_, turn)| !turn.timeline.is_empty());
    let pain = |turn: &Turn| (turn.timeline.iter().map(|tick| tick.failed).sum::<u64>(), longest(turn));
    timed.max_by(|(_, a), (_, b)| {
        let (a, b) = (pain(a), pain(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    })
}

pub fn longest(turn: &Turn) -> f64 {
    turn.timeline.iter().map(|tick| tick.longest_us).fold(0.0, f64::max)
}
