//! The worker processes: the messages between them and the master, and the end of each process.
//!
//! Owns: forks, the receipt of messages, and reaping. Refuses: to keep the data of one process (`child`), to decide
//! what follows from an event (`core`), and to find the reason for an exit (`exits`).

use std::{io, os::fd::AsFd};

use super::{
    Shell,
    child::Child,
    core::{Event, KillCause, Millis, Phase, Pid, SlotId},
    crash_suspect, exits, upgrade,
};
use crate::{
    app::{Runtime, SupervisorEvent},
    channel::{Received, ToMaster},
    hook::{self, HookPanicked},
    sys::{
        clock,
        fork::{Forked, fork},
        wait::{Exit, reap},
    },
};

/// Forks a worker, and calls the runtime's hooks before and after the fork. The caller must keep signals blocked during
/// the call. If the hook in the worker panics, the worker gets this panic as a part of the result, and it must not
/// boot.
///
/// # Errors
/// The errors of [`fork`], and a panic of the hook before the fork. The hook `after_fork_in_master` is called even
/// after an error.
pub(crate) fn fork_worker(runtime: &dyn Runtime) -> io::Result<(Forked, Option<HookPanicked>)> {
    let ready = hook::call("Runtime::before_fork", || runtime.before_fork()).map_err(io::Error::other);
    let forked = ready.and_then(|()| fork());
    match forked {
        Ok(Forked::Child) => {
            let hooked = hook::call("Runtime::after_fork_in_worker", || runtime.after_fork_in_worker());
            forked.map(|forked| (forked, hooked.err()))
        }
        Ok(Forked::Parent { .. }) | Err(_) => {
            if let Err(panicked) = hook::call("Runtime::after_fork_in_master", || runtime.after_fork_in_master()) {
                tracing::error!(
                    event = "fork_hook_failed",
                    reason = panicked.to_string(),
                    "a hook of the app failed after a fork; the worker is not touched"
                );
            }
            forked.map(|forked| (forked, None))
        }
    }
}

/// Reads the heartbeats in the rows and the messages in the channels that the workers have written since the last call.
pub(super) fn recv_all(shell: &mut Shell) {
    for child in &mut shell.children {
        let due = child.row.due();
        if std::mem::replace(&mut child.due, due) != due {
            shell.inbox.push(Event::Heartbeat { pid: child.pid, due: Millis(due) });
        }
        shell.inbox.extend(child.first_answer());
    }
    for at in 0..shell.children.len() {
        recv(shell, at);
    }
}

fn recv(shell: &mut Shell, at: usize) {
    let pid = shell.children[at].pid;
    while let Some(channel) = &shell.children[at].channel {
        let message = match ToMaster::recv(channel.as_fd()) {
            Ok(Received::Message(message)) => message,
            Ok(Received::Nothing) => return,
            Ok(Received::Closed) | Err(_) => {
                // The worker has closed its end and will exit soon. Until then the closed channel would make every poll
                // return at once, so the master drops the channel here.
                shell.children[at].channel = None;
                return;
            }
        };
        let event = match message {
            ToMaster::Ready => {
                let (slot, generation) = shell.place(pid);
                tracing::info!(
                    event = "worker_ready",
                    slot,
                    pid = pid.0,
                    generation,
                    "the worker is ready: its app is built"
                );
                Event::Ready { pid }
            }
            ToMaster::Accepting => Event::Accepting { pid },
            ToMaster::RecycleRequested => Event::RecycleRequested { pid },
            ToMaster::DrainBegun => Event::DrainBegun { pid },
            ToMaster::AllAccepted => Event::AllAccepted { pid },
            ToMaster::RoomChanged => Event::RoomChanged { pid, full: shell.children[at].row.full() },
            ToMaster::Silent { slot } => Event::SlotSilent { slot: SlotId(slot) },
            ToMaster::Arrivals { stay } => {
                shell.balance(stay);
                continue;
            }
            ToMaster::SentTo { slot } => {
                shell.prefer(slot);
                continue;
            }
            ToMaster::BootFailed(reason) => {
                let (slot, generation) = shell.place(pid);
                tracing::error!(
                    event = "worker_boot_failed",
                    slot,
                    pid = pid.0,
                    generation,
                    reason,
                    "the worker could not boot"
                );
                shell.children[at].boot_failure = Some(reason);
                continue;
            }
        };
        shell.inbox.push(event);
    }
}

/// Reaps every child that has ended, because the kernel may send only one SIGCHLD for several children.
pub(super) fn reap_all(shell: &mut Shell) {
    loop {
        match reap() {
            Ok(Some((pid, exit))) => reap_one(shell, Pid(pid), exit),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(
                    event = "reap_failed",
                    %error,
                    "waitpid failed; the master tries again at the next SIGCHLD"
                );
                return;
            }
        }
    }
}

fn reap_one(shell: &mut Shell, pid: Pid, exit: Exit) {
    if shell.upgrades.is_preflight(pid) {
        return upgrade::preflight::reap(shell, exit);
    }
    let Some(at) = shell.children.iter().position(|child| child.pid == pid) else {
        tracing::debug!(event = "orphan_reaped", pid = pid.0, reason = %exit, "reaped a process that is not a worker");
        return;
    };
    // The last messages of the worker may still be in its channel.
    recv(shell, at);
    let mut child = shell.children.remove(at);
    shell.inbox.extend(child.first_answer());
    record_exit(shell, &child, exit);
    shell.loader.tell(&SupervisorEvent::Exited(child.facts(&shell.core)));
    count_lost(shell, &child, exit);
    shell.scoreboard.release(child.row);
    shell.inbox.push(Event::Exited { pid });
}

/// Logs why the worker ended, and keeps the reason for the status.
fn record_exit(shell: &mut Shell, child: &Child, exit: Exit) {
    let Some(worker) = shell.core.worker(child.pid) else { return };
    let (slot, generation, phase) = (worker.slot, worker.generation, worker.phase);
    let oom = match &mut shell.oom_kills {
        Some(kills) if exits::is_foreign_kill(exit, phase) => kills.account(clock::now()),
        Some(_) | None => None,
    };
    let in_flight = child.row.requests_in_flight();
    let reason = exits::log(child, slot, generation, phase, exit, oom, &in_flight);
    if exits::may_be_caused_by_a_request(phase, exit) {
        let foreign = oom.is_some_and(|oom| oom.now <= oom.before);
        crash_suspect::record_death(shell, &in_flight, foreign);
    }
    if !exits::left_in_order(phase, exit)
        && let Some(report) = &child.report
    {
        report.log(child.pid, slot, generation);
    }
    if matches!(phase, Phase::Starting { .. }) || exits::given_up_for(phase) == Some(KillCause::BootTimeout) {
        shell.boot_failure = Some(reason.clone());
    }
    shell.history.record(slot, reason);
}

/// Counts the requests that were lost with this worker. A worker that drained and exited with code 0 has already
/// counted its lost requests itself.
fn count_lost(shell: &Shell, child: &Child, exit: Exit) {
    if !shell.core.worker(child.pid).is_some_and(|worker| exits::left_in_order(worker.phase, exit)) {
        shell.scoreboard.cut(child.row.in_flight());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Notes(RefCell<Vec<&'static str>>);

    impl Runtime for Notes {
        fn name(&self) -> &'static str {
            "notes"
        }

        fn before_fork(&self) {
            self.0.borrow_mut().push("before");
        }

        fn after_fork_in_master(&self) {
            self.0.borrow_mut().push("after in master");
        }

        fn after_fork_in_worker(&self) {
            self.0.borrow_mut().push("after in worker");
        }
    }

    #[test]
    fn the_hook_in_the_master_runs_after_a_fork_that_failed_too() {
        let notes = Notes::default();
        // `fork` refuses a process with a second thread. This test starts such a thread, so its fork fails.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || ended.recv().unwrap_err());
            fork_worker(&notes).unwrap_err();
            drop(end);
        });
        assert_eq!(notes.0.take(), ["before", "after in master"]);
    }
}
