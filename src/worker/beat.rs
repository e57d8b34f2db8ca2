//! The heartbeat: a promise of when the next one comes, made by the loop that serves.
//!
//! Owns: its rhythm. A loop that turns under traffic promises 50 ms; one that has nothing to do promises 300 ms and
//! wakes four times a second. Refuses: judging lateness; whoever reads the row does.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::{scoreboard::Row, sys::clock};

const BUSY_TICK: Duration = Duration::from_millis(25);
const BUSY_PROMISE_MS: u64 = 50;

/// A multiple of 64: above its first level tokio's timer wheel has slots of 64 ms, and a deadline between two of them
/// wakes the thread twice, once to sort it in and once to fire it.
const IDLE_TICK_MS: u64 = 256;
const IDLE_PROMISE_MS: u64 = 300;

/// Busy ticks without traffic after which a worker is idle.
const QUIET_TICKS: u32 = 10;

/// Runs as long as the worker does: a loop that no longer turns no longer beats. `epoch` is when the runtime began,
/// which its timers count from.
pub(super) async fn beat(row: Row, epoch: Instant) {
    let mut seen = row.activity();
    let mut quiet = QUIET_TICKS;
    loop {
        let activity = row.activity();
        quiet = if activity == seen { quiet.saturating_add(1) } else { 0 };
        seen = activity;
        if quiet < QUIET_TICKS {
            row.beat(clock::now() + BUSY_PROMISE_MS);
            sleep(BUSY_TICK).await;
        } else {
            row.beat(clock::now() + IDLE_PROMISE_MS);
            let ticks = epoch.elapsed().as_millis() as u64 / IDLE_TICK_MS + 1;
            sleep_until(epoch + Duration::from_millis(ticks * IDLE_TICK_MS)).await;
        }
    }
}
