//! Forks a process that has one thread.
//!
//! Owns: the system call, and counting threads. Refuses: a process with more threads. Only the thread that forks exists
//! in the child, and a lock that another thread held would stay locked.

use std::{fs, io};

use nix::unistd::{self, ForkResult};

/// The side of the fork that this process is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent { child: i32 },
    Child,
}

/// Forks. Block signals around it ([`block_all`](super::signals::block_all)), so that the child handles none before it
/// is ready to.
///
/// # Errors
/// The kernel's (EAGAIN: no more processes allowed), or "called with N threads".
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = thread_count()?;
    if threads != 1 {
        return Err(io::Error::other(format!("called with {threads} threads; a worker can be forked from one only")));
    }
    // SAFETY: this is the only thread, as counted above, so no lock can be held by a thread the child lacks, and the
    // child may do all that its parent may.
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
