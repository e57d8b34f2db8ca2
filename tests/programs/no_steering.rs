//! Runs another program, which then cannot steer new connections to chosen workers, because the kernel refuses it.
//! Usage: `no_steering program [arguments]`.
//!
//! Owns: one seccomp filter that makes setsockopt(SO_ATTACH_REUSEPORT_CBPF) fail with EPERM, in this process and in
//! every process that it starts. Refuses: to change anything else for the program that it starts.
#![allow(unsafe_code, reason = "seccomp is two system calls that no library here wraps")]

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// The number of the socket option, from `linux/socket.h`. The libc crate defines it for Android only.
const SO_ATTACH_REUSEPORT_CBPF: u32 = 51;

/// Two offsets in `struct seccomp_data`. `NUMBER` is the offset of the system call's number. `OPTION` is the offset of
/// the low half of the third argument. For setsockopt, the third argument is the number of the option.
const NUMBER: u32 = 0;
const OPTION: u32 = if cfg!(target_endian = "little") { 32 } else { 36 };

fn refuse_steering() -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump_unless = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        instruction(load, 0, NUMBER),
        instruction(jump_unless, 3, libc::SYS_setsockopt as u32),
        instruction(load, 0, OPTION),
        instruction(jump_unless, 1, SO_ATTACH_REUSEPORT_CBPF),
        instruction(give, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(give, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the first call only gives up the right to gain privileges, and takes no pointers. The second call reads
    // `program` and the instructions it points at, copies them, and keeps no reference.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().ok_or("usage: no_steering program [arguments]")?;
    refuse_steering()?;
    Err(Command::new(program).args(arguments).exec().into())
}
