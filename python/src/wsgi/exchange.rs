//! One request and its response: the state that hyper's side and the request's thread share.
//!
//! Owns: the body of the request on its way to `wsgi.input`, the body of the response on its way to hyper, back-pressure
//! in both directions, and the end of the client. Refuses: what a thread does with it (`app`, `start_response`, `input`).
//!
//! No lock is held while a Python object is made or dropped, because either can run code of the app, and that code can
//! call `write()`.

use std::{
    collections::VecDeque,
    fs::File,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body::{Body as _, Frame};
use hyper::ext::ReasonPhrase;
use oxicorn::{BackgroundWork, Body, BodyError};
use tokio::time::Instant;

use super::app::WsgiApp;
use crate::bridge::{Ending, Outgoing, Unfinished, WINDOW, is_bodiless, lock};

pub(crate) struct WsgiExchange {
    pub(super) app: Arc<WsgiApp>,
    pub(super) request: Parts,
    body: Mutex<Option<Body>>,
    state: Mutex<State>,
    /// Wakes the thread of the request, which waits for more of the body or for room in the response.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    // The body of the request.
    chunks: VecDeque<Bytes>,
    buffered: usize,
    /// How much of the body is read ahead of the app.
    ahead: usize,
    /// A task reads the body.
    is_read: bool,
    /// More of the body may come.
    is_coming: bool,
    /// The body ends before its end.
    is_cut_off: bool,
    /// The body has a fault for which the worker answers in place of the app.
    is_faulty: bool,
    reader: Option<Waker>,

    // The response.
    progress: Progress,
    /// The head waits for the first part of the body, because until then the app may replace it.
    head: Option<WsgiHead>,
    response: Option<(WsgiHead, WsgiFirst)>,
    waker: Option<Waker>,
    /// The response has no body, whatever the app sends.
    has_no_body: bool,
    parts: VecDeque<Bytes>,
    buffered_out: usize,
    writer: Option<Waker>,
    /// How much of the announced `Content-Length` is missing; `None` if the app announced none.
    missing: Option<u64>,
    /// The response ends in its middle.
    is_cut: bool,
    /// The bytes before the cut were given a chance to leave.
    is_flushed: bool,
    /// The app has given less than it had announced.
    is_short: bool,
    /// How many threads wait for the client.
    waiting: u32,
    /// When the last of these waits was over.
    waited: Option<Instant>,

    // The ends.
    /// Nothing that is sent reaches the client any more, or hyper has taken all of it.
    is_closed: bool,
    has_started: bool,
    has_ended: bool,
    /// How the app has left its response.
    ending: Option<Ending>,
    work: Option<BackgroundWork>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Nothing,
    /// The app has called `start_response()`.
    Started,
    /// The head was sent.
    Sent,
    /// The body needs nothing more of the app. This is also so once `Content-Length` bytes were sent.
    Complete,
}

/// The head of a response.
#[derive(Default)]
pub(super) struct WsgiHead {
    pub(super) status: StatusCode,
    /// The reason phrase, if it is not the usual one of this status.
    pub(super) reason: Option<ReasonPhrase>,
    pub(super) headers: HeaderMap,
    pub(super) length: Option<u64>,
}

/// What follows the head.
pub(super) enum WsgiFirst {
    Nothing,
    Whole(Bytes),
    /// This many bytes of a file.
    File(File, u64),
    Stream,
}

/// Why a part of a body is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// The client has gone.
    Gone,
    /// The app has not called `start_response()`.
    NotStarted,
}

/// A part of the body of the request.
pub(super) enum Piece {
    Data(Bytes),
    End,
    /// The client has gone, or its body has a fault.
    CutOff,
}

impl WsgiExchange {
    pub(super) fn new(app: Arc<WsgiApp>, request: Parts) -> Arc<Self> {
        Arc::new(Self { app, request, body: Mutex::new(None), state: Mutex::default(), changed: Condvar::new() })
    }

    // The body of the request, hyper's side.

    /// Takes the body. The caller polls [`poll_ahead`](Self::poll_ahead) then, unless the client waits for `100
    /// Continue`: such a body is read when the app asks for it.
    pub(super) fn take_body(&self, body: Body) {
        *lock(&self.body) = Some(body);
        lock(&self.state).is_coming = true;
    }

    /// Reads until the whole body is there, or `most` bytes of it.
    pub(super) fn poll_ahead(self: &Arc<Self>, most: usize, cx: &mut Context<'_>) -> Poll<()> {
        lock(&self.state).ahead = most;
        let polled = self.poll_read(cx);
        let state = lock(&self.state);
        if polled.is_ready() || state.buffered >= most { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Starts the task that reads what is left of the body, as fast as the app reads.
    pub(super) fn read_on(self: &Arc<Self>) {
        {
            let mut state = lock(&self.state);
            if !state.is_coming || std::mem::replace(&mut state.is_read, true) {
                return;
            }
            state.ahead = WINDOW;
        }
        let exchange = Arc::clone(self);
        tokio::spawn(poll_fn(move |cx| exchange.poll_read(cx)));
    }

    fn poll_read(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.buffered >= state.ahead {
                    state.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            let mut slot = lock(&self.body);
            let Some(body) = slot.as_mut() else { return Poll::Ready(()) };
            let polled = Pin::new(&mut *body).poll_frame(cx);
            let is_end = body.is_end_stream();
            let mut state = lock(&self.state);
            match polled {
                Poll::Pending => {
                    state.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        state.buffered += data.len();
                        state.chunks.push_back(data);
                    }
                    state.is_coming = !is_end;
                }
                Poll::Ready(None) => state.is_coming = false,
                Poll::Ready(Some(Err(error))) => {
                    (state.is_coming, state.is_cut_off) = (false, true);
                    state.is_faulty = !matches!(error, BodyError::Cut(_));
                    if state.is_faulty
                        && let Some(waker) = state.waker.take()
                    {
                        waker.wake();
                    }
                }
            }
            let is_coming = state.is_coming;
            let waits = state.waiting > 0;
            drop(state);
            if waits {
                self.changed.notify_all();
            }
            if !is_coming {
                let ended = slot.take();
                drop(slot);
                drop(ended);
                return Poll::Ready(());
            }
        }
    }

    /// Returns true if the worker answers in place of the app, because the body has a fault.
    pub(super) fn is_faulty(&self) -> bool {
        lock(&self.state).is_faulty
    }

    /// Returns true if the client has left before the end of the body.
    pub(super) fn is_cut_off(&self) -> bool {
        lock(&self.state).is_cut_off
    }

    /// Drops the body, which nothing reads any more. The library then decides whether another request can follow on the
    /// connection. It must know before the response is made.
    fn drop_body(&self) {
        let body = lock(&self.body).take();
        if body.is_some() {
            drop(body);
            let reader = lock(&self.state).reader.take();
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }

    // The body of the request, the thread's side.

    /// Returns the next part of the body, of at most `most` bytes. Waits for it, so the caller must not hold the GIL,
    /// unless [`is_at_hand`](Self::is_at_hand).
    pub(super) fn read(self: &Arc<Self>, most: usize) -> Piece {
        let mut state = lock(&self.state);
        let mut is_asked = false;
        loop {
            if let Some(first) = state.chunks.front_mut() {
                let piece = if first.len() <= most { std::mem::take(first) } else { first.split_to(most) };
                if state.chunks.front().is_some_and(Bytes::is_empty) {
                    state.chunks.pop_front();
                }
                state.buffered -= piece.len();
                let reader = if state.buffered < state.ahead { state.reader.take() } else { None };
                drop(state);
                if let Some(reader) = reader {
                    self.app.wakes().wake(reader);
                }
                return Piece::Data(piece);
            }
            if state.is_cut_off || state.is_closed && state.is_coming {
                return Piece::CutOff;
            }
            if !state.is_coming {
                return Piece::End;
            }
            if !state.is_read && !std::mem::replace(&mut is_asked, true) {
                drop(state);
                self.app.wakes().read_on(Arc::clone(self));
                state = lock(&self.state);
                continue;
            }
            state = self.wait(state);
        }
    }

    /// Returns true if [`read`](Self::read) does not wait.
    pub(super) fn is_at_hand(&self) -> bool {
        let state = lock(&self.state);
        !state.chunks.is_empty() || !state.is_coming || state.is_cut_off || state.is_closed
    }

    /// Puts a part back that the app has not asked for.
    pub(super) fn unread(&self, piece: Bytes) {
        if !piece.is_empty() {
            let mut state = lock(&self.state);
            state.buffered += piece.len();
            state.chunks.push_front(piece);
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.waited = Some(Instant::now());
        state
    }

    /// Returns for how long no thread has waited for the client; `None` if none ever did.
    pub(super) fn since_wait(&self) -> Option<Duration> {
        let state = lock(&self.state);
        if state.waiting > 0 { Some(Duration::ZERO) } else { state.waited.map(|waited| waited.elapsed()) }
    }

    // The response, the thread's side.

    /// Notes that a thread runs the request. Returns false if its client has gone by now.
    pub(super) fn begin(&self) -> bool {
        let mut state = lock(&self.state);
        state.has_started = !state.is_closed;
        state.has_started
    }

    /// Takes the head. `replaces` is true if the app has given the error that makes it replace a head that was not sent.
    /// Returns false if the app may not set a head now.
    pub(super) fn start(&self, head: WsgiHead, replaces: bool) -> bool {
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Nothing => {}
            Progress::Started if replaces => {}
            Progress::Started | Progress::Sent | Progress::Complete => return false,
        }
        state.progress = Progress::Started;
        state.has_no_body = self.request.method == Method::HEAD || is_bodiless(head.status);
        state.missing = head.length;
        let old = state.head.replace(head);
        drop(state);
        drop(old);
        true
    }

    /// Returns true once the head was sent.
    pub(super) fn is_head_sent(&self) -> bool {
        matches!(lock(&self.state).progress, Progress::Sent | Progress::Complete)
    }

    /// Sends a part of the body, and before the first one the head. `is_whole` says that nothing follows. What is longer
    /// than the announced length is left out.
    pub(super) fn send(self: &Arc<Self>, mut data: Bytes, is_whole: bool) -> Result<(), NotSent> {
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Nothing => return Err(NotSent::NotStarted),
            Progress::Complete => return Ok(()),
            _ if state.is_closed => return Err(NotSent::Gone),
            Progress::Started | Progress::Sent => {}
        }
        if state.has_no_body {
            let is_head = self.request.method == Method::HEAD;
            if !data.is_empty() && !is_head {
                self.app.tell_dropped_body(&self.request);
            }
            if let Some(mut head) = state.head.take() {
                if is_head && is_whole && head.length.is_none() && !data.is_empty() && !is_bodiless(head.status) {
                    head.headers.insert(header::CONTENT_LENGTH, data.len().into());
                }
                state.response = Some((head, WsgiFirst::Nothing));
                state.progress = Progress::Complete;
                self.tell(state);
            }
            return Ok(());
        }
        let mut is_last = is_whole;
        if let Some(missing) = state.missing {
            if data.len() as u64 > missing {
                data.truncate(missing as usize);
                self.app.tell_long_body(&self.request);
            }
            let left = missing - data.len() as u64;
            state.missing = Some(left);
            is_last = left == 0;
        }
        match state.head.take() {
            Some(head) if is_last => state.response = Some((head, WsgiFirst::Whole(data))),
            head => {
                if !data.is_empty() {
                    state.buffered_out += data.len();
                    state.parts.push_back(data);
                }
                if let Some(head) = head {
                    state.response = Some((head, WsgiFirst::Stream));
                }
            }
        }
        state.progress = if is_last { Progress::Complete } else { Progress::Sent };
        self.tell(state);
        Ok(())
    }

    /// Sends a file from its present position on, as the whole body. Returns false if the app has written a part already.
    pub(super) fn send_file(self: &Arc<Self>, file: File, size: u64) -> Result<bool, NotSent> {
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Nothing => return Err(NotSent::NotStarted),
            Progress::Sent | Progress::Complete => return Ok(false),
            Progress::Started if state.is_closed => return Err(NotSent::Gone),
            Progress::Started => {}
        }
        let Some(mut head) = state.head.take() else { return Ok(false) };
        if !is_bodiless(head.status) {
            head.headers.entry(header::CONTENT_LENGTH).or_insert(size.into());
        }
        let given = head.length.map_or(size, |length| length.min(size));
        state.is_short = !state.has_no_body && head.length.is_some_and(|length| length > given);
        state.is_cut = state.is_short;
        state.progress = Progress::Complete;
        let is_empty = state.has_no_body || given == 0 && !state.is_short;
        let first = if is_empty { WsgiFirst::Nothing } else { WsgiFirst::File(file, given) };
        state.response = Some((head, first));
        self.tell(state);
        Ok(true)
    }

    /// Returns true if the app has given less than it had announced.
    pub(super) fn is_short(&self) -> bool {
        lock(&self.state).is_short
    }

    /// Returns true if the thread must wait, because the client reads slowly.
    pub(super) fn is_blocked(&self) -> bool {
        lock(&self.state).is_blocked()
    }

    /// Waits until the client has read. The caller must not hold the GIL.
    pub(super) fn wait_for_room(&self) {
        let mut state = lock(&self.state);
        while state.is_blocked() {
            state = self.wait(state);
        }
    }

    fn tell(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let (waker, writer) = (state.waker.take(), state.writer.take());
        // A response that is whole may leave together with others. A part of one must leave now.
        let is_whole = writer.is_none() && state.progress == Progress::Complete;
        drop(state);
        for waker in waker.into_iter().chain(writer) {
            if is_whole { self.app.wakes().wake_later(waker) } else { self.app.wakes().wake(waker) }
        }
    }

    /// Completes the response after the app has given all of it, or has failed. Returns how the app has left it. Only the
    /// first call counts.
    pub(super) fn finish(self: &Arc<Self>, has_failed: bool) -> Ending {
        if !has_failed && !self.is_head_sent() {
            // The app has given no part of a body.
            let _ = self.send(Bytes::new(), true);
        }
        let mut state = lock(&self.state);
        if let Some(ending) = state.ending {
            return ending;
        }
        let ending = match state.progress {
            Progress::Complete if state.is_short => Ending::Short,
            Progress::Complete => Ending::Complete,
            _ if state.is_closed => Ending::ClientGone,
            Progress::Sent if !has_failed && state.missing.unwrap_or(0) == 0 => Ending::Complete,
            Progress::Sent => {
                state.is_cut = true;
                if has_failed { Ending::Cut } else { Ending::Short }
            }
            Progress::Nothing | Progress::Started => {
                state.head = None;
                state.response = Some(internal_server_error());
                Ending::Answered500
            }
        };
        // A client whose body was cut off has gone.
        let ending = if has_failed && state.is_cut_off { Ending::ClientGone } else { ending };
        (state.progress, state.ending) = (Progress::Complete, Some(ending));
        self.tell(state);
        ending
    }

    /// Notes that the thread has done with the request.
    pub(super) fn thread_ends(&self) {
        let mut state = lock(&self.state);
        state.has_ended = true;
        let work = state.work.take();
        drop(state);
        drop(work);
    }

    /// Returns true if what the app sends does not reach the client.
    pub(super) fn is_lost(&self) -> bool {
        let state = lock(&self.state);
        state.is_closed && state.progress != Progress::Complete
    }

    // The response, hyper's side.

    /// Returns the head of the response once the app has sent the first part of the body.
    pub(super) fn poll_response(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<(WsgiHead, WsgiFirst), Unfinished>> {
        let mut state = lock(&self.state);
        if state.is_faulty {
            return Poll::Ready(Err(Unfinished));
        }
        let Some(response) = state.response.take() else {
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        drop(state);
        if !matches!(response.1, WsgiFirst::Stream) {
            self.transport_ends();
        }
        Poll::Ready(Ok(response))
    }

    pub(super) fn poll_part(self: &Arc<Self>, cx: &Context<'_>) -> Outgoing {
        let mut state = lock(&self.state);
        if let Some(part) = state.parts.pop_front() {
            let was_blocked = state.is_blocked();
            state.buffered_out -= part.len();
            let frees = was_blocked && !state.is_blocked() && state.waiting > 0;
            drop(state);
            if frees {
                self.changed.notify_all();
            }
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if state.is_cut {
            // hyper drops what it has not written yet when the body fails. So it gets one more turn to write.
            if !std::mem::replace(&mut state.is_flushed, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Unfinished)));
        }
        if state.progress == Progress::Complete {
            return Poll::Ready(None);
        }
        if !state.writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Returns true if hyper has all of the body.
    pub(super) fn is_drained(&self) -> bool {
        let state = lock(&self.state);
        state.progress == Progress::Complete && state.parts.is_empty() && !state.is_cut
    }

    /// The transport needs nothing more of the app: hyper has the whole response, or the client has gone. A thread that
    /// has not done with the request by now does background work.
    pub(super) fn transport_ends(self: &Arc<Self>) {
        self.drop_body();
        let mut state = lock(&self.state);
        state.is_closed = true;
        if state.has_started && !state.has_ended {
            state.work = Some(self.app.background_work());
        }
        let waits = state.waiting > 0;
        drop(state);
        if waits {
            self.changed.notify_all();
        }
    }
}

impl State {
    fn is_blocked(&self) -> bool {
        self.buffered_out >= WINDOW && !self.is_closed && self.progress == Progress::Sent
    }
}

/// Returns the response to a request that the app has failed to answer.
fn internal_server_error() -> (WsgiHead, WsgiFirst) {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let head = WsgiHead { status: StatusCode::INTERNAL_SERVER_ERROR, headers, ..WsgiHead::default() };
    (head, WsgiFirst::Whole(Bytes::from_static(b"Internal Server Error")))
}

/// Joins parts that are sent together.
pub(super) fn joined(parts: &[Bytes]) -> Bytes {
    if let [one] = parts {
        return one.clone();
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
