//! What a process is to others: whose child, whose rights, how large. Refuses to look up names: the settings did.

use std::{ffi::CString, fs, io};

use nix::{
    sys::{
        prctl,
        signal::Signal,
        stat::{self, Mode},
    },
    unistd::{self, Gid, SysconfVar, Uid},
};

/// Orphans below this process become its children, as if it were PID 1.
///
/// # Errors
/// None since Linux 3.4.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// In a child: SIGTERM when the parent dies. Dropping privileges clears it, so it comes after; and a parent may die
/// before it, so compare [`parent_pid`] with what it was before the fork.
///
/// # Errors
/// None in practice.
pub(crate) fn set_parent_death_signal() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
}

pub(crate) fn parent_pid() -> i32 {
    unistd::getppid().as_raw()
}

/// Becomes another user for good: the groups of `user` by its name (a name nobody has belongs to none) and `gid`, then
/// `gid`, then the uid. Without a user, the group alone. Nothing happens where an unprivileged process already is that.
///
/// # Errors
/// EPERM without the right to; "kept …" when the kernel says yes and does not.
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

/// Sets the bits that new files lack; the mask before.
pub(crate) fn umask(mask: u32) -> u32 {
    stat::umask(Mode::from_bits_truncate(mask)).bits()
}

/// Resident bytes of a process; `None` when it is gone.
pub(crate) fn rss_bytes(pid: i32) -> Option<u64> {
    let page = u64::try_from(unistd::sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? * page)
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
        assert_eq!(rss_bytes(i32::MAX), None);
    }
}
