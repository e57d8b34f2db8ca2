//! Promise to ourselves: the report of `cargo bench --bench load` shows the record as it is. The report changes and
//! loses no promise, no peer and no figure.
#![allow(unreachable_pub, reason = "the benchmark's own modules, which have no users outside")]

#[path = "../benches/load/report.rs"]
mod report;

use std::{collections::BTreeMap, fs};

use oxicorn_testkit::record::{Machine, Promise, Record, Row, Tick, Turn};

const PARTS: [f64; 7] = [0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0];

/// Returns a scenario in which a worker is killed, with three rounds whose rates lie one per cent apart around `rate`.
fn row(peer: &str, rate: f64) -> Row {
    let turn = |round: f64| Turn {
        figures: BTreeMap::from([
            ("requests_per_second".into(), rate * (1.0 + round / 100.0)),
            ("cpu_us_per_request".into(), 1e6 / rate),
            ("worker_pss_kib".into(), 5120.0),
        ]),
        classes: BTreeMap::from([("ok".into(), 40_000), ("reset <before> answer".into(), 1), ("timeout".into(), 0)]),
        latency: PARTS.iter().enumerate().map(|(at, &part)| (part, (100.0 + round) * (at + 1) as f64)).collect(),
        timeline: (0..20_u32)
            .map(|at| Tick {
                second: f64::from(at) / 10.0,
                ok: 100,
                failed: u64::from(at == 7),
                longest_us: 900.0,
                event: if at == 6 { "kill".into() } else { String::new() },
            })
            .collect(),
    };
    let turns = [0.0, -1.0, 1.0].map(turn).into();
    Row { scenario: "crash & burn".into(), peer: peer.into(), turns, not_applicable: String::new() }
}

fn promise(says: &str, reached: f64, bound: f64, at_least: bool) -> Promise {
    Promise { says: says.into(), reached, bound, at_least }
}

fn example() -> Record {
    let cannot = Row { turns: Vec::new(), not_applicable: "no master watches it".into(), ..row("bare", 1.0) };
    Record {
        machine: Machine {
            cpu: "A <fast> one".into(),
            cores: 2,
            memory_gib: 7.5,
            kernel: "6.1".into(),
            versions: BTreeMap::from([("oxicorn".into(), "0.1.0".into())]),
        },
        began: "2026-01-02T03:04:05Z".into(),
        command: "cargo bench --bench load -- --peer \"<b>\"".into(),
        rounds: 3,
        seconds: 2.0,
        rows: vec![row("oxicorn", 1000.0), row("oxicorn, <b>", 500.0), row("other", 60_000.0), cannot],
        missing: BTreeMap::from([("absent".into(), "not <installed>".into())]),
        promises: vec![
            promise("a floor that holds", 2.0, 1.0, true),
            promise("a ceiling that does not", 2.0, 1.0, false),
        ],
    }
}

fn written(record: &Record) -> (String, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().join("not there yet");
    report::write(record, &dir).expect("it is written");
    let read = |name| fs::read_to_string(dir.join(name)).expect("it is there");
    (read("load.json"), read("report.html"))
}

/// Returns the values of an attribute in the page, in order. `before` is the text before each value.
fn attributes<'a>(page: &'a str, before: &str) -> Vec<&'a str> {
    page.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn a_broken_promise_is_shown_as_missed_and_a_kept_one_as_kept() {
    let text = report::text(&example());
    let line = |says: &str| text.lines().find(|line| line.ends_with(says)).unwrap_or_else(|| panic!("{says}: {text}"));
    assert!(line("a floor that holds").trim_start().starts_with("kept "), "{text}");
    assert!(line("a ceiling that does not").trim_start().starts_with("MISSED "), "{text}");
    let (_, page) = written(&example());
    assert!(page.contains("Promises: 1 of 2 kept"));
    assert_eq!((page.matches(">MISSED<").count(), page.matches(">kept<").count()), (1, 1));
}

#[test]
fn rounding_never_makes_a_missed_promise_look_kept() {
    let close = Record { promises: vec![promise("nearly", 0.949_999, 0.95, true)], ..example() };
    assert!(report::text(&close).contains("MISSED  0.949999, at least 0.950"), "{}", report::text(&close));
}

#[test]
fn the_terminal_shows_every_row_and_every_figure_in_100_columns() {
    let text = report::text(&example());
    for said in [
        "1,000 (990–1,010)",
        "60,000 (59,400–60,600)",
        "worker PSS (KiB)",
        "oxicorn failed: 3 reset <before> answer of 120,003 requests",
        "bare: no master watches it",
        "absent: not <installed>",
    ] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
    assert!(!text.contains("timeout"), "a class that nothing is in:\n{text}");
    let mut long = example();
    long.rows[0].peer = "a peer whose name is rather long".into();
    long.rows[0].turns[0].figures.extend((0..9).map(|at| (format!("a_further_figure_{at}_ms"), 1.0)));
    long.promises[0].says = "words ".repeat(60);
    let widest = report::text(&long).lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?}");
    report::print(&example());
}

#[test]
fn text_from_the_record_cannot_inject_terminal_codes_or_html() {
    let mut record = example();
    record.rows[0].peer = "\u{1b}[31mred".into();
    assert!(!report::text(&record).contains('\u{1b}'));
    let (_, page) = written(&example());
    for raw in ["<b>", "<fast>", "<installed>", "<before>", "crash & burn"] {
        assert!(!page.contains(raw), "{raw}");
    }
    assert!(page.contains("oxicorn, &lt;b&gt;") && page.contains("&quot;&lt;b&gt;&quot;"));
}

#[test]
fn the_page_is_complete_and_loads_nothing_from_elsewhere() {
    let (_, page) = written(&example());
    for elsewhere in ["http://", "https://", "src=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    for number in ["NaN", "inf"] {
        assert!(!attributes(&page, " d=\"").iter().any(|path| path.contains(number)), "{number}");
    }
    let plots = page.matches("<svg role=\"img\"").count();
    assert_eq!(plots, 1 + 1 + 3, "throughput, latency, and one time line per peer");
    assert_eq!((page.matches("<title>").count(), page.matches("<desc>").count()), (plots + 1, plots));
    let open = |tag: &str| page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
    for tag in
        ["svg", "text", "figure", "figcaption", "table", "tr", "td", "th", "p", "span", "small", "div", "a", "dl"]
    {
        assert_eq!(open(tag), page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let time = page.split("under crash &amp; burn over time").nth(1).expect("a time line");
    assert!(
        time.contains(">kill</text>") && time.contains("2,000 requests ok, 1 failed, the longest wait 900 µs"),
        "{time}"
    );
}

#[test]
fn a_peer_looks_the_same_in_every_plot_and_every_peer_looks_different() {
    let (_, page) = written(&example());
    let of = |before| attributes(&page, before);
    let looks = of("class=\"bar ");
    assert_eq!(looks, ["c0 v0", "c0 v1", "c1 v0"], "one colour for each family of peers");
    assert_eq!(of("class=\"line "), looks);
    assert_eq!(of("class=\"ok "), looks);
}

#[test]
fn a_bar_is_as_long_as_its_figure_and_the_latency_curve_never_falls() {
    let (_, page) = written(&example());
    let bars = page.split("class=\"bar ").skip(1).map(|bar| attributes(bar, "width=\"")[0].parse().expect("a number"));
    let bars: Vec<f64> = bars.collect();
    assert!((bars[2] / bars[0] - 60.0).abs() < 2.0 && (bars[0] / bars[1] - 2.0).abs() < 0.1, "{bars:?}");
    let lines: Vec<_> = page.split("class=\"line ").skip(1).map(|line| attributes(line, "d=\"M")[0]).collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        let number = |text: &str| text.parse::<f64>().expect("a number");
        let points: Vec<_> = line.split('L').filter_map(|point| point.split_once(' ')).collect();
        assert_eq!(points.len(), 6, "every percentile from 50 to 99.99: {line}");
        for pair in points.windows(2) {
            assert!(number(pair[0].0) < number(pair[1].0) && number(pair[0].1) > number(pair[1].1), "{line}");
        }
    }
}

#[test]
fn a_percentile_beyond_the_slowest_request_is_not_shown() {
    let mut few = example();
    few.rows.truncate(1);
    few.rows[0].turns.iter_mut().for_each(|turn| turn.classes = BTreeMap::from([("ok".into(), 900)]));
    let (_, page) = written(&few);
    assert!(page.contains("900"));
    let row =
        page.split("Latency by percentile").nth(1).and_then(|rest| rest.split("</table>").next()).expect("a table");
    assert_eq!(row.matches("<td>–</td>").count(), 2, "99.9 and 99.99 of 900 requests: {row}");
}

#[test]
fn labels_beside_lines_do_not_overlap() {
    let mut record = example();
    record.rows = (0..12).map(|at| row(&format!("peer{at} x"), 1000.0)).collect();
    record.rows[0].turns.iter_mut().flat_map(|turn| &mut turn.latency).for_each(|point| point.1 *= 1e3);
    let (_, page) = written(&record);
    let mut heights: Vec<f64> = page
        .split("class=\"name ")
        .skip(1)
        .map(|name| attributes(name, "y=\"")[0].parse().expect("a number"))
        .collect();
    heights.sort_by(f64::total_cmp);
    assert_eq!(heights.len(), 12);
    assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= 15.0) && heights[0] > 0.0, "{heights:?}");
    assert!(heights[11] < 270.0, "below the plot: {heights:?}");
}

#[test]
fn the_comparison_of_two_runs_tells_noise_from_change() {
    let (mut old, mut new) = (example(), example());
    old.rows.push(row("quicker", 100.0));
    new.rows.push(row("quicker", 200.0));
    new.rows[0] = row("oxicorn", 1015.0);
    new.rows[1] = row("oxicorn, <b>", 400.0);
    new.rows[2].peer = "newcomer".into();
    let said = report::compare(&old, &new);
    let line = |peer: &str| {
        let fits = |line: &&str| line.contains(peer) && line.contains("requests/s");
        said.lines().find(fits).unwrap_or_else(|| panic!("{peer}: {said}"))
    };
    assert!(line("oxicorn ").ends_with("×1.01  within noise"), "{said}");
    assert!(line("oxicorn, <b>").contains("×0.800") && line("oxicorn, <b>").ends_with("lower"), "{said}");
    assert!(line("quicker").contains("×2 ") && line("quicker").ends_with("higher"), "{said}");
    assert!(said.contains("only in the old run: crash & burn under other\n"), "{said}");
    assert!(said.contains("only in the new run: crash & burn under newcomer\n"), "{said}");
    assert!(!said.contains("do not compare"), "{said}");
    new.machine.cores = 64;
    assert!(report::compare(&old, &new).contains("do not compare"));
}

#[test]
fn a_saved_record_reads_back_unchanged() {
    let (json, _) = written(&example());
    let again: Record = serde_json::from_str(&json).expect("it reads");
    assert_eq!(serde_json::to_string_pretty(&again).expect("it writes"), json);
    assert_eq!(report::text(&again), report::text(&example()));
}
