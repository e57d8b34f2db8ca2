//! An upgrade, in which another program is tested beside this one and then takes its place.
//!
//! Owns: the preflight, the moment of the exec, and the snapshot of the core that outlives the exec. Refuses: the trial
//! of the new program's workers (`trial`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Action, Caller, CommandReply, Generation, Master, Millis, Note, Phase, Policy, RefusedChange, SlotId, Stage, Tally,
    Worker,
    backoff::Backoff,
    reply_to_all,
    trial::{Change, Queued},
};

/// The state that the core passes to the program that takes its place. Everything else follows from that program's
/// settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CoreSnapshot {
    target: u32,
    generation: Generation,
    generation_last: Generation,
    generation_failed: Option<Generation>,
    pub(crate) workers: Vec<Worker>,
    backoff: Vec<Backoff>,
    proven: bool,
    steered: Vec<SlotId>,
    tally: Tally,
    /// The callers that wait until the service has the target number of workers.
    callers: Vec<Caller>,
    /// The callers that wait for this upgrade.
    waiting: Vec<Caller>,
    queue: Vec<Queued>,
    #[serde(default)]
    stopped: Option<SlotId>,
    #[serde(default)]
    refused: Option<RefusedChange>,
    /// True if the settings of the program let workers overlap.
    #[serde(default = "overlaps")]
    overlap: bool,
}

/// Older programs do not pass `overlap`, and their workers always overlap.
fn overlaps() -> bool {
    true
}

/// The role in which a program takes over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Takeover {
    /// This program is the new one, and its workers are on trial. `count` is the number of workers in its settings, if
    /// this number has changed. `removes` is true if its settings no longer name some addresses.
    New { count: Option<u32>, removes: bool },
    /// This program is the old one, which takes over again because the new one failed.
    Back,
}

impl CoreSnapshot {
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    pub(crate) fn overlap(&self) -> bool {
        self.overlap
    }

    pub(crate) fn next_generation(&self) -> Generation {
        Generation(self.generation_last.0 + 1)
    }
}

impl Master {
    /// Returns the state to pass to another program, at the moment of the exec.
    pub(crate) fn snapshot(&self) -> CoreSnapshot {
        CoreSnapshot {
            target: self.target,
            generation: self.generation,
            generation_last: self.generation_last,
            generation_failed: self.generation_failed,
            workers: self.workers.clone(),
            backoff: self.backoff.clone(),
            proven: self.proven,
            steered: self.steered.clone(),
            tally: self.tally,
            callers: self.callers.clone(),
            waiting: self.change.clone().callers(),
            queue: self.queue.clone(),
            stopped: self.stopped,
            refused: self.refused,
            overlap: self.overlaps(),
        }
    }

    /// Continues from the state of another program. The shell must then call `step` with the events that came during
    /// the exec.
    pub(crate) fn adopt(
        policy: Policy,
        now: Millis,
        snapshot: CoreSnapshot,
        takeover: Takeover,
    ) -> (Self, Vec<Action>) {
        let mut master = Self::empty(policy, now);
        let CoreSnapshot { target, generation, generation_last, generation_failed, workers, backoff, .. } = snapshot;
        let CoreSnapshot { proven, steered, tally, callers, waiting, queue, stopped, refused, overlap, .. } = snapshot;
        let slots = master.policy.slots;
        master.target = target.clamp(1, slots);
        (master.generation, master.generation_last) = (generation, generation_last);
        master.generation_failed = generation_failed;
        master.workers = workers;
        master.backoff = backoff;
        for backoff in &mut master.backoff {
            backoff.goes_on(now);
        }
        master.make_backoffs(now);
        (master.proven, master.steered, master.tally) = (proven, steered, tally);
        (master.callers, master.queue) = (callers, queue);
        (master.stopped, master.refused) = (stopped, refused);
        let mut actions = Vec::new();
        match takeover {
            Takeover::New { count, removes } => {
                master.removes = removes;
                master.try_generation(now, None, overlap, count, waiting, &mut actions);
            }
            Takeover::Back => {
                master.refused = Some(RefusedChange::Upgrade);
                reply_to_all(waiting, CommandReply::UpgradeFailed, &mut actions);
                master.begin_queued(now, &mut actions);
            }
        }
        (master, actions)
    }

    /// Returns true while an upgrade is under way, and false during a reload.
    pub(crate) fn upgrades(&self) -> bool {
        match &self.change {
            Change::Preflight { .. } | Change::Returning { .. } => true,
            Change::OnTrial(trial) => trial.policy.is_none(),
            Change::None | Change::Loading { .. } => false,
        }
    }

    /// Returns true while the new program is tested and has not taken over.
    pub(crate) fn in_preflight(&self) -> bool {
        matches!(self.change, Change::Preflight { .. })
    }

    /// Begins an upgrade, or queues it if another change is under way. A caller gets a refusal if an upgrade is already
    /// under way or queued.
    pub(super) fn begin_upgrade(
        &mut self,
        now: Millis,
        program: Option<PathBuf>,
        force: bool,
        caller: Option<Caller>,
        actions: &mut Vec<Action>,
    ) {
        let queued = self.queue.iter().any(|queued| matches!(queued, Queued::Upgrade { .. }));
        let callers = caller.into_iter().collect();
        if self.stage != Stage::Running {
            reply_to_all(caller, CommandReply::Stopping, actions);
        } else if self.may_change() {
            self.begin_preflight(now, program, force, callers, actions);
        } else if caller.is_some() && (queued || self.upgrades()) {
            reply_to_all(caller, CommandReply::UpgradeUnderWay, actions);
        } else if !queued {
            self.queue.push(Queued::Upgrade { program, force, callers });
            actions.push(Action::Note(Note::UpgradeQueued));
        }
    }

    pub(super) fn begin_preflight(
        &mut self,
        now: Millis,
        program: Option<PathBuf>,
        force: bool,
        callers: Vec<Caller>,
        actions: &mut Vec<Action>,
    ) {
        let until = (self.policy.boot_timeout_ms > 0).then(|| now.after(self.policy.boot_timeout_ms));
        self.change = Change::Preflight { callers, until, passed: false };
        actions.push(Action::BeginPreflight { program, force });
    }

    pub(super) fn preflight_deadline(&self) -> Option<Millis> {
        match self.change {
            Change::Preflight { until, .. } => until,
            Change::None | Change::Loading { .. } | Change::OnTrial(_) | Change::Returning { .. } => None,
        }
    }

    pub(super) fn on_preflight_ended(&mut self, now: Millis, ended_well: bool, actions: &mut Vec<Action>) {
        let Change::Preflight { until, passed, .. } = &mut self.change else { return };
        if ended_well {
            (*until, *passed) = (None, true);
            return;
        }
        self.refused = Some(RefusedChange::Upgrade);
        reply_to_all(self.take_change().callers(), CommandReply::UpgradeRefused, actions);
        self.begin_queued(now, actions);
    }

    /// Notes that the exec of the other program failed, so this program continues.
    pub(super) fn on_exec_failed(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let reply = match self.change {
            Change::Preflight { .. } => CommandReply::UpgradeRefused,
            Change::Returning { .. } => CommandReply::UpgradeFailed,
            Change::None | Change::Loading { .. } | Change::OnTrial(_) => return,
        };
        self.refused = Some(RefusedChange::Upgrade);
        reply_to_all(self.take_change().callers(), reply, actions);
        self.begin_queued(now, actions);
    }

    /// Lets the other program take over, or ends a preflight that takes too long. The exec waits while the shell still
    /// has to report a result, because the other program would not know of a fork that is under way.
    pub(super) fn exec_when_settled(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let settled =
            !self.workers.iter().any(|w| w.phase == Phase::Forking) && !actions.iter().any(Action::awaits_event);
        match &mut self.change {
            Change::Preflight { passed: true, .. } if settled => actions.push(Action::BecomeNew),
            Change::Preflight { until, passed: false, .. } if until.is_some_and(|until| until <= now) => {
                *until = None;
                actions.push(Action::EndPreflight);
            }
            Change::Returning { slot, why, .. } if settled => {
                actions.push(Action::BecomeOld { slot: *slot, why: *why });
            }
            Change::None
            | Change::Loading { .. }
            | Change::Preflight { .. }
            | Change::OnTrial(_)
            | Change::Returning { .. } => {}
        }
    }
}

impl Action {
    /// Returns true if the shell reports the result of this action as an event before it waits again.
    fn awaits_event(&self) -> bool {
        matches!(self, Self::Fork { .. } | Self::Measure { .. } | Self::LoadSettings | Self::Grow { .. })
    }
}
