//! The meaning of an entry of `server.bind`: the addresses that it names, and whether each can be bound.
//!
//! Owns: resolving names, probing without listening, binding a TCP socket, and the messages for an address that cannot
//! be bound. Refuses: to keep a socket.
//!
//! Owns: resolving names, probing without listening, binding a TCP socket, and the words for why an address cannot be
//! had. Refuses: to keep a socket.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Type};

use super::holder;
use crate::{
    settings::{Bind, Server},
    sys::{
        file::FileId,
        host,
        socket_file::{self, Occupant},
    },
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Address {
    Tcp {
        address: SocketAddr,
        v6_only: bool,
        per_slot: bool,
    },
    Unix(PathBuf),
    /// Made by the process that started this one, which left this descriptor open.
    Adopted(i32),
}

/// Why an address of `server.bind` cannot be served. Each message names the address and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("server.bind: the name {host:?} does not resolve to an address")]
    Resolve { host: String, source: io::Error },
    #[error("server.bind: {address} is in use: {holder} listens there; stop it or bind another address")]
    InUse { address: String, holder: String },
    #[error("server.bind: cannot listen on {address}{advice}")]
    Listen { address: String, advice: &'static str, source: io::Error },
    #[error("server.bind: {} exists and is not a socket; remove it or bind another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("server.bind: fd://{number} is not a listening TCP or unix socket; was it passed to this process?")]
    Adopt { number: i32, source: io::Error },
    #[error("the kernel refuses steering, and without it there is room for {room} workers until the next start")]
    Room { room: u32 },
    #[error("{} cannot be given{owner} with mode {mode:04o} (server.unix_owner, server.unix_mode)", path.display())]
    Own { path: PathBuf, owner: String, mode: u32, source: io::Error },
}

impl Address {
    /// Finds out whether the address can be bound, without listening: closing such a socket resets no connection. It
    /// sets only SO_REUSEADDR. SO_REUSEPORT would join the group of another oxicorn and take half of its connections.
    pub(super) fn probe(&self) -> Result<(), BindError> {
        match self {
            Self::Tcp { address, v6_only, .. } if address.port() != 0 => {
                tcp(*address, *v6_only, false).map(drop).map_err(|error| self.refused(error))
            }
            Self::Unix(path) => {
                self.stale(path)?;
                let folder = path.parent().unwrap_or(path);
                host::writable_folder(folder).map_err(|error| self.refused(error))
            }
            Self::Tcp { .. } | Self::Adopted(_) => Ok(()),
        }
    }

    /// Returns the file of a socket at `path` whose process has ended; `None` if nothing is there.
    ///
    /// # Errors
    /// A server listens there, or it is not a socket.
    pub(super) fn stale(&self, path: &Path) -> Result<Option<FileId>, BindError> {
        match socket_file::occupant(path).map_err(|error| self.refused(error))? {
            Occupant::Nothing => Ok(None),
            Occupant::Stale(file) => Ok(Some(file)),
            Occupant::Server(visitor) => {
                Err(BindError::InUse { address: self.to_string(), holder: holder::of_peer(&visitor) })
            }
            Occupant::NotASocket => Err(BindError::NotASocket { path: path.to_owned() }),
        }
    }

    pub(super) fn refused(&self, source: io::Error) -> BindError {
        let address = self.to_string();
        let advice = match (self, source.kind()) {
            (Self::Tcp { address: tcp, .. }, io::ErrorKind::AddrInUse) => {
                return BindError::InUse { address, holder: holder::of_port(tcp.port()) };
            }
            (Self::Tcp { address, .. }, io::ErrorKind::PermissionDenied) if address.port() < 1024 => {
                ": a port below 1024 needs root or CAP_NET_BIND_SERVICE"
            }
            (Self::Tcp { .. }, io::ErrorKind::AddrNotAvailable) => ": no interface of this machine has that address",
            (Self::Unix(_), io::ErrorKind::NotFound) => ": its folder does not exist",
            (Self::Unix(_), io::ErrorKind::PermissionDenied) => ": this user may not write there",
            (Self::Unix(_), io::ErrorKind::InvalidInput) => ": a socket's path holds 107 bytes at most",
            _ => "",
        };
        BindError::Listen { address, advice, source }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Adopted(number) => write!(f, "fd://{number}"),
        }
    }
}

/// Returns the addresses that `server.bind` names, each once.
pub(super) fn resolve(server: &Server) -> Result<Vec<Address>, BindError> {
    let mut tcp = Vec::new();
    for bind in &server.bind {
        if let Bind::Tcp { host, port } = bind {
            tcp.push(of_name(host, *port)?);
        }
    }
    let all: Vec<SocketAddr> = tcp.iter().flatten().copied().collect();
    let mut tcp = tcp.into_iter();
    let mut addresses = Vec::new();
    for bind in &server.bind {
        let meant = match bind {
            Bind::Tcp { .. } => {
                let tcp = tcp.next().unwrap_or_default().into_iter();
                let per_slot = server.reuse_port;
                tcp.map(|address| Address::Tcp { address, v6_only: v6_only(address, &all), per_slot }).collect()
            }
            Bind::Unix(path) => vec![Address::Unix(path.clone())],
            Bind::Fd(number) => vec![Address::Adopted(*number)],
        };
        for address in meant {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(addresses)
}

/// Returns all addresses of a host. `localhost` is ::1 too, even where IPv6 is off, so addresses that this machine does
/// not have are left out as long as one remains.
fn of_name(host: &str, port: u16) -> Result<Vec<SocketAddr>, BindError> {
    let unresolved = |source| BindError::Resolve { host: host.to_owned(), source };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let all: Vec<_> = (bare, port).to_socket_addrs().map_err(unresolved)?.collect();
    let here: Vec<_> =
        all.iter().copied().filter(|address| tcp(SocketAddr::new(address.ip(), 0), false, false).is_ok()).collect();
    match (all.is_empty(), here.is_empty()) {
        (true, _) => Err(unresolved(io::ErrorKind::NotFound.into())),
        (false, true) => Ok(all),
        (false, false) => Ok(here),
    }
}

/// Whether the socket takes IPv6 only. `[::]` takes IPv4 too, unless an IPv4 address with the same port is bound beside
/// it: the two would exclude each other.
fn v6_only(address: SocketAddr, all: &[SocketAddr]) -> bool {
    address.ip() == IpAddr::from([0; 16]) && all.iter().any(|other| other.is_ipv4() && other.port() == address.port())
}

/// Binds a socket that does not listen yet.
pub(super) fn tcp(address: SocketAddr, v6_only: bool, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    // Accepted connections inherit it from their listener, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_interfaces_share_a_port_between_both_families() {
        let any_v6: SocketAddr = "[::]:8000".parse().unwrap();
        let v4: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        let other: SocketAddr = "127.0.0.1:8001".parse().unwrap();
        assert!(v6_only(any_v6, &[any_v6, v4]));
        assert!(!v6_only(any_v6, &[any_v6, other]));
        assert!(!v6_only("[::1]:8000".parse().unwrap(), &[v4]));
    }
}
