//! Finds out which addresses an entry of `server.bind` names, and whether each address can be bound.
//!
//! Owns: resolving names, probing without listening, binding a TCP socket, and the messages for an address that cannot
//! be bound. Refuses: to keep a socket.

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
    /// A socket that the parent process made and left open under this descriptor.
    Adopted(i32),
}

/// The reason why an address of `server.bind` cannot be served. Each message names the address, and what the operator
/// can do.
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
    /// Succeeds if the address can be bound. It binds a TCP socket and closes it again. The socket never listens, so
    /// the close resets no connection. It does not set SO_REUSEPORT: with SO_REUSEPORT the socket could join the group
    /// of another running oxicorn. Then this service would not notice that the address is in use, and would take half
    /// of the connections of the other service.
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

    /// Returns the file at `path` if it is the socket of a process that has ended; `None` if there is no file.
    ///
    /// # Errors
    /// A server listens at `path`, or the file is not a socket, or this process has no right to look at it.
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

/// Returns the addresses that `server.bind` names. An address that is named twice is returned once.
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

/// Returns the addresses of a host name. Addresses that this machine does not have are left out, unless no address
/// would remain. For example, `localhost` also means ::1 on a machine where IPv6 is off.
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

/// Returns true if the socket of `address` must take IPv6 connections only. A socket at `[::]` normally takes IPv4
/// connections too. If `server.bind` also names an IPv4 address with the same port, only one of the two sockets could
/// be bound.
fn v6_only(address: SocketAddr, all: &[SocketAddr]) -> bool {
    address.ip() == IpAddr::from([0; 16]) && all.iter().any(|other| other.is_ipv4() && other.port() == address.port())
}

/// Binds a TCP socket. The socket does not listen yet.
pub(super) fn tcp(address: SocketAddr, v6_only: bool, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    // Accepted connections inherit TCP_NODELAY from their listener. This saves a system call for each connection.
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
