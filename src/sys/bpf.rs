//! Attaches a classic BPF program that chooses the listener of a SO_REUSEPORT group.
//!
//! Owns: the system call. Refuses: to write the program (`listener::steering`).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// One instruction: `code`, `jt`, `jf`, `k`, as the kernel lays it out.
pub(crate) use libc::sock_filter as Instruction;

/// `linux/socket.h`; libc has it for Android only.
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

/// Attaches `program` to the SO_REUSEPORT group of `fd`, in place of the previous one, atomically: no connection that
/// is made after this returns is steered by the old one. It needs no privilege.
///
/// # Errors
/// EINVAL: not a SO_REUSEPORT socket, or the kernel's verifier refused the program (also: `% 0`).
pub(crate) fn attach_reuseport(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the option's value is a sock_fprog whose `filter` points at `len` instructions that outlive the call; the
    // kernel copies them and writes none, so the cast from const is never used.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
