//! The heartbeats of a worker. Each heartbeat promises a time by which the serving loop makes the next one.
//!
//! Owns: the rhythm of the heartbeats, and of the looks at the siblings. A loop with traffic promises the next
//! heartbeat within 50 ms. An idle loop promises it within 300 ms, and wakes four times a second. Each turn also writes
//! the data that waits. These data are lines of the access log, the rest of a log line that was written in part, and
//! messages to the master that did not fit into the channel. So an idle worker wakes for no other timer. Refuses: the
//! judgement of late heartbeats (`rescue`, the master).

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    rescue::SiblingWatch,
    serve::{AppBody, Serve},
    shared::Shared,
};
use crate::{channel::ToMaster, log, sys::clock};

const BUSY_TICK: Duration = Duration::from_millis(25);
const BUSY_PROMISE_MS: u64 = 50;

/// How often an idle worker wakes, in milliseconds. It is a multiple of 64, because the upper levels of tokio's timer
/// wheel have slots of 64 ms. A deadline between two slots wakes the thread twice, once to move the timer and once to
/// fire it.
const IDLE_TICK_MS: u64 = 256;
const IDLE_PROMISE_MS: u64 = 300;

/// A worker counts as idle after this many ticks in the fast rhythm without traffic.
const IDLE_TICKS: u32 = 10;

/// Starts the task of the heartbeats. This function makes the first promise before it returns, because siblings believe
/// that a serving worker without a promise is silent. The task runs on the serving loop as long as the worker lives: if
/// the loop stops, the heartbeats stop. `epoch` is the moment at which the runtime began. The timers of the runtime
/// count from this moment.
pub(super) fn start<S, B>(shared: &'static Shared, epoch: Instant, watch: SiblingWatch<S>)
where
    S: Serve<B>,
    B: AppBody,
{
    promise(shared, BUSY_PROMISE_MS);
    tokio::spawn(heartbeat(shared, epoch, watch));
}

async fn heartbeat<S, B>(shared: &'static Shared, epoch: Instant, mut watch: SiblingWatch<S>)
where
    S: Serve<B>,
    B: AppBody,
{
    let row = shared.row;
    let mut seen = row.activity();
    let mut idle_ticks = IDLE_TICKS;
    loop {
        if let Some(access) = &shared.access {
            access.flush();
        }
        log::catch_up();
        shared.send_unsent();
        let wary = watch.turn(|| promise(shared, BUSY_PROMISE_MS)).await;
        let activity = row.activity();
        idle_ticks = if activity == seen { idle_ticks.saturating_add(1) } else { 0 };
        seen = activity;
        if wary || idle_ticks < IDLE_TICKS {
            promise(shared, BUSY_PROMISE_MS);
            sleep(BUSY_TICK).await;
        } else {
            promise(shared, IDLE_PROMISE_MS);
            let ticks = epoch.elapsed().as_millis() as u64 / IDLE_TICK_MS + 1;
            // Waits for the next idle tick or for traffic. The result does not matter, because either of them begins
            // the next turn. Without the wake by traffic, a worker that was idle would keep the slow rhythm until its
            // next tick.
            let _ = timeout_at(epoch + Duration::from_millis(ticks * IDLE_TICK_MS), shared.traffic.notified()).await;
        }
    }
}

fn promise(shared: &Shared, ms: u64) {
    let now = clock::now();
    if shared.is_held_up(now) {
        shared.note_delay();
    }
    match shared.report.still_since() {
        None => shared.row.promise_heartbeat(now + ms),
        // The loop runs, but the app does not. The master must look now, because it expects no change before the end of
        // the last promise and `workers.timeout`.
        Some(since) => {
            shared.row.promise_heartbeat(since);
            shared.send(ToMaster::Silent { slot: shared.row.slot() as u32 });
        }
    }
}
