//! One request and its response: the state that hyper's side and Python's side share.
//!
//! Owns: the order of the messages of ASGI, the body of the request on its way to `receive()`, the body of the response
//! on its way to hyper, back-pressure in both directions, the end of the client, and the time for which the request's
//! Task counts as work of the worker. Refuses: the form of the messages (`channel`), the scope (`scope`), and the Task
//! (`app`).
//!
//! No lock is held while a Python object is made or dropped, because either can run code of the app, and that code can
//! call `send()`.

use std::{
    collections::VecDeque,
    fs::File,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, request::Parts};
use http_body::{Body as _, Frame};
use oxicorn::{BackgroundWork, Body, BodyError, ClientInfo};
use pyo3::{intern, prelude::*};

use super::{
    app::App,
    hub::{Job, lock},
};

/// How much of a body is held for the other side, in each direction. A side that is further ahead waits.
pub(crate) const WINDOW: usize = 64 * 1024;

pub(crate) struct Exchange {
    pub(super) app: Arc<App>,
    pub(super) request: Parts,
    body: Mutex<Option<Body>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    // The body of the request.
    chunks: VecDeque<Bytes>,
    buffered: usize,
    /// More of the body may come.
    is_coming: bool,
    /// The last message with a part of the body was given to the app.
    is_given: bool,
    /// The client waits for `100 Continue`, which it gets when the app asks for the body.
    expects: bool,
    reader: Option<Waker>,
    /// The futures of asyncio that wait in `receive()`.
    receivers: Vec<Py<PyAny>>,
    is_watched: bool,

    // The response.
    progress: Progress,
    /// The head waits for the first part of the body, so that a failure before that part can be answered 500.
    head: Option<Head>,
    response: Option<(Head, First)>,
    waker: Option<Waker>,
    /// The response has no body, whatever the app sends.
    has_no_body: bool,
    parts_out: VecDeque<Bytes>,
    buffered_out: usize,
    writer: Option<Waker>,
    /// The futures of asyncio that wait in `send()`.
    senders: Vec<Py<PyAny>>,
    trailers: Trailers,
    /// How much of the announced `Content-Length` is missing; `None` if the app announced none.
    missing: Option<u64>,
    /// The app has completed its response, but sent less than it had announced.
    is_short: bool,
    /// The response ends in its middle.
    is_cut: bool,
    /// The bytes before the cut were given a chance to leave.
    is_flushed: bool,

    // The ends.
    /// The client has gone, as far as `receive()` is told. After a FIN it may still read.
    is_gone: bool,
    /// The app was told so before it had completed its response.
    has_told_gone: bool,
    /// Nothing that is sent reaches the client any more, or hyper has taken all of it.
    is_closed: bool,
    /// The body has a fault for which the worker answers in place of the app.
    is_faulty: bool,
    task: Option<Py<PyAny>>,
    has_ended: bool,
    work: Option<BackgroundWork>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Nothing,
    Started,
    /// The body is complete, and trailers follow.
    Body,
    Complete,
}

/// The trailers of the response.
#[derive(Default)]
enum Trailers {
    /// The app has announced none.
    #[default]
    None,
    /// The app has announced some, but the client takes none.
    Dropped,
    Collected(HeaderMap),
}

/// The head of a response.
#[derive(Default)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) length: Option<u64>,
    /// The app will send trailers.
    pub(super) has_trailers: bool,
}

/// What follows the head.
pub(super) enum First {
    Nothing,
    Whole(Bytes),
    /// This many bytes of a file.
    File(File, u64),
    Stream,
}

/// Why a message of the app cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendError {
    #[error("the client has gone")]
    Gone,
    #[error("unexpected message 'http.response.start': the response has begun already")]
    StartedTwice,
    #[error("unexpected message 'http.response.body': 'http.response.start' must come first")]
    NotStarted,
    #[error("unexpected message 'http.response.body': the response is complete already")]
    Complete,
    #[error("the response is longer than its Content-Length")]
    TooLong,
    #[error("unexpected message 'http.response.pathsend': the body has begun already")]
    BodyBegun,
    #[error("unexpected message 'http.response.trailers': the body is not complete")]
    TrailersTooEarly,
    #[error("unexpected message 'http.response.trailers': 'http.response.start' announced no trailers")]
    NoTrailers,
}

/// The error with which the body of a response ends that the app did not finish.
#[derive(Debug, thiserror::Error)]
#[error("the app did not finish its response")]
pub(crate) struct Unfinished;

/// What the app gets from `receive()`.
pub(super) enum Incoming {
    Body { body: Bytes, more: bool },
    Disconnect,
}

/// What the transport gets of the body of a response.
pub(crate) type Outgoing = Poll<Option<Result<Frame<Bytes>, Unfinished>>>;

impl Exchange {
    pub(super) fn new(app: Arc<App>, request: Parts) -> Arc<Self> {
        Arc::new(Self { app, request, body: Mutex::new(None), state: Mutex::default() })
    }

    /// Joins the next batch.
    pub(super) fn enqueue(self: &Arc<Self>) {
        self.app.hub().enqueue(Job::Start(Arc::clone(self)));
    }

    /// Starts the app's Task. A request whose client has gone by now is not started.
    pub(super) fn start(self: &Arc<Self>, py: Python<'_>) {
        if !lock(&self.state).is_closed {
            self.app.start(py, self);
        }
    }

    /// Wakes the task of the connection, after the request's first step.
    pub(super) fn wake(&self) {
        let waker = lock(&self.state).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // The body of the request.

    /// Takes what has come of the body already, before the app starts. So `receive()` does not wait for a small body.
    /// If the client waits for `100 Continue`, nothing is read yet.
    pub(super) fn take_body(self: &Arc<Self>, body: Body, cx: &mut Context<'_>) {
        let expects = self.request.headers.contains_key(header::EXPECT);
        *lock(&self.body) = Some(body);
        {
            let mut state = lock(&self.state);
            (state.is_coming, state.expects) = (true, expects);
        }
        // The waker of this poll is replaced by the reader's, which polls the body again at once.
        if !expects && self.poll_read(cx).is_pending() {
            self.begin_to_read();
        }
    }

    /// Starts the task that reads the body, which ends with the body.
    pub(super) fn begin_to_read(self: &Arc<Self>) {
        let exchange = Arc::clone(self);
        tokio::spawn(poll_fn(move |cx| exchange.poll_read(cx)));
    }

    fn poll_read(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.buffered >= WINDOW {
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
                    (state.is_coming, state.is_gone) = (false, true);
                    state.is_faulty = !matches!(error, BodyError::Cut(_));
                    if state.is_faulty
                        && let Some(waker) = state.waker.take()
                    {
                        waker.wake();
                    }
                }
            }
            let (is_coming, waits) = (state.is_coming, !state.receivers.is_empty());
            drop(state);
            if waits {
                self.app.hub().enqueue(Job::Notify(Arc::clone(self)));
            }
            if !is_coming {
                let ended = slot.take();
                drop(slot);
                drop(ended);
                return Poll::Ready(());
            }
        }
    }

    /// Drops the body, which nothing reads any more. The library then decides whether another request can follow on the
    /// connection. It must know before the response is made.
    fn drop_body(&self) {
        let body = lock(&self.body).take();
        if body.is_some() {
            drop(body);
            let reader = lock(&self.state).reader.take();
            if let Some(reader) = reader {
                self.app.hub().wake(reader);
            }
        }
    }

    /// Returns the next message for the app; `None` if it has to wait.
    pub(super) fn receive(self: &Arc<Self>) -> Option<Incoming> {
        let mut state = lock(&self.state);
        if state.is_closed || state.progress == Progress::Complete {
            state.has_told_gone |= state.progress != Progress::Complete;
            return Some(Incoming::Disconnect);
        }
        if state.is_given || state.chunks.is_empty() && (state.is_coming || state.is_gone) {
            if state.is_gone {
                state.has_told_gone = true;
                return Some(Incoming::Disconnect);
            }
            let job = if std::mem::take(&mut state.expects) {
                Some(Job::Read(Arc::clone(self)))
            } else if state.is_given && !std::mem::replace(&mut state.is_watched, true) {
                Some(Job::Watch(Arc::clone(self)))
            } else {
                None
            };
            drop(state);
            if let Some(job) = job {
                self.app.hub().enqueue(job);
            }
            return None;
        }
        let mut body = state.chunks.pop_front().unwrap_or_default();
        // Pieces that have come one by one are given together.
        if state.chunks.front().is_some_and(|next| body.len() + next.len() <= WINDOW) {
            let mut whole = BytesMut::with_capacity(state.buffered.min(WINDOW));
            whole.extend_from_slice(&body);
            while let Some(next) = state.chunks.front().filter(|next| whole.len() + next.len() <= WINDOW) {
                whole.extend_from_slice(next);
                state.chunks.pop_front();
            }
            body = whole.freeze();
        }
        state.buffered -= body.len();
        let more = state.is_coming || !state.chunks.is_empty();
        state.is_given = !more;
        let reader = if state.buffered < WINDOW { state.reader.take() } else { None };
        drop(state);
        if let Some(reader) = reader {
            self.app.hub().wake(reader);
        }
        Some(Incoming::Body { body, more })
    }

    // What waits.

    pub(super) fn add_receiver(&self, future: Py<PyAny>) {
        lock(&self.state).receivers.push(future);
    }

    pub(super) fn add_sender(&self, future: Py<PyAny>) {
        lock(&self.state).senders.push(future);
    }

    /// Forgets a future whose Task waits no longer.
    pub(super) fn forget(&self, future: &Bound<'_, PyAny>) {
        let mut found = Vec::new();
        {
            let mut state = lock(&self.state);
            let State { receivers, senders, .. } = &mut *state;
            for list in [receivers, senders] {
                found.extend(list.extract_if(.., |one| one.is(future)));
            }
        }
    }

    /// Resolves the futures that wait. What waits in them then looks at the state again.
    pub(super) fn notify(&self, py: Python<'_>) {
        let (receivers, senders) = {
            let mut state = lock(&self.state);
            let senders = if state.is_blocked() { Vec::new() } else { std::mem::take(&mut state.senders) };
            (std::mem::take(&mut state.receivers), senders)
        };
        for future in receivers.into_iter().chain(senders) {
            if let Err(error) = resolve(future.bind(py)) {
                error.write_unraisable(py, Some(future.bind(py)));
            }
        }
    }

    fn enqueue_notify(self: &Arc<Self>) {
        self.app.hub().enqueue(Job::Notify(Arc::clone(self)));
    }

    /// Watches for the moment at which the client goes, until the request is over.
    pub(super) fn begin_to_watch(self: &Arc<Self>) {
        let Some(client) = self.request.extensions.get::<ClientInfo>() else { return };
        let (gone, exchange) = (client.gone(), Arc::clone(self));
        tokio::spawn(async move {
            gone.await;
            let waits = {
                let mut state = lock(&exchange.state);
                state.is_gone = true;
                !state.receivers.is_empty()
            };
            if waits {
                exchange.enqueue_notify();
            }
        });
    }

    // The response, Python's side.

    pub(super) fn send_start(&self, head: Head) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Nothing if state.is_closed => return Err(SendError::Gone),
            Progress::Nothing => {}
            Progress::Started | Progress::Body | Progress::Complete => return Err(SendError::StartedTwice),
        }
        state.progress = Progress::Started;
        if head.has_trailers {
            let is_taken = takes_trailers(&self.request);
            state.trailers = if is_taken { Trailers::Collected(HeaderMap::new()) } else { Trailers::Dropped };
        }
        state.has_no_body = self.request.method == Method::HEAD || is_bodiless(head.status);
        state.missing = head.length;
        state.head = Some(head);
        Ok(())
    }

    /// Takes a part of the response's body. The first part sends the head too.
    pub(super) fn send_body(self: &Arc<Self>, body: Bytes, more: bool) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        state.assert_takes_body()?;
        let result = if state.has_no_body {
            if !body.is_empty() && self.request.method != Method::HEAD {
                self.app.tell_dropped_body(&self.request);
            }
            if let Some(mut head) = state.head.take() {
                if self.request.method == Method::HEAD && !more && head.length.is_none() && !is_bodiless(head.status) {
                    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
                }
                state.response = Some((head, First::Nothing));
            }
            Ok(())
        } else {
            state.take_part(body, more)
        };
        if !more || result.is_err() {
            let awaits_trailers =
                result.is_ok() && !state.has_no_body && matches!(state.trailers, Trailers::Collected(_));
            state.progress = if awaits_trailers { Progress::Body } else { Progress::Complete };
        }
        self.tell(state);
        result
    }

    /// Takes a file as the whole body.
    pub(super) fn send_file(self: &Arc<Self>, file: File, size: u64) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        state.assert_takes_body()?;
        let Some(mut head) = state.head.take() else { return Err(SendError::BodyBegun) };
        if !is_bodiless(head.status) {
            head.headers.entry(header::CONTENT_LENGTH).or_insert(size.into());
        }
        // If the file has changed since the app looked, the client gets no more than was announced.
        let size = head.length.map_or(size, |length| length.min(size));
        state.is_short = !state.has_no_body && head.length.is_some_and(|length| length > size);
        let first =
            if state.has_no_body || size == 0 && !state.is_short { First::Nothing } else { First::File(file, size) };
        state.response = Some((head, first));
        state.progress = Progress::Complete;
        self.tell(state);
        Ok(())
    }

    pub(super) fn send_trailers(self: &Arc<Self>, headers: HeaderMap, more: bool) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        let State { trailers, progress, is_closed, .. } = &mut *state;
        match (trailers, *progress) {
            (Trailers::None, _) => return Err(SendError::NoTrailers),
            // The client takes none, or the request is a HEAD.
            (Trailers::Dropped | Trailers::Collected(_), Progress::Complete) => return Ok(()),
            _ if *is_closed => return Err(SendError::Gone),
            (Trailers::Collected(collected), Progress::Body) => collected.extend(headers),
            (_, Progress::Nothing | Progress::Started | Progress::Body) => return Err(SendError::TrailersTooEarly),
        }
        if !more {
            state.progress = Progress::Complete;
            self.tell(state);
        }
        Ok(())
    }

    /// Tells the transport, and a `receive()` that waits, that the response has gone on.
    fn tell(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let (waker, writer) = (state.waker.take(), state.writer.take());
        let waits = state.progress == Progress::Complete && !state.receivers.is_empty();
        drop(state);
        waker.into_iter().chain(writer).for_each(|waker| self.app.hub().wake(waker));
        if waits {
            self.enqueue_notify();
        }
    }

    /// Returns true if `send()` must wait, because the client reads slowly.
    pub(super) fn is_blocked(&self) -> bool {
        lock(&self.state).is_blocked()
    }

    /// Returns true if what the app sends does not reach the client.
    pub(super) fn is_lost(&self) -> bool {
        let state = lock(&self.state);
        state.is_closed && state.progress != Progress::Complete
    }

    // The response, hyper's side.

    /// Returns the head of the response once the app has sent the first part of the body.
    pub(super) fn poll_response(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<(Head, First), Unfinished>> {
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
        if !matches!(response.1, First::Stream) {
            self.transport_ends();
        }
        Poll::Ready(Ok(response))
    }

    pub(super) fn poll_part(self: &Arc<Self>, cx: &Context<'_>) -> Outgoing {
        let mut state = lock(&self.state);
        if let Some(part) = state.parts_out.pop_front() {
            let was_blocked = state.is_blocked();
            state.buffered_out -= part.len();
            let frees = was_blocked && !state.is_blocked() && !state.senders.is_empty();
            drop(state);
            if frees {
                self.enqueue_notify();
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
            let trailers = match std::mem::take(&mut state.trailers) {
                Trailers::Collected(trailers) if !trailers.is_empty() => Some(Ok(Frame::trailers(trailers))),
                Trailers::Collected(_) | Trailers::Dropped | Trailers::None => None,
            };
            return Poll::Ready(trailers);
        }
        if !state.writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Returns true if hyper has all of the body.
    pub(super) fn is_drained(&self) -> bool {
        let state = lock(&self.state);
        let has_trailers = matches!(&state.trailers, Trailers::Collected(trailers) if !trailers.is_empty());
        state.progress == Progress::Complete && state.parts_out.is_empty() && !state.is_cut && !has_trailers
    }

    /// The transport needs nothing more of the app: hyper has the whole response, or the client has gone. A Task that is
    /// not over by now is background work.
    pub(super) fn transport_ends(self: &Arc<Self>) {
        self.drop_body();
        let mut state = lock(&self.state);
        state.is_closed = true;
        if state.task.is_some() && !state.has_ended {
            state.work = Some(self.app.background_work());
        }
        let waits = !state.receivers.is_empty() || !state.senders.is_empty();
        drop(state);
        if waits {
            self.enqueue_notify();
        }
    }

    /// Returns true if the app was told that the client had gone, before it had completed its response.
    pub(super) fn has_told_gone(&self) -> bool {
        lock(&self.state).has_told_gone
    }

    // The Task.

    pub(super) fn set_task(&self, task: Py<PyAny>) {
        lock(&self.state).task = Some(task);
    }

    /// Notes that the Task is over, and completes the response if the app has not done so.
    pub(super) fn task_ends(self: &Arc<Self>) -> Ending {
        let mut state = lock(&self.state);
        state.has_ended = true;
        let (task, work) = (state.task.take(), state.work.take());
        let ending = match state.progress {
            Progress::Complete if state.is_short => Ending::Short,
            Progress::Complete => Ending::Complete,
            // The body is complete, and the trailers are missing.
            Progress::Body => {
                state.progress = Progress::Complete;
                Ending::Complete
            }
            _ if state.is_closed => Ending::ClientGone,
            _ => {
                let was_sent = state.progress == Progress::Started && state.head.is_none();
                state.progress = Progress::Complete;
                if was_sent {
                    state.is_cut = true;
                } else {
                    state.head = None;
                    state.response = Some(internal_server_error(false));
                }
                match (state.is_gone, was_sent) {
                    (true, _) => Ending::ClientGone,
                    (false, true) => Ending::Cut,
                    (false, false) => Ending::Answered500,
                }
            }
        };
        let (waker, writer) = (state.waker.take(), state.writer.take());
        let waits = !state.receivers.is_empty();
        drop(state);
        drop((task, work));
        waker.into_iter().chain(writer).for_each(|waker| self.app.hub().wake(waker));
        if waits {
            self.enqueue_notify();
        }
        ending
    }
}

/// How the app has left its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Complete,
    /// It sent less than it had announced.
    Short,
    /// It sent nothing that counts, so the client gets a 500.
    Answered500,
    /// It sent a part.
    Cut,
    /// The client had gone before.
    ClientGone,
}

impl State {
    fn is_blocked(&self) -> bool {
        self.buffered_out >= WINDOW && !self.is_closed && self.progress == Progress::Started
    }

    fn assert_takes_body(&self) -> Result<(), SendError> {
        match self.progress {
            Progress::Body | Progress::Complete => Err(SendError::Complete),
            _ if self.is_closed => Err(SendError::Gone),
            Progress::Nothing => Err(SendError::NotStarted),
            Progress::Started => Ok(()),
        }
    }

    /// Takes a part of a body that is sent.
    fn take_part(&mut self, body: Bytes, more: bool) -> Result<(), SendError> {
        if let Some(missing) = &mut self.missing {
            let Some(left) = missing.checked_sub(body.len() as u64) else {
                // Not one byte too many may leave: the client would take it for the next response.
                if self.head.take().is_some() {
                    self.response = Some(internal_server_error(true));
                } else {
                    self.is_cut = true;
                }
                return Err(SendError::TooLong);
            };
            *missing = left;
            self.is_short = !more && left > 0;
            self.is_cut |= self.is_short;
        }
        match self.head.take() {
            Some(head) if !more && !self.is_short && !matches!(self.trailers, Trailers::Collected(_)) => {
                self.response = Some((head, First::Whole(body)))
            }
            head => {
                if !body.is_empty() {
                    self.buffered_out += body.len();
                    self.parts_out.push_back(body);
                }
                if let Some(head) = head {
                    self.response = Some((head, First::Stream));
                }
            }
        }
        Ok(())
    }
}

/// Returns true if a response with this status never has a body.
pub(crate) fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Returns true if the client takes trailers. With HTTP/1 it must say so; with HTTP/2 each client reads them.
pub(super) fn takes_trailers(request: &Parts) -> bool {
    let is_named = |value: &HeaderValue| {
        let mut words = value.as_bytes().split(|byte| *byte == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    };
    request.version >= Version::HTTP_2
        || request.version == Version::HTTP_11 && request.headers.get_all(header::TE).iter().any(is_named)
}

/// Returns the response to a request that the app has failed to answer.
fn internal_server_error(closes: bool) -> (Head, First) {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if closes {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let head = Head { status: StatusCode::INTERNAL_SERVER_ERROR, headers, ..Head::default() };
    (head, First::Whole(Bytes::from_static(b"Internal Server Error")))
}

/// Resolves a future of asyncio that only says that there may be something.
pub(super) fn resolve(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
        future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}
