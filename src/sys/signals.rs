//! Wakes the master's poll when a signal comes, removes the master's actions in a forked child, and blocks and sends
//! signals.
//!
//! Owns: the actions that the master registers in signal-hook's registry. Tokio uses the same registry. In a forked
//! child the master's actions are removed, but the registry's handlers stay installed. Refuses: to decide what a signal
//! means, and to set SIG_DFL for a signal that the master handles. With SIG_DFL tokio would never receive that signal
//! again, and a SIGHUP that is sent to a worker by mistake would kill the worker.

use std::{
    io::{self, PipeReader, PipeWriter, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, kill, killpg, sigaction},
    unistd::{Pid, alarm},
};
use signal_hook::{SigId, low_level};

/// The type of the signals that the master sends to its workers by [`send`].
pub(crate) use nix::sys::signal::Signal as Number;

/// The signals that the master handles. If several signals wait, the master takes them in this order. The first ones
/// stop the service. The last one is SIGCHLD; it reports the end of a child.
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
    /// Returns the name of the signal, such as "SIGTERM". [`named`](Self::named) does the reverse.
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

/// How often each signal came since the master last took it, in the order of [`HEARD`]. The counts are static because a
/// signal handler may use them at any time.
static COUNTS: [AtomicU32; HEARD.len()] = [const { AtomicU32::new(0) }; HEARD.len()];

/// Receives the master's signals. Its descriptor ([`AsFd`]) is readable if [`take`](Self::take) would return a signal.
#[derive(Debug)]
pub(crate) struct MasterSignals {
    ids: Vec<SigId>,
    reader: PipeReader,
    /// The writing end of the pipe. The handlers write to the number of this descriptor, so it must stay open until the
    /// handlers are unregistered.
    _writer: PipeWriter,
}

impl MasterSignals {
    /// Registers handlers for all ten signals. Call it once in a process, because all values of this type share one set
    /// of counts.
    ///
    /// # Errors
    /// The kernel's errors, such as EMFILE and ENFILE.
    pub(crate) fn install() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let wake = writer.as_raw_fd();
        let mut signals = Self { ids: Vec::with_capacity(HEARD.len()), reader, _writer: writer };
        for (count, (_, number)) in COUNTS.iter().zip(HEARD) {
            let heard = move || {
                count.fetch_add(1, Ordering::Release);
                // SAFETY: `wake` stays open as long as this action is registered, and the buffer is one byte of static
                // memory. If the pipe is full, the write fails; that is fine, because one byte is enough to make the
                // pipe readable.
                unsafe { libc::write(wake, c"".as_ptr().cast(), 1) };
            };
            // SAFETY: the action is async-signal-safe: it changes an atomic and calls write(2); it neither locks nor
            // allocates.
            signals.ids.push(unsafe { low_level::register(number, heard) }?);
        }
        Ok(signals)
    }

    /// Returns the signals that came since the last call, and how often each came, in the order of [`Signal`]. The
    /// kernel merges equal signals that wait at the same time, so a count of one for `Chld` may mean that several
    /// children have ended.
    pub(crate) fn take(&mut self) -> Vec<(Signal, u32)> {
        // Empty the pipe before the counts are read. If a signal comes in between, a byte stays in the pipe without a
        // count. It costs the master one turn of its loop without work. In the other order a count could stay without a
        // byte in the pipe, and the master would not wake for this signal.
        let mut buffer = [0; 64];
        while matches!(self.reader.read(&mut buffer), Ok(1..)) {}
        let counts = COUNTS.iter().map(|count| count.swap(0, Ordering::Acquire));
        HEARD.iter().zip(counts).filter(|(_, times)| *times > 0).map(|((signal, _), times)| (*signal, times)).collect()
    }

    /// Removes the master's actions in a forked child, so that the child's signals do not wake the master through the
    /// shared pipe. Call it while signals are still blocked. The child then ignores these signals until other code,
    /// such as tokio, registers for them.
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

/// A guard that keeps all signals of this thread blocked. When the guard is dropped, the previous mask is restored.
#[derive(Debug)]
#[must_use = "dropping it unblocks at once"]
pub(crate) struct Blocked(SigSet);

impl Blocked {
    /// Returns the guard for the signals that the previous program blocked before its exec. The new program does not
    /// know the mask from before the block, so dropping this guard unblocks all signals.
    pub(crate) fn over_exec() -> Self {
        Self(SigSet::empty())
    }
}

/// Blocks every signal that this thread can block.
///
/// # Errors
/// It does not fail in practice.
pub(crate) fn block_all() -> io::Result<Blocked> {
    Ok(Blocked(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?))
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // The result is ignored: the system call fails only if its argument `how` is invalid, and nix passes a valid
        // one.
        let _ = self.0.thread_set_mask();
    }
}

/// Sends `signal` to one process. Returns `false` if no process has that pid.
///
/// # Errors
/// EPERM: this process may not send signals to the process `pid`. InvalidInput: `pid` is below 1; such a number would
/// mean a process group or all processes.
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

/// Sends SIGKILL to all processes that are left in the process group of `leader`. Call it only while `leader` lives or
/// right after it was reaped, so that the number cannot belong to another group.
pub(crate) fn kill_group(leader: i32) {
    if leader > 1 {
        // The result is ignored: the call fails if the group is empty by now.
        let _ = killpg(Pid::from_raw(leader), Number::SIGKILL);
    }
}

/// Returns the name of a signal, such as "SIGKILL" for 9; `None` for a number without a name, such as a real-time
/// signal.
pub(crate) fn name(signal: i32) -> Option<&'static str> {
    Number::try_from(signal).ok().map(Number::as_str)
}

/// Makes SIGTERM also start a timer that ends this worker by SIGALRM after `seconds` (0: no timer). The timer is for a
/// worker whose loop hangs and whose master is gone. A second SIGTERM never delays the timer.
///
/// # Errors
/// It does not fail in practice.
pub(crate) fn term_arms_alarm(seconds: u32) -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this program. No registry has a handler for SIGALRM, because the
    // worker's runtime has not started yet.
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

/// What this process does at a SIGTERM.
#[derive(Clone, Copy)]
pub(crate) struct TermAction(libc::sigaction);

impl TermAction {
    /// Returns the present action.
    ///
    /// # Errors
    /// It does not fail in practice.
    pub(crate) fn present() -> io::Result<Self> {
        let mut action = MaybeUninit::uninit();
        // SAFETY: without a new action the call only writes the present one to memory of ours.
        let done = unsafe { libc::sigaction(libc::SIGTERM, ptr::null(), action.as_mut_ptr()) };
        Errno::result(done)?;
        // SAFETY: the call has succeeded, so it has written the action.
        Ok(Self(unsafe { action.assume_init() }))
    }

    /// Makes this the action again, whatever other code of the process has set meanwhile.
    ///
    /// # Errors
    /// It does not fail in practice.
    pub(crate) fn restore(&self) -> io::Result<()> {
        // SAFETY: this process had the action before, and its handler is a function of this program.
        let done = unsafe { libc::sigaction(libc::SIGTERM, &raw const self.0, ptr::null_mut()) };
        Errno::result(done)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{
        super::{alone, poll, wait},
        *,
    };

    /// Runs `body` in a forked child, and returns how the child ended. The test harness has a second thread, so `body`
    /// may do only what needs no lock that this thread could hold.
    fn child(body: impl FnOnce()) -> wait::Exit {
        // SAFETY: the other thread of the test harness waits for this test to end and holds no lock.
        let child = unsafe { libc::fork() };
        if child == 0 {
            body();
            // SAFETY: _exit(2) ends the child at once; it does not flush or drop what the child inherited from the
            // parent.
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
            // Only the byte for SIGCHLD may be in the pipe. If the child had written a byte for each of its own
            // signals, the pipe would hold more.
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
