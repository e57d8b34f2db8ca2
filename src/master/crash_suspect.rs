//! Finds the request that was in flight when workers died.
//!
//! Owns: the requests in flight at the last deaths, the one request that was in flight at most of them, and the
//! requests in quarantine. Refuses: to name a request after fewer than three deaths, because harmless requests are also
//! in flight when a worker dies. The workers, and not the master, reject the requests in quarantine. They find the
//! quarantine in the scoreboard.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Shell, core::Millis, now};
use crate::{
    protocol::CrashSuspect,
    scoreboard::{InFlightRequest, QUARANTINE_MS},
};

/// How many deaths of workers are remembered.
const DEATHS: usize = 16;
/// At how many deaths a request must have been in flight before it is named as the suspect.
const ENOUGH: usize = 3;

/// The last deaths of workers, and the requests that were put into quarantine after them.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Deaths {
    /// The requests in flight at each death, the oldest death first.
    last: VecDeque<Vec<String>>,
    /// The requests in quarantine, each with the time at which its quarantine ends.
    pub(super) quarantined: Vec<(String, Millis)>,
}

impl Deaths {
    fn record(&mut self, mut in_flight: Vec<String>) {
        in_flight.sort_unstable();
        in_flight.dedup();
        if self.last.len() == DEATHS {
            self.last.pop_front();
        }
        self.last.push_back(in_flight);
    }

    /// Returns the request that was in flight at most of the last deaths. The search begins with all remembered deaths,
    /// and then leaves out more and more of the older ones, because they may have nothing to do with the request.
    pub(super) fn suspect(&self) -> Option<CrashSuspect> {
        (ENOUGH..=self.last.len()).rev().find_map(|of| {
            let last = || self.last.iter().rev().take(of);
            let deaths = |request: &String| last().filter(|death| death.contains(request)).count();
            // If two requests were in flight at equally many deaths, the suspect is the request that had fewer other
            // requests in flight beside it.
            let company =
                |request: &String| last().filter(|death| death.contains(request)).map(Vec::len).sum::<usize>();
            let suspect = last().flatten().max_by_key(|one| (deaths(one), std::cmp::Reverse(company(one))))?;
            let deaths = deaths(suspect);
            (deaths >= ENOUGH && 2 * deaths > of).then(|| CrashSuspect {
                request: suspect.clone(),
                deaths: deaths as u64,
                of: of as u64,
            })
        })
    }

    fn quarantine(&mut self, request: &str, now: Millis) {
        self.quarantined.retain(|(other, until)| other != request && *until > now);
        self.quarantined.push((request.to_owned(), now.after(QUARANTINE_MS)));
    }
}

/// Notes that a worker died unasked. `foreign` is true if another process killed the worker. In this case no request
/// can be the cause, so none is put into quarantine.
pub(super) fn record_death(shell: &mut Shell, in_flight: &[InFlightRequest], foreign: bool) {
    shell.deaths.record(in_flight.iter().map(|note| note.request.clone()).collect());
    let Some(suspect) = shell.deaths.suspect() else { return };
    let Some(note) = in_flight.iter().find(|note| note.request == suspect.request) else { return };
    let CrashSuspect { request, deaths, of } = &suspect;
    tracing::error!(event = "crash_suspect", request, deaths, of, "{suspect}");
    let http = &shell.resolved.settings.http;
    let exempt = http.limit_exempt.iter().any(|path| request.ends_with(&format!(" {path}")));
    if !http.quarantine || foreign || exempt {
        return;
    }
    // A request that is too long to be noted completely is not quarantined, because it cannot be distinguished from
    // other long requests.
    let Some(key) = note.key else { return };
    let now = now();
    shell.scoreboard.quarantine(key, now.after(QUARANTINE_MS).0);
    shell.deaths.quarantine(request, now);
    tracing::warn!(
        event = "quarantine_started",
        request,
        for_ms = QUARANTINE_MS,
        "all workers answer {request} with 503 for a minute (http.quarantine)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(deaths: &[&[&str]]) -> Option<(String, u64, u64)> {
        let mut all = Deaths::default();
        for death in deaths {
            all.record(death.iter().map(|&request| request.to_owned()).collect());
        }
        all.suspect().map(|CrashSuspect { request, deaths, of }| (request, deaths, of))
    }

    #[test]
    fn the_request_of_most_deaths_is_named_after_three_deaths() {
        let (bad, good) = ("GET /bad", "GET /good");
        let says = |deaths, of| Some((bad.to_owned(), deaths, of));
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[&[bad], &[bad]]), None);
        assert_eq!(named(&[&[bad], &[bad], &[bad]]), says(3, 3));
        assert_eq!(named(&[&[bad], &[], &[good, bad], &[bad]]), says(3, 4));
        assert_eq!(named(&[&["a"], &["b"], &["c"], &["d"]]), None);
        // A request that is in flight several times at one death counts only once for this death.
        assert_eq!(named(&[&[bad, bad, bad], &[], &[]]), None);
    }

    #[test]
    fn a_request_that_is_often_in_flight_is_not_named_for_that() {
        let (bad, good) = ("GET /bad", "GET /good");
        let deaths: [&[&str]; 4] = [&[good, bad], &[bad, good], &[bad], &[good, bad, "GET /other"]];
        assert_eq!(named(&deaths), Some((bad.to_owned(), 4, 4)));
        let alike: [&[&str]; 4] = [&[good, bad], &[bad], &[bad, good, "x"], &[good, "x"]];
        assert_eq!(named(&alike), Some((bad.to_owned(), 3, 4)));
    }

    #[test]
    fn earlier_deaths_do_not_hide_a_series_and_are_forgotten() {
        let mut deaths: Vec<&[&str]> = vec![&[]; 20];
        deaths.extend([["GET /bad"].as_slice(); 3]);
        assert_eq!(named(&deaths), Some(("GET /bad".to_owned(), 3, 5)));
        deaths.extend([["GET /bad"].as_slice(); 20]);
        assert_eq!(named(&deaths), Some(("GET /bad".to_owned(), 16, 16)));
        deaths.extend([[].as_slice(); 16]);
        assert_eq!(named(&deaths), None);
    }
}
