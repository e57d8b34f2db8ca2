//! Watches the siblings, finds workers that cannot accept the connections that wait in their slot, and accepts these
//! connections for them.
//!
//! Owns: the search through the scoreboard and the queues for workers that cannot accept, and the reports to the master
//! about silent workers. Refuses: the rhythm of the looks (`heartbeat`), the treatment of a silent worker (the master),
//! and any rescue while this worker drains.

use std::{os::fd::AsFd, time::Duration};

use tokio::task::yield_now;

use super::{
    accept,
    serve::{AppBody, Serve},
    shared::Shared,
};
use crate::{
    channel::ToMaster,
    scoreboard::RowState,
    sys::{
        clock,
        poll::{Interest, wait},
    },
};

/// The most connections that are taken from a socket of another slot in one turn of the loop. The number is small,
/// because a crash of this worker loses the connections that it has accepted and not answered.
const PER_TURN: u32 = 8;

/// The most turns of the loop in which this worker takes connections after one look at its siblings. The other siblings
/// look at the queues as well, and take their share.
const TURNS: u32 = 8;

/// A sibling is reported to the master after this many looks in a row that found its heartbeat late. One such look is
/// not enough, because after a suspend of the machine every heartbeat is late once.
const LOOKS_UNTIL_TOLD: u32 = 2;

/// What one worker remembers of its siblings between two looks at them.
pub(super) struct SiblingWatch<S> {
    slot: u32,
    shared: &'static Shared,
    app: S,
    /// One element for each slot of which this worker has sockets. The index is the number of the slot.
    siblings: Vec<Sibling>,
}

#[derive(Clone, Copy, Default)]
struct Sibling {
    sign: Option<Observation>,
    /// True if, at the last look, the sibling's queue was not empty and the sibling had done nothing since the look
    /// before that one.
    suspect: bool,
    /// The number of looks in a row that found the sibling's heartbeat late.
    late: u32,
}

/// What the scoreboard shows of the worker of a slot.
#[derive(Clone, Copy)]
struct Observation {
    due: u64,
    /// A number that grows with everything that the worker does. If two looks find the same number, the worker did
    /// nothing in between. Heartbeats cannot show this, because they continue even if the worker does not accept.
    activity: u64,
    /// The worker is well, but does not accept, because it has no place for another connection.
    full: bool,
}

impl<S> SiblingWatch<S> {
    pub(super) fn new(slot: u32, shared: &'static Shared, app: S) -> Self {
        let siblings = vec![Sibling::default(); shared.listeners.room() as usize];
        Self { slot, shared, app, siblings }
    }

    /// Looks at the siblings, and takes connections in place of each sibling that cannot accept them. Calls `heartbeat`
    /// after each turn of the loop. Returns true if the next look should come soon.
    pub(super) async fn turn<B>(&mut self, heartbeat: impl Fn()) -> bool
    where
        S: Serve<B>,
        B: AppBody,
    {
        if self.shared.drains() || !self.shared.has_place() {
            return false;
        }
        let mut needy = self.look();
        for _ in 0..TURNS {
            needy.retain(|slot| self.rescue(*slot));
            if needy.is_empty() {
                break;
            }
            yield_now().await;
            heartbeat();
            if self.shared.drains() {
                return false;
            }
        }
        self.siblings.iter().any(|sibling| sibling.suspect || (1..LOOKS_UNTIL_TOLD).contains(&sibling.late))
    }

    /// Returns the slots whose worker will not soon accept the connections that wait in the slot's queue.
    fn look(&mut self) -> Vec<u32> {
        let now = clock::now();
        let signs = self.signs();
        let mut watched = Vec::new();
        for ((slot, sibling), sign) in (0..).zip(&mut self.siblings).zip(signs) {
            if slot == self.slot {
                continue;
            }
            let suspect = std::mem::take(&mut sibling.suspect);
            let before = std::mem::replace(&mut sibling.sign, sign);
            let idle = before.map(|sign| sign.activity) == sign.map(|sign| sign.activity);
            let late = sign.is_some_and(|sign| sign.due < now);
            sibling.late = if late { sibling.late.saturating_add(1) } else { 0 };
            if sibling.late == LOOKS_UNTIL_TOLD {
                self.shared.send(ToMaster::Silent { slot });
            }
            let alone = late || sign.is_none_or(|sign| sign.full);
            if alone || idle {
                let sockets = self.shared.listeners.of_slot(slot);
                watched.extend(sockets.map(|socket| (slot, alone || suspect, socket.as_fd())));
            }
        }
        let asked: Vec<_> = watched.iter().map(|(_, _, socket)| (*socket, Interest::Read)).collect();
        // One call asks the kernel about all sockets. If the call fails for lack of memory, this look finds nothing,
        // and the next one asks again.
        let full = wait(&asked, Some(Duration::ZERO)).unwrap_or_default();
        let mut needy = Vec::new();
        for ((slot, helpless, _), _) in watched.iter().zip(full).filter(|(_, full)| *full) {
            if *helpless && !needy.contains(slot) {
                needy.push(*slot);
            }
            if let Some(sibling) = self.siblings.get_mut(*slot as usize) {
                sibling.suspect = !helpless;
            }
        }
        needy
    }

    /// Returns an observation for each slot. If several workers serve a slot, the slot needs only one that is well. So
    /// the observation is that of the worker whose heartbeat is due last.
    fn signs(&self) -> Vec<Option<Observation>> {
        let mut signs = vec![None; self.siblings.len()];
        for row in self.shared.scoreboard.rows().filter(|row| row.state() == RowState::Serving) {
            let sign = Observation { due: row.due(), activity: row.activity(), full: row.full() };
            if let Some(known) = signs.get_mut(row.slot() as usize)
                && known.is_none_or(|known: Observation| known.due < sign.due)
            {
                *known = Some(sign);
            }
        }
        signs
    }

    /// Accepts connections that wait in the queue of `slot`. Returns true if more connections may wait there.
    fn rescue<B>(&self, slot: u32) -> bool
    where
        S: Serve<B>,
        B: AppBody,
    {
        let sockets = self.shared.listeners.of_slot(slot);
        sockets.fold(false, |more, socket| {
            if !self.shared.has_place() {
                return false;
            }
            // A full worker still takes one connection at a time, and makes an idle connection leave for it.
            let room = u32::try_from(self.shared.room()).unwrap_or(u32::MAX);
            let most = room.clamp(1, PER_TURN);
            let taken = accept::take(socket, most, self.shared, &self.app);
            self.shared.make_place(0);
            self.shared.row.rescued(taken);
            more || taken == most
        })
    }
}
