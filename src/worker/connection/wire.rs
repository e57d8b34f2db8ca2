//! The stream under hyper.
//!
//! Owns: noticing bytes, and the lingering close. Refuses: when a connection ends (`connection`).

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::Connection;

/// How long the last bytes of a client are read and thrown away, so that no RST destroys the answer it has not read.
const LINGER: Duration = Duration::from_secs(2);

/// The stream under hyper: notices bytes, and closes only after the client had time to read our last ones.
pub(super) struct Wire<T> {
    inner: TokioIo<T>,
    connection: Arc<Connection>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + AsyncWrite> Wire<T> {
    pub(super) fn new(stream: T, connection: Arc<Connection>) -> Self {
        Self { inner: TokioIo::new(stream), connection, linger: None }
    }
}

impl<T: AsyncRead + Unpin> Read for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.connection.activity.bytes_arrived();
        Poll::Ready(read)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Write for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    /// Half-closes, then reads and discards to the client's end or `LINGER`: a close with unread bytes would be an RST,
    /// and an RST destroys what the client has not read yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scrap = [0; 4096];
        loop {
            let mut scrap = ReadBuf::new(&mut scrap);
            match Pin::new(this.inner.inner_mut()).poll_read(cx, &mut scrap) {
                Poll::Ready(Ok(())) if !scrap.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
