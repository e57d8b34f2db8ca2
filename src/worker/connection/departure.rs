//! Whether the client of a request is still there when the app is to be asked.
//!
//! Owns: what the event loop knows of the other end of a stream without a system call, and the decision that nobody
//! waits for an answer. Refuses: how the kernel is asked (`sys::fd`), and requests whose client leaves later: the app has
//! those.
//!
//! A worker that died or hung leaves requests in its queue. Their clients give up, and each request would still be
//! served by the next worker: for nothing, and a request that ends workers would end that one too.

use std::sync::atomic::Ordering::Relaxed;

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

use super::Connection;
use crate::sys::fd;

/// A stream that knows whether its other end goes on to send.
pub(in crate::worker) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Whether the event loop has seen the other end's FIN or RST. Costs no system call, and may be as old as the last
    /// turn of the loop.
    fn is_ending(&self) -> bool;
}

impl Stream for TcpStream {
    fn is_ending(&self) -> bool {
        // Urgent data is never asked for. What is left of this interest is the end of the stream, which stays known once
        // epoll has told of it.
        self.try_io(Interest::PRIORITY, || Ok(())).is_ok()
    }
}

impl Stream for UnixStream {
    fn is_ending(&self) -> bool {
        self.try_io(Interest::PRIORITY, || Ok(())).is_ok()
    }
}

impl<T: Stream> Stream for TlsStream<T> {
    fn is_ending(&self) -> bool {
        self.get_ref().0.is_ending()
    }
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the client left before its request was served")]
pub(super) struct ClientLeft;

impl Connection {
    /// The wire has seen that the other end sends no more.
    pub(super) fn ends(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Whether the client has left, when a request is about to be handed over: `now` is in milliseconds of the monotonic
    /// clock. The kernel is asked only where the loop has seen an end, or could not have seen it: the connection has
    /// waited in the queue, or the loop was held up and does not keep its promise to beat.
    pub(super) fn client_has_left(&self, now: u64) -> bool {
        let unsure = self.ending.load(Relaxed) || self.shared.row.due() < now;
        if unsure {
            // Of an end that comes later the wire tells anew.
            self.ending.store(false, Relaxed);
        }
        unsure && fd::has_left(self.socket)
    }
}
