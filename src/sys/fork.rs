//! Forks a process.
//!
//! Owns: the system call, and counting threads. Refuses: to fork a process with more than one thread, unless the child
//! only executes another program. Only the thread that forks exists in the child, so a lock that another thread held
//! would stay locked in the child for ever.

use std::{fs, io, time::Duration};

use nix::unistd::{self, ForkResult};

use super::poll::wait;

/// Tells whether this process is the parent or the child of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent { child: i32 },
    Child,
}

impl From<ForkResult> for Forked {
    fn from(result: ForkResult) -> Self {
        match result {
            ForkResult::Parent { child } => Self::Parent { child: child.as_raw() },
            ForkResult::Child => Self::Child,
        }
    }
}

/// Forks this process. Call it with all signals blocked ([`block_all`](super::signals::block_all)), so that the child
/// handles no signal before it has set up its own handlers.
///
/// # Errors
/// The kernel's errors, such as EAGAIN if no more processes are allowed; and "the process has N threads" if this
/// process has more than one.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = thread_count()?;
    if threads != 1 {
        return Err(io::Error::other(format!(
            "the process has {threads} threads, and a worker can be forked from one only: a hook of the app, such as \
             App::prepare, has started a thread; an upgrade executes the program anew, without that thread"
        )));
    }
    // SAFETY: the count above shows that this is the only thread. No lock can be held by a thread that the child lacks,
    // so the child may call everything that its parent may call.
    Ok(unsafe { unistd::fork() }?.into())
}

/// Forks this process, even if it has several threads, for a child that only executes another program. Call it with all
/// signals blocked, as [`fork`]. Until the exec the child must take no lock of this process. It may allocate: glibc,
/// and musl since 1.2.2, keep their allocator usable in the child.
///
/// # Errors
/// The kernel's errors, such as EAGAIN if no more processes are allowed.
pub(crate) fn fork_to_execute() -> io::Result<Forked> {
    // SAFETY: a lock that another thread holds stays locked in the child. The child executes another program, and takes
    // no lock before.
    Ok(unsafe { unistd::fork() }?.into())
}

/// How many times [`lasting_threads`] counts the threads, 5 ms apart. A thread that has ended stays visible in `/proc`
/// for a moment, because the kernel wakes the thread that joins it before it removes the ended thread.
const LOOKS: u32 = 10;

/// Returns the number of threads of this process. Waits up to 50 ms for threads that are about to end.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn lasting_threads() -> io::Result<usize> {
    for _ in 0..LOOKS {
        if thread_count()? <= 1 {
            return Ok(1);
        }
        wait(&[], Some(Duration::from_millis(5)))?;
    }
    thread_count()
}

/// Returns the number of threads of this process.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}
