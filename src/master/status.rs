//! What the master reports about itself: the status, the progress of a command, and the reply when the master ends.
//!
//! Owns: the combination of what core, scoreboard, kernel and history know. Refuses: to send the report (`control`),
//! and to ask anything that could make the master wait or fail. A value that is no longer available is reported as
//! zero.

use super::{
    Shell,
    core::{self, ExitReason, Phase, SlotId, Stage},
    history::SlotHistory,
    now,
};
use crate::{
    protocol::{
        ControlResponse, EmptySlot, FROM_DISK, HealthCheck, IN_PROGRAM, ListenerStatus, MasterState, Quarantined,
        Responses, Speaks, Status, StatusTotals, WorkerState, WorkerStatus,
    },
    settings::Settings,
    sys::process,
};

pub(super) fn report(shell: &Shell) -> Status {
    let target = shell.core.target();
    let mut workers: Vec<_> = shell.core.workers().iter().filter_map(|worker| worker_status(shell, worker)).collect();
    // Within a slot the oldest worker stays first, because the sort is stable.
    workers.sort_by_key(|worker| worker.slot);
    let empty = (0..target).filter(|slot| !shell.core.workers().iter().any(|worker| worker.slot == SlotId(*slot)));
    let empty_slots = empty
        .map(|slot| {
            let SlotHistory { restarts, last_exit } = shell.history.of(SlotId(slot));
            let next_try = shell.core.next_try(SlotId(slot));
            let failures = next_try.map_or(0, |(_, failures)| failures);
            let next_try_s = next_try.map(|(at, _)| seconds(at.since(now())));
            EmptySlot { slot, restarts, last_exit, failures, next_try_s }
        })
        .collect();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state: match shell.core.stage() {
            Stage::Running if shell.core.upgrades() => MasterState::Upgrading,
            Stage::Running if shell.core.changes() => MasterState::Reloading,
            Stage::Running if shell.core.proven() => MasterState::Running,
            Stage::Running => MasterState::Booting,
            Stage::Delaying { .. } | Stage::Stopping { .. } | Stage::Done => MasterState::Stopping,
        },
        generation: shell.core.generation().0,
        uptime_s: seconds(now().since(shell.started)),
        target_workers: target,
        listeners: shell.listeners.queued().map(|(address, queued)| ListenerStatus { address, queued }).collect(),
        speaks: speaks(shell),
        health: HealthCheck::of(
            &shell.resolved.settings.http.health_path,
            shell.loader.app.runtime.any_answer_is_alive(),
        ),
        settings_file: shell.resolved.file.as_ref().map(|file| file.to_string_lossy().into_owned()),
        folder: shell.upgrades.folder().to_string_lossy().into_owned(),
        workers,
        empty_slots,
        code: if shell.core.code_on_disk() { FROM_DISK } else { IN_PROGRAM }.to_owned(),
        recycling_held: shell.core.holds(),
        totals: totals(shell),
        crash_suspect: shell.deaths.suspect(),
        quarantined: quarantined(shell),
        last_reload: shell.reloads.last.clone(),
        last_upgrade: shell.upgrades.last.clone(),
    }
}

fn speaks(shell: &Shell) -> Speaks {
    let Settings { tls, server, .. } = &shell.resolved.settings;
    Speaks {
        tls: tls.certfile.is_some(),
        client_ca: tls.client_ca.is_some(),
        proxy_protocol: server.proxy_protocol.to_string(),
    }
}

/// Describes one worker. Returns `None` if the worker is not forked yet, because then there is no process to report on.
fn worker_status(shell: &Shell, worker: &core::Worker) -> Option<WorkerStatus> {
    let child = shell.children.iter().find(|child| Some(child.pid) == worker.pid)?;
    let SlotHistory { restarts, last_exit } = shell.history.of(worker.slot);
    Some(WorkerStatus {
        slot: worker.slot.0,
        pid: child.pid.0.unsigned_abs(),
        generation: worker.generation.0,
        state: match worker.phase {
            Phase::Forking | Phase::Starting { .. } => WorkerState::Starting,
            Phase::Serving { .. } => WorkerState::Serving,
            Phase::Draining { .. } => WorkerState::Draining,
            Phase::Dumping { .. } | Phase::Aborting { .. } | Phase::Killed { .. } => WorkerState::Killed,
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

fn quarantined(shell: &Shell) -> Vec<Quarantined> {
    let now = now();
    let known =
        shell.deaths.quarantined.iter().filter(|(_, until)| shell.resolved.settings.http.quarantine && *until > now);
    known
        .map(|(request, until)| Quarantined { request: request.clone(), ends_in_s: seconds(until.since(now)) })
        .collect()
}

fn totals(shell: &Shell) -> StatusTotals {
    let (counted, tally) = (shell.scoreboard.totals(), shell.core.tally());
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

/// Describes the progress, for callers that wait for a scale, a reload, an upgrade or a stop.
pub(super) fn progress(shell: &Shell) -> String {
    let workers = match shell.core.workers().len() {
        1 => "1 worker".to_owned(),
        workers => format!("{workers} workers"),
    };
    let serve = format!("{} of {} workers serve", shell.core.served(), shell.core.target());
    match shell.core.stage() {
        Stage::Running if shell.core.in_preflight() => format!("the new program is in its preflight; {serve}"),
        Stage::Running => serve,
        Stage::Delaying { .. } => format!("workers.shutdown_delay: {workers} left, serving as before"),
        Stage::Stopping { .. } | Stage::Done => format!("draining: {workers} left"),
    }
}

/// Returns the reply for callers that still wait when the master ends.
pub(super) fn last_words(shell: &Shell, reason: ExitReason) -> ControlResponse {
    let totals = shell.scoreboard.totals();
    match reason {
        ExitReason::Asked => ControlResponse::done(format!(
            "stopped; of {} requests since the start, {} were cut",
            totals.requests, totals.cut
        )),
        ExitReason::NoWorkerReady => ControlResponse::refused("no worker became ready; the master gave up"),
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
