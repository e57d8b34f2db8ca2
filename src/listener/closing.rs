//! Closes listeners without a reset: first no new connection begins, then the workers accept what waits, then the
//! listeners are shut down.
//!
//! A TCP listener that is shut down resets each connection in its queue, also one that was established since the last
//! accept. So it is first bound to a network interface that does not exist. New clients then find no listener and are
//! refused, handshakes in progress are completed, and after a moment the queue stays empty. Unlike a socket filter this
//! needs no capability, and workers in a container have none. A unix socket that is shut down refuses new clients, and
//! the connections in its queue can still be accepted.
//!
//! Owns: refusing, shutting down, and counting what is reset. Refuses: to accept, and to touch an adopted socket, which
//! other processes may continue to use.

use std::{
    io,
    net::{Shutdown, TcpListener},
    num::NonZeroU32,
    os::fd::AsFd,
};

use socket2::SockRef;

use super::{AddressChange, Listeners, Socket, SocketGroup};
use crate::sys::fd;

/// No interface has this number: the kernel counts them from 1.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).expect("not zero");

impl Listeners {
    /// Refuses new connections from now on; those that have begun still arrive in the queues. This cannot be undone,
    /// and applies to all processes that have these sockets.
    pub(crate) fn refuse_new(&self) {
        self.groups.iter().for_each(SocketGroup::refuse_new);
    }

    /// As [`refuse_new`](Self::refuse_new), for the addresses that the settings no longer name.
    pub(crate) fn refuse_new_on_removed(&self) {
        self.groups.iter().filter(|group| group.change == AddressChange::Removed).for_each(SocketGroup::refuse_new);
    }

    /// Ends listening for every process that has these sockets, and resets the connections that wait in their queues:
    /// for the final stop, and for addresses that are removed. Returns how many connections were reset, and logs it.
    /// Connections to a unix socket cannot be counted.
    #[must_use = "what is lost is counted"]
    pub(crate) fn shut_down(&self) -> u64 {
        let mut reset = 0;
        for socket in self.groups.iter().flat_map(SocketGroup::own) {
            reset += fd::accept_queue(socket.as_fd()).map_or(0, |(queued, _)| u64::from(queued));
            // Fails if another process was first.
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
                // Fails if another process was first, and before Linux 5.7 without CAP_NET_RAW. Then a connection that
                // comes in the last moment may be reset, and is counted.
                Socket::Tcp(listener) => drop(bind_to_no_interface(listener)),
                Socket::Unix(listener) => drop(SockRef::from(listener).shutdown(Shutdown::Both)),
            }
        }
    }

    fn own(&self) -> &[Socket] {
        if self.adopted() { &[] } else { &self.sockets }
    }
}

/// One option of the kernel serves both address families.
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
