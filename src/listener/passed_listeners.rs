//! In an upgrade, passes the listeners to the next program of the master. That program gets the same sockets in the
//! same order.
//!
//! Owns: the data that the next program needs about each socket. Refuses: to bind; after the upgrade
//! [`rebind`](Listeners::rebind) binds the addresses that are new in the settings.

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

/// The data of [`Listeners`], in a form that another program can read.
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
    /// The descriptors of the sockets, in the order of listen(), so that the index of a socket is its slot.
    sockets: Vec<RawFd>,
    file: Option<FileId>,
    #[serde(default)]
    given: Option<Rights>,
}

impl Listeners {
    /// Describes the listeners for the next program, and adds their descriptors to `transfer`. Call it only while no
    /// reload is in progress, because changes by a reload are not passed on.
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

    /// Takes over the listeners that the previous program has passed.
    ///
    /// # Errors
    /// A descriptor that `passed` names is not open in this process.
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

    /// Checks the addresses of `server.bind` that are not bound yet, and those of unix sockets whose file is lost.
    /// Succeeds if all of them could be bound, and binds none of them for good.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(crate) fn probe(&self, server: &Server) -> Result<(), BindError> {
        let wanted = resolve(server)?;
        self.missing(&wanted).into_iter().try_for_each(Address::probe)
    }
}

impl PassedListeners {
    /// Returns the descriptor numbers of the sockets that the service inherited when it was started. The sockets must
    /// keep these numbers over an upgrade, because `server.bind` may name them.
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
