//! The bytes of one web socket, after its handshake.
//!
//! Owns: the reads and writes, pings, the order in which both sides close, and the close at a drain. Refuses: the form
//! of frames (`frames`), and the messages once they are in the state that the app shares.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    select,
    time::{Instant, sleep_until, timeout},
};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{ABNORMAL, Incoming, Outgoing, WebSocket, deflate::Deflate, frames};
use crate::bridge::{exchange::WINDOW, hub::lock};

/// How much is read at once.
const READ: usize = 16 * 1024;

/// How long the worker waits for the client's answer to its close frame, and for the client to read what was sent last.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// The code that a drain sends: the service restarts, and the client may connect again (RFC 6455, registry of codes).
const RESTART: u16 = 1012;

/// The code of a worker that cannot go on with a client.
const BROKEN: u16 = 1011;

/// One connection of a web socket.
pub(super) struct Wire {
    socket: Arc<WebSocket>,
    deflate: Option<Deflate>,
    decoder: frames::Decoder,
    input: BytesMut,
    output: BytesMut,
    /// The worker has sent a close frame, or has it in `output`.
    has_closed: bool,
    /// The client has sent a close frame, or broke the rules. Nothing is read any more.
    is_over: bool,
}

impl Wire {
    /// Runs the web socket until its connection ends.
    pub(super) async fn run(socket: Arc<WebSocket>, upgrade: OnUpgrade) {
        let settings = socket.app.sockets();
        let max_size = usize::try_from(settings.ws_max_size).unwrap_or(usize::MAX);
        let mut wire = Self {
            deflate: socket.offer.map(Deflate::new),
            decoder: frames::Decoder::new(if max_size == 0 { usize::MAX } else { max_size }),
            socket,
            input: BytesMut::with_capacity(READ),
            output: BytesMut::new(),
            has_closed: false,
            is_over: false,
        };
        // The connection is work of this worker until it ends.
        let work = wire.socket.app.background_work();
        if let Ok(upgraded) = upgrade.await {
            let (reader, mut writer) = split(TokioIo::new(upgraded));
            wire.serve(reader, &mut writer).await;
            // If this fails, the client has gone, and nothing is left to do.
            _ = timeout(CLOSE_TIME, writer.shutdown()).await;
        }
        wire.socket.ends(ABNORMAL, String::new());
        drop(work);
    }

    async fn serve(&mut self, mut reader: ReadHalf<TokioIo<Upgraded>>, writer: &mut WriteHalf<TokioIo<Upgraded>>) {
        let socket = Arc::clone(&self.socket);
        let (interval, patience) = (socket.app.sockets().ws_ping_interval, socket.app.sockets().ws_ping_timeout);
        let mut draining = pin!(socket.app.draining());
        let mut has_drained = false;
        let mut ping_at = after(interval);
        // When the client must have answered the last ping.
        let mut pong_by: Option<Instant> = None;
        let mut close_by: Option<Instant> = None;
        loop {
            self.take_outgoing();
            if self.has_closed && close_by.is_none() {
                close_by = after(CLOSE_TIME);
            }
            if self.is_over && self.output.is_empty() {
                return;
            }
            let timer = [close_by, pong_by, ping_at].into_iter().flatten().min();
            let may_read = !self.is_over && socket.has_room();
            let may_encode = self.output.len() < WINDOW;
            select! {
                biased;
                wrote = writer.write_buf(&mut self.output), if self.output.has_remaining() => {
                    if !wrote.is_ok_and(|count| count > 0) {
                        return;
                    }
                    if self.output.is_empty() {
                        self.output.clear();
                    }
                }
                () = &mut draining, if !has_drained => {
                    has_drained = true;
                    self.close(RESTART, "the service restarts");
                }
                read = read(&mut reader, &mut self.input), if may_read => {
                    if !read {
                        return;
                    }
                    if self.receive() {
                        pong_by = None;
                        ping_at = after(interval);
                    }
                }
                () = poll_fn(|cx| socket.poll_change(cx, may_read, may_encode)) => {}
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    let now = Instant::now();
                    if close_by.is_some_and(|at| at <= now) {
                        return;
                    }
                    if pong_by.is_some_and(|at| at <= now) {
                        // The client has not answered for so long that it would not answer a close frame either.
                        self.close(BROKEN, "the client did not answer a ping");
                        (pong_by, self.is_over) = (None, true);
                    }
                    if ping_at.is_some_and(|at| at <= now) {
                        ping_at = after(interval);
                        if !self.has_closed {
                            frames::encode(&mut self.output, OpCode::Control(Control::Ping), false, &[]);
                            pong_by = pong_by.or(after(patience));
                        }
                    }
                }
            }
        }
    }

    /// Handles the frames that have come. Returns true if one of them shows that the client lives.
    fn receive(&mut self) -> bool {
        let mut lives = false;
        while !self.is_over {
            match self.decoder.next(&mut self.input, self.deflate.as_mut()) {
                Ok(None) => break,
                Ok(Some(received)) => {
                    lives = true;
                    self.take(received);
                }
                Err(violation) => {
                    self.close(violation.code, violation.reason);
                    self.is_over = true;
                }
            }
        }
        lives
    }

    fn take(&mut self, received: frames::Received) {
        match received {
            // After the worker's close frame, the app reads no more.
            frames::Received::Message { .. } if self.has_closed => {}
            frames::Received::Message { is_text, data } => self.socket.deliver(Incoming { is_text, data }),
            frames::Received::Ping(data) => {
                if !self.has_closed {
                    frames::encode(&mut self.output, OpCode::Control(Control::Pong), false, &data);
                }
            }
            frames::Received::Pong(_) => {}
            frames::Received::Close(code, reason) => {
                self.is_over = true;
                if !self.has_closed {
                    self.has_closed = true;
                    frames::encode_close(&mut self.output, code, "");
                }
                // 1005 says that the client gave no code.
                self.socket.ends(code.unwrap_or(1005), reason);
            }
        }
    }

    /// Sends a close frame, if none was sent. The app gets the same code.
    fn close(&mut self, code: u16, reason: &str) {
        if !std::mem::replace(&mut self.has_closed, true) {
            frames::encode_close(&mut self.output, Some(code), reason);
        }
        self.socket.ends(code, reason.to_owned());
    }

    /// Encodes messages of the app, until enough is there to be written.
    fn take_outgoing(&mut self) {
        while self.output.len() < WINDOW {
            let Some(outgoing) = self.socket.next_outgoing() else { return };
            if self.has_closed {
                continue;
            }
            let (data, opcode) = match outgoing {
                Outgoing::Text(data) => (data, OpCode::Data(Data::Text)),
                Outgoing::Binary(data) => (data, OpCode::Data(Data::Binary)),
                Outgoing::Close(code, reason) => {
                    self.has_closed = true;
                    frames::encode_close(&mut self.output, Some(code), &reason);
                    continue;
                }
            };
            let compressed = self.deflate.as_mut().map(|deflate| deflate.compress(&data)).transpose();
            match compressed.map(Option::flatten) {
                Ok(Some(compressed)) => frames::encode(&mut self.output, opcode, true, &compressed),
                Ok(None) => frames::encode(&mut self.output, opcode, false, &data),
                Err(error) => {
                    tracing::error!(event = "websocket_failed", %error, "a message could not be compressed");
                    self.close(BROKEN, "");
                }
            }
        }
    }
}

/// Reads what has come. Returns false at the end of the stream, or at an error.
async fn read(reader: &mut ReadHalf<TokioIo<Upgraded>>, input: &mut BytesMut) -> bool {
    input.reserve(READ);
    reader.read_buf(input).await.is_ok_and(|count| count > 0)
}

/// Returns the moment after a time; `None` if the time is zero, which means never.
fn after(time: Duration) -> Option<Instant> {
    if time.is_zero() { None } else { Instant::now().checked_add(time) }
}

impl WebSocket {
    /// Returns true if the app has read enough for more to be read from the client.
    fn has_room(&self) -> bool {
        lock(&self.state).inbox_size < WINDOW
    }

    /// Gives a message of the client to the app.
    fn deliver(self: &Arc<Self>, message: Incoming) {
        let waits = {
            let mut state = lock(&self.state);
            state.inbox_size += message.data.len();
            state.inbox.push_back(message);
            !state.receivers.is_empty()
        };
        if waits {
            self.enqueue_notify();
        }
    }

    fn next_outgoing(self: &Arc<Self>) -> Option<Outgoing> {
        let mut state = lock(&self.state);
        let outgoing = state.outbox.pop_front()?;
        let was_blocked = state.is_blocked();
        state.outbox_size -= outgoing.size();
        let frees = was_blocked && !state.is_blocked() && !state.senders.is_empty();
        drop(state);
        if frees {
            self.enqueue_notify();
        }
        Some(outgoing)
    }

    /// Completes when the app has sent something, or has read enough. `may_read` is true if the caller waits for more of
    /// the client anyway, `may_encode` if it has room for what the app has sent.
    fn poll_change(&self, cx: &Context<'_>, may_read: bool, may_encode: bool) -> Poll<()> {
        let mut state = lock(&self.state);
        if may_encode && !state.outbox.is_empty() || !may_read && state.inbox_size < WINDOW && state.end.is_none() {
            return Poll::Ready(());
        }
        if !state.connection.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.connection = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// No more messages come, and what the app sends is lost. Only the first end counts.
    pub(super) fn ends(self: &Arc<Self>, code: u16, reason: String) {
        let (waits, outbox) = {
            let mut state = lock(&self.state);
            state.end.get_or_insert((code, reason));
            state.is_lost = true;
            state.outbox_size = 0;
            (!state.receivers.is_empty() || !state.senders.is_empty(), std::mem::take(&mut state.outbox))
        };
        drop(outbox);
        if waits {
            self.enqueue_notify();
        }
    }
}
