//! Draws the status of a service as a table for a terminal.
//!
//! Owns: the table, its colours, and the order in which columns are left out on a narrow terminal. Refuses: to print;
//! it only returns text.

use crate::{
    log::terminal::plain,
    protocol::{FROM_DISK, MasterState, Status, WorkerState, WorkerStatus},
};

const BOLD: &str = "1";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";

/// One column of the table. If the columns do not fit, the column with the highest `spare` is left out first. A column
/// whose `spare` is 0 is never left out.
struct Column {
    title: &'static str,
    spare: u8,
    left: bool,
    cell: fn(&WorkerStatus) -> String,
}

const COLUMNS: &[Column] = &[
    Column { title: "SLOT", spare: 0, left: false, cell: |w| w.slot.to_string() },
    Column { title: "PID", spare: 0, left: false, cell: |w| w.pid.to_string() },
    Column { title: "GEN", spare: 7, left: false, cell: |w| w.generation.to_string() },
    Column { title: STATE, spare: 0, left: true, cell: |w| state(w.state).0.to_owned() },
    Column { title: "AGE", spare: 3, left: false, cell: |w| age(w.age_s) },
    Column { title: "REQUESTS", spare: 2, left: false, cell: |w| w.requests.to_string() },
    Column { title: "IN FLIGHT", spare: 4, left: false, cell: |w| w.in_flight.to_string() },
    Column { title: "CONNECTIONS", spare: 6, left: false, cell: |w| w.connections.to_string() },
    Column { title: "RSS", spare: 1, left: false, cell: |w| size(w.rss_bytes) },
    Column { title: "RESTARTS", spare: 5, left: false, cell: |w| w.restarts.to_string() },
];
const STATE: &str = "STATE";
const LAST_EXIT: &str = "LAST EXIT";
/// The least width of the column LAST EXIT. If the terminal has less room for it, the column is left out, because its
/// text would not be readable.
const LAST_EXIT_MIN: usize = 12;

/// Draws the whole status. Lines are at most `width` characters long. Only lines that cannot be broken, such as
/// sentences, may be longer.
pub(super) fn draw(status: &Status, width: usize, colour: bool) -> String {
    let paint = |code: &str, text: &str| match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut lines = Vec::new();
    let (name, code) = match status.state {
        MasterState::Running => ("running", GREEN),
        MasterState::Booting => ("booting", YELLOW),
        MasterState::Reloading => ("reloading", YELLOW),
        MasterState::Upgrading => ("upgrading", YELLOW),
        MasterState::Stopping => ("stopping", RED),
    };
    let head = [
        name.to_owned(),
        format!("{} of {} workers serve", status.served(), status.target_workers),
        format!("pid {}", status.pid),
        format!("generation {}", status.generation),
        format!("up {}", age(status.uptime_s)),
        format!("oxicorn {}", status.version),
    ];
    let mut head = wrap(&head, width);
    if let Some(rest) = head[0].strip_prefix(name) {
        head[0] = format!("{}{rest}", paint(code, name));
    }
    lines.extend(head);
    let listeners = status.listeners.iter().map(|l| format!("{} ({} queued)", plain(&l.address), l.queued));
    lines.extend(wrap(&listeners.collect::<Vec<_>>(), width));
    lines.push(String::new());
    table(status, width, &paint, &mut lines);
    lines.push(String::new());
    troubles(status, &paint, &mut lines);

    let totals = &status.totals;
    let counts = [
        (totals.requests, "requests"),
        (totals.connections, "connections"),
        (totals.responses.informational, "1xx"),
        (totals.responses.ok, "2xx"),
        (totals.responses.redirects, "3xx"),
        (totals.responses.client_errors, "4xx"),
        (totals.responses.server_errors, "5xx"),
        (totals.shed, "shed"),
        (totals.refused, "refused"),
        (totals.abandoned, "abandoned"),
        (totals.recycled, "recycled"),
        (totals.crashed, "crashed"),
        (totals.hung, "hung"),
        (totals.reloads, "reloads"),
        (totals.upgrades, "upgrades"),
    ];
    lines.extend(wrap(&counts.map(|(count, of)| format!("{count} {of}")), width));
    for (what, last) in [("reload", &status.last_reload), ("upgrade", &status.last_upgrade)] {
        let Some(last) = last else { continue };
        let (how, code) = if last.ok { ("done", GREEN) } else { ("failed", RED) };
        let reason = last.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", plain(reason)));
        lines.push(format!("last {what} {}, {}{reason}", paint(code, how), plain(&last.at)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Draws where the code comes from, if it is on the disk, and what needs the operator's attention: empty slots whose
/// next worker the master has not started yet, a request that may have crashed workers, and requests in quarantine.
fn troubles(status: &Status, paint: &dyn Fn(&str, &str) -> String, lines: &mut Vec<String>) {
    let before = lines.len();
    match (status.code == FROM_DISK, status.recycling_held) {
        (true, false) => lines.push(format!("code: {FROM_DISK}")),
        (true, true) => {
            let held = "refused last, so no worker is recycled until a reload or an upgrade succeeds";
            lines.push(paint(RED, &format!("code: {FROM_DISK}; {held}")));
        }
        (false, _) => {}
    }
    for slot in &status.empty_slots {
        if let Some(next_try_s) = slot.next_try_s {
            lines.push(paint(RED, &format!("slot {}: backing off, next try in {next_try_s:.1} s", slot.slot)));
        }
    }
    if let Some(suspect) = &status.crash_suspect {
        lines.push(paint(RED, &plain(&suspect.to_string())));
    }
    for one in &status.quarantined {
        lines.push(format!("{} is answered 503 for {:.0} s more", plain(&one.request), one.ends_in_s));
    }
    if lines.len() > before {
        lines.push(String::new());
    }
}

fn table(status: &Status, width: usize, paint: &dyn Fn(&str, &str) -> String, lines: &mut Vec<String>) {
    let mut rows: Vec<(u32, Vec<String>, Option<&String>, &str)> = status
        .workers
        .iter()
        .map(|w| (w.slot, COLUMNS.iter().map(|c| (c.cell)(w)).collect(), w.last_exit.as_ref(), state(w.state).1))
        .collect();
    rows.extend(status.empty_slots.iter().map(|empty| {
        let cell = |column: &Column| match column.title {
            "SLOT" => empty.slot.to_string(),
            STATE => "empty".to_owned(),
            "RESTARTS" => empty.restarts.to_string(),
            _ => "-".to_owned(),
        };
        (empty.slot, COLUMNS.iter().map(cell).collect(), empty.last_exit.as_ref(), RED)
    }));
    rows.sort_by_key(|(slot, ..)| *slot);

    let wide = |at: usize| rows.iter().map(|(_, cells, ..)| cells[at].len()).chain([COLUMNS[at].title.len()]).max();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|at| wide(at).unwrap_or(0)).collect();
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    let taken = |shown: &[usize]| shown.iter().map(|at| widths[*at] + 2).sum::<usize>();
    while taken(&shown) > width.saturating_add(2)
        && let Some(most) = shown.iter().copied().max_by_key(|at| COLUMNS[*at].spare)
        && COLUMNS[most].spare > 0
    {
        shown.retain(|at| *at != most);
    }
    let left = width.saturating_sub(taken(&shown));
    let tell_exits = left >= LAST_EXIT_MIN && rows.iter().any(|(_, _, exit, _)| exit.is_some());

    let line = |cells: &dyn Fn(usize) -> String, exit: Option<&str>, code: Option<&str>| {
        let mut line = String::new();
        for at in &shown {
            let (text, wide) = (cells(*at), widths[*at]);
            let padded = if COLUMNS[*at].left { format!("{text:<wide$}") } else { format!("{text:>wide$}") };
            match code {
                Some(code) if COLUMNS[*at].title == STATE => line += &paint(code, &padded),
                _ => line += &padded,
            }
            line += "  ";
        }
        if let Some(exit) = exit.filter(|_| tell_exits) {
            line += &cut(&plain(exit), left);
        }
        line.trim_end().to_owned()
    };
    let title = line(&|at| COLUMNS[at].title.to_owned(), Some(LAST_EXIT), None);
    lines.push(paint(BOLD, &title));
    for (_, cells, exit, code) in &rows {
        lines.push(line(&|at| cells[at].clone(), exit.map(String::as_str), Some(code)));
    }
}

fn state(state: WorkerState) -> (&'static str, &'static str) {
    match state {
        WorkerState::Starting => ("starting", YELLOW),
        WorkerState::Serving => ("serving", GREEN),
        WorkerState::Draining => ("draining", YELLOW),
        WorkerState::Killed => ("killed", RED),
    }
}

/// Returns lines that contain the items with two blanks between them. A new line begins where the next item would
/// exceed `width`.
fn wrap(items: &[String], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for item in items {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(item),
            Some(line) if line.chars().count() + 2 + item.chars().count() <= width => {
                line.push_str("  ");
                line.push_str(item);
            }
            Some(_) | None => lines.push(item.clone()),
        }
    }
    lines
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn age(seconds: f64) -> String {
    // A value outside the range of u64, such as a negative one, becomes the nearest value in the range.
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{:02}h", hours % 24),
        () if hours > 0 => format!("{hours}h{:02}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{:02}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

fn size(bytes: u64) -> String {
    let (kib, mib, gib) = (bytes as f64 / 1024.0, bytes as f64 / f64::from(1 << 20), bytes as f64 / f64::from(1 << 30));
    match () {
        () if gib >= 1.0 => format!("{gib:.1} GiB"),
        () if mib >= 1.0 => format!("{mib:.1} MiB"),
        () => format!("{kib:.0} KiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        CrashSuspect, EmptySlot, HealthCheck, LastReload, ListenerStatus, Quarantined, Responses, Speaks, StatusTotals,
    };

    fn status() -> Status {
        let worker = WorkerStatus {
            slot: 0,
            pid: 123,
            generation: 3,
            state: WorkerState::Serving,
            age_s: 9.1,
            heartbeat_age_ms: 0,
            requests: 51234,
            in_flight: 2,
            connections: 17,
            rss_bytes: 9 << 20,
            recycle_at: 0,
            restarts: 1,
            last_exit: Some("killed by SIGKILL".to_owned()),
        };
        let draining =
            WorkerStatus { slot: 2, pid: 124, state: WorkerState::Draining, last_exit: None, ..worker.clone() };
        Status {
            version: "0.1.0".to_owned(),
            pid: 1,
            state: MasterState::Running,
            generation: 3,
            uptime_s: 7500.0,
            target_workers: 2,
            listeners: vec![ListenerStatus { address: "127.0.0.1:8000".to_owned(), queued: 5 }],
            health: HealthCheck::default(),
            speaks: Speaks::default(),
            settings_file: None,
            folder: String::new(),
            workers: vec![worker, draining],
            empty_slots: vec![EmptySlot {
                slot: 1,
                restarts: 7,
                last_exit: Some("exit code 1\x1b[2J".to_owned()),
                failures: 4,
                next_try_s: Some(3.21),
            }],
            code: FROM_DISK.to_owned(),
            recycling_held: true,
            crash_suspect: Some(CrashSuspect { request: "GET /bad\x1b[2J".to_owned(), deaths: 7, of: 8 }),
            quarantined: vec![Quarantined { request: "GET /bad".to_owned(), ends_in_s: 41.6 }],
            totals: StatusTotals {
                requests: 90210,
                responses: Responses { ok: 90000, ..Responses::default() },
                ..StatusTotals::default()
            },
            last_reload: Some(LastReload { ok: false, reason: Some("no".to_owned()), at: "2026-11-21".to_owned() }),
            last_upgrade: Some(LastReload { ok: true, reason: None, at: "2026-11-22".to_owned() }),
        }
    }

    #[test]
    fn a_wide_table_shows_everything() {
        let drawn = draw(&status(), usize::MAX, false);
        let expected = "\
running  1 of 2 workers serve  pid 1  generation 3  up 2h05m  oxicorn 0.1.0
127.0.0.1:8000 (5 queued)

SLOT  PID  GEN  STATE     AGE  REQUESTS  IN FLIGHT  CONNECTIONS      RSS  RESTARTS  LAST EXIT
   0  123    3  serving    9s     51234          2           17  9.0 MiB         1  killed by SIGKILL
   1    -    -  empty       -         -          -            -        -         7  exit code 1\\u{1b}[2J
   2  124    3  draining   9s     51234          2           17  9.0 MiB         1

code: from disk; refused last, so no worker is recycled until a reload or an upgrade succeeds
slot 1: backing off, next try in 3.2 s
GET /bad\\u{1b}[2J was in flight in 7 of the last 8 deaths
GET /bad is answered 503 for 42 s more

90210 requests  0 connections  0 1xx  90000 2xx  0 3xx  0 4xx  0 5xx  0 shed  0 refused  0 abandoned  0 recycled  0 crashed  0 hung  0 reloads  0 upgrades
last reload failed, 2026-11-21: no
last upgrade done, 2026-11-22
";
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_narrow_table_fits_its_width_and_keeps_the_important_columns() {
        for width in 32..160 {
            let drawn = draw(&status(), width, false);
            let sentences = ["last ", "code: ", "slot 1: ", "GET "];
            let table = drawn.lines().filter(|line| !sentences.iter().any(|start| line.starts_with(start)));
            for line in table {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            assert!(drawn.contains("SLOT  PID") && drawn.contains("draining"), "{drawn}");
        }
        let drawn = draw(&status(), 80, false);
        assert!(drawn.contains("RSS") && !drawn.contains("GEN  "), "{drawn}");
        draw(&status(), 0, true);
    }

    #[test]
    fn colour_does_not_change_the_text() {
        let mut drawn = draw(&status(), 100, true);
        assert!(drawn.contains("\x1b[32mserving "), "{drawn}");
        for code in [BOLD, GREEN, YELLOW, RED, "0"] {
            drawn = drawn.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(drawn, draw(&status(), 100, false));
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!([0.9, 59.0, 60.0, 3661.0, 90_000.0].map(age), ["0s", "59s", "1m00s", "1h01m", "1d01h"]);
        assert_eq!([0, 2048, 3 << 20, 5 << 30].map(size), ["0 KiB", "2 KiB", "3.0 MiB", "5.0 GiB"]);
    }
}
