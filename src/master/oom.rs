//! Finds out whether the kernel killed a worker because memory ran out, from the count of OOM kills of the cgroup that
//! master and workers share.
//!
//! Owns: the counter, and the decision which of the counted kills belongs to the death of a worker. Refuses: to report anything without a counter. One mistake remains possible, because the counter does
//! not name the killed process. If another process of the cgroup gets an OOM kill, and within seconds a worker is
//! killed from outside, the OOM kill is wrongly ascribed to the worker.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::cgroup::{CgroupVersion, MemoryCgroup};

/// An OOM kill that no death of a worker claims within this time belongs to another process, such as a child of the app
/// or a shell.
const CLAIM_MS: u64 = 5_000;

#[derive(Debug)]
pub(super) struct OomKills {
    path: PathBuf,
    file: &'static str,
    accounted: u64,
    seen: u64,
    seen_at: u64,
}

/// The counter before and at the death of a worker. If it has increased, the kernel has killed a process for lack of
/// memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OomDelta {
    pub(super) file: &'static str,
    pub(super) before: u64,
    pub(super) now: u64,
}

impl OomKills {
    /// Returns `None` where the kernel has no such counter, which is outside a cgroup, in the root of cgroup v2, or
    /// before Linux 4.13.
    pub(super) fn find() -> Option<Self> {
        let cgroup = MemoryCgroup::find()?;
        let file = match cgroup.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        Self::at(cgroup.folder.join(file), file)
    }

    fn at(path: PathBuf, file: &'static str) -> Option<Self> {
        let seen = count(&path)?;
        Some(Self { path, file, accounted: seen, seen, seen_at: 0 })
    }

    /// Explains a worker that has died by a SIGKILL which the master did not send. Reads the kernel's count of OOM kills,
    /// and returns this count with the count before. Each death uses up only one of the counted kills: the kernel can
    /// count several kills before the first killed process is reaped, and the others belong to those processes.
    pub(super) fn account(&mut self, now: u64) -> Option<OomDelta> {
        if now.saturating_sub(self.seen_at) > CLAIM_MS {
            self.accounted = self.seen;
        }
        let count = count(&self.path)?;
        if count != self.seen {
            (self.seen, self.seen_at) = (count, now);
        }
        let oom = OomDelta { file: self.file, before: self.accounted, now: count };
        self.accounted = count.min(self.accounted + 1);
        Some(oom)
    }
}

fn count(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_claims_one_kill_and_old_kills_are_not_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        let set = |kills: u64| fs::write(&path, format!("oom 9\noom_kill {kills}\noom_group_kill 0\n")).unwrap();
        set(3);
        let mut kills = OomKills::at(path.clone(), "memory.events").unwrap();
        let mut told = |now: u64| kills.account(now).map(|oom| (oom.before, oom.now));
        assert_eq!(told(10_000), Some((3, 3)));
        set(5);
        assert_eq!(told(20_000), Some((3, 5)));
        assert_eq!(told(20_100), Some((4, 5)));
        assert_eq!(told(20_200), Some((5, 5)));
        set(7);
        assert_eq!(told(30_000), Some((5, 7)));
        assert_eq!(
            told(36_000),
            Some((7, 7)),
            "a SIGKILL of an operator, six seconds after an OOM kill of another process"
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(told(40_000), None);
    }
}
