//! To which slots new connections go.
//!
//! Owns: which workers are silent or full, and the set of slots that is steered to. Refuses: how much each of them gets
//! (the shell's balance), and ending a silent worker (`core`).

use super::{Action, Master, Millis, Note, Phase, Pid, SlotId, Stage, Worker};

/// How often the beats of the silent are looked at: one that beats again gets its share back within this.
const SILENT_LOOK_MS: u64 = 100;
/// A silence this long is told once it is over; shorter ones are what blocking handlers do all day.
const LOGGED_SILENCE_MS: u64 = 1_000;

impl Master {
    pub(super) fn on_heartbeat(&mut self, now: Millis, pid: Pid, due: Millis, actions: &mut Vec<Action>) {
        let next = due.after(self.policy.timeout_ms);
        let Some(w) = self.by_pid(pid) else { return };
        let Phase::Serving { silent_until } = &mut w.phase else { return };
        *silent_until = next;
        let silent_ms = now.since(std::mem::replace(&mut w.due, due));
        w.forgiven = false;
        // A promise that is broken when it is read ends no silence.
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
        // It may have beaten since it was said.
        for w in self.workers.iter_mut().filter(|w| w.slot == slot && w.serving() && w.due < now) {
            w.silent = true;
        }
    }

    /// Spare slots are never live, those of the full only if all others are full or silent, those of the silent only if
    /// all are silent, and an empty set keeps the last program: then every slot waits alike.
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

    /// Whether somebody's beat is waited for; nothing but a look tells the master of it.
    pub(super) fn watches_silent(&self) -> bool {
        let steers = matches!(self.stage, Stage::Running | Stage::Delaying { .. });
        steers && self.workers.iter().any(|w| w.silent && w.serving())
    }
}
