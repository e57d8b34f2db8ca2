//! Plots: each function takes numbers and returns the text of an SVG element.
//!
//! Owns: the position of each mark. Refuses: to choose colours (`page.css` does), and to use a crate for plots. The
//! functions write the SVG themselves, because the page must be one file that loads nothing, and because the text in it
//! must be escaped.

use std::fmt::Write;

use oxicorn_testkit::record::{Spread, Tick};

use super::figures::{Column, Peer, number, percentile, time};

/// The percentiles that have a name on the axis of a latency plot, as fractions.
const NAMED: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Escapes every character that could end text or an attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            _ => out.push(character),
        }
    }
    out
}

/// Returns the CSS classes of a peer's colour. The palette has six colours, and four variants of each.
pub fn colour((_, look): Peer) -> String {
    format!("c{} v{}", look.hue % 6, (look.variant + look.hue / 6) % 4)
}

fn widest<'a>(peers: impl Iterator<Item = Peer<'a>>) -> usize {
    peers.map(|peer| peer.0.chars().count()).max().unwrap_or(0).min(34)
}

fn svg(width: f64, height: f64, title: &str, desc: &str, body: &str) -> String {
    let (title, desc) = (escape(title), escape(desc));
    format!(r#"<svg role="img" viewBox="0 0 {width} {height}"><title>{title}</title><desc>{desc}</desc>{body}</svg>"#)
}

fn label(class: &str, x: f64, y: f64, text: &str) -> String {
    format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text))
}

fn line(class: &str, x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!(r#"<path class="{class}" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#)
}

/// Shortens a name to at most `room` characters.
pub fn short(name: &str, room: usize) -> String {
    if name.chars().count() <= room {
        return name.into();
    }
    name.chars().take(room - 1).chain(['…']).collect()
}

/// Draws a bar from zero to the median for each peer, with a whisker from the lowest to the highest value.
pub fn bars(title: &str, column: &Column, rows: &[(Peer, Option<Spread>)]) -> String {
    let room = widest(rows.iter().map(|row| row.0));
    let (width, left, right, step) = (520.0, room as f64 * 7.0 + 14.0, 444.0, 25.0);
    let most = rows.iter().filter_map(|row| row.1).map(|spread| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| left + value / most * (right - left);
    let (mut body, mut said) = (String::new(), Vec::new());
    for (at, &(peer, spread)) in rows.iter().enumerate() {
        let middle = step * (at as f64 + 0.5);
        body += &label("end", left - 10.0, middle + 4.0, &short(peer.0, room));
        let value = spread.map_or("–".into(), |spread| column.number(spread.median));
        body += &label("end value", width, middle + 4.0, &value);
        said.push(format!("{} {value}", peer.0));
        let Some(spread) = spread else { continue };
        let (top, long) = (middle - 8.0, x(spread.median) - left);
        let _ =
            write!(body, r#"<rect class="bar {}" x="{left}" y="{top}" width="{long:.1}" height="16"/>"#, colour(peer));
        if column.range(spread).is_some() {
            let (min, max) = (x(spread.min), x(spread.max));
            let (up, down) = (middle - 4.0, middle + 4.0);
            let mark = format!("M{min:.1} {up}V{down}M{max:.1} {up}V{down}M{min:.1} {middle}H{max:.1}");
            let _ = write!(body, r#"<path class="halo" d="{mark}"/><path class="whisker" d="{mark}"/>"#);
        }
    }
    let height = step * rows.len() as f64;
    body += &line("axis", left, 0.0, left, height);
    svg(width, height, title, &format!("Median, {}: {}.", column.head(), said.join("; ")), &body)
}

/// Returns the marks of a logarithmic axis: 1, 2 and 5 of every decade that the values need, or only the decades if
/// these marks are too many. The outermost marks enclose all values.
pub fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (low, high) = (low.max(1e-3), high.max(low).max(1e-3));
    let decades = (low.log10().floor() as i32..=high.log10().ceil() as i32 + 1).map(|power| 10f64.powi(power));
    let fine: Vec<f64> = decades.flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade]).collect();
    let hold = |ticks: &[f64]| {
        let from = ticks.iter().rposition(|tick| *tick <= low).unwrap_or(0);
        let to = ticks.iter().position(|tick| *tick >= high && *tick > ticks[from]).unwrap_or(ticks.len() - 1);
        ticks[from..=to].to_vec()
    };
    let ticks = hold(&fine);
    if ticks.len() > 8 { hold(&fine.into_iter().step_by(3).collect::<Vec<_>>()) } else { ticks }
}

/// Moves the heights `wanted` down and then up, until any two of them are at least `gap` apart.
pub fn apart(mut wanted: Vec<f64>, gap: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    for pair in order.windows(2) {
        wanted[pair[1]] = wanted[pair[1]].max(wanted[pair[0]] + gap);
    }
    let mut limit = bottom;
    for &at in order.iter().rev() {
        wanted[at] = wanted[at].min(limit);
        limit = wanted[at] - gap;
    }
    wanted
}

/// Draws one line for each peer: microseconds on a logarithmic scale, over percentiles. Each further nine takes the
/// same width, so 99 % is as far from 99.9 % as 90 % is from 99 %.
pub fn percentiles(title: &str, lines: &[(Peer, Vec<(f64, f64)>)]) -> String {
    let room = widest(lines.iter().map(|line| line.0));
    let (width, left, right, top) = (1080.0, 62.0, 1058.0 - room as f64 * 7.0, 10.0);
    let bottom = top + (lines.len() as f64 * 17.0).max(250.0);
    let height = bottom + 38.0;
    let values = || lines.iter().flat_map(|line| &line.1).map(|point| point.1);
    let ticks = log_ticks(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let (low, high) = (ticks[0].log10(), ticks[ticks.len() - 1].log10());
    let nines = |part: f64| -(1.0 - part).log10();
    let x = |part: f64| left + (nines(part) - nines(0.5)) / (4.0 - nines(0.5)) * (right - left);
    let y = |us: f64| bottom - (us.max(1e-3).log10() - low) / (high - low) * (bottom - top);
    let mut body = String::new();
    for tick in &ticks {
        body += &line("grid", left, y(*tick), right, y(*tick));
        body += &label("end small", left - 8.0, y(*tick) + 4.0, &time(*tick));
    }
    for part in NAMED {
        body += &line("grid", x(part), top, x(part), bottom);
        body += &label("mid small", x(part), bottom + 18.0, &percentile(part));
    }
    body += &label("mid small", f64::midpoint(left, right), height - 2.0, "percentile of requests");
    let ends: Vec<f64> = lines.iter().filter_map(|line| line.1.last()).map(|point| y(point.1)).collect();
    let mut said = Vec::new();
    for ((peer, points), beside) in lines.iter().zip(apart(ends, 16.0, bottom)) {
        let path: Vec<_> = points.iter().map(|point| format!("{:.1} {:.1}", x(point.0), y(point.1))).collect();
        let end = points[points.len() - 1];
        let (class, (end_x, end_y)) = (colour(*peer), (x(end.0), y(end.1)));
        let _ = write!(body, r#"<path class="line {class}" d="M{}"/>"#, path.join("L"));
        for at in &path {
            let _ = write!(body, r#"<path class="point {class}" d="M{at}h0"/>"#);
        }
        let _ =
            write!(body, r#"<path class="lead {class}" d="M{end_x:.1} {end_y:.1}L{:.1} {beside:.1}"/>"#, right + 14.0);
        body += &label(&format!("name {class}"), right + 18.0, beside + 4.0, &short(peer.0, room));
        said.push(format!("{}: {} at {}", peer.0, time(end.1), percentile(end.0)));
    }
    svg(width, height, title, &format!("The last percentile of each. {}.", said.join("; ")), &body)
}

/// The scales that all timelines of a scenario share, so that peers can be compared. Each timeline has its own axis of
/// time.
pub struct Scale {
    failed: f64,
    /// The marks on the axis of the longest wait, in microseconds.
    waits: Vec<f64>,
}

impl Scale {
    pub fn over<'a>(ticks: impl Iterator<Item = &'a Tick> + Clone) -> Self {
        let waits = ticks.clone().map(|tick| tick.longest_us).filter(|us| *us > 0.0);
        let waits = Spread::of(waits).map_or((1e3, 1e3), |spread| (spread.min, spread.max));
        Self { failed: ticks.map(|tick| tick.failed as f64).fold(0.0, f64::max), waits: log_ticks(waits.0, waits.1) }
    }
}

/// Returns the length of a tick in seconds.
pub fn step(ticks: &[Tick]) -> f64 {
    ticks.windows(2).map(|pair| pair[1].second - pair[0].second).fold(f64::INFINITY, f64::min).clamp(1e-3, 1.0)
}

/// Returns where the name of each event is written, and in which row. A name is left out if it would overlap the same
/// name.
fn event_names<'a>(events: &[(f64, &'a str)]) -> Vec<(f64, usize, &'a str)> {
    let (mut ends, mut names): (Vec<(f64, &str)>, Vec<_>) = (Vec::new(), Vec::new());
    for &(x, event) in events {
        if ends.iter().any(|&(end, name)| name == event && x < end) {
            continue;
        }
        let row = ends.iter().position(|&(end, _)| x >= end).unwrap_or(ends.len());
        ends.resize(ends.len().max(row + 1), (0.0, ""));
        ends[row] = (x + event.chars().count() as f64 * 7.0 + 12.0, event);
        names.push((x, row, event));
    }
    names
}

/// Draws three strips over the same axis of time: requests that ended well, requests that failed, and the longest wait.
/// A dashed line shows when the benchmark did something to the server.
pub fn timeline(title: &str, peer: Peer, ticks: &[Tick], scale: &Scale) -> String {
    let (width, left, right, tick_long) = (1080.0, 150.0, 1060.0, step(ticks));
    let end = ticks.last().map_or(1.0, |tick| tick.second + tick_long);
    let x = |second: f64| left + second / end * (right - left);
    let sum = |of: fn(&Tick) -> u64| ticks.iter().map(of).sum::<u64>();
    let (ok, failed) = (sum(|tick| tick.ok), sum(|tick| tick.failed));
    let most_ok = ticks.iter().map(|tick| tick.ok as f64).fold(1.0, f64::max);
    let (low, high) = (scale.waits[0], scale.waits[scale.waits.len() - 1]);
    let wait = |tick: &Tick| if tick.longest_us > 0.0 { (tick.longest_us / low).ln() / (high / low).ln() } else { 0.0 };

    let events: Vec<_> =
        ticks.iter().filter(|tick| !tick.event.is_empty()).map(|tick| (x(tick.second), tick.event.as_str())).collect();
    let names = event_names(&events);
    let top = 15.0 * names.iter().map(|name| name.1 + 1).max().unwrap_or(0) as f64 + 8.0;
    let bottom = top + 142.0;
    let mut body = String::new();
    let mut strip = |name: &str, class: &str, from: f64, tall: f64, ends: [String; 2], part: &dyn Fn(&Tick) -> f64| {
        let floor = from + tall;
        body += &label("strong", 0.0, from + 10.0, name);
        body += &label("end small", left - 8.0, from + 8.0, &ends[0]);
        body += &label("end small", left - 8.0, floor, &ends[1]);
        body += &line("grid", left, from, right, from);
        body += &line("axis", left, floor, right, floor);
        let mut path = String::new();
        for tick in ticks.iter().filter(|tick| part(tick) > 0.0) {
            let (x1, x2, y) = (x(tick.second), x(tick.second + tick_long), floor - tall * part(tick));
            let _ = write!(path, "M{x1:.1} {floor}V{y:.1}H{x2:.1}V{floor}");
        }
        let _ = write!(body, r#"<path class="{class}" d="{path}"/>"#);
    };
    strip("ok", &format!("ok {}", colour(peer)), top, 46.0, [number(most_ok), "0".into()], &|tick| {
        tick.ok as f64 / most_ok
    });
    let most_failed = if scale.failed > 0.0 { number(scale.failed) } else { String::new() };
    strip("failed", "failed", top + 56.0, 30.0, [most_failed, "0".into()], &|tick| {
        tick.failed as f64 / scale.failed.max(1.0)
    });
    strip("longest wait", "wait", top + 96.0, 46.0, [time(high), time(low)], &wait);
    if failed == 0 {
        body += &label("small", 0.0, top + 82.0, "none");
    }
    for (x, _) in &events {
        body += &line("event", *x, top - 4.0, *x, bottom);
    }
    for (x, row, event) in names {
        let floor = 15.0 * row as f64 + 12.0;
        body += &line("event", x, floor - 9.0, x, top);
        body += &label("small event-name", x + 4.0, floor, event);
    }
    let every = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]
        .into_iter()
        .find(|every| end / every <= 12.0)
        .unwrap_or(1800.0);
    for at in 0..=(end / every) as usize {
        let second = (at as f64 * every * 10.0).round() / 10.0;
        body += &label("mid small", x(second), bottom + 16.0, &format!("{second} s"));
    }
    let longest = ticks.iter().map(|tick| tick.longest_us).fold(0.0, f64::max);
    let (ok, failed, count) = (number(ok as f64), number(failed as f64), events.len());
    let desc = format!("{ok} requests ok, {failed} failed, the longest wait {}; {count} events.", time(longest));
    svg(width, bottom + 22.0, title, &desc, &body)
}
