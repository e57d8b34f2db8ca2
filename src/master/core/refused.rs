//! What the master leaves undone while the last reload or upgrade stands refused, if workers load their code from the
//! disk. The code on the disk is then the code that was refused, or code that was never tried. So a worker that serves
//! is worth more than a new one.
//!
//! Owns: the question whether workers are replaced by choice, and the way back from a request for more workers.
//! Refuses: to limit the tries after a death (`slots`), because a slot without a worker has nothing to lose.

use super::{Action, CommandReply, Master, Note, SlotId, Worker, trial::Change};

impl Master {
    /// Returns true if each new worker loads the app's code from the disk.
    pub(crate) fn code_on_disk(&self) -> bool {
        self.policy.code_on_disk
    }

    /// Returns true if no worker is replaced by choice.
    pub(crate) fn holds(&self) -> bool {
        self.policy.code_on_disk && self.refused.is_some()
    }

    /// Notes that the next worker of this slot loads code that was refused. Nothing is noted if the slot is still
    /// served, or if a trial of newer code is under way.
    pub(super) fn note_refused_code(&self, slot: SlotId, actions: &mut Vec<Action>) {
        let Some(refused) = self.refused.filter(|_| self.holds()) else { return };
        let on_trial = matches!(self.change, Change::OnTrial(_));
        if slot.0 < self.slots() && !on_trial && !self.in_slot(slot).any(Worker::serving) {
            actions.push(Action::Note(Note::LoadsRefusedCode { slot, refused }));
        }
    }

    /// Remembers the present target before a request for more workers, whose code was refused.
    pub(super) fn note_scale(&mut self, target: u32) {
        let before = self.target_before.unwrap_or(self.target);
        self.target_before = (self.holds() && target > before).then_some(before);
    }

    /// Goes back to the target from before a request for more workers, because the worker of an added slot could not
    /// boot.
    pub(super) fn take_scale_back(&mut self, slot: SlotId, actions: &mut Vec<Action>) {
        let Some(refused) = self.refused.filter(|_| self.holds()) else { return };
        let Some(target) = self.target_before.take_if(|before| slot.0 >= *before) else { return };
        self.target = target;
        self.reply_to_callers(CommandReply::ScaleRefused { slot, target }, actions);
        actions.push(Action::Note(Note::ScaleRefused { slot, target, refused }));
    }
}
