//! The history of each slot's workers, which the status shows.
//!
//! Owns: the number of workers of a slot that have ended, and the reason why the last of them ended. Refuses:
//! decisions. The core has its own memory of failures.

use serde::{Deserialize, Serialize};

use super::core::SlotId;

/// The history of each slot. The index is the number of the slot.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(super) struct History(Vec<SlotHistory>);

#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(super) struct SlotHistory {
    /// How many workers of this slot have ended, for any reason.
    pub(super) restarts: u32,
    pub(super) last_exit: Option<String>,
}

impl History {
    /// Notes that a worker of this slot has ended, and for which reason.
    pub(super) fn record(&mut self, slot: SlotId, reason: String) {
        let at = slot.0 as usize;
        if self.0.len() <= at {
            self.0.resize_with(at + 1, SlotHistory::default);
        }
        self.0[at].restarts += 1;
        self.0[at].last_exit = Some(reason);
    }

    pub(super) fn of(&self, slot: SlotId) -> SlotHistory {
        self.0.get(slot.0 as usize).cloned().unwrap_or_default()
    }
}
