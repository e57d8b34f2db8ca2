//! Finds out whether the kernel killed a worker because memory ran out, from the count of OOM kills of the cgroup that
//! master and workers share.
//!
//! Owns: the search for the counter (cgroup v1 or v2), and the decision which of the counted kills belongs to the death
//! of a worker. Refuses: to report anything without a counter. One mistake remains possible, because the counter does
//! not name the killed process. If another process of the cgroup gets an OOM kill, and within seconds a worker is
//! killed from outside, the OOM kill is wrongly ascribed to the worker.

use std::{
    fs,
    path::{Path, PathBuf},
};

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
        let read = |path: &str| fs::read_to_string(path).ok();
        let (folder, file) = locate(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)?;
        Self::at(folder.join(file), file)
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

/// Returns the folder of this process's memory cgroup, and the name of the counter's file in this folder. It is the
/// cgroup of v1 if v1 has the memory controller, and otherwise that of v2.
fn locate(membership: &str, mounts: &str) -> Option<(PathBuf, &'static str)> {
    let groups = || membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let v1 = groups().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let v2 = groups().find(|(controllers, _)| controllers.is_empty());
    let (kind, option, file, path) = match (v1, v2) {
        (Some((_, path)), _) => ("cgroup", "memory", "memory.oom_control", path),
        (None, Some((_, path))) => ("cgroup2", "", "memory.events", path),
        (None, None) => return None,
    };
    // A line is "36 32 0:34 /root /mount/point options … - kind source options". The mount may show only a part of the
    // cgroup tree.
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let [root, point] = mount.split(' ').skip(3).take(2).collect::<Vec<_>>().try_into().ok()?;
        let mut system = system.split(' ');
        let fits = system.next() == Some(kind)
            && (option.is_empty() || system.nth(1)?.split(',').any(|given| given == option));
        let inside = Path::new(path).strip_prefix(root).ok()?;
        fits.then(|| (Path::new(point).join(inside), file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_each_layout_of_cgroups() {
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                  35 31 0:32 /docker/a /sys/fs/cgroup/memory ro,relatime master:9 - cgroup cgroup rw,memory\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let cases = [
            ("4:memory:/docker/a\n0::/\n", v1, Some("/sys/fs/cgroup/memory/memory.oom_control")),
            ("4:cpuacct,memory:/docker/a/b\n", v1, Some("/sys/fs/cgroup/memory/b/memory.oom_control")),
            ("4:memory:/elsewhere\n", v1, None),
            ("0::/system.slice/shop.service\n", v2, Some("/sys/fs/cgroup/system.slice/shop.service/memory.events")),
            ("0::/a\n", v1, Some("/sys/fs/cgroup/unified/a/memory.events")),
            ("nonsense", v2, None),
            ("0::/", "nonsense", None),
        ];
        for (membership, mounts, expected) in cases {
            let found = locate(membership, mounts).map(|(folder, file)| folder.join(file));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{membership}");
        }
    }

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
