//! The listening sockets of a master. The master binds them once and keeps them as long as it runs. Every worker that
//! it forks inherits them.
//!
//! Owns: binding sockets, adopting inherited sockets, and the one final shutdown of the sockets. Refuses: to accept
//! connections (the worker does that), and to close the socket of a single slot, because the kernel would then renumber
//! the sockets of other slots.
//!
//! Each TCP address has either a group of SO_REUSEPORT sockets, one for each slot, or one socket that all workers
//! share. Unix and adopted sockets are always shared. The kernel numbers the sockets of a group in the order in which
//! listen() was called. When a socket is closed, the last socket of the group gets the number of the closed one. As
//! long as no socket is closed, the number of a socket is its slot, and [`steering`] relies on that.

mod address;
mod closing;
mod holder;
mod passed_listeners;
pub(crate) mod steering;

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use serde::{Deserialize, Serialize};
use socket2::{SockRef, Type};

pub(crate) use self::{address::BindError, passed_listeners::PassedListeners};
use self::{
    address::{Address, resolve, tcp},
    steering::Share,
};
use crate::{
    settings::{Bind, Owner, Server, WORKERS_MAX},
    sys::{
        bpf, fd,
        file::FileId,
        socket_file::{self, Rights},
    },
};

/// Returns the number of slots that are made for `workers` workers. It is larger than `workers`, so that an operator
/// can raise the number of workers without binding sockets again.
pub(crate) fn slot_count(workers: u32) -> u32 {
    workers.saturating_mul(2).clamp(8, 2 * WORKERS_MAX)
}

/// All listening sockets of a master. A forked worker has its own copy of this value, with the same sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    groups: Vec<SocketGroup>,
    slots: u32,
    steering: Steering,
    /// The slots to which the last call of [`steer`](Self::steer) sends new connections. Addresses that are added later
    /// are steered to the same slots.
    live: Vec<u32>,
    /// The shares of new connections that this program last gave to the slots through the kernel. The list is empty if
    /// an upgrade has just replaced the program, and the new program has not set any shares yet.
    shares: Vec<Share>,
}

/// Says whether the kernel can send new connections to chosen slots only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Steering {
    /// The kernel sends each new connection to one of the chosen slots.
    Active,
    /// The kernel refused the steering program, and the text says why. The kernel then sends connections to every slot
    /// that listens, so only as many slots listen as there are workers.
    Refused(String),
    /// All workers share all sockets, so there is nothing to steer.
    Unneeded,
}

/// The sockets of one address of `server.bind`.
#[derive(Debug)]
struct SocketGroup {
    /// The address as `server.bind` names it.
    asked: Address,
    /// The address with its real port, if `asked` has the port 0; otherwise the same as `asked`.
    address: Address,
    /// The address as text for messages. If the port is 0, the text has the real port. If `server.bind` names a
    /// descriptor, the text has the address that the descriptor is bound to.
    name: String,
    /// One socket for each slot, in the order in which listen() was called; or the only socket, which all workers
    /// share.
    sockets: Vec<Socket>,
    /// Identifies the file that this service made for a unix socket. The service compares it with the file that is
    /// there now, because another process may have put its own file in the same place.
    file: Option<FileId>,
    /// The owner and mode that this service gave last to the file of a unix socket. The service changes the file again
    /// only if the settings differ from this value. So a change that an operator makes by hand stays until the settings
    /// change.
    given: Option<Rights>,
    change: AddressChange,
}

/// What a reload in progress does to an address. If no reload is in progress, the value is `Kept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressChange {
    /// The address is named before and after the reload.
    Kept,
    /// The reload adds the address. If the reload fails, the address is closed.
    Added,
    /// The new settings no longer name the address. If the reload fails, the address is kept.
    Removed,
}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// The error that the kernel refused a new steering program for an address. The connections of this address go to the
/// same slots as before.
#[derive(Debug, thiserror::Error)]
#[error("cannot steer the connections to {address}")]
pub(crate) struct SteerError {
    address: String,
    source: io::Error,
}

impl Listeners {
    /// Binds all addresses of `server.bind`. It probes all of them before it binds the first, so that either all are
    /// bound or none.
    ///
    /// # Errors
    /// See [`BindError`]. All sockets that were bound are closed again.
    pub(crate) fn bind(server: &Server, workers: u32) -> Result<Self, BindError> {
        let addresses = resolve(server)?;
        for address in &addresses {
            address.probe()?;
        }
        let groups =
            addresses.into_iter().map(|address| SocketGroup::bind(address, server)).collect::<Result<Vec<_>, _>>()?;
        let mut listeners = Self { groups, ..Self::none() };
        listeners.probe_steering();
        listeners.grow(server, workers)?;
        Ok(listeners)
    }

    /// Returns an empty set of listeners, for a worker that never accepts.
    pub(crate) fn none() -> Self {
        Self { groups: Vec::new(), slots: 0, steering: Steering::Unneeded, live: vec![0], shares: Vec::new() }
    }

    /// Tries to bind each address of `server.bind` that is not in `held`, and closes its socket again. Returns the
    /// addresses of `server.bind` that are in `held`, and one error for each address that could not be bound.
    pub(crate) fn try_addresses(server: &Server, held: &[String]) -> (Vec<String>, Vec<BindError>) {
        let addresses = match resolve(server) {
            Ok(addresses) => addresses,
            Err(error) => return (Vec::new(), vec![error]),
        };
        let (held, free): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| held.contains(&address.to_string()));
        let refused = free.iter().filter_map(|address| address.probe().err()).collect();
        (held.iter().map(Address::to_string).collect(), refused)
    }

    /// Makes slots for `workers` workers, and applies `server.backlog`. New slots are added behind the existing ones,
    /// and no slot is removed. Workers that were forked earlier do not have the sockets of the new slots.
    ///
    /// If the kernel refuses steering, the number of slots with sockets stays as it was at the start. The kernel then
    /// sends connections to every slot that listens. After a scale-down, some of these slots have no worker, and other
    /// workers must serve them. Only workers that have the sockets of these slots can do that.
    ///
    /// # Errors
    /// See [`BindError`]. The slots are then the same as before the call.
    pub(crate) fn grow(&mut self, server: &Server, workers: u32) -> Result<(), BindError> {
        let refused = matches!(self.steering, Steering::Refused(_));
        let room = if refused && self.slots > 0 { self.room() } else { slot_count(workers).max(self.slots) };
        if workers > room {
            return Err(BindError::Room { room });
        }
        // Without steering the kernel sends connections to every slot that listens, so spare slots must not listen.
        let slots = if refused { workers.max(self.slots) } else { room };
        let grown = self.groups.iter_mut().try_for_each(|group| group.fill(room as usize));
        if let Err(error) = grown {
            for group in self.groups.iter_mut().filter(|group| group.per_slot()) {
                group.sockets.truncate((self.slots as usize).max(1));
            }
            return Err(error);
        }
        // All sockets are bound by now. If a socket listens already, listen() only changes its backlog, and the socket
        // keeps its number in the group.
        for group in self.groups.iter().filter(|group| !group.adopted()) {
            for socket in group.sockets.iter().take(slots as usize) {
                let backlog = i32::try_from(server.backlog).unwrap_or(i32::MAX);
                SockRef::from(socket).listen(backlog).map_err(|error| group.address.refused(error))?;
            }
        }
        self.slots = slots;
        Ok(())
    }

    /// Applies a changed `server.bind`: binds the addresses that are new, and marks those that `server.bind` no longer
    /// names. All other addresses keep their sockets and their queues. If the settings for owner and mode have changed,
    /// the file of a unix socket gets the new owner and mode. A unix socket whose file is gone is bound again, and its
    /// old socket is treated like a removed address: the workers still serve the connections that wait there. This
    /// function also makes slots for `workers` workers. If one of these steps fails, all are undone.
    ///
    /// Returns the unix sockets that were bound again.
    ///
    /// # Errors
    /// See [`BindError`]. All addresses, owners and modes are then again those of the settings `before`.
    pub(crate) fn rebind(&mut self, server: &Server, before: &Server, workers: u32) -> Result<Vec<String>, BindError> {
        let wanted = resolve(server)?;
        let lost = self.lost(server);
        let stays: Vec<_> =
            self.groups.iter().map(|group| wanted.contains(&group.asked) && group.is_still_there()).collect();
        let added = self.missing(&wanted);
        for address in &added {
            address.probe()?;
        }
        let bound = added.into_iter().map(|address| {
            let mut group = SocketGroup::bind(address.clone(), server)?;
            group.change = AddressChange::Added;
            Ok(group)
        });
        let bound = bound.collect::<Result<Vec<_>, BindError>>()?;
        self.groups.extend(bound);
        self.probe_steering();
        let ready = self.grow(server, workers).and_then(|()| self.give(server, &stays));
        if let Err(error) = ready {
            self.unbind_added(before);
            return Err(error);
        }
        for (group, stays) in self.groups.iter_mut().zip(stays) {
            group.change = if stays { AddressChange::Kept } else { AddressChange::Removed };
        }
        Ok(lost)
    }

    fn give(&mut self, server: &Server, stays: &[bool]) -> Result<(), BindError> {
        let kept = self.groups.iter_mut().zip(stays).filter(|(_, stays)| **stays);
        kept.map(|(group, _)| group).try_for_each(|group| group.give_rights(server))
    }

    /// Returns the addresses in `wanted` that are not bound, and those of unix sockets whose file is gone or was
    /// replaced.
    fn missing<'a>(&self, wanted: &'a [Address]) -> Vec<&'a Address> {
        let served =
            |address: &Address| self.groups.iter().any(|group| group.asked == *address && group.is_still_there());
        wanted.iter().filter(|address| !served(address)).collect()
    }

    /// Returns the unix sockets of `server` that are bound, but whose file is gone or was replaced by another process.
    pub(crate) fn lost(&self, server: &Server) -> Vec<String> {
        let named = server.bind.iter().filter_map(|bind| match bind {
            Bind::Unix(path) => Some(Address::Unix(path.clone())),
            Bind::Tcp { .. } | Bind::Fd(_) => None,
        });
        let named: Vec<_> = named.collect();
        let missing = self.missing(&named).into_iter();
        missing
            .filter(|address| self.groups.iter().any(|group| group.asked == **address))
            .map(ToString::to_string)
            .collect()
    }

    /// Undoes a reload that failed: closes the addresses that it added, keeps those that it would have removed, and
    /// restores owners and modes from the settings `before`.
    pub(crate) fn unbind_added(&mut self, before: &Server) {
        self.close_added();
        self.own_again(before);
    }

    /// Does the first half of [`unbind_added`](Self::unbind_added): it closes the added addresses and keeps the others.
    /// A program that does not know the settings from before the reload can call only this half.
    pub(crate) fn close_added(&mut self) {
        self.close_all(AddressChange::Added);
        for group in &mut self.groups {
            group.change = AddressChange::Kept;
        }
    }

    /// Does the second half of [`unbind_added`](Self::unbind_added): it restores owners and modes from the settings
    /// `before`.
    pub(crate) fn own_again(&mut self, before: &Server) {
        for group in &mut self.groups {
            // If this fails, another process has removed the file, and there is nothing to restore. No other cause is
            // likely, because this service could give the file the same rights before.
            let _ = group.give_rights(before);
        }
    }

    /// Closes the addresses that a reload removed. Call it only after the workers have accepted the connections that
    /// wait at these addresses. Returns the names of the addresses, and how many connections were reset.
    pub(crate) fn close_removed(&mut self) -> (Vec<String>, u64) {
        self.close_all(AddressChange::Removed)
    }

    /// Makes the added addresses permanent, because the reload that added them has succeeded.
    pub(crate) fn keep_added(&mut self) {
        for group in self.groups.iter_mut().filter(|group| group.change == AddressChange::Added) {
            group.change = AddressChange::Kept;
        }
    }

    /// Returns true if the last call of [`rebind`](Self::rebind) has marked an address to be removed.
    pub(crate) fn removes(&self) -> bool {
        self.groups.iter().any(|group| group.change == AddressChange::Removed)
    }

    /// Closes all addresses whose change is `change`. It closes whole groups only, so that in the other groups the
    /// index of a socket is still its slot. The workers have copies of these sockets, so a close in the master is not
    /// enough. Therefore the master also shuts the sockets down. Adopted sockets also belong to another process, so
    /// they are closed without a shutdown.
    fn close_all(&mut self, change: AddressChange) -> (Vec<String>, u64) {
        let (closed, stay) = std::mem::take(&mut self.groups).into_iter().partition(|group| group.change == change);
        self.groups = stay;
        let closed = Self {
            groups: closed,
            slots: self.slots,
            steering: Steering::Unneeded,
            live: Vec::new(),
            shares: Vec::new(),
        };
        let reset = closed.shut_down();
        closed.unlink();
        (closed.addresses(), reset)
    }

    /// Returns the addresses as they are bound, such as "127.0.0.1:8000" and "unix:/run/app.sock".
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.name.clone()).collect()
    }

    /// Returns each address with the number of connections that wait there to be accepted. For a unix socket the number
    /// is always 0, because the kernel does not report it.
    pub(crate) fn queued(&self) -> impl Iterator<Item = (String, u64)> {
        self.groups.iter().map(|group| {
            let queued = group.sockets.iter().filter_map(|socket| fd::accept_queue(socket.as_fd()));
            (group.name.clone(), queued.map(|(queued, _)| u64::from(queued)).sum())
        })
    }

    /// Returns the number of slots that listen. They are the slots 0 to this number minus 1.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Returns the number of slots that this process has sockets for, including slots that do not listen yet.
    pub(crate) fn room(&self) -> u32 {
        self.groups.iter().filter(|group| group.per_slot()).map(|group| group.sockets.len() as u32).max().unwrap_or(0)
    }

    pub(crate) fn steering(&self) -> &Steering {
        &self.steering
    }

    /// Returns the sockets on which the worker of `slot` accepts: those of its slot, and the shared ones.
    pub(crate) fn for_slot(&self, slot: u32) -> impl Iterator<Item = &Socket> {
        self.of_slot(slot).chain(self.shared())
    }

    /// Returns the sockets of `slot`. Only the worker of this slot accepts there. If that worker is silent, another
    /// worker rescues the connections that wait there.
    pub(crate) fn of_slot(&self, slot: u32) -> impl Iterator<Item = &Socket> {
        self.groups.iter().filter(|group| group.per_slot()).filter_map(move |group| group.sockets.get(slot as usize))
    }

    /// Returns the sockets on which all workers accept.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Socket> {
        self.groups.iter().filter(|group| !group.per_slot()).flat_map(|group| &group.sockets)
    }

    /// Returns all sockets: those of every slot, and the shared ones.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Socket> {
        self.groups.iter().flat_map(|group| &group.sockets)
    }

    /// Finds out whether the kernel accepts a steering program, by attaching one to the first address that has a socket
    /// for each slot. It tries this only until the answer is known. If the kernel accepts steering programs, it
    /// also attaches one to each address that a reload has just added.
    fn probe_steering(&mut self) {
        if self.steering == Steering::Unneeded
            && let Some(group) = self.groups.iter().find(|group| group.per_slot())
        {
            let program = steering::program(&steering::equal(&[0]));
            self.steering = match bpf::attach_reuseport(group.sockets[0].as_fd(), &program) {
                Ok(()) => Steering::Active,
                Err(error) => Steering::Refused(error.to_string()),
            };
        }
        // Steer before the sockets listen, because the spare slots of a new address have no worker and must not get a
        // single connection.
        if self.steering == Steering::Active {
            let program = steering::program(&steering::equal(&self.live));
            for group in self.groups.iter().filter(|group| group.change == AddressChange::Added && group.per_slot()) {
                // The kernel has already accepted another steering program. If it refuses this one, the next call of
                // `steer` reports the error.
                let _ = bpf::attach_reuseport(group.sockets[0].as_fd(), &program);
            }
        }
    }

    /// Sends new connections only to the slots in `live`. If `live` is empty, nothing changes, because a connection
    /// that waits for a worker is better than a connection that is refused. If the kernel does not steer, nothing
    /// changes either.
    ///
    /// # Errors
    /// The kernel refused the steering program, although it accepted one at the start. The address keeps its previous
    /// program, and steering is not tried again.
    pub(crate) fn steer(&mut self, live: &[u32]) -> Result<(), SteerError> {
        if live.is_empty() {
            return Ok(());
        }
        live.clone_into(&mut self.live);
        self.share(steering::equal(live))
    }

    /// Sends a larger share of the new connections to those live slots that have fewer connections. The shares stay
    /// until the next call of [`steer`](Self::steer) or of this function.
    ///
    /// # Errors
    /// The same error as in [`steer`](Self::steer).
    pub(crate) fn balance(&mut self, connections: impl Fn(u32) -> u64) -> Result<(), SteerError> {
        let shares = steering::by_room(&self.live, connections);
        if shares == self.shares { Ok(()) } else { self.share(shares) }
    }

    fn share(&mut self, shares: Vec<Share>) -> Result<(), SteerError> {
        if self.steering != Steering::Active {
            return Ok(());
        }
        let program = steering::program(&shares);
        self.shares = shares;
        for group in self.groups.iter().filter(|group| group.per_slot()) {
            if let Err(source) = bpf::attach_reuseport(group.sockets[0].as_fd(), &program) {
                self.steering = Steering::Refused(source.to_string());
                return Err(SteerError { address: group.name.clone(), source });
            }
        }
        Ok(())
    }

    /// Removes the files of the unix sockets of this service. If another process has put its own file at the same
    /// place, that file stays.
    pub(crate) fn unlink(&self) {
        for group in &self.groups {
            if let (Address::Unix(path), Some(ours)) = (&group.address, group.file) {
                // If this fails, the file stays, and the next start removes it as stale.
                let _ = socket_file::remove(path, ours);
            }
        }
    }
}

impl SocketGroup {
    fn per_slot(&self) -> bool {
        matches!(self.address, Address::Tcp { per_slot: true, .. })
    }

    fn adopted(&self) -> bool {
        matches!(self.address, Address::Adopted(_))
    }

    /// Binds the first socket of an address. If the TCP port is 0, the kernel chooses a port, and the sockets of the
    /// other slots get the same port.
    fn bind(address: Address, server: &Server) -> Result<Self, BindError> {
        let meant = address.clone();
        let change = AddressChange::Kept;
        match address {
            Address::Tcp { address: asked, v6_only, per_slot } => {
                let bound = tcp(asked, v6_only, per_slot).and_then(|socket| Ok((socket.local_addr()?, socket)));
                let (picked, socket) = bound.map_err(|error| address.refused(error))?;
                let address = Address::Tcp { address: picked, v6_only, per_slot };
                let sockets = vec![Socket::Tcp(socket)];
                Ok(Self { asked: meant, name: address.to_string(), address, sockets, file: None, given: None, change })
            }
            Address::Unix(ref path) => {
                if let Some(stale) = address.stale(path)? {
                    socket_file::remove(path, stale).map_err(|error| address.refused(error))?;
                }
                let bound = socket_file::bind(path, server.unix_mode);
                let (socket, file) = bound.map_err(|error| address.refused(error))?;
                let sockets = vec![Socket::Unix(socket)];
                let name = address.to_string();
                let mut group = Self { asked: meant, name, address, sockets, file: Some(file), given: None, change };
                group.give_rights(server)?;
                Ok(group)
            }
            Address::Adopted(number) => {
                let (socket, name) = adopt(number).map_err(|source| BindError::Adopt { number, source })?;
                Ok(Self { asked: meant, name, address, sockets: vec![socket], file: None, given: None, change })
            }
        }
    }

    /// Returns true if clients that connect to the address still reach these sockets. For a unix socket this is true as
    /// long as the file at the address is the one that this service made.
    fn is_still_there(&self) -> bool {
        match (&self.address, self.file) {
            (Address::Unix(path), Some(ours)) => socket_file::is_still_there(path, ours),
            _ => true,
        }
    }

    /// Gives the file of a unix socket the owner and mode of the settings. If this service has given it the same owner
    /// and mode before, nothing happens.
    fn give_rights(&mut self, server: &Server) -> Result<(), BindError> {
        let (Address::Unix(path), Some(ours)) = (&self.address, self.file) else { return Ok(()) };
        let Server { unix_mode: mode, unix_owner: Owner { uid, gid, .. }, .. } = *server;
        let rights = Rights { mode, uid, gid };
        if self.given == Some(rights) {
            return Ok(());
        }
        socket_file::set_rights(path, ours, rights).map_err(|source| {
            let owner = match &server.unix_owner.name {
                unset if unset.is_empty() => String::new(),
                name => format!(" to {name}"),
            };
            BindError::Own { path: path.clone(), owner, mode: server.unix_mode, source }
        })?;
        self.given = Some(rights);
        Ok(())
    }

    fn fill(&mut self, slots: usize) -> Result<(), BindError> {
        if let Address::Tcp { address, v6_only, per_slot: true } = self.address {
            while self.sockets.len() < slots {
                let socket = tcp(address, v6_only, true).map_err(|error| self.address.refused(error))?;
                self.sockets.push(Socket::Tcp(socket));
            }
        }
        Ok(())
    }
}

/// Returns a copy of the inherited descriptor `number`, and the address at which it listens. Fails if the descriptor is
/// not a listening stream socket.
fn adopt(number: i32) -> io::Result<(Socket, String)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let socket = socket2::Socket::from(fd::inherited(number)?);
    if !socket.is_listener()? || socket.r#type()? != Type::STREAM {
        return Err(wrong());
    }
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    if let Some(tcp) = address.as_socket() {
        Ok((Socket::Tcp(socket.into()), tcp.to_string()))
    } else if address.is_unix() {
        let path = address.as_pathname().unwrap_or(Path::new("(unnamed)"));
        Ok((Socket::Unix(socket.into()), Address::Unix(path.to_owned()).to_string()))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read,
        net::{SocketAddr, TcpStream},
        os::{
            fd::AsRawFd,
            unix::{fs::MetadataExt, net::UnixStream},
        },
    };

    use super::*;
    use crate::settings::ProxyProtocol;

    pub(super) fn server(bind: &[Bind]) -> Server {
        Server {
            bind: bind.to_vec(),
            backlog: 256,
            reuse_port: true,
            proxy_protocol: ProxyProtocol::Off,
            unix_mode: 0o660,
            unix_owner: Owner::default(),
        }
    }

    fn loopback(port: u16) -> Bind {
        Bind::Tcp { host: "127.0.0.1".to_owned(), port }
    }

    fn port(listeners: &Listeners) -> u16 {
        listeners.addresses()[0].parse::<SocketAddr>().unwrap().port()
    }

    fn queue_of(listeners: &Listeners, slot: u32) -> u32 {
        listeners.of_slot(slot).map(|socket| fd::accept_queue(socket.as_fd()).unwrap().0).sum()
    }

    #[test]
    fn connections_go_to_live_slots_only() {
        let mut listeners = Listeners::bind(&server(&[loopback(0)]), 2).unwrap();
        assert_eq!((listeners.slots(), listeners.steering()), (8, &Steering::Active));
        let address = ("127.0.0.1", port(&listeners));
        let mut clients = Vec::new();
        let mut expected = [0; 16];
        for live in [&[1, 5][..], &[0, 1, 2], &[7], &[]] {
            listeners.steer(live).unwrap();
            clients.extend((0..40).map(|_| TcpStream::connect(address).unwrap()));
            for slot in 0..8 {
                let queued = queue_of(&listeners, slot);
                // If no slot is live, the kernel keeps the last program, which sends everything to slot 7.
                let may_grow = live.contains(&slot) || live.is_empty() && slot == 7;
                assert_eq!(queued > expected[slot as usize], may_grow, "live {live:?}, slot {slot}: {queued}");
                expected[slot as usize] = queued;
            }
        }
        // New slots are added behind the old ones, and the old ones keep their index.
        listeners.grow(&server(&[loopback(0)]), 8).unwrap();
        assert_eq!(listeners.slots(), 16);
        for live in [15, 3] {
            listeners.steer(&[live]).unwrap();
            let before = queue_of(&listeners, live);
            clients.push(TcpStream::connect(address).unwrap());
            assert_eq!(queue_of(&listeners, live), before + 1);
        }
        assert_eq!(listeners.queued().map(|(_, queued)| queued).sum::<u64>(), clients.len() as u64);
    }

    #[test]
    fn an_address_in_use_names_its_holder_and_binds_nothing() {
        let first = Listeners::bind(&server(&[loopback(0)]), 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let taken = server(&[Bind::Unix(path.clone()), loopback(port(&first))]);
        let error = Listeners::bind(&taken, 1).unwrap_err().to_string();
        assert!(error.starts_with(&format!("server.bind: 127.0.0.1:{} is in use: ", port(&first))), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_shut_down_address_is_free_while_others_still_hold_it() {
        let first = Listeners::bind(&server(&[loopback(0)]), 1).unwrap();
        let held: Vec<_> = first.all().map(|socket| socket.as_fd().try_clone_to_owned().unwrap()).collect();
        assert_eq!(first.shut_down(), 0);
        let mut second = Listeners::bind(&server(&[loopback(port(&first))]), 1).unwrap();
        second.steer(&[0]).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port(&first))).unwrap();
        assert_eq!(queue_of(&second, 0), 1);
        assert_eq!(held.len(), 8);
    }

    #[test]
    fn a_name_binds_every_address_it_has() {
        let listeners = Listeners::bind(&server(&[Bind::Tcp { host: "localhost".to_owned(), port: 0 }]), 1).unwrap();
        assert!(listeners.addresses().iter().any(|address| address.starts_with("127.0.0.1:")));
        let error = Listeners::bind(&server(&[Bind::Tcp { host: "no such host".to_owned(), port: 0 }]), 1).unwrap_err();
        assert_eq!(error.to_string(), "server.bind: the name \"no such host\" does not resolve to an address");
    }

    #[test]
    fn an_address_of_another_machine_says_so() {
        // 192.0.2.0/24 is reserved for documentation, so no machine has an address in it. The test sends nothing to
        // that address, because bind() sends nothing.
        let error = Listeners::bind(&server(&[Bind::Tcp { host: "192.0.2.1".to_owned(), port: 80 }]), 1).unwrap_err();
        let told = "server.bind: cannot listen on 192.0.2.1:80: no interface of this machine has that address";
        assert_eq!(error.to_string(), told);
    }

    #[test]
    fn without_reuse_port_one_socket_serves_all() {
        let listeners = Listeners::bind(&Server { reuse_port: false, ..server(&[loopback(0)]) }, 2).unwrap();
        assert_eq!((listeners.all().count(), listeners.steering()), (1, &Steering::Unneeded));
        assert_eq!((listeners.for_slot(7).count(), listeners.of_slot(0).count()), (1, 0));
    }

    #[test]
    fn an_inherited_socket_is_checked_shared_and_never_shut_down() {
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = theirs.local_addr().unwrap();
        let listeners = Listeners::bind(&server(&[Bind::Fd(theirs.as_raw_fd())]), 2).unwrap();
        assert_eq!(listeners.addresses(), [address.to_string()]);
        assert_eq!(listeners.shut_down(), 0);
        let mut client = TcpStream::connect(address).unwrap();
        let Some(Socket::Tcp(adopted)) = listeners.for_slot(1).next() else { panic!("not a TCP socket") };
        drop(adopted.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);

        let error = Listeners::bind(&server(&[Bind::Fd(client.as_raw_fd())]), 2).unwrap_err().to_string();
        assert!(error.starts_with("server.bind: fd://"), "{error}");
    }

    #[test]
    fn a_unix_socket_replaces_the_file_of_a_dead_process_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let server = server(&[Bind::Unix(path.clone())]);
        drop(UnixListener::bind(&path).unwrap());

        let listeners = Listeners::bind(&server, 2).unwrap();
        assert_eq!(listeners.addresses(), [format!("unix:{}", path.display())]);
        assert_eq!((fs::metadata(&path).unwrap().mode() & 0o7777), 0o660);
        UnixStream::connect(&path).unwrap();
        let error = Listeners::bind(&server, 2).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");

        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        listeners.unlink();
        UnixStream::connect(&path).unwrap();
        drop(theirs);

        let listeners = Listeners::bind(&server, 2).unwrap();
        listeners.unlink();
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        let error = Listeners::bind(&server, 2).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
