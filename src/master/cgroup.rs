//! The memory cgroup that master and workers share.
//!
//! Owns: the search for its folder, in cgroup v1 and v2. Refuses: to read the files in this folder (`oom` and
//! `free_memory` do).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The memory cgroup of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryCgroup {
    pub(super) folder: PathBuf,
    /// The folder at which the tree of cgroups is mounted. `folder` is in it.
    mount: PathBuf,
    pub(super) version: CgroupVersion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CgroupVersion {
    V1,
    V2,
}

impl MemoryCgroup {
    /// Returns the cgroup of v1 if v1 has the memory controller, and otherwise that of v2. Returns `None` if this
    /// process is in neither, or the cgroup is not visible here.
    pub(super) fn find() -> Option<Self> {
        let read = |path: &str| fs::read_to_string(path).ok();
        Self::locate(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
    }

    fn locate(membership: &str, mounts: &str) -> Option<Self> {
        let groups = || membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let v1 = groups().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
        let v2 = groups().find(|(controllers, _)| controllers.is_empty());
        let (kind, option, version, path) = match (v1, v2) {
            (Some((_, path)), _) => ("cgroup", "memory", CgroupVersion::V1, path),
            (None, Some((_, path))) => ("cgroup2", "", CgroupVersion::V2, path),
            (None, None) => return None,
        };
        // A line is "36 32 0:34 /root /mount/point options … - kind source options". The mount may show only a part of
        // the cgroup tree.
        mounts.lines().find_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let [root, point] = mount.split(' ').skip(3).take(2).collect::<Vec<_>>().try_into().ok()?;
            let mut system = system.split(' ');
            let fits = system.next() == Some(kind)
                && (option.is_empty() || system.nth(1)?.split(',').any(|given| given == option));
            let inside = Path::new(path).strip_prefix(root).ok()?;
            fits.then(|| Self { folder: Path::new(point).join(inside), mount: point.into(), version })
        })
    }

    #[cfg(test)]
    pub(super) fn at(folder: &str, mount: &str, version: CgroupVersion) -> Self {
        Self { folder: folder.into(), mount: mount.into(), version }
    }

    /// Returns the folder of this cgroup and those of the cgroups above it. The limits of all of them apply. Cgroups
    /// outside of the mounted tree are left out, because they are not visible.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folder.ancestors().take_while(|folder| folder.starts_with(&self.mount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_found_in_each_layout_of_cgroups() {
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                  35 31 0:32 /docker/a /sys/fs/cgroup/memory ro,relatime master:9 - cgroup cgroup rw,memory\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let cases = [
            ("4:memory:/docker/a\n0::/\n", v1, Some((CgroupVersion::V1, "/sys/fs/cgroup/memory"))),
            ("4:cpuacct,memory:/docker/a/b\n", v1, Some((CgroupVersion::V1, "/sys/fs/cgroup/memory/b"))),
            ("4:memory:/elsewhere\n", v1, None),
            ("0::/shop.slice/a.service\n", v2, Some((CgroupVersion::V2, "/sys/fs/cgroup/shop.slice/a.service"))),
            ("0::/a\n", v1, Some((CgroupVersion::V2, "/sys/fs/cgroup/unified/a"))),
            ("nonsense", v2, None),
            ("0::/", "nonsense", None),
        ];
        for (membership, mounts, expected) in cases {
            let found = MemoryCgroup::locate(membership, mounts);
            let found = found.as_ref().map(|found| (found.version, found.folder.as_path()));
            assert_eq!(found, expected.map(|(version, folder)| (version, Path::new(folder))), "{membership}");
        }
    }

    #[test]
    fn the_cgroups_above_are_those_of_the_mounted_tree() {
        let cgroup = MemoryCgroup::at("/sys/fs/cgroup/a/b", "/sys/fs/cgroup", CgroupVersion::V2);
        let folders: Vec<_> = cgroup.folders().map(|folder| folder.to_str().unwrap()).collect();
        assert_eq!(folders, ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
    }
}
