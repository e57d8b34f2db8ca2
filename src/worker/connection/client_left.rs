//! Whether the client of a request is still there when the request is handed to the app.
//!
//! Owns: what the event loop knows of the other end of a stream without a system call, and the decision that no client
//! waits for the response. Refuses: how the kernel is asked (`sys::fd`), and clients that leave later: the app has
//! their requests (`client_gone`).
//!
//! A worker that died or hung leaves requests in its queue. Their clients give up, and without this check the next
//! worker would serve each of them for nothing; and a request that crashes workers would crash that worker too.

use std::sync::atomic::Ordering::Relaxed;

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

use super::Connection;
use crate::sys::fd;

/// A stream that knows whether its other end has ended.
pub(in crate::worker) trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// Whether the event loop has seen the other end's FIN or RST. Costs no system call; the knowledge may be as old as
    /// the last turn of the loop.
    fn is_ending(&self) -> bool;
}

impl ClientStream for TcpStream {
    fn is_ending(&self) -> bool {
        // tokio registers no stream for urgent data. So this interest is ready only once epoll has seen the end of the
        // stream, and then stays ready.
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

/// Ends a connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("the client left before its request was served")]
pub(super) struct ClientLeft;

impl Connection {
    /// Notes that the wire has seen the client end its side.
    pub(super) fn ends(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Whether the client has left, when its request is about to be handed to the app. `now` is in milliseconds of the
    /// monotonic clock. The kernel is asked only if the loop has seen an end, or could not have seen it: because the
    /// connection has waited in the queue, or because the loop was held up and its heartbeat is late.
    pub(super) fn client_has_left(&self, now: u64) -> bool {
        let unsure = self.ending.load(Relaxed) || self.shared.is_held_up(now);
        if unsure {
            // If the end comes later, the wire notes it again.
            self.ending.store(false, Relaxed);
        }
        unsure && fd::has_left(self.socket)
    }
}
