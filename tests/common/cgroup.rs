//! A cgroup with a memory limit. If a server in this cgroup reaches the limit, the kernel's OOM killer kills one of its
//! workers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use super::{PATIENCE, harness::eventually};

/// A new cgroup below the test's own cgroup. The new cgroup is removed when this value is dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a cgroup with the memory limit `limit`, in bytes.
    pub fn make(limit: u64) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let membership = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
        let path_of = |mark: &str| membership.lines().find_map(|line| line.split_once(mark).map(|(_, path)| path));
        let (ours, file, swap) = match (path_of(":memory:"), path_of("0::")) {
            (Some(path), _) => {
                (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            }
            (None, Some(path)) => (format!("/sys/fs/cgroup{path}"), "memory.max", "memory.swap.max"),
            (None, None) => panic!("there is no memory cgroup here:\n{membership}"),
        };
        let name = format!("oxicorn-test-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let made = Self(Path::new(&ours).join(name));
        let needs = "a memory cgroup has to be made: run the tests as root, with /sys/fs/cgroup writable";
        fs::create_dir(&made.0).unwrap_or_else(|error| panic!("{}: {error}; {needs}", made.0.display()));
        let limited = fs::write(made.0.join(file), limit.to_string());
        limited.unwrap_or_else(|error| panic!("{}/{file}: {error}; {needs}", made.0.display()));
        // Without a limit on swap, the kernel would swap for seconds before it kills a process. If this write fails,
        // the file does not exist, because the kernel has no swap.
        let _ =
            fs::write(made.0.join(swap), if swap == "memory.swap.max" { "0".to_owned() } else { limit.to_string() });
        made
    }

    /// Returns a command that starts another program inside this cgroup.
    pub fn wrapper(&self) -> [String; 3] {
        let enter = format!("echo $$ > '{}/cgroup.procs' && \"$0\" \"$@\"; exit $?", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), enter]
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        eventually("the cgroup is empty and removed", PATIENCE, || fs::remove_dir(&self.0).ok());
    }
}
