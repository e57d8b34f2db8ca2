//! The worker's end of the channel to the master.
//!
//! Owns: the orders that this worker gets by a message of the master, by the loss of the master, or by SIGTERM.
//! Refuses: messages to the master (`shared`), and the execution of an order (`worker`).

use std::{
    future::pending,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use tokio::{io::Interest, net::UnixDatagram, select, signal::unix::Signal};

use super::shared::Shared;
use crate::{
    channel::{Received, ToWorker},
    log,
    sys::process,
};

#[derive(Debug)]
pub(super) enum Order {
    Go,
    AnnounceStop,
    Drain {
        grace: Duration,
        last: bool,
    },
    /// This worker got a SIGTERM while its master was alive.
    Term,
}

/// Receives the orders of the master, and notices when the master is gone.
pub(super) struct MasterLink {
    /// `None` once the master is gone. The socket is of type SOCK_SEQPACKET, but tokio treats it as a datagram socket.
    /// This works, because a SOCK_SEQPACKET socket keeps messages apart as a datagram socket does. In addition, it
    /// reports that the other end is gone.
    channel: Option<UnixDatagram>,
    term: Signal,
    master: i32,
    pub(super) grace: Duration,
    shared: &'static Shared,
}

impl MasterLink {
    pub(super) fn new(
        channel: &OwnedFd,
        term: Signal,
        master: i32,
        grace: Duration,
        shared: &'static Shared,
    ) -> io::Result<Self> {
        let channel = UnixDatagram::from_std(channel.try_clone()?.into())?;
        Ok(Self { channel: Some(channel), term, master, grace, shared })
    }

    pub(super) async fn next(&mut self) -> Order {
        loop {
            let received = select! {
                biased;
                received = recv(self.channel.as_ref()) => received,
                _ = self.term.recv() => {
                    if process::parent_pid() == self.master {
                        return Order::Term;
                    }
                    Received::Closed
                }
            };
            return match received {
                Received::Message(ToWorker::Go) => Order::Go,
                Received::Message(ToWorker::AnnounceStop) => Order::AnnounceStop,
                Received::Message(ToWorker::Drain { grace_ms, last }) => {
                    Order::Drain { grace: Duration::from_millis(grace_ms), last }
                }
                Received::Message(ToWorker::TakeLog(file)) => {
                    log::adopt(file);
                    continue;
                }
                Received::Message(ToWorker::TakeAccessLog(file)) => {
                    if let Some(access) = &self.shared.access {
                        access.adopt(file);
                    }
                    continue;
                }
                Received::Nothing => continue,
                Received::Closed => {
                    self.channel = None;
                    tracing::error!(
                        event = "master_gone",
                        pid = std::process::id(),
                        "the master is gone; the worker drains and ends"
                    );
                    Order::Drain { grace: self.grace, last: true }
                }
            };
        }
    }
}

async fn recv(channel: Option<&UnixDatagram>) -> Received<ToWorker> {
    let Some(channel) = channel else { return pending().await };
    let received = channel.async_io(Interest::READABLE, || match ToWorker::recv(channel.as_fd()) {
        Ok(Received::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
        received => received,
    });
    received.await.unwrap_or(Received::Closed)
}
