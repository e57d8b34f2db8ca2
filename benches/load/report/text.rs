//! A record as plain text, for terminals and pipes alike.
//!
//! Owns: the text, in lines of at most 100 columns. Refuses: to write colours and control characters.

use oxicorn_testkit::record::{Promise, Record};

use super::figures::{Column, failed_line, number, scenarios};

const WIDTH: usize = 100;

/// Writes one table for each scenario, then the missing peers, then the promises.
pub fn text(record: &Record) -> String {
    let machine = &record.machine;
    let mut out = format!(
        "{}, {} cores, {} GiB, {}; rounds: {}, turns of {} s; median (min–max)\n",
        plain(&machine.cpu),
        machine.cores,
        number(machine.memory_gib),
        plain(&machine.kernel),
        record.rounds,
        number(record.seconds),
    );
    for scenario in scenarios(record) {
        let columns = scenario.columns();
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(columns.iter().map(Column::head));
        for row in &scenario.rows {
            let cell = |column: &Column| match row.spread(column.figure) {
                Some(spread) => match column.range(spread) {
                    Some(range) => format!("{} ({range})", column.number(spread.median)),
                    None => column.number(spread.median),
                },
                None => "–".into(),
            };
            lines.push([plain(&row.peer)].into_iter().chain(columns.iter().map(cell)).collect());
        }
        out += &format!("\n{}\n{}", plain(scenario.name), table(&lines));
        for row in &scenario.rows {
            if let Some(failed) = failed_line(row) {
                out += &fold(&format!("  {} failed: ", plain(&row.peer)), &plain(&failed));
            }
        }
        for (who, why) in scenario.excused() {
            out += &fold("  ", &plain(&format!("{who}: {why}")));
        }
    }
    if !record.missing.is_empty() {
        out += "\nnot asked\n";
    }
    for (peer, why) in &record.missing {
        out += &fold(&format!("  {}: ", plain(peer)), &plain(why));
    }
    if !record.promises.is_empty() {
        out += "\npromises\n";
    }
    let widest = record.promises.iter().map(|promise| against(promise).chars().count()).max().unwrap_or(0);
    for promise in &record.promises {
        out += &fold(&format!("  {:6}  {:widest$}  ", verdict(promise), against(promise)), &plain(&promise.says));
    }
    out
}

pub fn verdict(promise: &Promise) -> &'static str {
    if promise.kept() { "kept" } else { "MISSED" }
}

pub fn bound(promise: &Promise) -> String {
    format!("at {} {}", if promise.at_least { "least" } else { "most" }, number(promise.bound))
}

/// Writes the value that was reached. The value is rounded, unless the rounded value would hide that the bound was
/// missed.
pub fn reached(promise: &Promise) -> String {
    let rounded = number(promise.reached);
    if !promise.kept() && rounded == number(promise.bound) { promise.reached.to_string() } else { rounded }
}

fn against(promise: &Promise) -> String {
    format!("{}, {}", reached(promise), bound(promise))
}

/// Replaces the control characters in a name. Names come from outside, and control characters could steer the terminal.
pub fn plain(name: &str) -> String {
    name.replace(char::is_control, "?")
}

/// Writes a table whose first line is its head. Columns that do not fit go below the others, and the first column is
/// repeated there.
pub fn table(lines: &[Vec<String>]) -> String {
    let count = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..count).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    let mut from = 1;
    while from < count {
        let (mut to, mut room) = (from, WIDTH.saturating_sub(2 + widths[0]));
        while to < count && (to == from || room >= widths[to] + 2) {
            room = room.saturating_sub(widths[to] + 2);
            to += 1;
        }
        if from > 1 {
            out.push('\n');
        }
        for line in lines {
            let mut text = format!("  {:<width$}", line[0], width = widths[0]);
            for at in from..to {
                text += &format!("  {:>width$}", line[at], width = widths[at]);
            }
            out += text.trim_end();
            out.push('\n');
        }
        from = to;
    }
    out
}

/// Writes `words` after `lead`, in lines of at most 100 columns. Each further line begins below the first word.
pub fn fold(lead: &str, words: &str) -> String {
    let indent = lead.chars().count();
    let (mut out, mut column) = (lead.to_string(), indent);
    for word in words.split_whitespace() {
        let wide = word.chars().count();
        if column > indent && column + 1 + wide > WIDTH {
            out += &format!("\n{:indent$}", "");
            column = indent;
        }
        if column > indent {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += wide;
    }
    out + "\n"
}
