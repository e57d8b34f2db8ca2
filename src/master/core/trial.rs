//! The steps of a new generation, which is requested, loaded and put on trial, and then kept or rolled back.
//!
//! Owns: the change under way, the changes that wait for it, and the trial, which is the same for a reload and an
//! upgrade. Refuses: the takeover by a new program (`takeover`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Action, Caller, CommandReply, Failure, Generation, Master, Millis, Note, Policy, REMOVED_POLL_MS,
    REMOVED_REFUSE_MS, RefusedChange, SlotId, Stage, TRIAL_LOOK_MS, TRIAL_MS, Worker, reply_to_all,
};

/// The reload or upgrade that is under way, and how far it is.
#[derive(Clone, Debug)]
pub(super) enum Change {
    None,
    /// The shell reads the settings, and its next event reports the result.
    Loading {
        callers: Vec<Caller>,
    },
    /// The new program boots one worker beside this program, as a test.
    Preflight {
        callers: Vec<Caller>,
        /// When the time for the preflight is over; `None` if this time has no limit, or once the preflight was told to
        /// end.
        until: Option<Millis>,
        passed: bool,
    },
    OnTrial(Trial),
    /// This program is the new one and has failed. The old program takes over again as soon as no fork is under way.
    Returning {
        callers: Vec<Caller>,
        slot: SlotId,
        why: Failure,
    },
}

/// A generation on trial, and what to go back to if it fails. If workers overlap, those of the old generation serve on
/// until the trial ends. Otherwise the slots are replaced one after the other, and all of them are part of the trial.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) fallback: Generation,
    /// The old policy. `None` after an upgrade, because going back then means the exec of the old program, which knows
    /// its own policy.
    pub(super) policy: Option<Policy>,
    /// The old target, if the new settings changed it.
    pub(super) target: Option<u32>,
    pub(super) callers: Vec<Caller>,
    /// When to look at the trial again, if workers have served long enough but are late with a heartbeat.
    pub(super) look_at: Millis,
    /// True if the old settings let workers overlap.
    pub(super) overlap: bool,
}

/// A reload or an upgrade that waits until the change under way is over. Several requests of one kind become one
/// request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Queued {
    Reload {
        callers: Vec<Caller>,
    },
    Upgrade {
        program: Option<PathBuf>,
        #[serde(default)]
        force: bool,
        callers: Vec<Caller>,
    },
}

impl Queued {
    pub(super) fn callers(self) -> Vec<Caller> {
        match self {
            Self::Reload { callers } | Self::Upgrade { callers, .. } => callers,
        }
    }
}

impl Change {
    /// Returns the callers that wait for the end of this change.
    pub(super) fn callers(self) -> Vec<Caller> {
        match self {
            Self::None => Vec::new(),
            Self::Loading { callers }
            | Self::Preflight { callers, .. }
            | Self::OnTrial(Trial { callers, .. })
            | Self::Returning { callers, .. } => callers,
        }
    }
}

impl Master {
    /// Returns true if a reload or an upgrade is under way or queued.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.change, Change::None) || !self.queue.is_empty()
    }

    pub(super) fn take_change(&mut self) -> Change {
        std::mem::replace(&mut self.change, Change::None)
    }

    /// Returns true if a change may begin. No other change may be under way, and every removed address must be closed,
    /// because the next settings could name such an address again.
    pub(super) fn may_change(&self) -> bool {
        matches!(self.change, Change::None) && self.close_removed_at.is_none()
    }

    pub(super) fn begin_reload(&mut self, caller: Option<Caller>, actions: &mut Vec<Action>) {
        if self.stage != Stage::Running {
            reply_to_all(caller, CommandReply::Stopping, actions);
        } else if self.may_change() {
            self.load(caller.into_iter().collect(), actions);
        } else if let Some(callers) = self.queue.iter_mut().find_map(|queued| match queued {
            Queued::Reload { callers } => Some(callers),
            Queued::Upgrade { .. } => None,
        }) {
            callers.extend(caller);
        } else {
            self.queue.push(Queued::Reload { callers: caller.into_iter().collect() });
            actions.push(Action::Note(Note::ReloadQueued));
        }
    }

    fn load(&mut self, callers: Vec<Caller>, actions: &mut Vec<Action>) {
        self.change = Change::Loading { callers };
        actions.push(Action::LoadSettings);
    }

    /// Begins the first of the changes that were requested while another one was under way.
    pub(super) fn begin_queued(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if !self.may_change() || self.stage != Stage::Running || self.queue.is_empty() {
            return;
        }
        match self.queue.remove(0) {
            Queued::Reload { callers } => self.load(callers, actions),
            Queued::Upgrade { program, force, callers } => {
                self.begin_preflight(now, program, force, callers, actions);
            }
        }
    }

    pub(super) fn on_settings_refused(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if let Change::Loading { callers } = self.take_change() {
            self.refused = Some(RefusedChange::Reload);
            reply_to_all(callers, CommandReply::Refused, actions);
        }
        self.begin_queued(now, actions);
    }

    pub(super) fn begin_trial(&mut self, now: Millis, policy: Policy, count: Option<u32>, actions: &mut Vec<Action>) {
        let Change::Loading { callers } = self.take_change() else { return };
        let before = std::mem::replace(&mut self.policy, policy);
        let overlap = before.overlap;
        self.try_generation(now, Some(before), overlap, count, callers, actions);
    }

    /// Begins the trial of the next generation. `self.policy` is already the new policy; `before` is the old one.
    /// `overlap` is true if the old settings let workers overlap.
    pub(super) fn try_generation(
        &mut self,
        now: Millis,
        before: Option<Policy>,
        overlap: bool,
        count: Option<u32>,
        callers: Vec<Caller>,
        actions: &mut Vec<Action>,
    ) {
        self.generation_last = Generation(self.generation_last.0 + 1);
        let fallback = std::mem::replace(&mut self.generation, self.generation_last);
        let target = count.map(|count| std::mem::replace(&mut self.target, count));
        self.make_backoffs(now);
        self.target = self.target.clamp(1, self.policy.slots);
        self.target_before = None;
        self.change = Change::OnTrial(Trial { fallback, policy: before, target, callers, look_at: now, overlap });
        let (generation, target, overlap) = (self.generation, self.target, self.overlaps());
        actions.push(Action::Note(Note::TrialBegun { generation, target, overlap }));
    }

    /// Ends the trial if this failure of a worker decides it, and returns true if it did. After a failed trial the old
    /// settings are used again, and the workers of the failed generation are drained. If one of them serves its slot
    /// alone, it is replaced instead.
    pub(super) fn fails_trial(
        &mut self,
        now: Millis,
        slot: SlotId,
        generation: Generation,
        why: Failure,
        actions: &mut Vec<Action>,
    ) -> bool {
        if generation != self.generation || !matches!(self.change, Change::OnTrial(_)) {
            return false;
        }
        let overlap = self.overlaps();
        let Change::OnTrial(trial) = self.take_change() else { return false };
        self.generation = trial.fallback;
        self.generation_failed = Some(generation);
        if let Some(target) = trial.target {
            (self.target, self.target_before) = (target, None);
        }
        let callers = trial.callers;
        let Some(before) = trial.policy else {
            self.refused = Some(RefusedChange::Upgrade);
            self.change = Change::Returning { callers, slot, why };
            return true;
        };
        self.refused = Some(RefusedChange::Reload);
        // The old policy has the old numbers of slots and rows. The present numbers stay, because the slots and rows
        // that were added still exist.
        let Policy { slots, rows, .. } = self.policy;
        self.policy = Policy { slots, rows, ..before };
        actions.push(Action::RestoreSettings { slot, failed: generation, why });
        self.retire_replaced(now, actions);
        reply_to_all(callers, CommandReply::RolledBack { slot, why, overlap }, actions);
        self.begin_queued(now, actions);
        true
    }

    /// Passes the trial once the new workers have served long enough and no worker is late with its heartbeat.
    pub(super) fn pass_trial(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let Some(at) = self.trial_deadline() else { return };
        if at > now {
            return;
        }
        if self.looks_later(now) {
            return;
        }
        let Change::OnTrial(trial) = &self.change else { return };
        let upgraded = trial.policy.is_none();
        let callers = self.take_change().callers();
        self.refused = None;
        self.close_removed_at = self.removes.then(|| now.after(REMOVED_POLL_MS - REMOVED_REFUSE_MS));
        self.removed_refuse = false;
        let generation = self.generation;
        let reply = if upgraded {
            self.tally.upgrades += 1;
            actions.push(Action::KeepProgram);
            CommandReply::Upgraded { generation }
        } else {
            self.tally.reloads += 1;
            actions.push(Action::KeepSettings);
            CommandReply::Reloaded { generation }
        };
        // The old workers are told to drain before the callers get their reply, so that a connection that begins after
        // the reply goes to a new worker.
        self.retire_replaced(now, actions);
        reply_to_all(callers, reply, actions);
        self.begin_queued(now, actions);
    }

    /// Returns true if some worker on trial is late with its heartbeat. The master then looks again a little later.
    pub(super) fn looks_later(&mut self, now: Millis) -> bool {
        let late = self.workers.iter().any(|w| w.generation == self.generation && w.serving() && w.due < now);
        if let (true, Change::OnTrial(trial)) = (late, &mut self.change) {
            trial.look_at = now.after(TRIAL_LOOK_MS);
        }
        late
    }

    /// Returns when the trial may be passed; `None` if there is no trial, or while some slot has no serving worker of
    /// the new generation.
    pub(super) fn trial_deadline(&self) -> Option<Millis> {
        let Change::OnTrial(trial) = &self.change else { return None };
        let proven = |slot: SlotId| {
            let new = self.in_slot(slot).filter(|w| w.generation == self.generation && w.serving());
            new.map(|w: &Worker| w.serving_since.after(TRIAL_MS)).min()
        };
        let all: Option<Vec<Millis>> = (0..self.slots()).map(SlotId).map(proven).collect();
        all?.into_iter().chain([trial.look_at]).max()
    }

    /// Gives up the change under way and all queued ones, because the service stops.
    pub(super) fn abandon_changes(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.change, Change::Preflight { .. }) {
            actions.push(Action::EndPreflight);
        }
        let waiting = self.take_change().callers();
        let queued = std::mem::take(&mut self.queue).into_iter().flat_map(Queued::callers);
        reply_to_all(waiting.into_iter().chain(queued), CommandReply::Stopping, actions);
    }

    pub(super) fn close_removed(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.close_removed_at.is_none_or(|at| now < at) {
            return;
        }
        if !std::mem::replace(&mut self.removed_refuse, true) {
            self.close_removed_at = Some(now.after(REMOVED_REFUSE_MS));
            actions.push(Action::RefuseAtRemoved);
        } else {
            self.close_removed_at = None;
            actions.push(Action::CloseRemoved);
            self.begin_queued(now, actions);
        }
    }
}
