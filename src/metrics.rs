//! The page of metrics, which shows the values of the scoreboard as OpenMetrics text.
//!
//! Owns: the names of the metrics and their meaning. Refuses: to count (the scoreboard does), and to choose which
//! clients get the page (`worker::connection`, `master::control`).
//!
//! Every process that has the scoreboard renders the same page, so any worker can answer for the whole service.
//!
//! Each value of a worker has the slot as its label, and includes the workers of this slot that drain. With the pid as
//! the label, every recycle would make a new series. Counters never fall while the master lives, even if workers die.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

use crate::{
    listener::Listeners,
    scoreboard::{DURATION_BOUNDS, Overview, RowState, Scoreboard, Totals},
    sys::process,
};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const STATES: [(RowState, &str); 3] =
    [(RowState::Starting, "starting"), (RowState::Serving, "serving"), (RowState::Draining, "draining")];

/// Renders the whole page. It reads `/proc` once for each worker and asks the kernel once for each listener. With a
/// handful of workers this takes some tens of microseconds.
pub(crate) fn render(scoreboard: &Scoreboard, listeners: &Listeners) -> String {
    Snapshot::take(scoreboard, listeners).to_string()
}

/// All values of the page, as they were at one moment.
#[derive(Debug)]
struct Snapshot {
    totals: Totals,
    overview: Overview,
    uptime_ms: u64,
    master_rss: Option<u64>,
    /// The number of workers in each state, in the order of [`STATES`].
    workers: [u64; STATES.len()],
    slots: BTreeMap<u64, Slot>,
    queued: Vec<(String, u64)>,
}

/// The sums over all workers of one slot.
#[derive(Default, Debug)]
struct Slot {
    in_flight: u64,
    connections: u64,
    /// The resident memory of the workers in bytes; 0 if `/proc` cannot be read.
    rss: u64,
}

impl Snapshot {
    fn take(scoreboard: &Scoreboard, listeners: &Listeners) -> Self {
        let mut workers = [0; STATES.len()];
        let mut slots = BTreeMap::<u64, Slot>::new();
        for row in scoreboard.rows() {
            let state = row.state();
            let Some(place) = STATES.iter().position(|(known, _)| *known == state) else { continue };
            workers[place] += 1;
            let slot = slots.entry(row.slot()).or_default();
            slot.in_flight += row.in_flight();
            slot.connections += row.connections();
            slot.rss += rss(row.pid()).unwrap_or(0);
        }
        Self {
            totals: scoreboard.totals(),
            overview: scoreboard.overview(),
            uptime_ms: scoreboard.uptime_ms(),
            master_rss: rss(scoreboard.master_pid()),
            workers,
            slots,
            // Leave out unix sockets: the kernel does not tell how many connections wait there, and 0 would be wrong.
            queued: listeners.queued().filter(|(address, _)| !address.starts_with("unix:")).collect(),
        }
    }
}

fn rss(pid: u64) -> Option<u64> {
    process::rss_bytes(i32::try_from(pid).ok().filter(|pid| *pid > 0)?)
}

impl Display for Snapshot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { totals, overview, uptime_ms, master_rss, workers, slots, queued } = self;

        family(f, "oxicorn_build", "info", "The program that runs.")?;
        writeln!(f, "oxicorn_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))?;
        let uptime = Thousandths(*uptime_ms);
        gauge(f, "oxicorn_uptime_seconds", "Since the master started.", uptime)?;
        gauge(f, "oxicorn_generation", "The set of settings and program that new workers get.", overview.generation)?;

        counter(f, "oxicorn_requests", "Requests handed to the app.", totals.requests)?;
        let help = "Answers of the app, by class of status.";
        labelled(f, "oxicorn_responses", "counter", help, "class", CLASSES.iter().zip(totals.responses))?;
        self.durations(f)?;
        counter(f, "oxicorn_requests_shed", "Requests refused because too many were in flight.", totals.shed)?;
        let help = "Requests refused for what they were: malformed, too large or too slow to arrive.";
        counter(f, "oxicorn_requests_refused", help, totals.refused)?;
        let help = "Requests whose client left before they were handed to the app.";
        counter(f, "oxicorn_requests_abandoned", help, totals.abandoned)?;
        let help = "Requests lost: unanswered when their worker's graceful_timeout was over or it died, or reset in the queue.";
        counter(f, "oxicorn_requests_cut", help, totals.cut)?;
        let help = "Requests begun and not yet answered.";
        let by_slot = slots.iter().map(|(slot, of)| (slot, of.in_flight));
        labelled(f, "oxicorn_requests_in_flight", "gauge", help, "slot", by_slot)?;
        counter(f, "oxicorn_connections_accepted", "Connections accepted.", totals.connections)?;
        let help =
            "TLS handshakes that failed: no common version, a certificate refused, no end within header_timeout.";
        counter(f, "oxicorn_tls_handshakes_failed", help, totals.handshakes_failed)?;
        let help = "Connections accepted by another worker than that of their slot, which was silent or missing.";
        counter(f, "oxicorn_connections_rescued", help, totals.rescued)?;
        let help = "Idle connections closed for new ones: at worker_connections, or out of file descriptors.";
        counter(f, "oxicorn_connections_evicted", help, totals.evicted)?;
        let by_slot = slots.iter().map(|(slot, of)| (slot, of.connections));
        labelled(f, "oxicorn_connections_open", "gauge", "Connections that are open.", "slot", by_slot)?;
        let help = "Connections that wait to be accepted; unix sockets do not tell.";
        let by_address = queued.iter().map(|(address, queued)| (address, *queued));
        labelled(f, "oxicorn_listener_queue", "gauge", help, "address", by_address)?;
        let help = "Lines of the access log that were lost: its reader was slow or gone, or the disk full.";
        counter(f, "oxicorn_access_lines_dropped", help, totals.access_lines_dropped)?;

        gauge(f, "oxicorn_workers_target", "Workers there should be.", overview.target)?;
        let by_state = STATES.iter().map(|(_, name)| name).zip(*workers);
        labelled(f, "oxicorn_workers", "gauge", "Workers there are.", "state", by_state)?;
        let by_reason = [
            ("crashed", overview.crashed),
            ("hung", overview.hung),
            ("boot_failed", overview.boot_failed),
            ("recycled", overview.recycled),
        ];
        labelled(f, "oxicorn_worker_restarts", "counter", "Workers replaced, by reason.", "reason", by_reason)?;
        let known = slots.iter().map(|(slot, of)| (slot, of.rss)).filter(|(_, rss)| *rss > 0);
        labelled(f, "oxicorn_worker_rss_bytes", "gauge", "Resident memory of workers.", "slot", known)?;
        if let Some(rss) = master_rss {
            gauge(f, "oxicorn_master_rss_bytes", "Resident memory of the master.", rss)?;
        }
        f.write_str("# EOF\n")
    }
}

impl Snapshot {
    fn durations(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = "oxicorn_request_duration_seconds";
        family(
            f,
            name,
            "histogram",
            "From a request's head to the last byte of its answer, or to its end without one.",
        )?;
        let mut count = 0;
        for (i, bucket) in self.totals.durations.iter().enumerate() {
            count += bucket;
            match DURATION_BOUNDS.get(i) {
                Some(bound) => writeln!(f, "{name}_bucket{{le=\"{:?}\"}} {count}", *bound as f64 / 1e9)?,
                None => writeln!(f, "{name}_bucket{{le=\"+Inf\"}} {count}")?,
            }
        }
        let ns = self.totals.duration_ns;
        writeln!(f, "{name}_count {count}\n{name}_sum {}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
    }
}

fn family(f: &mut Formatter<'_>, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(f, "# TYPE {name} {kind}")?;
    if let Some(unit) = ["seconds", "bytes"].iter().find(|unit| name.ends_with(*unit)) {
        writeln!(f, "# UNIT {name} {unit}")?;
    }
    writeln!(f, "# HELP {name} {help}")
}

fn gauge(f: &mut Formatter<'_>, name: &str, help: &str, value: impl Display) -> fmt::Result {
    family(f, name, "gauge", help)?;
    writeln!(f, "{name} {value}")
}

fn counter(f: &mut Formatter<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    family(f, name, "counter", help)?;
    writeln!(f, "{name}_total {value}")
}

/// Writes a metric with one sample for each value of `label`. The values are words, numbers and TCP addresses, so they
/// need no escaping.
fn labelled(
    f: &mut Formatter<'_>,
    name: &str,
    kind: &str,
    help: &str,
    label: &str,
    samples: impl IntoIterator<Item = (impl Display, u64)>,
) -> fmt::Result {
    family(f, name, kind, help)?;
    let suffix = if kind == "counter" { "_total" } else { "" };
    for (of, value) in samples {
        writeln!(f, "{name}{suffix}{{{label}=\"{of}\"}} {value}")?;
    }
    Ok(())
}

/// A number of milliseconds, which is displayed in seconds with three decimals.
struct Thousandths(u64);

impl Display for Thousandths {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000, self.0 % 1_000)
    }
}
