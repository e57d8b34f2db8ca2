//! Which request is there when workers die.
//!
//! Owns: what was in flight at the last deaths, the one request that was there in most of them, and which requests are in
//! quarantine. Refuses: to name one after fewer than three deaths, for innocent requests are in flight too; and to answer
//! anything (the workers do, by the scoreboard).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Shell, core::Instant, now};
use crate::scoreboard::InFlight;

/// So many deaths are remembered.
const DEATHS: usize = 16;
/// From so many on a request is named.
const ENOUGH: usize = 3;
/// How long a request is in quarantine after a death that it was in flight at, in milliseconds.
pub(super) const QUARANTINE_MS: u64 = 60_000;

/// What outlives the workers.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Deaths {
    /// What was in flight at each, the oldest first.
    last: VecDeque<Vec<String>>,
    /// Until when.
    pub(super) quarantined: Vec<(String, Instant)>,
}

/// A request that was in flight in most of the last deaths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Culprit {
    /// Method and path.
    pub(super) request: String,
    pub(super) deaths: usize,
    /// Of so many last ones.
    pub(super) of: usize,
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

    /// Of as many deaths as possible: a storm is named although other things happened before it.
    pub(super) fn culprit(&self) -> Option<Culprit> {
        (ENOUGH..=self.last.len()).rev().find_map(|of| {
            let last = || self.last.iter().rev().take(of);
            let deaths = |request: &String| last().filter(|death| death.contains(request)).count();
            // Among equals it is the one with less company.
            let company =
                |request: &String| last().filter(|death| death.contains(request)).map(Vec::len).sum::<usize>();
            let suspect = last().flatten().max_by_key(|one| (deaths(one), std::cmp::Reverse(company(one))))?;
            let deaths = deaths(suspect);
            (deaths >= ENOUGH && 2 * deaths > of).then(|| Culprit { request: suspect.clone(), deaths, of })
        })
    }

    fn quarantine(&mut self, request: &str, now: Instant) {
        self.quarantined.retain(|(other, until)| other != request && *until > now);
        self.quarantined.push((request.to_owned(), now.after(QUARANTINE_MS)));
    }
}

impl Shell {
    /// A worker died that was to live. `foreign`: by the hand of somebody else, which is no request's fault.
    pub(super) fn record_death(&mut self, in_flight: &[InFlight], foreign: bool) {
        self.deaths.record(in_flight.iter().map(|note| note.request.clone()).collect());
        let Some(Culprit { request, deaths, of }) = self.deaths.culprit() else { return };
        let Some(note) = in_flight.iter().find(|note| note.request == request) else { return };
        tracing::error!(
            event = "culprit",
            request,
            deaths,
            of,
            "{request} was in flight in {deaths} of the last {of} deaths"
        );
        let http = &self.resolved.settings.http;
        let exempt = http.limit_exempt.iter().any(|path| request.ends_with(&format!(" {path}")));
        if !http.quarantine || foreign || exempt {
            return;
        }
        // One that was too long to be noted whole cannot be told from others.
        let Some(key) = note.key else { return };
        let now = now();
        self.scoreboard.quarantine(key, now.after(QUARANTINE_MS).0);
        self.deaths.quarantine(&request, now);
        tracing::warn!(
            event = "quarantine",
            request,
            for_ms = QUARANTINE_MS,
            "{request} is answered 503 by all workers for a minute: http.quarantine"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(deaths: &[&[&str]]) -> Option<(String, usize, usize)> {
        let mut all = Deaths::default();
        for death in deaths {
            all.record(death.iter().map(|&request| request.to_owned()).collect());
        }
        all.culprit().map(|Culprit { request, deaths, of }| (request, deaths, of))
    }

    #[test]
    fn the_request_of_most_deaths_is_named_from_three_on() {
        let (bad, good) = ("GET /bad", "GET /good");
        let says = |deaths, of| Some((bad.to_owned(), deaths, of));
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[&[bad], &[bad]]), None);
        assert_eq!(named(&[&[bad], &[bad], &[bad]]), says(3, 3));
        assert_eq!(named(&[&[bad], &[], &[good, bad], &[bad]]), says(3, 4));
        assert_eq!(named(&[&["a"], &["b"], &["c"], &["d"]]), None);
        // Twice in one death is once.
        assert_eq!(named(&[&[bad, bad, bad], &[], &[]]), None);
    }

    #[test]
    fn the_innocent_are_not_named_though_they_are_often_there() {
        let (bad, good) = ("GET /bad", "GET /good");
        let deaths: [&[&str]; 4] = [&[good, bad], &[bad, good], &[bad], &[good, bad, "GET /other"]];
        assert_eq!(named(&deaths), Some((bad.to_owned(), 4, 4)));
        let alike: [&[&str]; 4] = [&[good, bad], &[bad], &[bad, good, "x"], &[good, "x"]];
        assert_eq!(named(&alike), Some((bad.to_owned(), 3, 4)));
    }

    #[test]
    fn what_happened_before_a_storm_does_not_hide_it_and_is_forgotten() {
        let mut deaths: Vec<&[&str]> = vec![&[]; 20];
        deaths.extend([["GET /bad"].as_slice(); 3]);
        assert_eq!(named(&deaths), Some(("GET /bad".to_owned(), 3, 5)));
        deaths.extend([["GET /bad"].as_slice(); 20]);
        assert_eq!(named(&deaths), Some(("GET /bad".to_owned(), 16, 16)));
        deaths.extend([[].as_slice(); 16]);
        assert_eq!(named(&deaths), None);
    }
}
