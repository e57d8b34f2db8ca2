//! The listeners that a worker polls, and the steps in which a draining worker stops polling them.
//!
//! Owns: the choice of the sockets that are polled, and the steps in which a worker, at the final stop, accepts the
//! connections that still wait in these sockets. Refuses: the accept of one connection (`accept`), and the decision to
//! drain (`worker`).

use std::{io, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    accept,
    serve::{AppBody, Serve},
    shared::Shared,
};
use crate::channel::ToMaster;

/// How long the listeners are polled at the final stop before they close. A handshake that is under way can complete in
/// this time, even if one SYN-ACK is lost. The kernel sends a lost SYN-ACK again after a second.
const SETTLE: Duration = Duration::from_secs(1);

/// The length of the last part of [`SETTLE`]. In this part no new handshake begins, and the handshakes under way end. A
/// handshake between two continents takes less time than this.
const REFUSE_NEW: Duration = Duration::from_millis(250);

/// If the grace ends before [`SETTLE`] is over, this length replaces [`REFUSE_NEW`]. The listeners then close after
/// this time without new handshakes.
const REFUSE_NEW_SHORT: Duration = Duration::from_millis(20);

/// The tasks that poll a worker's listeners, and the closing step that these listeners have reached in a drain.
pub(super) struct Acceptors<S> {
    slot: u32,
    pub(super) shared: &'static Shared,
    service: S,
    polls: Vec<JoinHandle<()>>,
    closing: ClosingStage,
}

/// The closing step that the listeners of a draining worker are in, and the time at which the step ends.
#[derive(Clone, Copy)]
enum ClosingStage {
    /// The drain began with a SIGTERM to this worker. The worker polls its own listeners until the master has had time
    /// to say whether this is the final stop. The signal may have gone to all workers. In that case no next worker
    /// would poll these listeners.
    Held(Instant),
    /// At the final stop, the worker polls the listeners of all slots.
    PollsAll(Instant),
    /// At the end of the final stop, the worker polls the listeners of all slots, and the kernel begins no new
    /// handshake.
    RefusesNew(Instant),
    Done,
}

impl ClosingStage {
    fn due_at(self) -> Option<Instant> {
        match self {
            Self::Held(at) | Self::PollsAll(at) | Self::RefusesNew(at) => Some(at),
            Self::Done => None,
        }
    }
}

impl<S> Acceptors<S> {
    pub(super) fn new(slot: u32, shared: &'static Shared, service: S) -> Self {
        Self { slot, shared, service, polls: Vec::new(), closing: ClosingStage::Done }
    }

    pub(super) fn open<B>(&mut self, all: bool) -> io::Result<()>
    where
        S: Serve<B>,
        B: AppBody,
    {
        let listeners = &self.shared.listeners;
        let sockets: Vec<_> = if all { listeners.all().collect() } else { listeners.for_slot(self.slot).collect() };
        for socket in sockets {
            self.polls.push(accept::poll(socket, self.shared, self.service.clone())?);
        }
        Ok(())
    }

    /// Polls the listeners of all slots, because at the final stop a worker also accepts the connections that wait in
    /// the queues of siblings. A sibling may be gone, or may hang.
    pub(super) fn open_all<B>(&mut self)
    where
        S: Serve<B>,
        B: AppBody,
    {
        self.close();
        if let Err(error) = self.open(true) {
            tracing::warn!(event = "listener_not_polled", %error, "cannot poll every listener at the final stop");
        }
        self.closing = ClosingStage::PollsAll(Instant::now() + SETTLE - REFUSE_NEW);
    }

    /// Returns when the next closing step of the listeners is due, or `None` if no step is left.
    pub(super) fn next_step_at(&self) -> Option<Instant> {
        self.closing.due_at()
    }

    pub(super) fn hold(&mut self) {
        self.closing = ClosingStage::Held(Instant::now() + SETTLE);
    }

    /// Stops polling the listeners. The listeners stay open, because the next worker of the slot polls them.
    pub(super) fn close(&mut self) {
        for poll in self.polls.drain(..) {
            poll.abort();
        }
        self.closing = ClosingStage::Done;
    }

    /// Does the closing step of the listeners that is due now.
    pub(super) fn close_further<B>(&mut self)
    where
        S: Serve<B>,
        B: AppBody,
    {
        match self.closing {
            ClosingStage::Held(_) => self.close(),
            ClosingStage::PollsAll(_) => self.refuse_new(REFUSE_NEW),
            ClosingStage::RefusesNew(_) => self.shut_down(),
            ClosingStage::Done => {}
        }
    }

    /// Does all remaining closing steps of the listeners at once, because the grace is over.
    pub(super) async fn close_now<B>(&mut self)
    where
        S: Serve<B>,
        B: AppBody,
    {
        if let ClosingStage::PollsAll(_) = self.closing {
            self.refuse_new(REFUSE_NEW_SHORT);
            sleep(REFUSE_NEW_SHORT).await;
        }
        self.close_further();
    }

    fn refuse_new(&mut self, length: Duration) {
        self.shared.listeners.refuse_new();
        self.closing = ClosingStage::RefusesNew(Instant::now() + length);
    }

    fn shut_down<B>(&mut self)
    where
        S: Serve<B>,
        B: AppBody,
    {
        self.close();
        for socket in self.shared.listeners.all() {
            accept::sweep(socket, self.shared, &self.service);
        }
        self.shared.row.cut(self.shared.listeners.shut_down());
        self.shared.send(ToMaster::AllAccepted);
    }
}
