//! The data that the master keeps about one worker process.
//!
//! Owns: the worker's row, its channel, and the messages that are not sent to it yet. Refuses: to keep the facts by
//! which the core decides (`core`), and to interpret the worker's messages (`children`).

use std::os::fd::{AsFd, OwnedFd};

use super::{
    core::{Event, Master, Millis, Pid},
    hang_report::HangReport,
};
use crate::{app::ForkedWorker, channel::ToWorker, scoreboard::Row};

/// What the master knows about a worker process, apart from the facts that the core needs for its decisions.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) row: Row,
    /// `None` once the worker has closed its end of the channel.
    pub(super) channel: Option<OwnedFd>,
    /// Messages to the worker that did not fit into its channel.
    pub(super) unsent: Vec<ToWorker>,
    pub(super) due: u64,
    /// True if the core has been told that the worker has answered a request.
    pub(super) answered: bool,
    pub(super) boot_failure: Option<String>,
    /// The file in which the worker writes where it hangs; `None` if the runtime does not write that.
    pub(super) report: Option<HangReport>,
    pub(super) started: Millis,
    /// The number of the worker's fork.
    pub(super) age: u32,
}

impl Child {
    /// Returns what a runtime learns of the worker.
    pub(super) fn facts(&self, core: &Master) -> ForkedWorker {
        let (slot, generation) = core.worker(self.pid).map_or((0, 0), |worker| (worker.slot.0, worker.generation.0));
        ForkedWorker { slot, generation, age: self.age, pid: self.pid.0.unsigned_abs() }
    }

    /// Returns an event at the first call after the worker has answered a request, and `None` at all other calls.
    pub(super) fn first_answer(&mut self) -> Option<Event> {
        let first = !self.answered && self.row.answered();
        self.answered |= first;
        first.then_some(Event::Answered { pid: self.pid })
    }

    /// Sends a message to the worker. If the message does not fit into the channel, it is kept until there is room.
    pub(super) fn send(&mut self, message: ToWorker) {
        // A worker that has closed its end of the channel is about to end, so it needs no message.
        let Some(channel) = &self.channel else { return };
        let sent = if self.unsent.is_empty() { message.send(channel.as_fd()) } else { Ok(false) };
        match sent {
            Ok(true) => {}
            Ok(false) => {
                if self.unsent.is_empty() {
                    tracing::warn!(
                        event = "channel_full",
                        pid = self.pid.0,
                        "the worker does not read the messages of the master; they are kept until it does"
                    );
                }
                ToWorker::queue(&mut self.unsent, message);
            }
            Err(error) => {
                tracing::debug!(
                    event = "channel_closed",
                    pid = self.pid.0,
                    %error,
                    "the worker ended before a message could be sent to it"
                );
            }
        }
    }

    /// Tries again to send the messages that did not fit into the channel earlier.
    pub(super) fn send_unsent(&mut self) {
        for message in std::mem::take(&mut self.unsent) {
            self.send(message);
        }
    }
}
