//! Forking a process that has one thread. Refuses a process with more: in the child only the caller's thread lives on,
//! and a lock some other thread held stays locked for ever.

use std::{fs, io};

use nix::unistd::{self, ForkResult};

/// Which side of the fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent { child: i32 },
    Child,
}

/// Forks. Block signals around it ([`block_all`](super::signals::block_all)), so that the child wakes up deaf.
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

/// Threads of this process.
///
/// # Errors
/// When `/proc` is not mounted.
pub(crate) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}
