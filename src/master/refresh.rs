//! The wait until the runtime has read its own sources again, before a reload and before a preview of one.
//!
//! Owns: the requests that wait for this, in their order. Refuses: to wait in place: the master's poll watches the
//! runtime's descriptors, and continues with everything else.

use std::collections::VecDeque;

use super::{
    Shell,
    core::{Caller, Millis},
    now, reload,
};
use crate::{app::SupervisorEvent, hook, protocol::ControlResponse, settings::StartFolder};

/// What waits for the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The core has asked for the settings of a reload.
    Load,
    /// A caller wants to know what a reload would do.
    Preview(Caller),
}

/// The requests that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    waiting: VecDeque<Asked>,
    /// When the time of the runtime is over. It reads its sources for the first of the requests.
    until: Option<Millis>,
}

impl Refreshes {
    /// Returns when [`look`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.until
    }
}

/// Does what is asked, once the runtime has read its sources for it.
pub(super) fn ask(shell: &mut Shell, asked: Asked) {
    shell.refreshes.waiting.push_back(asked);
    advance(shell);
}

/// Continues if the runtime has read its sources, or has had its time.
pub(super) fn look(shell: &mut Shell) {
    let Some(until) = shell.refreshes.until else { return };
    let overdue = until <= now();
    let is_given_up = shell.refreshes.waiting.front().is_some_and(|first| !is_wanted(shell, *first));
    let runtime = &shell.loader.app.runtime;
    // A runtime that panics here has no answer, which it will say when it is asked for its settings.
    let done = hook::call("Runtime::refreshed", || runtime.refreshed(overdue)).unwrap_or(true);
    if done || overdue || is_given_up {
        shell.refreshes.until = None;
        act(shell);
        advance(shell);
    }
}

/// Begins the next refresh. What needs none is done at once.
fn advance(shell: &mut Shell) {
    while shell.refreshes.until.is_none() {
        let Some(first) = shell.refreshes.waiting.front() else { return };
        let start = StartFolder::at(shell.resolved.start.path());
        match is_wanted(shell, *first).then(|| shell.loader.app.refresh(&start)).flatten() {
            Some(time) => {
                let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                shell.refreshes.until = Some(now().after(ms));
            }
            None => act(shell),
        }
    }
}

/// Does what the first request has asked for.
fn act(shell: &mut Shell) {
    match shell.refreshes.waiting.pop_front() {
        Some(asked) if !is_wanted(shell, asked) => shell.loader.tell(&SupervisorEvent::RefreshUnused),
        Some(Asked::Load) => {
            let event = reload::load(shell);
            shell.inbox.push(event);
        }
        Some(Asked::Preview(caller)) => {
            let answer = match reload::preview(shell) {
                Ok(changes) => ControlResponse::done(changes),
                Err(reason) => ControlResponse::refused(format!(
                    "a reload of the running service (pid {}) would be refused: {reason}",
                    std::process::id()
                )),
            };
            shell.loader.tell(&SupervisorEvent::RefreshUnused);
            shell.answer(caller, answer);
        }
        None => {}
    }
}

/// Returns false if nobody waits for this any more: a stop has ended the reload, or the caller has left.
fn is_wanted(shell: &Shell, asked: Asked) -> bool {
    match asked {
        Asked::Load => shell.core.loads(),
        Asked::Preview(caller) => shell.control.as_ref().is_some_and(|control| control.has(caller)),
    }
}
