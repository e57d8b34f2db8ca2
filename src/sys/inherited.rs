//! Resets the state that this process inherited over its exec, as far as it would harm a supervisor.
//!
//! Owns: resetting blocked signals, timers and SIGXFSZ, once, before the program does anything else. Other inherited
//! state is kept on purpose; the table in docs/operations/what-a-start-inherits.md lists it. Refuses: to log; the
//! caller logs what was found.

use nix::sys::{
    resource::{Resource, getrlimit},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// The timers that continue to run over an exec, each with the message for the log when it was cancelled.
const TIMERS: [(libc::c_int, &str); 3] = [
    (libc::ITIMER_REAL, "a timer (alarm) that would have ended it with SIGALRM was cancelled"),
    (libc::ITIMER_VIRTUAL, "a timer that would have ended it with SIGVTALRM was cancelled"),
    (libc::ITIMER_PROF, "a timer that would have ended it with SIGPROF was cancelled"),
];

/// Unblocks every signal, cancels the timers, and makes a write beyond RLIMIT_FSIZE fail instead of ending the process.
/// Returns what it found, in sentences for an operator. Do not call it in a program that takes over in an upgrade:
/// there the previous program has blocked the signals on purpose.
pub(crate) fn reset() -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(blocked) = SigSet::thread_get_mask()
        && blocked != SigSet::empty()
    {
        let names: Vec<_> = blocked.iter().map(Signal::as_str).collect();
        found.push(format!("{} blocked: unblocked", are(&names)));
        // Pending signals were sent to the program that ran before the exec. If they were only unblocked, they could
        // end this program at once, so they are dropped. Requests to stop and SIGCHLD are kept.
        let meant_for_another =
            |signal: &Signal| !matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGCHLD);
        blocked.iter().filter(meant_for_another).for_each(drop_pending);
        // The result is ignored: the system call fails only if its argument `how` is invalid, and nix passes a valid
        // one.
        let _ = SigSet::empty().thread_set_mask();
    }
    for (timer, sentence) in TIMERS {
        // SAFETY: itimerval consists of plain integers, so all-zero is a valid value. It is the value that cancels a
        // timer.
        let (cancel, mut before): (libc::itimerval, libc::itimerval) = unsafe { std::mem::zeroed() };
        // SAFETY: `cancel` and `before` are valid itimervals and outlive the call.
        let done = unsafe { libc::setitimer(timer, &raw const cancel, &raw mut before) };
        let ran = before.it_value.tv_sec != 0 || before.it_value.tv_usec != 0;
        if done == 0 && ran {
            found.push(sentence.to_owned());
        }
    }
    // SAFETY: SIG_IGN installs no handler, so no code of this program runs when the signal comes.
    let _ =
        unsafe { sigaction(Signal::SIGXFSZ, &SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty())) };
    let limits = [
        (
            Resource::RLIMIT_CPU,
            "RLIMIT_CPU",
            "seconds: the kernel ends the master, and each worker, after this much CPU time",
        ),
        (Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", "bytes: log files and databases cannot grow beyond it"),
    ];
    for (resource, name, what) in limits {
        if let Ok((soft, _)) = getrlimit(resource)
            && soft != libc::RLIM_INFINITY
        {
            found.push(format!("{name} is {soft} {what}"));
        }
    }
    found
}

/// Drops a pending signal. If a process ignores a signal, the kernel discards it even if it is pending (signal(7)), so
/// this function ignores the signal for a moment.
fn drop_pending(signal: Signal) {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: SIG_IGN installs no handler, so no code of this program runs when the signal comes.
    if let Ok(before) = unsafe { sigaction(signal, &ignore) } {
        // SAFETY: `before` is the action that this process had for the signal before the call above.
        let _ = unsafe { sigaction(signal, &before) };
    }
}

fn are(names: &[&str]) -> String {
    match names {
        [one] => format!("{one} was"),
        many if many.len() > 5 => format!("{} signals were", many.len()),
        many => format!("{} were", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::alarm;

    use super::{super::alone, *};

    #[test]
    fn blocked_signals_and_an_alarm_are_reset_and_reported_once() {
        alone::run("sys::inherited::tests::blocked_signals_and_an_alarm_are_reset_and_reported_once", || {
            let limits = reset();
            let mut blocked = SigSet::empty();
            blocked.add(Signal::SIGTERM);
            blocked.add(Signal::SIGCHLD);
            blocked.thread_set_mask().unwrap();
            alarm::set(100);
            let found = reset();
            assert_eq!(found[0], "SIGTERM, SIGCHLD were blocked: unblocked");
            assert!(found[1].contains("SIGALRM"), "{found:?}");
            assert_eq!(found[2..], limits);
            assert_eq!((SigSet::thread_get_mask().unwrap(), alarm::cancel()), (SigSet::empty(), None));
            assert_eq!(reset(), limits);
        });
    }
}
