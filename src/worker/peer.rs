//! The other end of a connection.
//!
//! Owns: what the kernel knows of it. Refuses: who the client is behind proxies (`forwarded`).

use std::{fmt, net::SocketAddr};

/// The other end of a connection, as the kernel knows it. `None` for a unix socket.
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
