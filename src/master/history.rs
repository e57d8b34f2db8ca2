//! What each slot has been through, for those who ask later.
//!
//! Owns: how many workers of a slot have ended, and why the last one did. Refuses: deciding by it (`core` has its own
//! memory of failures).

use serde::{Deserialize, Serialize};

use super::{Shell, core::SlotId};

/// One to a slot.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(super) struct SlotHistory {
    /// Workers of this slot that ended, for whatever reason.
    pub(super) restarts: u32,
    pub(super) last_exit: Option<String>,
}

impl Shell {
    pub(super) fn record(&mut self, slot: SlotId, sentence: String) {
        let at = slot.0 as usize;
        if self.history.len() <= at {
            self.history.resize_with(at + 1, SlotHistory::default);
        }
        self.history[at].restarts += 1;
        self.history[at].last_exit = Some(sentence);
    }

    pub(super) fn restarts(&self, slot: SlotId) -> u32 {
        self.history.get(slot.0 as usize).map_or(0, |history| history.restarts)
    }
}
