//! The stream that hyper reads and writes for HTTP/2. It wraps the socket.
//!
//! Owns: the rule that the [`Http2State`] reads all bytes that pass, the sending of our own frames between those of h2,
//! and the lingering close. Refuses: the meaning of frames, and the decision to end the connection (`http2`).

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::{
    io::ReadBuf,
    time::{Instant, Sleep, sleep},
};

use super::{Goodbye, Http2State};
use crate::worker::{
    connection::{
        Connection, client_left::ClientStream, http1::poll_write_together, linger::poll_discard,
        protocol_detect::PREFACE,
    },
    shared::OpenGuard,
};

/// The time that the client has after the goodbye (our GOAWAY) to end the connection first. If our FIN came right
/// behind the GOAWAY, a request that the client has begun meanwhile would fail. Java's HttpClient, for example, then
/// reports the end of the stream instead of sending the request over another connection.
const FIN_AFTER: Duration = Duration::from_secs(2);

/// How long we read and discard after our FIN. A client may be silent, and read the GOAWAY only when it sends its next
/// request. If the connection were closed by then, an RST would answer that request and destroy the GOAWAY.
const LINGER: Duration = Duration::from_secs(3);

/// The most bytes that are read at once. We read as much as h2 asks for, but not less than `SCRATCH_MIN`.
const SCRATCH: usize = 16_384;
const SCRATCH_MIN: usize = 512;

pub(in crate::worker::connection) struct Http2Wire<T> {
    stream: T,
    state: Arc<Mutex<Http2State>>,
    connection: Arc<Connection>,
    /// Bytes that were read to detect HTTP/2. The state has not seen them yet.
    first: Vec<u8>,
    /// Bytes that the state has let pass, but that did not fit into h2's buffer yet.
    passed: Vec<u8>,
    end: End,
    _open: OpenGuard,
}

/// The steps in which a connection ends.
enum End {
    No,
    /// Everything but our FIN is sent. We send our FIN when the client's FIN has come, or when this timer fires.
    Said(Pin<Box<Sleep>>),
    /// Our FIN is sent. What the client sends is discarded until this timer fires.
    HalfClosed(Pin<Box<Sleep>>),
}

impl<T: ClientStream> Http2Wire<T> {
    /// Wraps a stream. `first` holds the bytes that were already read from the stream; they begin with the preface of
    /// HTTP/2.
    pub(in crate::worker::connection) fn new(
        stream: T,
        mut first: Vec<u8>,
        state: Arc<Mutex<Http2State>>,
        connection: Arc<Connection>,
        open: OpenGuard,
    ) -> Self {
        let passed = first.drain(..PREFACE.len().min(first.len())).collect();
        Self { stream, state, connection, first, passed, end: End::No, _open: open }
    }

    /// Writes our own frames, if the last frame of h2 is completely written.
    fn poll_write_ours(&mut self, state: &mut Http2State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(bytes) = state.ours() {
            let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
            self.connection.activity.blocks(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => state.has_written_ours(count),
            }
            if state.ours.is_empty() {
                // Over TLS the bytes may still be in a buffer, so flush it. If the flush cannot finish now, the next
                // write or flush sends the rest.
                let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once from the stream, and passes on the bytes that h2 may see. Returns false if the client has ended its
    /// side.
    fn poll_receive(
        &mut self,
        state: &mut Http2State,
        buf: &mut ReadBufCursor<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        let mut scratch = [MaybeUninit::uninit(); SCRATCH];
        let most = buf.remaining().clamp(SCRATCH_MIN, SCRATCH);
        let mut new = ReadBuf::uninit(scratch.get_mut(..most).unwrap_or_default());
        let first = std::mem::take(&mut self.first);
        let bytes = if first.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut new))?;
            new.filled()
        } else {
            first.as_slice()
        };
        let passed = &mut self.passed;
        state.received(bytes, &self.connection.activity, |bytes| {
            let room = if passed.is_empty() { buf.remaining() } else { 0 };
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            buf.put_slice(now);
            passed.extend_from_slice(later);
        });
        Poll::Ready(Ok(!bytes.is_empty()))
    }

    /// Writes our own frames that wait, and then the bytes that h2 gives. After the goodbye (our GOAWAY) it discards
    /// the bytes that h2 gives.
    fn poll_write_frames(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        ready!(self.poll_write_ours(&mut state, cx))?;
        if state.goodbye == Goodbye::Done {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = write(Pin::new(&mut self.stream), cx);
        self.connection.activity.blocks(written.is_pending());
        let mut left = ready!(written)?;
        let count = left;
        for buf in bufs {
            let bytes = buf.get(..left).unwrap_or(buf);
            state.sent(bytes, &self.connection.activity);
            left -= bytes.len();
        }
        Poll::Ready(Ok(count))
    }
}

pub(super) fn lock(state: &Mutex<Http2State>) -> MutexGuard<'_, Http2State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: ClientStream> Read for Http2Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let state = Arc::clone(&this.state);
        let mut state = lock(&state);
        let room = buf.remaining();
        loop {
            let said = this.poll_write_ours(&mut state, cx)?;
            match state.goodbye {
                Goodbye::No | Goodbye::Wanted => {}
                // Bytes may still come that the client sent before it read our GOAWAY. They belong to streams above the
                // last one that is served, so h2 does not get these bytes.
                Goodbye::Begun => return said.map(Ok),
                Goodbye::Done => return Poll::Ready(Ok(())),
            }
            if this.passed.is_empty() {
                state.inject(|bytes| this.passed.extend_from_slice(bytes));
            }
            let count = this.passed.len().min(buf.remaining());
            buf.put_slice(this.passed.get(..count).unwrap_or_default());
            this.passed.drain(..count);
            if this.passed.is_empty() {
                this.passed = Vec::new();
            }
            if buf.remaining() < room || !ready!(this.poll_receive(&mut state, &mut buf, cx))? {
                return Poll::Ready(Ok(()));
            }
            if buf.remaining() < room {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: ClientStream> Write for Http2Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_frames(cx, &[io::IoSlice::new(buf)], |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.connection.activity.blocks(flushed.is_pending());
        flushed
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_frames(cx, bufs, |mut stream, cx| poll_write_together(&mut stream, cx, bufs))
    }

    /// Half-closes the connection by our FIN. If the connection ends by a GOAWAY without an error, this first waits
    /// until the client has half-closed the connection, for `FIN_AFTER` at most. After our FIN it reads and discards
    /// until the client has ended its side, for `LINGER` at most.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.end {
                End::No => {
                    ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
                    let patience = if lock(&this.state).ends_well() { FIN_AFTER } else { Duration::ZERO };
                    lock(&this.state).goodbye = Goodbye::Done;
                    this.connection.activity.leaves();
                    this.end = End::Said(Box::pin(sleep(patience)));
                }
                End::Said(wait) => {
                    // If another connection needs the place of this one now, send our FIN without waiting.
                    if !this.connection.activity.is_asked_to_leave() {
                        let state = Arc::clone(&this.state);
                        ready!(poll_discard_until(&mut this.stream, wait, Some(&mut lock(&state)), cx));
                    }
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    this.end = End::HalfClosed(Box::pin(sleep(LINGER)));
                }
                End::HalfClosed(_) if this.connection.activity.is_asked_to_leave() => return Poll::Ready(Ok(())),
                End::HalfClosed(linger) => return poll_discard_until(&mut this.stream, linger, None, cx).map(Ok),
            }
        }
    }
}

/// Reads and discards what the client sends, until the client ends its side or the timer fires. Until our FIN is sent,
/// `state` looks at what is discarded, and may answer it.
fn poll_discard_until<T: ClientStream>(
    stream: &mut T,
    time: &mut Pin<Box<Sleep>>,
    mut state: Option<&mut Http2State>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let deadline = time.deadline();
    let discarded = poll_discard(stream, cx, |bytes| {
        if let Some(state) = &mut state {
            state.discard(bytes);
        }
        Instant::now() < deadline
    });
    if let Some(state) = state {
        while let Some(bytes) = state.ours() {
            match Pin::new(&mut *stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) if count > 0 => state.has_written_ours(count),
                // The client is gone, or does not read. Then it does not wait for an answer either.
                _ => break,
            }
        }
        let _ = Pin::new(stream).poll_flush(cx);
    }
    match discarded {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => time.as_mut().poll(cx),
    }
}
