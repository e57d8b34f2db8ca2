//! Becoming another program: tried beside us, then in our place, and what it is told of us.
//!
//! Owns: the preflight, the moment of the exec, and the mind as plain values that outlive it. Refuses: the trial of the
//! new program's workers, which is a reload's.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Action, Caller, CommandReply, Generation, Master, Millis, Note, Phase, Policy, SlotId, Stage, Tally, Worker,
    backoff::Backoff,
    reply_to_all,
    trial::{Change, Queued},
};

/// What a master's mind leaves to the program that takes its place. All else follows from that one's settings.
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
    /// Who waits for the target, and for this upgrade.
    callers: Vec<Caller>,
    waiting: Vec<Caller>,
    queue: Vec<Queued>,
}

/// As what a program takes over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Takeover {
    /// The new one: its workers are on trial. `count`: its settings ask for another number of workers than those before.
    /// `removes`: some addresses are no longer named.
    New { count: Option<u32>, removes: bool },
    /// The old one: the new one failed.
    Back,
}

impl CoreSnapshot {
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    pub(crate) fn next_generation(&self) -> Generation {
        Generation(self.generation_last.0 + 1)
    }
}

impl Master {
    /// To be told when it becomes another program, and no sooner.
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
        }
    }

    /// Goes on where another program stood. To be followed by a step, with what has happened meanwhile.
    pub(crate) fn adopt(
        policy: Policy,
        now: Millis,
        snapshot: CoreSnapshot,
        takeover: Takeover,
    ) -> (Self, Vec<Action>) {
        let mut master = Self::empty(policy, now);
        let CoreSnapshot { target, generation, generation_last, generation_failed, workers, backoff, .. } = snapshot;
        let CoreSnapshot { proven, steered, tally, callers, waiting, queue, .. } = snapshot;
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
        let mut actions = Vec::new();
        match takeover {
            Takeover::New { count, removes } => {
                master.removes = removes;
                master.try_generation(now, None, count, waiting, &mut actions);
            }
            Takeover::Back => {
                reply_to_all(waiting, CommandReply::UpgradeFailed, &mut actions);
                master.begin_queued(now, &mut actions);
            }
        }
        (master, actions)
    }

    /// An upgrade, as opposed to a reload, is under way.
    pub(crate) fn upgrades(&self) -> bool {
        match &self.change {
            Change::Preflight { .. } | Change::Returning { .. } => true,
            Change::OnTrial(trial) => trial.policy.is_none(),
            Change::None | Change::Loading { .. } => false,
        }
    }

    /// The new program is being tried, and has not taken over.
    pub(crate) fn in_preflight(&self) -> bool {
        matches!(self.change, Change::Preflight { .. })
    }

    /// A signal is one more upgrade; who can be told is told that there is one already.
    pub(super) fn begin_upgrade(
        &mut self,
        now: Millis,
        program: Option<PathBuf>,
        caller: Option<Caller>,
        actions: &mut Vec<Action>,
    ) {
        let queued = self.queue.iter().any(|queued| matches!(queued, Queued::Upgrade { .. }));
        let callers = caller.into_iter().collect();
        if self.stage != Stage::Running {
            reply_to_all(caller, CommandReply::Stopping, actions);
        } else if self.may_change() {
            self.begin_preflight(now, program, callers, actions);
        } else if caller.is_some() && (queued || self.upgrades()) {
            reply_to_all(caller, CommandReply::UpgradeUnderWay, actions);
        } else if !queued {
            self.queue.push(Queued::Upgrade { program, callers });
            actions.push(Action::Note(Note::UpgradeQueued));
        }
    }

    pub(super) fn begin_preflight(
        &mut self,
        now: Millis,
        program: Option<PathBuf>,
        callers: Vec<Caller>,
        actions: &mut Vec<Action>,
    ) {
        let until = (self.policy.boot_timeout_ms > 0).then(|| now.after(self.policy.boot_timeout_ms));
        self.change = Change::Preflight { callers, until, passed: false };
        actions.push(Action::BeginPreflight { program });
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
        reply_to_all(self.take_change().callers(), CommandReply::UpgradeRefused, actions);
        self.begin_queued(now, actions);
    }

    /// The exec failed, and we are who we were.
    pub(super) fn on_exec_failed(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let reply = match self.change {
            Change::Preflight { .. } => CommandReply::UpgradeRefused,
            Change::Returning { .. } => CommandReply::UpgradeFailed,
            Change::None | Change::Loading { .. } | Change::OnTrial(_) => return,
        };
        reply_to_all(self.take_change().callers(), reply, actions);
        self.begin_queued(now, actions);
    }

    /// Not while the shell still owes an answer: a fork that nobody knows of would be nobody's child.
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
    /// The shell answers it with an event before it waits again.
    fn awaits_event(&self) -> bool {
        matches!(self, Self::Fork { .. } | Self::Measure { .. } | Self::LoadSettings | Self::Grow { .. })
    }
}
