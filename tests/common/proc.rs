//! Facts about a process that the kernel shows in `/proc`.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

/// Returns the state of the server's side of a connection over IPv4, as `/proc/net/tcp` writes it: `01` if neither side
/// has ended the connection, `08` if the client has. Returns `None` if the kernel does not know the connection any more.
pub fn server_side(server: SocketAddr, client: SocketAddr) -> Option<String> {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(address) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
        }
        SocketAddr::V6(address) => panic!("{address} is not an address of IPv4"),
    };
    let ends = [hex(server), hex(client)];
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table of connections");
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let found = ends.iter().all(|end| words.next() == Some(end));
        found.then(|| words.next().unwrap_or_default().to_owned())
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub u32);

impl Process {
    /// Returns the fields of `/proc/<pid>/stat`, beginning with the state. The process name stands in brackets before
    /// the state. The name may contain blanks and brackets, so the fields are searched after the last bracket.
    fn stat(self) -> Option<Vec<String>> {
        let line = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let (_, rest) = line.rsplit_once(')')?;
        Some(rest.split_whitespace().map(str::to_owned).collect())
    }

    /// Returns the state letter (`R`, `S`, `T`, `Z` …), or `None` if the process is gone.
    pub fn state(self) -> Option<char> {
        self.stat()?.first()?.chars().next()
    }

    pub fn parent(self) -> Option<u32> {
        self.stat()?.get(1)?.parse().ok()
    }

    pub fn group(self) -> Option<u32> {
        self.stat()?.get(2)?.parse().ok()
    }

    /// Returns true if the process lives. A zombie does not live: it only waits for its parent to reap it.
    pub fn is_alive(self) -> bool {
        self.state().is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// Returns every child process, including zombies.
    pub fn children(self) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let mut children: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process))
            .filter(|process| process.parent() == Some(self.0))
            .collect();
        children.sort();
        children
    }

    /// Returns the number of open file descriptors.
    pub fn files(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, Iterator::count)
    }

    /// Returns the command as `ps` shows it.
    pub fn title(self) -> String {
        let raw = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned()
    }

    pub fn comm(self) -> String {
        fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default().trim().to_owned()
    }

    /// Returns the values in `/proc/<pid>/status` by name. The map is empty if the process is gone.
    pub fn status(self) -> BTreeMap<String, String> {
        fs::read_to_string(format!("/proc/{}/status", self.0))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    }

    fn number(self, name: &str) -> u64 {
        let status = self.status();
        let text = status.get(name).unwrap_or_else(|| panic!("{name} of process {} cannot be read", self.0));
        text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
    }

    pub fn threads(self) -> u64 {
        self.number("Threads")
    }

    pub fn rss_kib(self) -> u64 {
        self.number("VmRSS")
    }

    /// Returns how often the kernel switched away from the process, voluntarily or not. The tests use this number as
    /// the number of wake-ups, because a sleeping process causes no switches.
    pub fn context_switches(self) -> u64 {
        self.number("voluntary_ctxt_switches") + self.number("nonvoluntary_ctxt_switches")
    }

    /// Returns the CPU time that all living threads have used, in user space and in the kernel.
    pub fn cpu_time(self) -> Duration {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.0)) else { return Duration::ZERO };
        let of = |thread: fs::DirEntry| -> Option<u64> {
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
        };
        Duration::from_nanos(threads.flatten().filter_map(of).sum())
    }

    /// Returns the proportional set size in KiB. If several processes share a page, each of them counts an equal part
    /// of it.
    pub fn pss_kib(self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("the Pss of process {} cannot be read", self.0))
    }

    /// Returns the real, effective, saved and file-system id. `name` is `Uid` or `Gid`.
    pub fn ids(self, name: &str) -> Vec<u32> {
        let status = self.status();
        status.get(name).map_or_else(Vec::new, |ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
    }

    /// Returns the capability set `name`, such as `CapEff`, as a bit mask.
    pub fn capabilities(self, name: &str) -> u64 {
        let status = self.status();
        let text = status.get(name).unwrap_or_else(|| panic!("{name} of process {} cannot be read", self.0));
        u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{name}: {text}"))
    }
}
