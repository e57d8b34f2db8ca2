//! Warns before a replacement that the machine may have no memory for: for a while the old and the new worker of a slot
//! both exist.
//!
//! Owns: the memory that is free, by the machine and by each limit of a cgroup, the comparison with the largest worker,
//! and the pause between two warnings. Refuses: to hold a replacement back. A forecast of memory may be wrong, so only
//! the operator can decide that (`workers.overlap`).

use std::{fs, path::Path};

use super::{
    Shell,
    cgroup::{CgroupVersion, MemoryCgroup},
    core::{Generation, Millis, Phase, Pid, SlotId},
    now,
};
use crate::sys::process;

/// The shortest time between two looks. A reload replaces many workers within seconds, and each look reads some files.
const LOOK_EVERY_MS: u64 = 1_000;
/// The shortest time between two warnings.
const WARN_EVERY_MS: u64 = 10 * 60 * 1_000;

const MIB: u64 = 1 << 20;

/// When the master looks next.
#[derive(Debug, Default)]
pub(super) struct MemoryWatch {
    next_look: Millis,
}

/// How much memory is free.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FreeMemory {
    bytes: u64,
    /// What says so: `MemAvailable`, or the path of the file with the limit.
    by: String,
}

/// Looks at the free memory before the master forks a worker for `slot`. Warns if the fork replaces a worker that serves
/// on until then, and the free memory is less than what the largest worker needs.
pub(super) fn look(shell: &mut Shell, slot: SlotId, generation: Generation) {
    let replaces = |w: &super::core::Worker| w.slot == slot && matches!(w.phase, Phase::Serving { .. });
    let now = now();
    if !shell.core.workers().iter().any(replaces) || now < shell.memory_watch.next_look {
        return;
    }
    shell.memory_watch.next_look = now.after(LOOK_EVERY_MS);
    let sizes = shell.children.iter().filter_map(|child| Some((process::private_bytes(child.pid.0)?, child.pid)));
    let largest = sizes.max_by_key(|(bytes, _)| *bytes);
    let free = free(MemoryCgroup::find().as_ref(), |path| fs::read_to_string(path).ok());
    if let (Some((bytes, pid)), Some(free)) = (largest, free)
        && bytes > free.bytes
    {
        shell.memory_watch.next_look = now.after(WARN_EVERY_MS);
        warn(shell, slot, generation, (bytes, pid), &free);
    }
}

fn warn(shell: &Shell, slot: SlotId, generation: Generation, (bytes, pid): (u64, Pid), free: &FreeMemory) {
    let (largest_slot, _) = shell.place(pid);
    let FreeMemory { bytes: free_bytes, by } = free;
    tracing::warn!(
        event = "memory_short",
        slot = slot.0,
        generation = generation.0,
        free_bytes,
        free_by = by,
        largest_bytes = bytes,
        largest_slot,
        largest_pid = pid.0,
        "slot {} gets a new worker beside its old one, and memory may not suffice: {} MiB are free, the largest worker \
         has {} MiB; the master goes on; if the kernel kills workers now, set workers.overlap = false, which ends the \
         old worker first",
        slot.0,
        free_bytes / MIB,
        bytes / MIB
    );
}

/// Returns the least memory that is free, of the machine and of each cgroup with a limit. Memory of the page cache
/// counts as free, because the kernel takes it back. Returns `None` if nothing can be read.
fn free(cgroup: Option<&MemoryCgroup>, read: impl Fn(&Path) -> Option<String>) -> Option<FreeMemory> {
    let machine = read(Path::new("/proc/meminfo"))
        .and_then(|meminfo| field(&meminfo, "MemAvailable:"))
        .map(|kib| FreeMemory { bytes: kib * 1024, by: "MemAvailable".to_owned() });
    let groups = cgroup.into_iter().flat_map(|cgroup| {
        let (limit, usage, cached): (_, _, &[&str]) = match cgroup.version {
            CgroupVersion::V1 => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes", &["total_active_file", "total_inactive_file"])
            }
            CgroupVersion::V2 => {
                ("memory.max", "memory.current", &["active_file", "inactive_file", "slab_reclaimable"])
            }
        };
        let read = &read;
        cgroup.folders().filter_map(move |folder| {
            let file = folder.join(limit);
            // Without a limit the file of v2 says "max", which is not a number.
            let most: u64 = read(&file)?.trim().parse().ok()?;
            let used: u64 = read(&folder.join(usage))?.trim().parse().ok()?;
            let stat = read(&folder.join("memory.stat")).unwrap_or_default();
            let cached: u64 = cached.iter().filter_map(|name| field(&stat, name)).sum();
            let bytes = most.saturating_sub(used.saturating_sub(cached));
            Some(FreeMemory { bytes, by: file.to_string_lossy().into_owned() })
        })
    });
    machine.into_iter().chain(groups).min_by_key(|free| free.bytes)
}

/// Returns the number after `name` in a text that has one name and one number on each line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next())??.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_least_of_the_machine_and_all_limits_counts() {
        const MEMINFO: (&str, &str) =
            ("/proc/meminfo", "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n");
        let v2 = MemoryCgroup::at("/cg/a/b", "/cg", CgroupVersion::V2);
        let v1 = MemoryCgroup::at("/cg/a", "/cg", CgroupVersion::V1);
        type Files = &'static [(&'static str, &'static str)];
        type Case<'a> = (Option<&'a MemoryCgroup>, Files, Option<(u64, &'static str)>);
        let cases: &[Case<'_>] = &[
            (None, &[], None),
            (None, &[MEMINFO], Some((4_096_000, "MemAvailable"))),
            (Some(&v2), &[MEMINFO, ("/cg/a/b/memory.max", "max\n")], Some((4_096_000, "MemAvailable"))),
            (
                Some(&v2),
                &[
                    MEMINFO,
                    ("/cg/a/b/memory.max", "3000000\n"),
                    ("/cg/a/b/memory.current", "2500000\n"),
                    (
                        "/cg/a/b/memory.stat",
                        "anon 1\nactive_file 100000\ninactive_file 200000\nslab_reclaimable 50000\n",
                    ),
                ],
                Some((850_000, "/cg/a/b/memory.max")),
            ),
            (
                Some(&v2),
                &[
                    ("/cg/a/b/memory.max", "3000000\n"),
                    ("/cg/a/b/memory.current", "100\n"),
                    ("/cg/a/memory.max", "2000000\n"),
                    ("/cg/a/memory.current", "2000000\n"),
                    ("/cg/memory.max", "max\n"),
                ],
                Some((0, "/cg/a/memory.max")),
            ),
            (
                Some(&v1),
                &[
                    MEMINFO,
                    ("/cg/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("/cg/memory.usage_in_bytes", "7000\n"),
                    ("/cg/a/memory.limit_in_bytes", "1000\n"),
                    ("/cg/a/memory.usage_in_bytes", "900\n"),
                    ("/cg/a/memory.stat", "inactive_file 7\ntotal_inactive_file 20\ntotal_active_file 30\n"),
                ],
                Some((150, "/cg/a/memory.limit_in_bytes")),
            ),
        ];
        for (cgroup, files, expected) in cases {
            let known: HashMap<_, _> = files.iter().copied().collect();
            let free = free(*cgroup, |path| known.get(path.to_str()?).map(|text| (*text).to_owned()));
            let expected = expected.map(|(bytes, by)| FreeMemory { bytes, by: by.to_owned() });
            assert_eq!(free, expected, "{files:?}");
        }
    }
}
