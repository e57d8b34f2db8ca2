//! Facts about the machine and this process: CPUs, user, accounts, rights on files, terminal.
//!
//! Owns: asking the system. Refuses: to decide anything from the answers (`settings` does).

use std::{io, path::Path};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::{AccessFlags, Gid, Group, Pid, Uid, User, eaccess, getegid, geteuid},
};

/// Returns the width, in columns, of the terminal at stdout; `None` if stdout is no terminal or its width is unknown.
pub(crate) fn terminal_width() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize. `size` is a winsize and outlives the call.
    let told = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (told == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Returns the number of CPUs that this process may run on; `None` if the kernel's mask has more bits than `CpuSet`
/// (1024).
pub(crate) fn affinity() -> Option<u32> {
    let set = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let allowed = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count();
    u32::try_from(allowed).ok()
}

/// Returns the effective user and group of this process.
pub(crate) fn effective_ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Succeeds if this process may write to the file at `path`, or may make it if it does not exist.
///
/// # Errors
/// EACCES or EROFS: this process may not write there. ENOENT: the folder does not exist.
pub(crate) fn writable(path: &Path) -> io::Result<()> {
    match (path.symlink_metadata(), path.parent()) {
        (Err(_), Some(folder)) => writable_folder(folder),
        _ => Ok(eaccess(path, AccessFlags::W_OK)?),
    }
}

/// Succeeds if this process may make files in this folder.
///
/// # Errors
/// The same as those of [`writable`].
pub(crate) fn writable_folder(folder: &Path) -> io::Result<()> {
    Ok(eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

/// Returns name, uid and primary gid of the account with this name; `None` if there is no such account.
pub(crate) fn user_by_name(name: &str) -> Result<Option<(String, u32, u32)>, std::io::Error> {
    Ok(User::from_name(name)?.map(account))
}

/// Returns name, uid and primary gid of the account with this uid; `None` if there is no such account.
pub(crate) fn user_by_id(uid: u32) -> Result<Option<(String, u32, u32)>, std::io::Error> {
    Ok(User::from_uid(Uid::from_raw(uid))?.map(account))
}

fn account(user: User) -> (String, u32, u32) {
    (user.name, user.uid.as_raw(), user.gid.as_raw())
}

/// Returns name and gid of the group with this name; `None` if there is no such group.
pub(crate) fn group_by_name(name: &str) -> Result<Option<(String, u32)>, std::io::Error> {
    Ok(Group::from_name(name)?.map(|group| (group.name, group.gid.as_raw())))
}

/// Returns name and gid of the group with this gid; `None` if there is no such group.
pub(crate) fn group_by_id(gid: u32) -> Result<Option<(String, u32)>, std::io::Error> {
    Ok(Group::from_gid(Gid::from_raw(gid))?.map(|group| (group.name, group.gid.as_raw())))
}
