//! Finds out if the client of a request is still there when the request is handed to the app.
//!
//! Owns: the look at what the event loop already knows about the client's end of a stream, and the decision that no
//! client waits for the response. Refuses: the system call that asks the kernel about the stream (`sys::fd`), and the
//! clients that leave later, when the app has their requests (`client_gone`).
//!
//! A worker that died or hung leaves requests in its queue, and their clients give up. Without this check the next
//! worker would serve each of these requests for nothing. A request among them that crashes workers would crash the
//! next worker too.

use std::sync::atomic::Ordering::Relaxed;

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

use super::Connection;
use crate::sys::fd;

/// A stream that can tell if the client has ended it.
pub(in crate::worker) trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// Returns true if the event loop has seen a FIN or RST of the client. The call makes no system call, so the answer
    /// may be as old as the last turn of the loop.
    fn is_ending(&self) -> bool;
}

impl ClientStream for TcpStream {
    fn is_ending(&self) -> bool {
        // `Interest::PRIORITY` means urgent data, which tokio registers for no stream. So the stream has this readiness
        // only once epoll has seen the end of the stream, and keeps it from then on.
        self.try_io(Interest::PRIORITY, || Ok(())).is_ok()
    }
}

impl ClientStream for UnixStream {
    fn is_ending(&self) -> bool {
        self.try_io(Interest::PRIORITY, || Ok(())).is_ok()
    }
}

#[cfg(feature = "tls")]
impl<T: ClientStream> ClientStream for tokio_rustls::server::TlsStream<T> {
    fn is_ending(&self) -> bool {
        self.get_ref().0.is_ending()
    }
}

/// The error that ends a connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("the client left before its request was served")]
pub(super) struct ClientLeft;

impl Connection {
    /// Notes that the client has ended its side of the connection. The stream under hyper calls this when it sees the
    /// end.
    pub(super) fn ends(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Returns true if the client has left when its request is about to be handed to the app. `now` is in milliseconds
    /// of the monotonic clock. The kernel is asked only if the event loop has seen a FIN or RST of the client, or may
    /// have missed it. The loop may have missed it while the connection waited in the accept queue, or while the loop
    /// was held up. A late heartbeat shows that the loop was held up.
    pub(super) fn client_has_left(&self, now: u64) -> bool {
        let unsure = self.ending.load(Relaxed) || self.shared.is_held_up(now);
        if unsure {
            // If the client ends its side later, the stream under hyper notes it again.
            self.ending.store(false, Relaxed);
        }
        unsure && fd::has_left(self.socket)
    }
}
