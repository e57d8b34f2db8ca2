//! Which slots get new connections.
//!
//! Owns: which workers are silent or full, and the set of slots that new connections go to. Refuses: the weights
//! between these slots (the shell's balance), and ending a silent worker (`core`).

use super::{Action, Master, Millis, Note, Phase, Pid, SlotId, Stage, Worker};

/// How often the heartbeats of silent workers are looked at. A worker that sends heartbeats again gets new connections
/// again within this time.
const SILENT_LOOK_MS: u64 = 100;
/// A silence this long is logged once it is over. Shorter ones are common: handlers that block cause them.
const LOGGED_SILENCE_MS: u64 = 1_000;

impl Master {
    pub(super) fn on_heartbeat(&mut self, now: Millis, pid: Pid, due: Millis, actions: &mut Vec<Action>) {
        let next = due.after(self.policy.timeout_ms);
        let Some(w) = self.by_pid(pid) else { return };
        let Phase::Serving { silent_until } = &mut w.phase else { return };
        *silent_until = next;
        let silent_ms = now.since(std::mem::replace(&mut w.due, due));
        w.forgiven = false;
        // A heartbeat whose own promise is already broken does not end a silence.
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
        // The worker may have sent a heartbeat since the report.
        for w in self.workers.iter_mut().filter(|w| w.slot == slot && w.serving() && w.due < now) {
            w.silent = true;
        }
    }

    /// Chooses the slots that get new connections: those of workers that are neither silent nor full; if there are
    /// none, those of workers that are not silent; if there are none, all that serve. Slots above the target get none.
    /// If no worker serves, the last choice stays: then connections wait in every slot alike.
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

    /// Whether a silent worker exists: then the master must poll its heartbeat, because no event announces one.
    pub(super) fn watches_silent(&self) -> bool {
        let steers = matches!(self.stage, Stage::Running | Stage::Delaying { .. });
        steers && self.workers.iter().any(|w| w.silent && w.serving())
    }
}
