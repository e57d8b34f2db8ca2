//! The peer of a connection, which is the other end of its socket.
//!
//! Owns: the remote address of a connection, as the kernel reports it. Refuses: the address of a client that comes
//! through a proxy (`forwarded`).

use std::{fmt, net::SocketAddr};

/// The other end of a connection. `remote` is the address that the kernel reports; it is `None` for a unix socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) remote: Option<SocketAddr>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote {
            Some(remote) => remote.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
