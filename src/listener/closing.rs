//! How listeners are closed without a reset: first no new connection begins, then the workers accept what waits, then
//! the listeners are shut down.
//!
//! A TCP listener that is shut down resets each connection in its queue, also one that was established since the last
//! accept. So it is first bound to a network interface that does not exist: new clients find no listener and are refused,
//! handshakes under way are completed, and after a moment the queue stays empty. Unlike a socket filter this needs no
//! capability, and workers in a container have none. A unix socket that is shut down refuses new clients, and what is in
//! its queue can still be accepted.
//!
//! Owns: refusing, shutting down, and counting what is reset. Refuses: to accept, and to touch an adopted socket, with
//! which other processes may go on.

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
    /// From now on no new connection begins; those that have begun still arrive in the queues. This cannot be undone, and
    /// is so for all processes that have these sockets.
    pub(crate) fn refuse_newcomers(&self) {
        self.groups.iter().for_each(SocketGroup::refuse_newcomers);
    }

    /// As [`refuse_newcomers`](Self::refuse_newcomers), for the addresses that the settings no longer name.
    pub(crate) fn refuse_newcomers_of_removed(&self) {
        self.groups
            .iter()
            .filter(|group| group.change == AddressChange::Removed)
            .for_each(SocketGroup::refuse_newcomers);
    }

    /// Ends listening for every process that has these sockets, and resets what waits in their queues: for the final
    /// stop, and for addresses that are removed. Gives back how many connections were reset, and logs it. Those of a unix
    /// socket cannot be counted.
    #[must_use = "what is lost is counted"]
    pub(crate) fn shut_down(&self) -> u64 {
        let mut reset = 0;
        for socket in self.groups.iter().flat_map(SocketGroup::own) {
            reset += fd::accept_queue(socket.as_fd()).map_or(0, |(queued, _)| u64::from(queued));
            // Fails where another process was first.
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
    fn refuse_newcomers(&self) {
        for socket in self.own() {
            match socket {
                // Fails if another process was first; before Linux 5.7 also without CAP_NET_RAW: then a connection that
                // comes in the very last moment may be reset, and is counted.
                Socket::Tcp(listener) => drop(bind_to_no_interface(listener)),
                Socket::Unix(listener) => drop(SockRef::from(listener).shutdown(Shutdown::Both)),
            }
        }
    }

    fn own(&self) -> &[Socket] {
        if self.adopted() { &[] } else { &self.sockets }
    }
}

/// One option of the kernel's, for both families.
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
    fn a_listener_that_is_bound_to_no_interface_refuses_newcomers_and_serves_those_it_has() {
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
