//! Forks a process that has one thread.
//!
//! Owns: the system call, and counting threads. Refuses: to fork a process with more than one thread. Only the thread
//! that forks exists in the child, so a lock that another thread held would stay locked in the child for ever.

use std::{fs, io};

use nix::unistd::{self, ForkResult};

/// Tells whether this process is the parent or the child of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent { child: i32 },
    Child,
}

/// Forks this process. Call it with all signals blocked ([`block_all`](super::signals::block_all)), so that the child
/// handles no signal before it has set up its own handlers.
///
/// # Errors
/// The kernel's errors, such as EAGAIN if no more processes are allowed; and "called with N threads" if this process
/// has more than one.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = thread_count()?;
    if threads != 1 {
        return Err(io::Error::other(format!("called with {threads} threads; a worker can be forked from one only")));
    }
    // SAFETY: the count above shows that this is the only thread. No lock can be held by a thread that the child lacks,
    // so the child may call everything that its parent may call.
    Ok(match unsafe { unistd::fork() }? {
        ForkResult::Parent { child } => Forked::Parent { child: child.as_raw() },
        ForkResult::Child => Forked::Child,
    })
}

/// Returns the number of threads of this process.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}
