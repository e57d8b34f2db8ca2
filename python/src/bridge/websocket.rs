//! One web socket: the state that the connection and the app share.
//!
//! Owns: the order of the messages of ASGI, the messages on their way in both directions, back-pressure in both
//! directions, and the answer to the handshake. Refuses: the rules of the handshake (`handshake`), the frames
//! (`frames`), the bytes (`connection`), and the form of the messages (`channel`).
//!
//! As in `exchange`, no lock is held while a Python object is made or dropped.

mod channel;
mod connection;
mod deflate;
mod frames;
mod handshake;

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use oxicorn::BackgroundWork;
use pyo3::prelude::*;

pub(crate) use self::channel::WebSocketChannel;
pub(super) use self::handshake::{asks_for_web_socket, subprotocols};
use self::{connection::Wire, deflate::Offer};
use super::{
    app::App,
    exchange::{Head, Unfinished, WINDOW, resolve},
    hub::{Job, lock},
    service::ResponseBody,
};

/// The longest answer with which an app may refuse a web socket. The answer is kept whole.
const DENIAL_MAX: usize = 1 << 20;

/// The code of a web socket that ended without a close frame.
const ABNORMAL: u16 = 1006;

pub(crate) struct WebSocket {
    pub(super) app: Arc<App>,
    pub(super) request: Parts,
    offer: Option<Offer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    progress: Progress,
    connect_is_given: bool,
    /// What the handshake is answered.
    answer: Option<Answer>,
    /// The head and the parts of the answer with which the app refuses.
    denial: Option<(Head, BytesMut)>,
    handshake: Option<Waker>,

    // From the client.
    inbox: VecDeque<Incoming>,
    inbox_size: usize,
    /// Why no more messages come. The app gets it after the messages that came before.
    end: Option<(u16, String)>,
    receivers: Vec<Py<PyAny>>,

    // To the client.
    outbox: VecDeque<Outgoing>,
    outbox_size: usize,
    senders: Vec<Py<PyAny>>,
    /// The app has closed, or cannot send any more.
    is_closed: bool,
    /// What the app sends does not reach the client any more.
    is_lost: bool,
    connection: Option<Waker>,

    task: Option<Py<PyAny>>,
    work: Option<BackgroundWork>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// The app has neither accepted nor refused.
    #[default]
    Connecting,
    Accepted,
    /// The app has begun an answer that refuses.
    Denying,
    /// The handshake was answered by something else than a web socket.
    Refused,
}

enum Answer {
    Accept(Head),
    Refuse(Head, Bytes),
}

/// A message of the client.
pub(super) struct Incoming {
    is_text: bool,
    data: Bytes,
}

/// What the app sends.
enum Outgoing {
    Text(Bytes),
    Binary(Bytes),
    Close(u16, String),
}

/// What the app gets from `receive()`.
enum Event {
    Connect,
    Message(Incoming),
    Disconnect(u16, String),
}

/// Why a message of the app cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum SendError {
    #[error("the client has gone")]
    Gone,
    #[error("unexpected message {0:?}: 'websocket.accept' must come first")]
    NotAccepted(&'static str),
    #[error("unexpected message {0:?}: the web socket is accepted already")]
    Accepted(&'static str),
    #[error("unexpected message {0:?}: the web socket is refused already")]
    Refused(&'static str),
    #[error("unexpected message {0:?}: the web socket is closed already")]
    Closed(&'static str),
    #[error("the answer that refuses a web socket may have 1 MiB at most")]
    DenialTooLong,
}

impl WebSocket {
    /// Begins a web socket, or refuses a handshake that breaks the rules.
    pub(super) fn begin(app: Arc<App>, mut request: Parts) -> WebSocketCall {
        let upgrade = request.extensions.remove::<OnUpgrade>();
        if let Err(refusal) = handshake::check(&request) {
            let (head, text) = handshake::refuse(refusal);
            return WebSocketCall::Refused(Some(response(head, Some(text.into()))));
        }
        let compresses = app.sockets().ws_per_message_deflate;
        let offer = if compresses { Offer::choose(&request.headers) } else { None };
        let socket = Arc::new(Self { app, request, offer, state: Mutex::default() });
        socket.app.hub().enqueue(Job::StartSocket(Arc::clone(&socket)));
        WebSocketCall::Begun { socket, upgrade, is_over: false }
    }

    /// Starts the app's Task. If the client has gone by now, it is not started.
    pub(super) fn start(self: &Arc<Self>, py: Python<'_>) {
        if !lock(&self.state).is_lost {
            self.app.start_socket(py, self);
        }
    }

    // What the app receives.

    fn receive(self: &Arc<Self>) -> Option<Event> {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.connect_is_given, true) {
            return Some(Event::Connect);
        }
        let Some(message) = state.inbox.pop_front() else {
            return state.end.clone().map(|(code, reason)| Event::Disconnect(code, reason));
        };
        let was_full = state.inbox_size >= WINDOW;
        state.inbox_size -= message.data.len();
        let connection = if was_full && state.inbox_size < WINDOW { state.connection.take() } else { None };
        drop(state);
        if let Some(connection) = connection {
            self.app.hub().wake(connection);
        }
        Some(Event::Message(message))
    }

    // What the app sends.

    fn accept(&self, mut head: Head, subprotocol: Option<HeaderValue>) -> Result<(), SendError> {
        const KIND: &str = "websocket.accept";
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Connecting if state.is_lost => return Err(SendError::Gone),
            Progress::Connecting => {}
            Progress::Accepted => return Err(SendError::Accepted(KIND)),
            Progress::Denying | Progress::Refused => return Err(SendError::Refused(KIND)),
        }
        handshake::accept(&mut head, &self.request, subprotocol, self.offer.as_ref());
        state.progress = Progress::Accepted;
        self.answer(state, Answer::Accept(head));
        Ok(())
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        const KIND: &str = "websocket.send";
        let state = lock(&self.state);
        match state.progress {
            Progress::Connecting => return Err(SendError::NotAccepted(KIND)),
            Progress::Denying | Progress::Refused => return Err(SendError::Refused(KIND)),
            Progress::Accepted if state.is_closed => return Err(SendError::Closed(KIND)),
            Progress::Accepted if state.is_lost => return Err(SendError::Gone),
            Progress::Accepted => {}
        }
        self.put(state, message);
        Ok(())
    }

    fn close(self: &Arc<Self>, code: u16, reason: String) -> Result<(), SendError> {
        const KIND: &str = "websocket.close";
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Connecting => {
                state.progress = Progress::Refused;
                let head = Head { status: StatusCode::FORBIDDEN, headers: HeaderMap::new(), ..Head::default() };
                self.answer(state, Answer::Refuse(head, Bytes::new()));
            }
            Progress::Denying | Progress::Refused => return Err(SendError::Refused(KIND)),
            Progress::Accepted if state.is_closed => return Err(SendError::Closed(KIND)),
            Progress::Accepted => {
                state.is_closed = true;
                // A client that has gone needs no close frame.
                if !state.is_lost {
                    state.end.get_or_insert_with(|| (code, reason.clone()));
                    self.put(state, Outgoing::Close(code, reason));
                }
            }
        }
        self.enqueue_notify();
        Ok(())
    }

    fn deny_start(&self, head: Head) -> Result<(), SendError> {
        const KIND: &str = "websocket.http.response.start";
        let mut state = lock(&self.state);
        match state.progress {
            Progress::Connecting if state.is_lost => return Err(SendError::Gone),
            Progress::Connecting => {}
            Progress::Accepted => return Err(SendError::Accepted(KIND)),
            Progress::Denying | Progress::Refused => return Err(SendError::Refused(KIND)),
        }
        state.progress = Progress::Denying;
        state.denial = Some((head, BytesMut::new()));
        Ok(())
    }

    fn deny_body(self: &Arc<Self>, body: &[u8], more: bool) -> Result<(), SendError> {
        const KIND: &str = "websocket.http.response.body";
        let mut state = lock(&self.state);
        let Some((_, parts)) = &mut state.denial else {
            return Err(match state.progress {
                Progress::Accepted => SendError::Accepted(KIND),
                Progress::Refused => SendError::Refused(KIND),
                Progress::Connecting | Progress::Denying => SendError::NotAccepted(KIND),
            });
        };
        if parts.len() + body.len() > DENIAL_MAX {
            return Err(SendError::DenialTooLong);
        }
        parts.extend_from_slice(body);
        if !more && let Some((mut head, parts)) = state.denial.take() {
            state.progress = Progress::Refused;
            // The worker knows the length of what it sends.
            head.headers.remove(header::CONTENT_LENGTH);
            self.answer(state, Answer::Refuse(head, parts.freeze()));
            self.enqueue_notify();
        }
        Ok(())
    }

    /// Returns true if `send()` must wait, because the client reads slowly.
    fn is_blocked(&self) -> bool {
        lock(&self.state).is_blocked()
    }

    fn is_lost(&self) -> bool {
        lock(&self.state).is_lost
    }

    fn put(&self, mut state: std::sync::MutexGuard<'_, State>, message: Outgoing) {
        state.outbox_size += message.size();
        state.outbox.push_back(message);
        let connection = state.connection.take();
        drop(state);
        if let Some(connection) = connection {
            self.app.hub().wake(connection);
        }
    }

    fn answer(&self, mut state: std::sync::MutexGuard<'_, State>, answer: Answer) {
        if let Answer::Refuse(..) = answer {
            state.end.get_or_insert((ABNORMAL, String::new()));
        }
        state.answer = Some(answer);
        let handshake = state.handshake.take();
        drop(state);
        if let Some(handshake) = handshake {
            self.app.hub().wake(handshake);
        }
    }

    // What waits.

    fn add_receiver(&self, future: Py<PyAny>) {
        lock(&self.state).receivers.push(future);
    }

    fn add_sender(&self, future: Py<PyAny>) {
        lock(&self.state).senders.push(future);
    }

    /// Forgets a future whose Task waits no longer.
    fn forget(&self, future: &Bound<'_, PyAny>) {
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
        self.app.hub().enqueue(Job::NotifySocket(Arc::clone(self)));
    }

    // The Task.

    pub(super) fn set_task(&self, task: Py<PyAny>) {
        lock(&self.state).task = Some(task);
    }

    /// Notes that the Task is over, and closes what the app has left open. Returns what the client gets; `None` if the
    /// app had closed, or the client had gone.
    pub(super) fn task_ends(&self, has_failed: bool) -> Option<&'static str> {
        let mut state = lock(&self.state);
        let (task, work) = (state.task.take(), state.work.take());
        let is_lost = state.is_lost;
        let told = match state.progress {
            Progress::Refused => None,
            Progress::Connecting | Progress::Denying => {
                state.progress = Progress::Refused;
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                let head = Head { status: StatusCode::INTERNAL_SERVER_ERROR, headers, ..Head::default() };
                self.answer(state, Answer::Refuse(head, Bytes::from_static(b"Internal Server Error")));
                (!is_lost).then_some("answered 500")
            }
            Progress::Accepted if state.is_closed || is_lost => None,
            Progress::Accepted => {
                state.is_closed = true;
                let (code, told) = if has_failed { (1011, "closed with 1011") } else { (1000, "closed with 1000") };
                state.end.get_or_insert((code, String::new()));
                self.put(state, Outgoing::Close(code, String::new()));
                Some(told)
            }
        };
        drop((task, work));
        told
    }
}

impl State {
    fn is_blocked(&self) -> bool {
        self.outbox_size >= WINDOW && !self.is_lost
    }
}

impl Outgoing {
    fn size(&self) -> usize {
        match self {
            Self::Text(data) | Self::Binary(data) => data.len(),
            Self::Close(..) => 0,
        }
    }
}

/// The future of the answer to a handshake.
pub(crate) enum WebSocketCall {
    Refused(Option<Response<ResponseBody>>),
    Begun { socket: Arc<WebSocket>, upgrade: Option<OnUpgrade>, is_over: bool },
}

impl Future for WebSocketCall {
    type Output = Result<Response<ResponseBody>, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (socket, upgrade, is_over) = match self.get_mut() {
            Self::Refused(response) => return Poll::Ready(response.take().ok_or(Unfinished)),
            Self::Begun { socket, upgrade, is_over } => (socket, upgrade, is_over),
        };
        let mut state = lock(&socket.state);
        let Some(answer) = state.answer.take() else {
            state.handshake = Some(cx.waker().clone());
            return Poll::Pending;
        };
        *is_over = true;
        match answer {
            Answer::Refuse(head, body) => {
                drop(state);
                Poll::Ready(Ok(response(head, Some(body).filter(|body| !body.is_empty()))))
            }
            Answer::Accept(head) => {
                // The handler is work of this worker, although its request is answered: a drain waits for it.
                if state.task.is_some() {
                    state.work = Some(socket.app.background_work());
                }
                drop(state);
                let Some(upgrade) = upgrade.take() else { return Poll::Ready(Err(Unfinished)) };
                tokio::spawn(Wire::run(Arc::clone(socket), upgrade));
                Poll::Ready(Ok(response(head, None)))
            }
        }
    }
}

impl Drop for WebSocketCall {
    fn drop(&mut self) {
        if let Self::Begun { socket, is_over: false, .. } = self {
            socket.ends(ABNORMAL, String::new());
        }
    }
}

fn response(head: Head, body: Option<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(body));
    (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers);
    response
}
