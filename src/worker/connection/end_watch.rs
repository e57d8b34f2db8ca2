//! Watches for the moment at which the client ends a connection of HTTP/1 while a request is under way.
//!
//! Owns: the watch that notices when a client has ended its connection. Refuses: the futures that wait for the client's
//! end (`client_gone`), and HTTP/2, which needs no watch because its frames are always read.
//!
//! A client that has ended its side must still get its response. So hyper does not read while the app answers, and does
//! not notice the client's end. The stream belongs to hyper, so this module watches a duplicate of the stream's
//! descriptor. It watches only connections on which the app has asked for this watch. A watch lasts until the
//! connection's task ends. Unread bytes of further requests do not hide the client's end, because the kernel reports
//! the end in addition to the bytes.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use super::Connection;
use crate::sys::fd;

/// The state of the watch on one connection.
#[derive(Default)]
pub(super) enum EndWatch {
    #[default]
    NotAsked,
    Watches(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The client has ended the connection, or the socket cannot be watched.
    Over,
}

impl EndWatch {
    /// Begins or continues the watch. When the client ends the connection, this tells the futures that wait for the
    /// client's end. The connection's task must call this at each turn, and only while hyper holds the stream.
    pub(super) fn poll(&mut self, connection: &Connection, cx: &mut Context<'_>) {
        if let Self::NotAsked = self {
            *self = match watch(connection) {
                Ok(end) => Self::Watches(end),
                Err(error) => {
                    tracing::debug!(event = "client_not_watched", %error, "cannot watch for the end of a client");
                    Self::Over
                }
            };
        }
        if let Self::Watches(end) = self
            && let Poll::Ready(()) = end.as_mut().poll(cx)
        {
            *self = Self::Over;
            connection.request_ends.client_ends();
        }
    }
}

fn watch(connection: &Connection) -> io::Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let duplicate = fd::duplicate(connection.socket)?;
    // `Interest::PRIORITY` means urgent data, which tokio never registers for a stream. So the future becomes ready
    // only when epoll has seen the client's end. `client_left` uses the same interest.
    Ok(if connection.peer.remote.is_some() {
        let stream = TcpStream::from_std(duplicate.into())?;
        Box::pin(async move { _ = stream.ready(Interest::PRIORITY).await })
    } else {
        let stream = UnixStream::from_std(duplicate.into())?;
        Box::pin(async move { _ = stream.ready(Interest::PRIORITY).await })
    })
}
