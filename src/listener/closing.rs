//! Closes listeners without resetting connections, in three steps: new connections are refused, the workers accept the
//! connections that wait, and then the listeners are shut down.
//!
//! When a TCP listener is shut down, the kernel resets each connection in its queue, including those that were
//! established after the last accept. Therefore the listener is first bound to a network interface that does not exist.
//! From then on new clients are refused, handshakes in progress are completed, and after a moment the queue stays
//! empty. A socket filter could do the same, but it needs a capability that workers in a container do not have. A unix
//! socket is simpler: when it is shut down, it refuses new clients, and the connections in its queue can still be
//! accepted.
//!
//! Owns: refusing new connections, shutting listeners down, and counting the connections that are reset. Refuses: to
//! accept, and to change an adopted socket, because other processes may continue to use it.

use std::{
    io,
    net::{Shutdown, TcpListener},
    num::NonZeroU32,
    os::fd::AsFd,
};

use socket2::SockRef;

use super::{AddressChange, Listeners, Socket, SocketGroup};
use crate::sys::fd;

/// The number of a network interface that does not exist. The kernel counts interfaces from 1 and never reaches this
/// number.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).expect("not zero");

impl Listeners {
    /// Makes the kernel refuse new connections. Connections whose handshake has begun still arrive in the queues. The
    /// refusal cannot be undone, and it is in effect for all processes that have these sockets.
    pub(crate) fn refuse_new(&self) {
        self.groups.iter().for_each(SocketGroup::refuse_new);
    }

    /// Makes the kernel refuse new connections as [`refuse_new`](Self::refuse_new) does, but only for the addresses
    /// that the settings no longer name.
    pub(crate) fn refuse_new_on_removed(&self) {
        self.groups.iter().filter(|group| group.change == AddressChange::Removed).for_each(SocketGroup::refuse_new);
    }

    /// Shuts the listeners down, for all processes that have these sockets, and resets the connections that wait in
    /// their queues. The master calls it for the final stop and for addresses that a reload removed. It logs and
    /// returns how many connections were reset; connections to a unix socket cannot be counted.
    #[must_use = "what is lost is counted"]
    pub(crate) fn shut_down(&self) -> u64 {
        let mut reset = 0;
        for socket in self.groups.iter().flat_map(SocketGroup::own) {
            reset += fd::accept_queue(socket.as_fd()).map_or(0, |(queued, _)| u64::from(queued));
            // If this fails, another process has already shut the socket down.
            let _ = SockRef::from(socket).shutdown(Shutdown::Both);
        }
        if reset > 0 {
            tracing::warn!(
                event = "connections_reset",
                connections = reset,
                "{reset} connections were reset: no worker had accepted them when the listeners were shut down"
            );
        }
        reset
    }
}

impl SocketGroup {
    fn refuse_new(&self) {
        for socket in self.own() {
            match socket {
                // If this fails, a connection that comes in the last moment may be reset, and `shut_down` counts it.
                // The call fails if another process has already bound the listener in this way, and on kernels before
                // Linux 5.7 if CAP_NET_RAW is missing.
                Socket::Tcp(listener) => drop(bind_to_no_interface(listener)),
                Socket::Unix(listener) => drop(SockRef::from(listener).shutdown(Shutdown::Both)),
            }
        }
    }

    fn own(&self) -> &[Socket] {
        if self.adopted() { &[] } else { &self.sockets }
    }
}

/// Binds the listener to an interface that does not exist. The method of socket2 has v4 in its name, but it works for
/// IPv6 sockets too.
fn bind_to_no_interface(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).bind_device_by_index_v4(Some(NO_INTERFACE))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::TcpStream,
    };

    use super::*;

    #[test]
    fn a_listener_that_is_bound_to_no_interface_refuses_new_connections_and_serves_its_own() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let mut early = TcpStream::connect(address).unwrap();
            bind_to_no_interface(&listener).unwrap();
            let late = TcpStream::connect(address).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::ConnectionRefused);
            let (mut served, _) = listener.accept().unwrap();
            early.write_all(b"ask").unwrap();
            served.read_exact(&mut [0; 3]).unwrap();
            served.write_all(b"answer").unwrap();
            early.read_exact(&mut [0; 6]).unwrap();
        }
    }
}
