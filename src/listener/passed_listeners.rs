//! The listeners as one program passes them to the next: the same sockets, in the same order.
//!
//! Owns: what the next program must know of each socket. Refuses: to bind. [`rebind`](Listeners::rebind) binds the new
//! addresses of the settings afterwards.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use serde::{Deserialize, Serialize};

use super::{Address, AddressChange, BindError, Listeners, Server, Socket, SocketGroup, Steering, resolve};
use crate::sys::{
    exec::{self, FdTransfer},
    file::FileId,
    socket_file::Rights,
};

/// All of [`Listeners`], in a form that another program can read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PassedListeners {
    groups: Vec<PassedGroup>,
    slots: u32,
    live: Vec<u32>,
    steering: Steering,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PassedGroup {
    asked: Address,
    address: Address,
    name: String,
    /// In the order of listen(): the index of a socket is its slot.
    sockets: Vec<RawFd>,
    file: Option<FileId>,
    #[serde(default)]
    given: Option<Rights>,
}

impl Listeners {
    /// Describes the listeners for the next program. Call it only while no reload is on trial.
    pub(crate) fn pass_on(&self, transfer: &mut FdTransfer) -> PassedListeners {
        let groups = self.groups.iter().map(|group| PassedGroup {
            asked: group.asked.clone(),
            address: group.address.clone(),
            name: group.name.clone(),
            sockets: group.sockets.iter().map(|socket| transfer.add(socket.as_fd())).collect(),
            file: group.file,
            given: group.given,
        });
        PassedListeners {
            groups: groups.collect(),
            slots: self.slots,
            live: self.live.clone(),
            steering: self.steering.clone(),
        }
    }

    /// # Errors
    /// A descriptor that the state names was not passed.
    pub(crate) fn adopt(passed: &PassedListeners) -> io::Result<Self> {
        let groups = passed.groups.iter().map(|group| {
            let socket = |number: &RawFd| Ok(Socket::of(&group.address, exec::received(*number)?));
            Ok(SocketGroup {
                asked: group.asked.clone(),
                address: group.address.clone(),
                name: group.name.clone(),
                sockets: group.sockets.iter().map(socket).collect::<io::Result<_>>()?,
                file: group.file,
                given: group.given,
                change: AddressChange::Kept,
            })
        });
        let PassedListeners { slots, live, steering, .. } = passed.clone();
        Ok(Self { groups: groups.collect::<io::Result<_>>()?, slots, steering, live, shares: Vec::new() })
    }

    /// Finds out whether the addresses of `server.bind` that are not bound, or have lost their file, could be bound.
    /// Binds nothing.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(crate) fn probe(&self, server: &Server) -> Result<(), BindError> {
        let wanted = resolve(server)?;
        self.missing(&wanted).into_iter().try_for_each(Address::probe)
    }
}

impl PassedListeners {
    /// Returns the descriptors that the process that started the service passed. They keep their numbers, because the
    /// settings may name them.
    pub(crate) fn originals(&self) -> Vec<RawFd> {
        let original = |group: &PassedGroup| match group.asked {
            Address::Adopted(number) => Some(number),
            Address::Tcp { .. } | Address::Unix(_) => None,
        };
        self.groups.iter().filter_map(original).collect()
    }
}

impl Socket {
    fn of(address: &Address, fd: OwnedFd) -> Self {
        let unix = match address {
            Address::Tcp { .. } => false,
            Address::Unix(_) => true,
            Address::Adopted(_) => socket2::SockRef::from(&fd).local_addr().is_ok_and(|address| address.is_unix()),
        };
        if unix { Self::Unix(UnixListener::from(fd)) } else { Self::Tcp(TcpListener::from(fd)) }
    }
}
