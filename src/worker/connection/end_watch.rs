//! Watching for the client's end of a connection of HTTP/1 while a request is under way.
//!
//! Owns: how the end is seen. Refuses: the requests that wait for it (`client_gone`), and HTTP/2, whose frames are
//! always read.
//!
//! hyper does not read while the app answers, because a client that has ended its side still gets its response. The
//! stream belongs to hyper, so this watches a duplicate of its descriptor: only on connections where an app has asked,
//! and until the connection's task ends. Requests that wait behind do not hide the end, because the kernel reports it
//! beside them.

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

/// The watch of one connection, as far as it has begun.
#[derive(Default)]
pub(super) enum EndWatch {
    #[default]
    NotAsked,
    Watches(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The end has come, or the socket cannot be watched.
    Over,
}

impl EndWatch {
    /// Watches, and reports the end to the requests that wait for it. Call it at each turn of the connection's task,
    /// while hyper holds the stream.
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
    // As in `client_left`: without urgent data, this interest is ready only once epoll has seen the end.
    Ok(if connection.peer.remote.is_some() {
        let stream = TcpStream::from_std(duplicate.into())?;
        Box::pin(async move { _ = stream.ready(Interest::PRIORITY).await })
    } else {
        let stream = UnixStream::from_std(duplicate.into())?;
        Box::pin(async move { _ = stream.ready(Interest::PRIORITY).await })
    })
}
