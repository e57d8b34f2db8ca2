//! Checks whether the measured rows keep what oxicorn promises about its speed, its size and its steadiness.
//!
//! Owns: the bounds. Refuses: to judge what was not run, and to use arithmetic means. A ratio is the median of the
//! rounds' ratios.

use oxicorn_testkit::record::{Promise, Record, Row, Spread};

/// The ASGI servers that are compared with oxicorn's plain service.
const PLAIN_PYTHON: [&str; 3] = ["Granian", "Uvicorn", "Gunicorn"];
/// The ASGI servers with FastAPI that are compared with oxicorn's reference service.
const FASTAPI: [&str; 4] =
    ["Granian + FastAPI", "Uvicorn + FastAPI", "Gunicorn + FastAPI", "Gunicorn + Uvicorn + FastAPI"];

pub fn of(record: &Record) -> Vec<Promise> {
    let seen = Seen(record);
    [seen.speed(), seen.steadiness(), seen.size()].concat()
}

struct Seen<'a>(&'a Record);

fn at_least(bound: f64, reached: Option<f64>, says: &str) -> Option<Promise> {
    Some(Promise { says: says.to_owned(), reached: reached?, bound, at_least: true })
}

fn at_most(bound: f64, reached: Option<f64>, says: &str) -> Option<Promise> {
    Some(Promise { says: says.to_owned(), reached: reached?, bound, at_least: false })
}

impl Seen<'_> {
    fn row(&self, scenario: &str, peer: &str) -> Option<&Row> {
        self.0.rows.iter().find(|row| row.scenario == scenario && row.peer == peer && !row.turns.is_empty())
    }

    fn median(&self, scenario: &str, peer: &str, figure: &str) -> Option<f64> {
        Some(self.row(scenario, peer)?.spread(figure)?.median)
    }

    fn worst(&self, scenario: &str, peer: &str, figure: &str) -> Option<f64> {
        Some(self.row(scenario, peer)?.spread(figure)?.max)
    }

    /// Returns the figure of the peer `one` divided by the best figure of the peers `others`: the median of all rounds.
    fn ratio(&self, scenario: &str, figure: &str, one: &str, others: &[&str]) -> Option<f64> {
        let turns = &self.row(scenario, one)?.turns;
        let others: Vec<_> = others.iter().filter_map(|other| self.row(scenario, other)).collect();
        let of = |row: &Row, round: usize| row.turns.get(round)?.figures.get(figure).copied();
        let ratios = turns.iter().enumerate().filter_map(|(round, turn)| {
            let best = others.iter().filter_map(|row| of(row, round)).max_by(f64::total_cmp)?;
            Some(turn.figures.get(figure)? / best)
        });
        Some(Spread::of(ratios)?.median)
    }

    /// Returns the CPU time of `other` for a request, divided by the CPU time of `one`. A result of 0.95 means that
    /// `one` takes 1/0.95 of the time of `other`.
    fn left(&self, scenario: &str, one: &str, other: &str) -> Option<f64> {
        self.ratio(scenario, "cpu_us_per_request", other, &[one])
    }

    fn speed(&self) -> Vec<Promise> {
        let (on, logging) = ("oxicorn, everything on", "oxicorn, everything on, access log");
        // Speed is compared by CPU time, not by requests in a second. On a machine with few cores, the client needs one
        // of the cores. The quicker peer then waits for the client, but the slower peers do not.
        let times = |one, others: &[&str]| {
            others.iter().filter_map(|other| self.left("steady-64", one, other)).min_by(f64::total_cmp)
        };
        let calls = self.ratio("syscalls", "syscalls_per_request", "oxicorn", &["bare hyper"]);
        let recycling = self.ratio("recycle", "requests_per_second", "oxicorn", &["oxicorn without recycling"]);
        let (hyper, reference) = ("bare hyper", "oxicorn reference");
        [
            at_least(
                0.95,
                self.left("steady-64", "oxicorn", hyper),
                "keep-alive: requests per CPU time, as a share of bare hyper's",
            ),
            at_least(
                0.80,
                self.left("steady-64", reference, hyper),
                "keep-alive, the reference service's /health: requests per CPU time, as a share of bare hyper's",
            ),
            at_least(
                0.88,
                self.left("access-log", "oxicorn", "oxicorn without log"),
                "access log in a file: requests per CPU time, as a share of those without it",
            ),
            at_least(
                0.90,
                self.left("cost", on, hyper),
                "every limit and clock on: requests per CPU time, as a share of bare hyper's",
            ),
            at_least(
                0.85,
                self.left("cost", logging, on),
                "every limit, clock and the access log on: requests per CPU time, as a share of those without the log",
            ),
            at_least(
                0.92,
                self.left("new-connections", "oxicorn", hyper),
                "a connection for each request: requests per CPU time, as a share of bare hyper's",
            ),
            at_most(1.05, calls, "system calls of a keep-alive request, as a share of bare hyper's"),
            at_least(0.95, calls, "system calls of a keep-alive request, as a share of bare hyper's"),
            at_least(
                2.4,
                times("oxicorn", &PLAIN_PYTHON),
                "plain service: requests per CPU time, times the best of Granian, Uvicorn and Gunicorn without a framework",
            ),
            at_least(
                8.0,
                times(reference, &FASTAPI),
                "reference service's /health: requests per CPU time, times the best of Granian, Uvicorn and Gunicorn \
                 on FastAPI",
            ),
            at_least(
                0.9,
                recycling,
                "requests a second with workers replaced after 1,000 requests, as a share of those without",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn steadiness(&self) -> Vec<Promise> {
        let oxicorn = "oxicorn";
        [
            at_most(0.0, self.worst("reload", oxicorn, "failed"), "requests failed in ten reloads"),
            at_most(
                0.0,
                self.worst("recycle", oxicorn, "failed"),
                "requests failed while workers are replaced after 1,000 requests",
            ),
            at_most(
                0.0,
                self.worst("crash", oxicorn, "beyond"),
                "requests failed by the crash of a worker beyond those in flight on it",
            ),
            at_most(
                10.0,
                self.median("crash", oxicorn, "replacement_ms"),
                "milliseconds from the crash of a worker to the first answer of its replacement",
            ),
            at_most(
                100.0,
                self.worst("crash", oxicorn, "longest_less_stalls_ms"),
                "milliseconds of the longest wait of other requests in a crash, less the machine's own stalls",
            ),
            self.worst("storm", "Gunicorn", "failed").and_then(|theirs| {
                at_most(
                    theirs,
                    self.worst("storm", oxicorn, "failed"),
                    "health checks failed with one crash a second, beside Gunicorn's",
                )
            }),
            at_most(
                1.15,
                self.median("balance-4", oxicorn, "max_over_mean"),
                "connections of the fullest of 4 workers, times the mean",
            ),
            at_most(
                1.25,
                self.median("balance-8", oxicorn, "max_over_mean"),
                "connections of the fullest of 8 workers, times the mean",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn size(&self) -> Vec<Promise> {
        let (oxicorn, reference) = ("oxicorn", "oxicorn reference");
        let mib = |peer, figure| Some(self.median("memory", peer, figure)? / 1024.0);
        let a_connection = self.ratio("idle-connections", "kib_per_connection", oxicorn, &["bare hyper"]);
        [
            at_most(
                15.0,
                self.median("start-up", oxicorn, "startup_ms"),
                "milliseconds from exec to the first answer, plain service",
            ),
            at_most(8.0, mib(reference, "master_rss_kib"), "MiB of the master (VmRSS)"),
            at_most(5.0, mib(reference, "worker_pss_kib"), "MiB of an idle worker with SQLite (PSS)"),
            at_most(8.0, mib(reference, "worker_pss_loaded_kib"), "MiB of a worker with SQLite after load (PSS)"),
            at_most(1.3, a_connection, "memory of an idle connection, times bare hyper's"),
            at_most(4.0, self.median("idle", oxicorn, "wakeups_per_second"), "wake-ups a second of an idle process"),
            at_most(
                0.1,
                self.median("idle", oxicorn, "cpu_percent"),
                "percent of a CPU that an idle service takes in total",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
