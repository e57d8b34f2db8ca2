//! System calls that concern a process: its parent, user and group, environment, new files, and size in memory.
//!
//! Owns: changing user and group, changing the environment, making files for another user. Refuses: to look up the
//! names of users and groups (`settings` does).

use std::{
    ffi::CString,
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        stat::{self, Mode},
    },
    unistd::{self, Gid, Pid, SysconfVar, Uid},
};

/// Makes this process the new parent of each of its descendants whose own parent dies. Otherwise PID 1 would be the new
/// parent.
///
/// # Errors
/// It does not fail on Linux 3.4 or later.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Makes the kernel send SIGTERM to this process when its parent dies. Call it after dropping privileges, because a
/// change of the user clears this setting. Afterwards compare [`parent_pid`] with its value before the fork: if it has
/// changed, the parent died before the call, and no signal will come.
///
/// # Errors
/// It does not fail in practice.
pub(crate) fn set_parent_death_signal() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
}

pub(crate) fn parent_pid() -> i32 {
    unistd::getppid().as_raw()
}

/// Changes to another user and group for good: afterwards the process cannot change back. It sets the supplementary
/// groups (those of the account named in `user`, and `gid`), then the group `gid`, then the uid. If there is no account
/// with this name, `gid` is the only group. If `user` is `None`, only the groups change. If the process is unprivileged
/// and has this user and group already, nothing happens.
///
/// # Errors
/// EPERM: this process has no right to change. An error whose text begins with "kept": the kernel reported success, but
/// the process still has its old user, group or rights.
pub(crate) fn drop_privileges(user: Option<(&str, u32)>, gid: u32) -> io::Result<()> {
    let gid = Gid::from_raw(gid);
    let uid = user.map_or_else(unistd::geteuid, |(_, uid)| Uid::from_raw(uid));
    if !unistd::geteuid().is_root() && is(uid, gid)? {
        return Ok(());
    }
    match user {
        Some((name, _)) => unistd::initgroups(&CString::new(name)?, gid)?,
        None => unistd::setgroups(&[gid])?,
    }
    unistd::setresgid(gid, gid, gid)?;
    if user.is_some() {
        unistd::setresuid(uid, uid, uid)?;
    }
    if !is(uid, gid)? {
        return Err(io::Error::other("kept the old user or group"));
    }
    if user.is_some() && !uid.is_root() && unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("kept the right to become root again"));
    }
    Ok(())
}

fn is(uid: Uid, gid: Gid) -> io::Result<bool> {
    let (uids, gids) = (unistd::getresuid()?, unistd::getresgid()?);
    Ok([uids.real, uids.effective, uids.saved] == [uid; 3] && [gids.real, gids.effective, gids.saved] == [gid; 3])
}

/// Adds variables to the environment of this process. A variable that the environment has already keeps its value.
pub(crate) fn add_to_environment(variables: &[(String, String)]) {
    for (name, value) in variables {
        if std::env::var_os(name).is_none() {
            // SAFETY: only workers call this, before they start their runtime, so the process has one thread.
            #[expect(clippy::disallowed_methods, reason = "the one place, and the one moment, where it is sound")]
            unsafe {
                std::env::set_var(name, value);
            }
        }
    }
}

/// Removes variables from the environment of this process. The processes that it starts later do not get them either.
pub(crate) fn remove_from_environment(names: &[&str]) {
    for name in names {
        // SAFETY: only workers call this, before they start their runtime, so the process has one thread.
        #[expect(clippy::disallowed_methods, reason = "workers before their runtime have one thread")]
        unsafe {
            std::env::remove_var(name);
        }
    }
}

/// Makes a folder and the missing folders above it, with `mode`, owner `uid` and group `gid`. Folders that exist stay
/// as they are.
///
/// # Errors
/// The errors that the file system reports.
pub(crate) fn make_folder(folder: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above, mode, uid, gid)?;
    }
    match DirBuilder::new().mode(mode).create(folder) {
        // Another process made the folder a moment before, so the folder keeps the owner and mode that the other
        // process gave it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) if uid.is_some() || gid.is_some() => chown(folder, uid, gid),
        Ok(()) => Ok(()),
    }
}

/// Makes an empty file with mode 0644 (less the umask), owner `uid` and group `gid`. A file that exists stays as it is.
/// A symbolic link without a target stays too, and its target is not made.
///
/// # Errors
/// The errors that the file system reports.
pub(crate) fn make_file(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(file) if uid.is_some() || gid.is_some() => fchown(&file, uid, gid),
        Ok(_) => Ok(()),
    }
}

/// Sets the umask: the permission bits that new files do not get. Returns the previous umask.
pub(crate) fn umask(mask: u32) -> u32 {
    stat::umask(Mode::from_bits_truncate(mask)).bits()
}

/// Returns true if a process with this id exists, even if it is dead and its parent has not reaped it yet.
pub(crate) fn exists(pid: u64) -> bool {
    let pid = i32::try_from(pid).unwrap_or(i32::MAX);
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Returns the bytes of memory that a process has resident; `None` if the process does not exist.
pub(crate) fn rss_bytes(pid: i32) -> Option<u64> {
    statm(pid).map(|(resident, _)| resident)
}

/// Returns the bytes of memory that a process has for itself: its resident memory without files and shared memory, which
/// another process can map at no cost. Returns `None` if the process does not exist.
pub(crate) fn private_bytes(pid: i32) -> Option<u64> {
    statm(pid).map(|(resident, shared)| resident.saturating_sub(shared))
}

/// Returns the bytes that a process has resident, and how many of them belong to files or shared memory.
fn statm(pid: i32) -> Option<(u64, u64)> {
    let page = u64::try_from(unistd::sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    Some((pages.next()?? * page, pages.next()?? * page))
}

#[cfg(test)]
mod tests {
    use super::{super::alone, *};

    #[test]
    fn dropped_privileges_do_not_come_back() {
        alone::run("sys::process::tests::dropped_privileges_do_not_come_back", || {
            if !unistd::geteuid().is_root() {
                return;
            }
            drop_privileges(Some(("nobody", 65534)), 65534).unwrap();
            assert!(is(Uid::from_raw(65534), Gid::from_raw(65534)).unwrap());
            assert!(unistd::setuid(Uid::from_raw(0)).is_err());
            assert!(unistd::getgroups().unwrap().iter().all(|group| group.as_raw() != 0));
            drop_privileges(Some(("nobody", 65534)), 65534).unwrap();
            assert!(drop_privileges(Some(("root", 0)), 0).is_err());
        });
    }

    #[test]
    fn resident_size_is_that_of_a_living_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!((100_000..100_000_000_000).contains(&rss_bytes(pid).unwrap()));
        assert!((100_000..rss_bytes(pid).unwrap()).contains(&private_bytes(pid).unwrap()));
        assert_eq!((rss_bytes(i32::MAX), private_bytes(i32::MAX)), (None, None));
    }
}
