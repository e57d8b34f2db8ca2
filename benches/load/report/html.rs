//! A record as one HTML page with words, tables and plots. The page loads nothing from elsewhere.
//!
//! Owns: the layout of the page. Refuses: to use scripts, and to write text from the record without escaping it.

use oxicorn_testkit::record::{Record, Row};

use super::{
    figures::{
        Column, Peer, Scenario, failed_line, longest, more_is_better, number, peers, percentile, percentiles,
        scenarios, time, worst,
    },
    svg::{self, Scale, colour, escape},
    text::{bound, reached, verdict},
};

/// The percentiles that the plots of latency show, as fractions: from the median to 99.99 %.
const PARTS: std::ops::RangeInclusive<f64> = 0.5..=0.9999;

pub fn page(record: &Record) -> String {
    let (scenarios, peers) = (scenarios(record), peers(record));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>oxicorn under load</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{}</style></head><body>\n",
        include_str!("page.css")
    );
    out += &head(record);
    out += &promises(record);
    out += &at_a_glance(&scenarios, &peers);
    for (at, scenario) in scenarios.iter().enumerate() {
        out += &section(at, scenario, &peers);
    }
    if !record.missing.is_empty() {
        let rows = record.missing.iter().map(|(peer, why)| vec![escape(peer), escape(why)]);
        out += &format!("<h2>Not asked</h2>\n<div class=\"words\">{}</div>", table("", &["peer", "why"], rows));
    }
    out + "</body></html>\n"
}

fn head(record: &Record) -> String {
    let machine = &record.machine;
    let versions: Vec<_> = machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let facts = [
        ("began", record.began.clone()),
        ("rounds", format!("{}, each turn {} s", record.rounds, number(record.seconds))),
        ("processor", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("memory", format!("{} GiB", number(machine.memory_gib))),
        ("kernel", machine.kernel.clone()),
        ("versions", versions.join(", ")),
    ];
    let facts = facts.map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escape(&value))).concat();
    format!(
        "<h1>oxicorn under load</h1>\n<dl>{facts}<dt>again with</dt><dd><code>{}</code></dd></dl>\n\
         <p class=\"soft\">A bar is the median of the rounds, its whisker spans the lowest and the highest. \
         The tables say the same. \
         Client and servers share the machine: compare within a run.</p>\n",
        escape(&record.command)
    )
}

fn promises(record: &Record) -> String {
    if record.promises.is_empty() {
        return String::new();
    }
    let kept = record.promises.iter().filter(|promise| promise.kept()).count();
    let rows = record.promises.iter().map(|promise| {
        let class = if promise.kept() { "kept" } else { "missed" };
        let verdict = format!("<span class=\"{class}\">{}</span>", verdict(promise));
        vec![escape(&promise.says), reached(promise), bound(promise), verdict]
    });
    let table = table("", &["promise", "reached", "bound", ""], rows);
    format!("<h2>Promises: {kept} of {} kept</h2>\n<div class=\"says\">{table}</div>", record.promises.len())
}

fn at_a_glance<'a>(scenarios: &'a [Scenario<'a>], peers: &[Peer]) -> String {
    let links = scenarios.iter().enumerate();
    let links: String =
        links.map(|(at, scenario)| format!("<a href=\"#s{at}\">{}</a> ", escape(scenario.name))).collect();
    let throughput = |scenario: &'a Scenario<'a>| {
        let column = scenario.columns().into_iter().find(|column| more_is_better(column.figure))?;
        Some((scenario, column))
    };
    let columns: Vec<_> = scenarios.iter().filter_map(throughput).collect();
    let name_column = |(scenario, column): &(&Scenario, Column)| {
        format!("{}<small>{}</small>", escape(scenario.name), escape(&column.head()))
    };
    let takes_part =
        |peer: &&Peer| columns.iter().any(|(scenario, _)| scenario.rows.iter().any(|row| row.peer == peer.0));
    let rows = peers.iter().filter(takes_part).map(|peer| {
        row(*peer, &columns, |(scenario, column)| {
            let median = |row: &&Row| Some(row.spread(column.figure)?.median);
            let best = scenario.rows.iter().filter_map(median).fold(0.0, f64::max);
            let own = scenario.rows.iter().find(|row| row.peer == peer.0).and_then(median)?;
            let text = column.number(own);
            Some(if own == best { format!("<strong>{text}</strong>") } else { text })
        })
    });
    let mut out = format!("<h2>At a glance</h2>\n<nav aria-label=\"scenarios\">{links}</nav>\n");
    if columns.len() > 1 {
        out += &table("Median throughput; the highest is bold", &heads(columns.iter().map(name_column)), rows);
    }
    out
}

fn section(at: usize, scenario: &Scenario, peers: &[Peer]) -> String {
    let known = |row: &&Row| peers.iter().find(|peer| peer.0 == row.peer).copied();
    let rows: Vec<(Peer, &Row)> = scenario.rows.iter().filter_map(|row| Some((known(row)?, *row))).collect();
    let columns = scenario.columns();
    let drawn: Vec<_> = columns.iter().filter(|column| drawn(column, &rows)).collect();
    let plots = drawn.iter().map(|column| {
        let spreads: Vec<_> = rows.iter().map(|(peer, row)| (*peer, row.spread(column.figure))).collect();
        let better = if more_is_better(column.figure) { "more is better" } else { "less is better" };
        let svg = svg::bars(&format!("{}: {}", scenario.name, column.label), column, &spreads);
        figure("", &column.head(), better, &svg)
    });
    let figures = rows.iter().map(|(peer, of)| {
        row(*peer, &columns, |column| {
            let spread = of.spread(column.figure)?;
            let range = column.range(spread).map_or(String::new(), |range| format!("<small>{range}</small>"));
            Some(column.number(spread.median) + &range)
        })
    });
    let head = heads(columns.iter().map(|column| escape(&column.head())));
    let figures = if columns.is_empty() { String::new() } else { table("Median, lowest–highest", &head, figures) };
    // If there is only one plot, a table of up to three columns fits beside this plot.
    let (beside, below) =
        if drawn.len() == 1 && columns.len() < 4 { (figures, String::new()) } else { (String::new(), figures) };
    let mut out = format!(
        "<h2 id=\"s{at}\">{}</h2>\n<div class=\"plots\">{}{beside}</div>\n{below}",
        escape(scenario.name),
        plots.collect::<String>()
    );
    for (peer, row) in &rows {
        if let Some(failed) = failed_line(row) {
            out += &format!(
                "<p class=\"note\">{} <span class=\"missed\">failed</span>: {}</p>\n",
                name(*peer),
                escape(&failed)
            );
        }
    }
    for (who, why) in scenario.excused() {
        out += &format!("<p class=\"note\">{}: {}</p>\n", escape(&who), escape(why));
    }
    out + &latency(scenario, &rows) + &timelines(scenario, &rows)
}

/// Returns true if the figure gets a plot. A mere count gets no plot, nor does a figure that the timelines show
/// completely.
fn drawn(column: &Column, rows: &[(Peer, &Row)]) -> bool {
    let eventful = rows.iter().any(|(_, row)| worst(row).is_some());
    let telling = ["syscalls_per_request", "max_over_mean"].contains(&column.figure);
    more_is_better(column.figure) || telling || !eventful && (!column.unit.is_empty() || column.label.ends_with("/s"))
}

fn latency(scenario: &Scenario, rows: &[(Peer, &Row)]) -> String {
    let points = rows.iter().flat_map(|(_, row)| &row.turns).flat_map(|turn| &turn.latency);
    let mut parts: Vec<f64> = points.map(|point| point.0).filter(|part| PARTS.contains(part)).collect();
    parts.sort_by(f64::total_cmp);
    parts.dedup();
    let lines = rows.iter().map(|(peer, row)| (*peer, percentiles(row, &parts)));
    let lines: Vec<_> = lines.filter(|line| !line.1.is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    let svg = svg::percentiles(&format!("{}: latency by percentile", scenario.name), &lines);
    let rows = lines.iter().map(|(peer, points)| {
        row(*peer, &parts, |part| points.iter().find(|point| point.0 == *part).map(|point| time(point.1)))
    });
    figure("wide", "latency", "less is better; both axes are logarithmic", &svg)
        + &table("Latency by percentile", &heads(parts.iter().map(|part| percentile(*part))), rows)
}

fn timelines(scenario: &Scenario, rows: &[(Peer, &Row)]) -> String {
    let worst: Vec<_> = rows.iter().filter_map(|(peer, row)| Some((*peer, *row, worst(row)?))).collect();
    if worst.is_empty() {
        return String::new();
    }
    let scale = Scale::over(worst.iter().flat_map(|(_, _, (_, turn))| &turn.timeline));
    let mut out = "<h3>Over time, the worst round of each</h3>\n".to_string();
    let mut lines = Vec::new();
    for (peer, row, (round, turn)) in worst {
        let ticks = &turn.timeline;
        let step = svg::step(ticks);
        let caption = format!("round {} of {}; each step {}", round + 1, row.turns.len(), time(step * 1e6));
        let svg = svg::timeline(&format!("{} under {} over time", peer.0, scenario.name), peer, ticks, &scale);
        out += &figure("wide", peer.0, &caption, &svg);
        let silent = ticks.iter().filter(|tick| tick.ok == 0).count() as f64 * step;
        lines.push(vec![
            name(peer),
            number(ticks.iter().filter(|tick| !tick.event.is_empty()).count() as f64),
            number(ticks.iter().map(|tick| tick.ok).sum::<u64>() as f64),
            number(ticks.iter().map(|tick| tick.failed).sum::<u64>() as f64),
            format!("{} s", number(silent)),
            time(longest(turn)),
        ]);
    }
    let head = ["", "events", "ok", "failed", "time without an answer", "longest wait"];
    out + &table("The same in figures", &head, lines)
}

fn figure(class: &str, what: &str, note: &str, svg: &str) -> String {
    let (what, note) = (escape(what), escape(note));
    format!("<figure class=\"{class}\"><figcaption>{what}<span>{note}</span></figcaption>{svg}</figure>\n")
}

fn name(peer: Peer) -> String {
    format!("<i class=\"dot {}\"></i>{}", colour(peer), escape(peer.0))
}

fn row<T>(peer: Peer, columns: &[T], cell: impl Fn(&T) -> Option<String>) -> Vec<String> {
    let cells = columns.iter().map(|column| cell(column).unwrap_or("–".into()));
    [name(peer)].into_iter().chain(cells).collect()
}

/// Returns the head of a table of peers. Its first cell is empty, because the first column holds the names of the
/// peers.
fn heads(names: impl Iterator<Item = String>) -> Vec<String> {
    [String::new()].into_iter().chain(names).collect()
}

/// Writes a table. `head` and the cells are HTML already, and the first cell of a row is the head of that row.
fn table<H: AsRef<str>>(caption: &str, head: &[H], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let caption = if caption.is_empty() { String::new() } else { format!("<caption>{caption}</caption>") };
    let head: String = head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", cell.as_ref())).collect();
    let mut body = String::new();
    for row in rows {
        let mut cells = row.iter();
        let first = cells.next().map_or("", String::as_str);
        let rest: String = cells.map(|cell| format!("<td>{cell}</td>")).collect();
        body += &format!("<tr><th scope=\"row\">{first}</th>{rest}</tr>\n");
    }
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )
}
