//! Watching the siblings: finding workers that cannot accept what waits in their slot, and accepting it for them.
//!
//! Owns: finding such workers from the scoreboard and the queues, and reporting silent ones to the master. Refuses: how
//! often (`heartbeat`), what is done about a silent worker (the master), and anything while this worker drains.

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

/// The most connections taken from each slot in a turn of the loop: a crash of this worker loses what it has accepted
/// and not answered.
const PER_TURN: u32 = 8;

/// After this many turns the other siblings, which look as well, take their share.
const TURNS: u32 = 8;

/// After a suspend of the machine every worker looks late once, so a sibling is reported only after two late looks in a
/// row.
const LOOKS_UNTIL_TOLD: u32 = 2;

/// What one worker sees of the others.
pub(super) struct SiblingWatch<S> {
    slot: u32,
    shared: &'static Shared,
    app: S,
    /// One for each slot that this worker has sockets of.
    siblings: Vec<Sibling>,
}

#[derive(Clone, Copy, Default)]
struct Sibling {
    sign: Option<Observation>,
    /// At the last look its queue was not empty, and it had done nothing since the look before.
    suspect: bool,
    /// The number of looks in a row that found it late.
    late: u32,
}

/// What the worker of a slot shows of itself.
#[derive(Clone, Copy)]
struct Observation {
    due: u64,
    /// If it is the same twice, the worker did nothing in between: its heartbeats go on even if it does not accept.
    activity: u64,
    /// It does not accept, and is well.
    full: bool,
}

impl<S> SiblingWatch<S> {
    pub(super) fn new(slot: u32, shared: &'static Shared, app: S) -> Self {
        let siblings = vec![Sibling::default(); shared.listeners.room() as usize];
        Self { slot, shared, app, siblings }
    }

    /// Takes connections for each sibling that needs it, with a `heartbeat` after each turn of the loop. Returns
    /// whether the next look should come soon.
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

    /// Returns the slots whose queue holds something that their worker will not take now.
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
        // One call for all. If it fails for lack of memory, the next look asks again.
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

    /// Returns the observation of each slot's worker. If a slot has several, it is the one with the latest promise: a
    /// slot is well if one of its workers is.
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

    /// Takes connections of this slot. Returns whether more may wait.
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
            // A full worker takes one at a time, and an idle connection leaves for it.
            let room = u32::try_from(self.shared.room()).unwrap_or(u32::MAX);
            let most = room.clamp(1, PER_TURN);
            let taken = accept::take(socket, most, self.shared, &self.app);
            self.shared.make_place(0);
            self.shared.row.rescued(taken);
            more || taken == most
        })
    }
}
