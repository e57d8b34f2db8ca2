//! Finds the process that listens at an address which is in use, so that the error message can name it.
//!
//! Owns: finding the name and pid of the process. Refuses: to fail. If this user may not see the process, the message
//! says "another process" instead of a name.

use std::{fs, os::fd::AsFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

const UNKNOWN: &str = "another process (or another oxicorn)";

/// Returns the process that listens on TCP `port`, such as "nginx (pid 7)".
pub(super) fn of_port(port: u16) -> String {
    let suffix = format!(":{port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&suffix);
        listens.then(|| fields.get(9).copied()).flatten()
    });
    inode.and_then(holder_of).map_or_else(|| UNKNOWN.to_owned(), describe)
}

/// Returns the process that listens on a unix socket, such as "nginx (pid 7)". `visitor` is a connection to that
/// socket.
pub(super) fn of_peer(visitor: &impl AsFd) -> String {
    match getsockopt(visitor, PeerCredentials) {
        Ok(peer) if peer.pid() > 0 => describe(peer.pid().unsigned_abs()),
        Ok(_) | Err(_) => UNKNOWN.to_owned(),
    }
}

/// Returns the lowest pid of the processes that have this socket open. In a pre-fork server this pid usually belongs to
/// the master, because the master was started before its workers.
fn holder_of(inode: &str) -> Option<u32> {
    let socket = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == socket.as_str())
    })
    .min()
}

fn describe(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}
