//! Signals: receiving them in the master's poll, keeping them from a child, sending them.
//!
//! Owns: the master's actions in signal-hook's registry, which tokio shares. In a forked child the actions are removed
//! and the registry's handlers stay. Refuses: SIG_DFL on any of them, because tokio would never receive that signal
//! again, and a HUP that is sent to a worker by mistake would kill it. It does not know what a signal means.

use std::{
    io::{self, PipeReader, PipeWriter, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, kill, killpg, sigaction},
    unistd::{Pid, alarm},
};
use signal_hook::{SigId, low_level};

/// The signals that the master sends to workers, for [`send`].
pub(crate) use nix::sys::signal::Signal as Number;

/// The signals that the master handles, in the order in which it takes them: first those that end something, last the
/// deaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Term,
    Int,
    Quit,
    Hup,
    Ttin,
    Ttou,
    Usr1,
    Usr2,
    Winch,
    Chld,
}

impl Signal {
    /// "SIGTERM"; [`named`](Self::named) reads it back.
    pub(crate) fn name(self) -> &'static str {
        HEARD.iter().find(|(signal, _)| *signal == self).and_then(|(_, number)| name(*number)).unwrap_or("a signal")
    }

    pub(crate) fn named(text: &str) -> Option<Self> {
        HEARD.iter().map(|(signal, _)| *signal).find(|signal| signal.name() == text)
    }
}

const HEARD: [(Signal, i32); 10] = [
    (Signal::Term, libc::SIGTERM),
    (Signal::Int, libc::SIGINT),
    (Signal::Quit, libc::SIGQUIT),
    (Signal::Hup, libc::SIGHUP),
    (Signal::Ttin, libc::SIGTTIN),
    (Signal::Ttou, libc::SIGTTOU),
    (Signal::Usr1, libc::SIGUSR1),
    (Signal::Usr2, libc::SIGUSR2),
    (Signal::Winch, libc::SIGWINCH),
    (Signal::Chld, libc::SIGCHLD),
];

/// How often each came since it was last taken, in the order of [`HEARD`]. It is static because a handler may read it
/// at any time.
static COUNTS: [AtomicU32; HEARD.len()] = [const { AtomicU32::new(0) }; HEARD.len()];

/// The signals that have come. Readable ([`AsFd`]) if [`take`](Self::take) has something.
#[derive(Debug)]
pub(crate) struct MasterSignals {
    ids: Vec<SigId>,
    reader: PipeReader,
    /// The handlers write to it by number, so it is closed only after they are unregistered.
    _writer: PipeWriter,
}

impl MasterSignals {
    /// Registers all ten. Call it once in a process: the counts are shared.
    ///
    /// # Errors
    /// The kernel's: EMFILE, ENFILE.
    pub(crate) fn install() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let wake = writer.as_raw_fd();
        let mut signals = Self { ids: Vec::with_capacity(HEARD.len()), reader, _writer: writer };
        for (count, (_, number)) in COUNTS.iter().zip(HEARD) {
            let heard = move || {
                count.fetch_add(1, Ordering::Release);
                // A full pipe needs no further byte: it is readable.
                unsafe { libc::write(wake, c"".as_ptr().cast(), 1) };
            };
            // SAFETY: the action is async-signal-safe: an atomic and a write(2); it neither locks nor allocates.
            signals.ids.push(unsafe { low_level::register(number, heard) }?);
        }
        Ok(signals)
    }

    /// Returns what came since the last call, and how many times, in the order of [`Signal`]. The kernel merges equal
    /// signals that wait together, so a count of one for `Chld` may stand for many deaths.
    pub(crate) fn take(&mut self) -> Vec<(Signal, u32)> {
        // Empty the pipe before the counts are read: a signal in between then leaves one byte too many, never one too
        // few.
        let mut buffer = [0; 64];
        while matches!(self.reader.read(&mut buffer), Ok(1..)) {}
        let counts = COUNTS.iter().map(|count| count.swap(0, Ordering::Acquire));
        HEARD.iter().zip(counts).filter(|(_, times)| *times > 0).map(|((signal, _), times)| (*signal, times)).collect()
    }

    /// In a child, with signals still blocked: removes the master's actions, so that no signal reaches the master's
    /// pipe. The signals are ignored until other code, such as tokio, registers for them.
    pub(crate) fn forget_in_child(self) {
        drop(self);
    }
}

impl AsFd for MasterSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for MasterSignals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
    }
}

/// Signals are blocked while this lives; dropping it restores the previous mask.
#[derive(Debug)]
#[must_use = "dropping it unblocks at once"]
pub(crate) struct Blocked(SigSet);

impl Blocked {
    /// The signals that the previous program blocked before its exec. The mask of before that is not known, so dropping
    /// it unblocks all.
    pub(crate) fn over_exec() -> Self {
        Self(SigSet::empty())
    }
}

/// Blocks every signal of this thread that can be blocked.
///
/// # Errors
/// None in practice.
pub(crate) fn block_all() -> io::Result<Blocked> {
    Ok(Blocked(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?))
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // It fails only for an invalid `how`.
        let _ = self.0.thread_set_mask();
    }
}

/// Sends `signal` to one process; `false` if no process has that pid.
///
/// # Errors
/// EPERM; and EINVAL for a pid below 1, which would mean a process group or all processes.
pub(crate) fn send(pid: i32, signal: Number) -> io::Result<bool> {
    if pid < 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Kills all that is left of a process group. `leader` is a child of this process, alive or reaped a moment ago.
pub(crate) fn kill_group(leader: i32) {
    if leader > 1 {
        // The group may be empty by now.
        let _ = killpg(Pid::from_raw(leader), Number::SIGKILL);
    }
}

/// "SIGKILL" for 9; `None` for a number without a name, such as a real-time signal.
pub(crate) fn name(signal: i32) -> Option<&'static str> {
    Number::try_from(signal).ok().map(Number::as_str)
}

/// In a worker: lets SIGTERM also start a timer that ends the process by SIGALRM after `seconds` (0: no timer), for a
/// worker whose loop hangs and whose master is gone. A second SIGTERM never lengthens it.
///
/// # Errors
/// None in practice.
pub(crate) fn term_arms_alarm(seconds: u32) -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours. SIGALRM is in nobody's registry yet: this comes before the
    // worker's runtime.
    unsafe { sigaction(Number::SIGALRM, &default) }?;
    let arm = move || {
        let left = alarm::set(seconds);
        if let Some(left) = left.filter(|left| *left < seconds) {
            alarm::set(left);
        }
    };
    // SAFETY: alarm(2) is async-signal-safe, and the rest is arithmetic.
    unsafe { low_level::register(libc::SIGTERM, arm) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{
        super::{alone, poll, wait},
        *,
    };

    /// Forks from a test, whose harness has a second thread: the child may do only what needs no lock of that thread.
    fn child(body: impl FnOnce()) -> wait::Exit {
        // SAFETY: the harness's other thread waits for this test and holds no lock.
        let child = unsafe { libc::fork() };
        if child == 0 {
            body();
            // SAFETY: ends this process; nothing of the parent's is flushed or dropped.
            unsafe { libc::_exit(7) };
        }
        loop {
            match wait::reap().unwrap() {
                Some((pid, exit)) if pid == child => return exit,
                _ => drop(poll::wait(&[], Some(Duration::from_millis(1))).unwrap()),
            }
        }
    }

    #[test]
    fn signals_are_counted_wake_the_master_and_are_ignored_in_its_child() {
        alone::run("sys::signals::tests::signals_are_counted_wake_the_master_and_are_ignored_in_its_child", || {
            let mut signals = MasterSignals::install().unwrap();
            assert_eq!(signals.take(), []);
            for number in [libc::SIGHUP, libc::SIGWINCH, libc::SIGHUP, libc::SIGTERM] {
                low_level::raise(number).unwrap();
            }
            assert_eq!(poll::wait(&[(signals.as_fd(), poll::Interest::Read)], None).unwrap(), [true]);
            assert_eq!(signals.take(), [(Signal::Term, 1), (Signal::Hup, 2), (Signal::Winch, 1)]);
            assert_eq!(poll::wait(&[(signals.as_fd(), poll::Interest::Read)], Some(Duration::ZERO)).unwrap(), [false]);

            let pipe = signals.reader.try_clone().unwrap();
            let blocked = block_all().unwrap();
            let exit = child(|| {
                signals.forget_in_child();
                drop(blocked);
                for number in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR2] {
                    low_level::raise(number).unwrap();
                }
            });
            assert_eq!(exit, wait::Exit::Code(7));
            // At most the byte of SIGCHLD is there: a signal that the child received would be there too.
            let read = (&pipe).read(&mut [0; 64]).unwrap_or(0);
            assert!(read <= 1, "{read} bytes");
        });
    }

    #[test]
    fn a_terminated_worker_that_hangs_is_ended_by_the_alarm() {
        alone::run("sys::signals::tests::a_terminated_worker_that_hangs_is_ended_by_the_alarm", || {
            let exit = child(|| {
                term_arms_alarm(1).unwrap();
                SigSet::empty().thread_set_mask().unwrap();
                low_level::raise(libc::SIGTERM).unwrap();
                loop {
                    std::thread::park_timeout(Duration::from_secs(60));
                }
            });
            assert_eq!(exit.to_string(), "killed by SIGALRM");
        });
    }

    #[test]
    fn blocked_signals_wait_until_the_guard_is_dropped() {
        alone::run("sys::signals::tests::blocked_signals_wait_until_the_guard_is_dropped", || {
            let mask = || fs::read_to_string("/proc/thread-self/status").unwrap();
            let before = mask();
            let blocked = block_all().unwrap();
            assert!(mask().contains("SigBlk:\tfffffffe7ffbfeff") || mask().contains("SigBlk:\tfffffffe3ffbfeff"));
            drop(blocked);
            let line = |status: String| status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned();
            assert_eq!(line(mask()), line(before));
        });
    }

    #[test]
    fn a_signal_goes_to_one_process_only() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(send(pid, Number::SIGCONT).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(!send(i32::MAX, Number::SIGCONT).unwrap());
        assert!(send(std::process::id().cast_signed(), Number::SIGCONT).unwrap());
        assert_eq!((name(libc::SIGKILL), name(40)), (Some("SIGKILL"), None));
    }
}
