//! The heartbeat: a promise of when the next one comes, made by the loop that serves.
//!
//! Owns: its rhythm, and that of looking after the siblings. A loop that turns under traffic promises 50 ms; one that has
//! nothing to do promises 300 ms and wakes four times a second. Each turn also writes the lines of the access log that
//! wait, the rest of a line that the log took in part, and the messages to the master that did not fit into the channel:
//! an idle worker wakes for no other timer. Refuses: judging lateness (`rescue`, the master).

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    rescue::SiblingWatch,
    serve::{AppBody, Serve},
    shared::Shared,
};
use crate::{log, sys::clock};

const BUSY_TICK: Duration = Duration::from_millis(25);
const BUSY_PROMISE_MS: u64 = 50;

/// A multiple of 64: above its first level tokio's timer wheel has slots of 64 ms, and a deadline between two of them
/// wakes the thread twice, once to sort it in and once to fire it.
const IDLE_TICK_MS: u64 = 256;
const IDLE_PROMISE_MS: u64 = 300;

/// Busy ticks without traffic after which a worker is idle.
const IDLE_TICKS: u32 = 10;

/// Makes the first promise now: siblings take a worker that serves and has promised nothing for a silent one. The rest
/// runs as long as the worker does: a loop that no longer turns no longer beats. `epoch` is when the runtime began,
/// which its timers count from.
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
            // Who connects after a quiet time finds every worker he meets awake.
            let _ = timeout_at(epoch + Duration::from_millis(ticks * IDLE_TICK_MS), shared.traffic.notified()).await;
        }
    }
}

fn promise(shared: &Shared, ms: u64) {
    let now = clock::now();
    if shared.is_held_up(now) {
        shared.note_delay();
    }
    shared.row.beat(now + ms);
}
