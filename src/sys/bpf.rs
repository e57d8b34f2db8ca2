//! Attaches a classic BPF program to a SO_REUSEPORT group. The program chooses the listener for each new connection.
//!
//! Owns: the system call. Refuses: to write the program; `listener::steering` does.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// One BPF instruction with the fields `code`, `jt`, `jf` and `k`, in the memory layout that the kernel reads.
pub(crate) use libc::sock_filter as Instruction;

/// The value is from `linux/socket.h`; the crate libc defines this constant for Android only.
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

/// Attaches `program` to the SO_REUSEPORT group of `fd` and replaces the previous program in one step. The new program
/// steers each connection that is made after this call returns. The call needs no privilege.
///
/// # Errors
/// EINVAL: `fd` is not a SO_REUSEPORT socket, or the kernel's verifier refused the program, for example because it
/// computes a remainder by 0.
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
