//! Whether the client of a request is still there when its request is handed to the app.
//!
//! Owns: what the event loop knows of the other end of a stream without a system call, and the decision that no client
//! waits for an answer. Refuses: how the kernel is asked (`sys::fd`), and clients that leave later: the app has their
//! requests.
//!
//! A worker that died or hung leaves requests in its queue. Their clients give up, and the next worker would still serve
//! each request: in vain, and a request that crashes workers would crash that worker too.

use std::sync::atomic::Ordering::Relaxed;

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

use super::Connection;
use crate::sys::fd;

/// A stream that knows whether its other end has ended.
pub(in crate::worker) trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// Whether the event loop has seen the other end's FIN or RST. Costs no system call, and may be as old as the last
    /// turn of the loop.
    fn is_ending(&self) -> bool;
}

impl ClientStream for TcpStream {
    fn is_ending(&self) -> bool {
        // tokio registers no stream for urgent data. So this interest is ready only once epoll has seen the end of the
        // stream, and stays ready.
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

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the client left before its request was served")]
pub(super) struct ClientLeft;

impl Connection {
    /// To be called when the wire has seen that the client has ended its side.
    pub(super) fn ends(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Whether the client has left, when its request is about to be handed to the app. `now` is in milliseconds of the
    /// monotonic clock. The kernel is asked only if the loop has seen an end, or could not have seen it: the connection
    /// has waited in the queue, or the loop was held up and its heartbeat is late.
    pub(super) fn client_has_left(&self, now: u64) -> bool {
        let unsure = self.ending.load(Relaxed) || self.shared.is_held_up(now);
        if unsure {
            // The wire says so again if the end comes later.
            self.ending.store(false, Relaxed);
        }
        unsure && fd::has_left(self.socket)
    }
}
