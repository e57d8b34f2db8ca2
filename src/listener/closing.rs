//! How listeners are closed without a reset: first no new connection begins, then the workers accept what waits, then
//! the listeners are shut down.
//!
//! A TCP listener that is shut down resets each connection in its queue, also one that was established since the last
//! accept. So a filter drops the first packet of each new handshake: handshakes under way are completed, and after a
//! moment the queue stays empty. A client whose packet is dropped tries again a second later, and is refused then. A unix
//! socket that is shut down refuses new clients, and what is in its queue can still be accepted.
//!
//! Owns: the filter, shutting down, and counting what is reset. Refuses: to accept, and to touch an adopted socket, with
//! which other processes may go on.

use std::{net::Shutdown, os::fd::AsFd};

use socket2::SockRef;

use super::{Group, Listeners, Socket, Standing};
use crate::sys::{
    bpf::{self, Instruction},
    fd,
};

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The offset of the flags in a TCP header.
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// Drops packets with SYN and without ACK.
const NO_NEWCOMERS: [Instruction; 5] = [
    Instruction { code: LOAD_BYTE, jt: 0, jf: 0, k: FLAGS },
    Instruction { code: AND, jt: 0, jf: 0, k: SYN | ACK },
    Instruction { code: JUMP_EQUAL, jt: 0, jf: 1, k: SYN },
    Instruction { code: RETURN, jt: 0, jf: 0, k: 0 },
    Instruction { code: RETURN, jt: 0, jf: 0, k: u32::MAX },
];

impl Listeners {
    /// From now on no new connection begins; those that have begun still arrive in the queues. This cannot be undone, and
    /// is so for all processes that have these sockets.
    pub(crate) fn refuse_newcomers(&self) {
        self.groups.iter().for_each(Group::refuse_newcomers);
    }

    /// As [`refuse_newcomers`](Self::refuse_newcomers), for the addresses that the settings no longer name.
    pub(crate) fn refuse_newcomers_of_removed(&self) {
        self.groups.iter().filter(|group| group.standing == Standing::Removed).for_each(Group::refuse_newcomers);
    }

    /// Ends listening for every process that has these sockets, and resets what waits in their queues: for the final
    /// stop, and for addresses that are removed. Gives back how many connections were reset, and logs it. Those of a unix
    /// socket cannot be counted.
    #[must_use = "what is lost is counted"]
    pub(crate) fn shut_down(&self) -> u64 {
        let mut reset = 0;
        for socket in self.groups.iter().flat_map(Group::own) {
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

impl Group {
    fn refuse_newcomers(&self) {
        for socket in self.own() {
            match socket {
                // If the kernel refuses, a connection of the last moment may be reset: it is counted.
                Socket::Tcp(listener) => drop(bpf::attach_filter(listener.as_fd(), &NO_NEWCOMERS)),
                // Fails if another process was first.
                Socket::Unix(listener) => drop(SockRef::from(listener).shutdown(Shutdown::Both)),
            }
        }
    }

    fn own(&self) -> &[Socket] {
        if self.adopted() { &[] } else { &self.sockets }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    fn filtered(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_filtered_listener_lets_nobody_new_in_and_serves_those_it_has() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (listener, address) = filtered(address);
            let mut early = TcpStream::connect(address).unwrap();
            bpf::attach_filter(listener.as_fd(), &NO_NEWCOMERS).unwrap();
            let late = TcpStream::connect_timeout(&address, Duration::from_millis(200)).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            let (mut served, _) = listener.accept().unwrap();
            early.write_all(b"ask").unwrap();
            served.read_exact(&mut [0; 3]).unwrap();
            served.write_all(b"answer").unwrap();
            early.read_exact(&mut [0; 6]).unwrap();
        }
    }
}
