//! The heartbeat: a promise of when the next one comes, made by the loop that serves.
//!
//! Owns: its rhythm. A loop that turns under traffic promises 50 ms; one that has nothing to do promises 300 ms and
//! wakes four times a second. Refuses: judging lateness; whoever reads the row does.

use std::time::Duration;

use tokio::time::sleep;

use crate::{scoreboard::Row, sys::clock};

struct Rhythm {
    tick: Duration,
    promise_ms: u64,
}

const BUSY: Rhythm = Rhythm { tick: Duration::from_millis(25), promise_ms: 50 };
const IDLE: Rhythm = Rhythm { tick: Duration::from_millis(250), promise_ms: 300 };

/// Busy ticks without traffic after which a worker is idle.
const QUIET_TICKS: u32 = 10;

/// Runs as long as the worker does: a loop that no longer turns no longer beats.
pub(super) async fn beat(row: Row) {
    let mut seen = row.activity();
    let mut quiet = QUIET_TICKS;
    loop {
        let activity = row.activity();
        quiet = if activity == seen { quiet.saturating_add(1) } else { 0 };
        seen = activity;
        let rhythm = if quiet < QUIET_TICKS { BUSY } else { IDLE };
        row.beat(clock::now() + rhythm.promise_ms);
        sleep(rhythm.tick).await;
    }
}
