//! The report of a run: tables on the terminal, `load.json` and `report.html` in a folder, and a comparison of two
//! runs.
//!
//! Owns: how a record is shown. Refuses: to measure, and to change what the record says.

#[path = "report/compare.rs"]
mod compare;
#[path = "report/figures.rs"]
mod figures;
#[path = "report/html.rs"]
mod html;
#[path = "report/svg.rs"]
mod svg;
#[path = "report/text.rs"]
mod text;

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use oxicorn_testkit::record::Record;

pub use compare::compare;
pub use text::text;

/// Prints the report to stdout, which may be a pipe.
pub fn print(record: &Record) {
    // If the write fails, the reader of a pipe has closed it early, as `head` does. The run must go on.
    let _ = io::stdout().write_all(text(record).as_bytes());
}

/// Writes `load.json`, the complete record, and `report.html`, which needs no other file.
pub fn write(record: &Record, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("load.json"), serde_json::to_vec_pretty(record)?)?;
    fs::write(dir.join("report.html"), html::page(record))
}
