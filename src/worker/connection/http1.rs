//! The stream that hyper reads and writes for HTTP/1. It wraps the socket.
//!
//! Owns: the rule that hyper gets only bytes that the scanner has verified, the response to a client whose request was
//! refused, and the length of the wait for a client at the close. Refuses: the verification of bytes (`scanner`), and
//! the decision to end a connection (`connection`).
//!
//! A connection that waits for a request holds no buffer here. The bytes that arrive are read into a buffer on the
//! stack, scanned, and copied to hyper. Only a head that comes in pieces is kept. The content of a large body goes
//! straight into hyper's buffer.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Connection,
    client_left::ClientStream,
    delegate_write::delegate_write,
    linger::{self, Linger},
    refusal_response,
};
use crate::worker::{
    scanner::{Refusal, Scanner, SizeLimits, Verdict},
    shared::OpenGuard,
};

/// The shortest time to linger. The time to linger is `linger::SILENCE` less the time since the last response, but at
/// least this. A client that had its response long ago has read it, so an RST after a short time destroys nothing.
const SHORT_LINGER: Duration = Duration::from_millis(500);

/// The most bytes that are read from the stream at once. hyper asks for the same number at first.
const SCRATCH: usize = 8192;

/// Several pieces that have at most this many bytes in all are copied together and written by one send(2), which is
/// cheaper than writev(2).
const TOGETHER: usize = 1024;

pub(super) struct Http1Wire<T> {
    inner: TokioIo<Counted<T>>,
    connection: Arc<Connection>,
    input: InputBuffer,
    /// What is left to send of the response to a refused request; `None` until the worker begins to send it.
    last_response: Option<io::Cursor<Vec<u8>>>,
    linger: Linger,
    /// The connection counts as open until the stream is dropped, because an upgraded stream outlives the connection's
    /// task.
    _open: OpenGuard,
}

/// The bytes that have arrived and were not given to hyper yet, and the scanner that verifies them.
struct InputBuffer {
    /// The scanner of the connection; `None` after an upgrade. Then the bytes are not HTTP, and all of them pass.
    scanner: Option<Scanner>,
    held: Vec<u8>,
    /// How many of the held bytes are verified, and may go to hyper.
    verified: usize,
    /// True if the held bytes behind the verified ones must be scanned. Either they were not scanned yet, or the
    /// scanner may now judge them differently.
    unscanned: bool,
    refusal: Option<Refusal>,
}

impl<T: ClientStream> Http1Wire<T> {
    /// Wraps a stream. `first` holds the bytes that were already read from the stream.
    pub(super) fn new(stream: T, first: Vec<u8>, connection: Arc<Connection>, open: OpenGuard) -> Self {
        let http = &connection.shared.http;
        let scanner = Scanner::new(SizeLimits {
            request_line: http.limit_request_line,
            fields: http.limit_request_fields,
            field_size: http.limit_request_field_size,
            body: http.limit_request_body,
        });
        let input = InputBuffer::new(Some(scanner), first);
        let inner = TokioIo::new(Counted { stream, read: 0 });
        Self { inner, connection, input, last_response: None, linger: Linger::default(), _open: open }
    }

    fn stream(&mut self) -> Pin<&mut T> {
        Pin::new(&mut self.inner.inner_mut().stream)
    }

    /// Passes on the result of a write, and notes in the activity whether the write had to wait for the client.
    fn wrote<R>(&self, written: Poll<R>) -> Poll<R> {
        self.connection.activity.blocks(written.is_pending());
        written
    }

    /// Returns true if the client announced its last request (RFC 9112, section 9.6) and has sent nothing behind it.
    /// Over TLS it returns false, because the client's close_notify is still to come.
    fn has_said_all(&self) -> bool {
        let ended = self.input.scanner.as_ref().is_some_and(Scanner::has_ended);
        ended && self.input.held.is_empty() && !self.connection.client.is_tls()
    }

    /// Returns how long to wait at the close for a client that has not ended its side.
    fn patience(&self) -> Duration {
        let Connection { refusal, activity, .. } = &*self.connection;
        if self.has_said_all() {
            return Duration::ZERO;
        }
        let silence = if refusal.get().is_some() { Duration::ZERO } else { activity.idle_for() };
        linger::SILENCE.saturating_sub(silence).max(SHORT_LINGER)
    }

    /// Ends the input for hyper. Outside of a body, hyper sees the end of the stream. hyper has answered all earlier
    /// requests by then. So hyper closes the stream, and the refusal is sent as the last response. Inside of a body,
    /// hyper sees an error, and the response to the request with this body reports the refusal.
    fn refuse(&self, refusal: Refusal, in_body: bool) -> Poll<io::Result<()>> {
        if in_body {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
        }
        self.connection.refuse(refusal);
        Poll::Ready(Ok(()))
    }
}

impl InputBuffer {
    fn new(scanner: Option<Scanner>, first: Vec<u8>) -> Self {
        let verified = if scanner.is_none() { first.len() } else { 0 };
        Self { scanner, unscanned: verified < first.len(), held: first, verified, refusal: None }
    }

    /// Gives verified bytes to hyper, as many as fit into hyper's buffer.
    fn give(&mut self, buf: &mut ReadBufCursor<'_>) {
        let room = self.verified.min(buf.remaining());
        buf.put_slice(self.held.get(..room).unwrap_or_default());
        self.held.drain(..room);
        self.verified -= room;
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }

    /// Scans the held bytes and the new bytes behind them, gives hyper the bytes that pass, and keeps the rest.
    fn take(&mut self, new: &[u8], buf: &mut ReadBufCursor<'_>) {
        let Some(scanner) = &mut self.scanner else { return };
        self.unscanned = false;
        if !self.held.is_empty() {
            self.held.extend_from_slice(new);
        }
        let all = if self.held.is_empty() { new } else { &self.held };
        let scan = scanner.scan(all);
        if let Verdict::Refuse(refusal) = scan.verdict {
            self.refusal = Some(refusal);
        }
        self.verified = scan.pass;
        if self.held.is_empty() {
            let room = self.verified.min(buf.remaining());
            let (given, rest) = new.split_at_checked(room).unwrap_or((new, &[]));
            buf.put_slice(given);
            self.held = rest.to_vec();
            self.verified -= room;
        } else {
            self.give(buf);
        }
    }

    /// Decides what the bytes behind a request for another protocol mean, once the response to this request is known.
    /// After an upgrade the bytes are not HTTP. After any other response they are the next request, which is scanned.
    fn learn(&mut self, connection: &Connection) {
        let Some(scanner) = &mut self.scanner else { return };
        if connection.upgraded.load(Relaxed) {
            self.scanner = None;
            self.verified = self.held.len();
        } else if scanner.is_held() && !connection.activity.busy() {
            scanner.resume();
            self.unscanned = !self.held.is_empty();
        }
    }
}

impl<T: ClientStream> Read for Http1Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.input.learn(&this.connection);
        let room = buf.remaining();
        loop {
            let input = &mut this.input;
            if input.verified > 0 {
                input.give(&mut buf);
            }
            if buf.remaining() < room {
                // These bytes may hold a request whose client is gone. If the event loop has seen the client's end,
                // note it, so that it is checked before the app gets the request.
                if this.inner.inner().stream.is_ending() {
                    this.connection.ends();
                }
                if let Some(scanner) = &input.scanner {
                    this.connection.has_read(scanner);
                }
                return Poll::Ready(Ok(()));
            }
            let Some(scanner) = &mut input.scanner else { return Pin::new(&mut this.inner).poll_read(cx, buf) };
            if let Some(refusal) = input.refusal {
                let in_body = scanner.refused_in_body();
                return this.refuse(refusal, in_body);
            }
            if scanner.has_ended() {
                return Poll::Ready(Ok(()));
            }
            if input.unscanned {
                input.take(&[], &mut buf);
                continue;
            }
            if input.held.is_empty() && scanner.body_left().is_some_and(|left| left >= room as u64) {
                this.inner.inner_mut().read = 0;
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                scanner.skip(this.inner.inner().read);
                this.connection.has_read(scanner);
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [MaybeUninit::uninit(); SCRATCH];
            let mut new = ReadBuf::uninit(&mut scratch);
            let read = Pin::new(&mut this.inner.inner_mut().stream).poll_read(cx, &mut new);
            if read.is_ready() && !new.filled().is_empty() {
                input.take(new.filled(), &mut buf);
            }
            if input.scanner.as_ref().is_some_and(Scanner::in_head) {
                this.connection.activity.head_begins();
            }
            ready!(read)?;
            if new.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: ClientStream> Write for Http1Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.wrote(flushed)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = poll_write_together(self.inner.inner_mut(), cx, bufs);
        self.wrote(written)
    }

    /// If the last request was refused, sends the response with the reason. Then half-closes the connection, and
    /// lingers if the client may still send something.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.connection.upgraded.load(Relaxed) {
            return this.stream().poll_shutdown(cx);
        }
        if let Some(refusal) = this.connection.refusal.get() {
            let (connection, input) = (&this.connection, &this.input);
            let response = this.last_response.get_or_insert_with(|| {
                connection.log_refused(*refusal, &input.held);
                io::Cursor::new(refusal_response::message(*refusal, &input.held))
            });
            while response.has_remaining() {
                let written = Pin::new(&mut this.inner).poll_write(cx, response.chunk());
                this.connection.activity.blocks(written.is_pending());
                response.advance(ready!(written)?);
            }
        }
        if !this.linger.has_begun() {
            ready!(this.stream().poll_shutdown(cx))?;
        }
        // If another connection needs the place of this one now, do not linger. The client has had its last response
        // for a while.
        if this.connection.activity.is_asked_to_leave() {
            return Poll::Ready(Ok(()));
        }
        let patience = this.patience();
        this.linger.poll(&mut this.inner.inner_mut().stream, patience, cx).map(Ok)
    }
}

/// Writes the pieces `bufs` by one call. If they are small, it first copies them together.
pub(super) fn poll_write_together<T: AsyncWrite + Unpin>(
    stream: &mut T,
    cx: &mut Context<'_>,
    bufs: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut together = [MaybeUninit::uninit(); TOGETHER];
    let mut together = ReadBuf::uninit(&mut together);
    if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= TOGETHER {
        bufs.iter().for_each(|buf| together.put_slice(buf));
        Pin::new(stream).poll_write(cx, together.filled())
    } else {
        Pin::new(stream).poll_write_vectored(cx, bufs)
    }
}

/// A stream that counts the bytes that are read from it. Without this type, the worker would not know the count when
/// hyper reads into its own buffer.
struct Counted<T> {
    stream: T,
    read: u64,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.read += (buf.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

delegate_write!(Counted, stream);
