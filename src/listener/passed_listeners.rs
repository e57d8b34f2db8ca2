//! The listeners as one program hands them to the next that takes its place: the same sockets, in the same order.
//!
//! Refuses to bind: what the new settings name beyond these comes after, by [`rebind`](Listeners::rebind).

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

/// All of [`Listeners`], for another program to read.
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
    /// In the order of listen(): a socket's place here is its slot.
    sockets: Vec<RawFd>,
    file: Option<FileId>,
    #[serde(default)]
    given: Option<Rights>,
}

impl Listeners {
    /// To be asked for while no reload is on trial.
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
    /// A descriptor that was promised is not there.
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

    /// Whether what `server.bind` names beyond what is bound, or has lost, could be bound, without binding it.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(crate) fn probe(&self, server: &Server) -> Result<(), BindError> {
        let wanted = resolve(server)?;
        self.missing(&wanted).into_iter().try_for_each(Address::probe)
    }
}

impl PassedListeners {
    /// Descriptors of whoever started us: they keep their numbers, for the settings may name them.
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
