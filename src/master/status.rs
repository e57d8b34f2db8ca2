//! What the master tells of itself: the status, the progress of what somebody waits for, the last words.
//!
//! Owns: putting core, scoreboard, kernel and history together for a reader. Refuses: sending it (`control`), and
//! anything that could wait or fail: what is gone meanwhile is told as zero.

use super::{
    Shell,
    core::{self, ExitReason, Phase, SlotId, Stage},
    now,
};
use crate::{
    protocol::{
        ControlResponse, EmptySlot, ListenerStatus, MasterState, Quarantined, Responses, Speaks, Status, StatusTotals,
        WorkerState, WorkerStatus,
    },
    settings::Settings,
    sys::process,
};

impl Shell {
    pub(super) fn status(&self) -> Status {
        let target = self.core.target();
        let mut workers: Vec<_> = self.core.workers().iter().filter_map(|worker| self.worker_status(worker)).collect();
        // Stable: within a slot the oldest stays first.
        workers.sort_by_key(|worker| worker.slot);
        let empty = (0..target).filter(|slot| !self.core.workers().iter().any(|worker| worker.slot == SlotId(*slot)));
        let empty_slots = empty
            .map(|slot| {
                let (restarts, last_exit) = self.past(slot);
                let next_try = self.core.next_try(SlotId(slot));
                let failures = next_try.map_or(0, |(_, failures)| failures);
                let next_try_s = next_try.map(|(at, _)| seconds(at.since(now())));
                EmptySlot { slot, restarts, last_exit, failures, next_try_s }
            })
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: match self.core.stage() {
                Stage::Running if self.core.upgrades() => MasterState::Upgrading,
                Stage::Running if self.core.changes() => MasterState::Reloading,
                Stage::Running if self.core.proven() => MasterState::Running,
                Stage::Running => MasterState::Booting,
                Stage::Delaying { .. } | Stage::Stopping { .. } | Stage::Done => MasterState::Stopping,
            },
            generation: self.core.generation().0,
            uptime_s: seconds(now().since(self.started)),
            target_workers: target,
            listeners: self.listeners.queued().map(|(address, queued)| ListenerStatus { address, queued }).collect(),
            speaks: self.speaks(),
            settings_file: self.resolved.file.as_ref().map(|file| file.to_string_lossy().into_owned()),
            folder: self.upgrades.folder().to_string_lossy().into_owned(),
            workers,
            empty_slots,
            totals: self.totals(),
            culprit: self.deaths.culprit(),
            quarantined: self.quarantined(),
            last_reload: self.reloads.last.clone(),
            last_upgrade: self.upgrades.last.clone(),
        }
    }

    fn speaks(&self) -> Speaks {
        let Settings { tls, server, .. } = &self.resolved.settings;
        Speaks {
            tls: tls.certfile.is_some(),
            client_ca: tls.client_ca.is_some(),
            proxy_protocol: server.proxy_protocol.to_string(),
        }
    }

    /// `None` for one that is decided on and not yet forked.
    fn worker_status(&self, worker: &core::Worker) -> Option<WorkerStatus> {
        let child = self.children.iter().find(|child| Some(child.pid) == worker.pid)?;
        let (restarts, last_exit) = self.past(worker.slot.0);
        Some(WorkerStatus {
            slot: worker.slot.0,
            pid: child.pid.0.unsigned_abs(),
            generation: worker.generation.0,
            state: match worker.phase {
                Phase::Forking | Phase::Starting { .. } => WorkerState::Starting,
                Phase::Serving { .. } => WorkerState::Serving,
                Phase::Draining { .. } => WorkerState::Draining,
                Phase::Aborting { .. } | Phase::Killed { .. } => WorkerState::Killed,
            },
            age_s: seconds(now().since(child.started)),
            heartbeat_age_ms: now().0.saturating_sub(child.row.due()),
            requests: child.row.requests(),
            in_flight: child.row.in_flight(),
            connections: child.row.connections(),
            rss_bytes: process::rss_bytes(child.pid.0).unwrap_or(0),
            recycle_at: child.row.recycle_at(),
            restarts,
            last_exit,
        })
    }

    fn past(&self, slot: u32) -> (u32, Option<String>) {
        let history = self.history.get(slot as usize).cloned().unwrap_or_default();
        (history.restarts, history.last_exit)
    }

    fn quarantined(&self) -> Vec<Quarantined> {
        let now = now();
        let known =
            self.deaths.quarantined.iter().filter(|(_, until)| self.resolved.settings.http.quarantine && *until > now);
        known
            .map(|(request, until)| Quarantined { request: request.clone(), ends_in_s: seconds(until.since(now)) })
            .collect()
    }

    fn totals(&self) -> StatusTotals {
        let (counted, tally) = (self.scoreboard.totals(), self.core.tally());
        let [informational, ok, redirects, client_errors, server_errors] = counted.responses;
        StatusTotals {
            requests: counted.requests,
            connections: counted.connections,
            responses: Responses { informational, ok, redirects, client_errors, server_errors },
            recycled: tally.recycled,
            crashed: tally.crashed,
            hung: tally.hung,
            reloads: tally.reloads,
            upgrades: tally.upgrades,
            shed: counted.shed,
            refused: counted.refused,
            abandoned: counted.abandoned,
            rescued: counted.rescued,
        }
    }

    /// For whoever waits for a scale, a reload, an upgrade or a stop.
    pub(super) fn progress(&self) -> String {
        let workers = match self.core.workers().len() {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        };
        let serve = format!("{} of {} workers serve", self.core.served(), self.core.target());
        match self.core.stage() {
            Stage::Running if self.core.in_preflight() => format!("the new program is tried; {serve}"),
            Stage::Running => serve,
            Stage::Delaying { .. } => format!("workers.shutdown_delay: {workers} left, and as before"),
            Stage::Stopping { .. } | Stage::Done => format!("draining: {workers} left"),
        }
    }

    /// For whoever waits when the master ends.
    pub(super) fn last_words(&self, reason: ExitReason) -> ControlResponse {
        let totals = self.scoreboard.totals();
        match reason {
            ExitReason::Asked => ControlResponse::done(format!(
                "stopped; of {} requests in its life {} were cut",
                totals.requests, totals.cut
            )),
            ExitReason::NoWorkerReady => ControlResponse::refused("no worker became ready; the master gave up"),
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
