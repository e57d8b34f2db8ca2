//! The result of an action that the shell has performed.
//!
//! Owns: what the loop of the master has to do next, and the data that only the child of a fork has. Refuses: to
//! perform the actions (`perform`, `upgrade`).

use std::os::fd::OwnedFd;

use super::core::{Event, ExitReason, Generation, SlotId};
use crate::{hook::HookPanicked, scoreboard::Row, sys::signals::Blocked};

/// What the shell has to do after an action was performed.
pub(super) enum Performed {
    Done,
    Learned(Event),
    /// This process is the child of a fork, and has to become a worker.
    Child(Box<ForkedChild>),
    Exit(ExitReason),
}

/// The data that only the child of a fork has. The child needs this data to become a worker.
pub(super) struct ForkedChild {
    pub(super) slot: SlotId,
    pub(super) generation: Generation,
    pub(super) row: Row,
    pub(super) channel: OwnedFd,
    pub(super) report: Option<OwnedFd>,
    pub(super) blocked: Blocked,
    pub(super) master: i32,
    pub(super) hook_panicked: Option<HookPanicked>,
}
