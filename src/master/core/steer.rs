//! Which slots get new connections.
//!
//! Owns: the knowledge of which workers are silent or full, and the set of slots that get new connections. Refuses: to
//! set the weights of these slots (`perform`), and to end a silent worker (`core`).

use super::{Action, Master, Millis, Note, Phase, Pid, SlotId, Stage, Worker};

/// How often the master looks at the heartbeats of silent workers. If such a worker sends heartbeats again, its slot
/// gets new connections again within this time.
const SILENT_LOOK_MS: u64 = 100;
/// If a worker was silent for at least this long, its first heartbeat after the silence is logged. Shorter silences are
/// common, because a request handler that blocks also delays the heartbeats.
const LOGGED_SILENCE_MS: u64 = 1_000;

impl Master {
    pub(super) fn on_heartbeat(&mut self, now: Millis, pid: Pid, due: Millis, actions: &mut Vec<Action>) {
        let next = due.after(self.policy.timeout_ms);
        let Some(w) = self.by_pid(pid) else { return };
        let Phase::Serving { silent_until } = &mut w.phase else { return };
        *silent_until = next;
        let silent_ms = now.since(std::mem::replace(&mut w.due, due));
        w.forgiven = false;
        // The master may read a heartbeat so late that its promise is already broken. The worker then still counts as
        // silent.
        if w.silent && due >= now {
            w.silent = false;
            if silent_ms >= LOGGED_SILENCE_MS {
                actions.push(Action::Note(Note::HeartbeatResumed { pid, silent_ms }));
            }
        }
    }

    pub(super) fn on_slot_silent(&mut self, now: Millis, slot: SlotId) {
        if !self.watches_silent() {
            self.look_at = now.after(SILENT_LOOK_MS);
        }
        // The worker may have sent a heartbeat after its sibling reported it as silent, so only a worker that is
        // overdue now is silent.
        for w in self.workers.iter_mut().filter(|w| w.slot == slot && w.serving() && w.due < now) {
            w.silent = true;
        }
    }

    /// Chooses the slots that get new connections. These are the slots whose worker is neither silent nor full. If
    /// there is no such slot, the slots whose worker is not silent are chosen. If every worker is silent, all slots
    /// with a serving worker are chosen. Slots above the target get no new connections. If no worker serves, the
    /// earlier choice stays, because new connections must wait in any case, whichever slots they go to.
    pub(super) fn steer(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.watches_silent() && self.look_at <= now {
            self.look_at = now.after(SILENT_LOOK_MS);
        }
        let slots_of = |able: fn(&Worker) -> bool| -> Vec<SlotId> {
            (0..self.target).map(SlotId).filter(|slot| self.in_slot(*slot).any(able)).collect()
        };
        let by_choice: [fn(&Worker) -> bool; 3] =
            [|w| w.serving() && !w.silent && !w.full, |w| w.serving() && !w.silent, Worker::serving];
        let live = by_choice.into_iter().map(slots_of).find(|live| !live.is_empty()).unwrap_or_default();
        if !live.is_empty() && live != self.steered {
            self.steered.clone_from(&live);
            actions.push(Action::Steer { live });
        }
    }

    /// Returns true if a silent worker serves. The master must then poll for this worker's heartbeats, because no event
    /// announces them.
    pub(super) fn watches_silent(&self) -> bool {
        let steers = matches!(self.stage, Stage::Running | Stage::Delaying { .. });
        steers && self.workers.iter().any(|w| w.silent && w.serving())
    }
}
