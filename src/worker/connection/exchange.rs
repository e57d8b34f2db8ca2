//! One request and its answer.
//!
//! Owns: the counting of requests, their ids, what becomes of a request whose client has left, `http.metrics_path`,
//! `http.quarantine`, `http.limit_concurrency`, `http.request_timeout`, the app's panics, the limits of an HTTP/2 request,
//! and `Connection: close` while the worker drains. Refuses: when a connection ends (`connection`), whether a client has
//! left (`departure`), bytes (`wire`), and the body's faults (`body`) but for answering them.

use std::{
    error::Error,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST},
    response::Parts,
};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep},
};
use tower_service::Service;

use super::{Body, Connection, departure::ClientLeft, refusal, unread::Fate};
use crate::{
    channel::ToMaster,
    metrics,
    scoreboard::{Place, X_REQUEST_ID},
    sys::clock,
    worker::{
        access_log::{Record, Recorded},
        forwarded,
        scanner::Refusal,
        shared::Shared,
    },
};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A service as the worker needs it.
pub(crate) trait Serve<B>:
    Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + 'static
{
}

impl<B, S> Serve<B> for S where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// A body as the worker needs it.
pub(crate) trait Answer: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}

impl<B> Answer for B where B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}

/// Answers one request: by the app, or by the worker itself. That is decided, its ticket made and the app called here and
/// now and not when the future is first polled: the connection must count as busy from its head on, and a request is too
/// large to be kept for later.
pub(super) fn answer<S, B>(
    mut request: Request<Incoming>,
    app: S,
    connection: Arc<Connection>,
) -> Exchange<S::Future, B>
where
    S: Serve<B>,
    B: Answer,
{
    let shared = connection.shared;
    let begun = clock::nanoseconds();
    let http1 = request.version() < Version::HTTP_2;
    let offer = request.extensions().get::<OnUpgrade>().filter(|_| http1).cloned();
    let id = shared.request_ids.settle(request.headers_mut());
    let client = forwarded::client(&mut request, &connection.client, &shared.trust);
    let record = shared.access.as_ref().and_then(|log| log.begin(begun, client.address(), &request));
    if connection.client_has_left(begun / 1_000_000) {
        shared.abandoned(connection.peer);
        // Its line in the access log says 499.
        return Exchange::Abandoned;
    }
    let is_head = *request.method() == Method::HEAD;
    let manner = Manner { version: request.version(), is_head, id, record, offer };
    request.extensions_mut().insert(client);
    if let Some(certificate) = &connection.certificate {
        request.extensions_mut().insert(certificate.clone());
    }
    let own = if asks_for_metrics(&request, shared) {
        Some(metrics_page(shared))
    } else if let Some(refusal) = if http1 { None } else { fault_of_http2(&request, shared) } {
        connection.refused(refusal);
        Some(refusal::response(refusal))
    } else if is_quarantined(&request, shared, begun) {
        shared.quarantined(&request);
        Some(refusal::response(refusal::QUARANTINED))
    } else if is_too_many(&request, shared) {
        shared.shed();
        Some(refusal::response(refusal::OVERLOADED))
    } else {
        None
    };
    if let Some(response) = own {
        // It is whole at once: there is no time in which it would be under way.
        connection.activity.idles();
        let (_, fate) = Body::of(request, &connection);
        return Exchange::Own { own: Some(Box::new(Own { response, connection, fate, manner })) };
    }
    let ticket = Ticket::new(connection, begun, &request, &manner);
    let connects = request.method() == Method::CONNECT;
    let (request, fate) = Body::of(request, &ticket.connection);
    let asked = Asked::of(app, request);
    Exchange::App { asked, limit: None, under_way: Some(UnderWay { ticket, fate, connects, manner }) }
}

pin_project_lite::pin_project! {
    /// The way of one request to its answer.
    #[project = ExchangePart]
    pub(super) enum Exchange<F, B> {
        App {
            #[pin]
            asked: Asked<F, B>,
            // `http.request_timeout`, from when the app first kept us waiting.
            limit: Option<Pin<Box<Sleep>>>,
            // `None` once it is answered.
            under_way: Option<UnderWay>,
        },
        Own {
            own: Option<Box<Own<B>>>,
        },
        /// The client has left.
        Abandoned,
    }
}

impl<F, B, E> Future for Exchange<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: http_body::Body,
{
    type Output = Result<Response<Recorded<Reply<B>>>, ClientLeft>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ENDED: &str = "a future is not polled after its end";
        Poll::Ready(Ok(match self.project() {
            ExchangePart::Own { own } => own.take().expect(ENDED).end(),
            ExchangePart::Abandoned => return Poll::Ready(Err(ClientLeft)),
            ExchangePart::App { mut asked, limit, under_way } => {
                let answered = match asked.as_mut().poll(cx) {
                    Poll::Ready(answered) => Some(answered),
                    Poll::Pending => {
                        let after = under_way.as_ref().expect(ENDED).ticket.connection.shared.http.request_timeout;
                        if after.is_zero() {
                            return Poll::Pending;
                        }
                        let limit = limit.get_or_insert_with(|| Box::pin(sleep(after)));
                        // Also of an app that leaves this task no budget.
                        ready!(pin!(unconstrained(limit.as_mut())).poll(cx));
                        None
                    }
                };
                let under_way = under_way.take().expect(ENDED);
                if under_way.fate.is_some() {
                    // The app's future may still hold the body: it is dropped before the answer is made.
                    asked.set(Asked::Failed { error: None });
                }
                under_way.end(answered)
            }
        }))
    }
}

pin_project_lite::pin_project! {
    /// The app with a request. A panic of it becomes an error of this one request; the connection and the worker go on.
    #[project = AskedPart]
    enum Asked<F, B> {
        Called {
            #[pin]
            future: F,
        },
        /// It was not ready to be called.
        Waits {
            future: Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>,
        },
        Failed {
            error: Option<BoxError>,
        },
    }
}

impl<F, B> Asked<F, B> {
    fn of<S>(mut app: S, request: Request<Body>) -> Self
    where
        S: Serve<B, Future = F>,
        F: Future<Output = Result<Response<B>, S::Error>>,
        B: Answer,
    {
        // Unwind safe, here and below: what has panicked is dropped with its request, and nobody looks into it again.
        catch_unwind(AssertUnwindSafe(|| match app.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Self::Called { future: app.call(request) },
            Poll::Ready(Err(error)) => Self::Failed { error: Some(error.into()) },
            Poll::Pending => Self::Waits {
                future: Box::pin(async move {
                    poll_fn(|cx| app.poll_ready(cx)).await.map_err(Into::into)?;
                    app.call(request).await.map_err(Into::into)
                }),
            },
        }))
        .unwrap_or_else(|_| Self::Failed { error: Some(panicked()) })
    }
}

impl<F, B, E> Future for Asked<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        catch_unwind(AssertUnwindSafe(|| match self.project() {
            AskedPart::Called { future } => future.poll(cx).map_err(Into::into),
            AskedPart::Waits { future } => future.as_mut().poll(cx),
            AskedPart::Failed { error } => Poll::Ready(Err(error.take().unwrap_or_else(panicked))),
        }))
        .unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    }
}

fn panicked() -> BoxError {
    "it panicked".into()
}

/// A request the app has.
struct UnderWay {
    ticket: Ticket,
    /// `None`: it has no body.
    fate: Option<Arc<Fate>>,
    connects: bool,
    manner: Manner,
}

impl UnderWay {
    /// `None`: it took too long.
    fn end<B: http_body::Body>(self, answered: Option<Result<Response<B>, BoxError>>) -> Response<Recorded<Reply<B>>> {
        let Self { ticket, fate, connects, manner } = self;
        let (connection, http1) = (&ticket.connection, manner.is_http1());
        let shared = connection.shared;
        let (mut parts, mut reply) = match (fate.as_ref().and_then(|fate| fate.fault()), answered) {
            (Some(refusal), _) => refusal::response(refusal).into_parts(),
            (None, Some(Ok(response))) => {
                let (parts, body) = response.into_parts();
                (parts, Reply::App { body, ticket: None })
            }
            (None, Some(Err(error))) => {
                tracing::error!(
                    event = "service_error",
                    error = error.as_ref() as &dyn Error,
                    "the service failed; answered 500"
                );
                refusal::response(refusal::FAILED).into_parts()
            }
            (None, None) => {
                if let Some(suppressed) = shared.timeouts.pass() {
                    tracing::warn!(
                        event = "request_timeout",
                        suppressed,
                        "a request took longer than http.request_timeout; its handler was dropped, answered 504"
                    );
                }
                refusal::response(refusal::TOO_SLOW).into_parts()
            }
        };
        shared.row.responded(parts.status);
        if http1 && (parts.status == StatusCode::SWITCHING_PROTOCOLS || connects && parts.status.is_success()) {
            connection.upgraded.store(true, Relaxed);
        }
        let record = manner.put_on(&mut parts, &mut reply, fate, connection);
        reply.hold(ticket);
        Response::from_parts(parts, Recorded::new(reply, record))
    }
}

/// A request that the worker answers by itself.
struct Own<B> {
    response: Response<Reply<B>>,
    connection: Arc<Connection>,
    fate: Option<Arc<Fate>>,
    manner: Manner,
}

impl<B: http_body::Body> Own<B> {
    fn end(self) -> Response<Recorded<Reply<B>>> {
        let (mut parts, mut reply) = self.response.into_parts();
        let record = self.manner.put_on(&mut parts, &mut reply, self.fate, &self.connection);
        Response::from_parts(parts, Recorded::new(reply, record))
    }
}

/// What every answer gets, whoever made it.
struct Manner {
    version: Version,
    is_head: bool,
    id: HeaderValue,
    record: Option<Box<Record>>,
    /// Of a client that would rather speak another protocol.
    offer: Option<OnUpgrade>,
}

impl Manner {
    fn is_http1(&self) -> bool {
        self.version < Version::HTTP_2
    }

    /// The record is the body's to complete. `fate`: of the request's body, if it has one.
    fn put_on<B: http_body::Body>(
        self,
        answer: &mut Parts,
        reply: &mut Reply<B>,
        fate: Option<Arc<Fate>>,
        connection: &Arc<Connection>,
    ) -> Option<Box<Record>> {
        let upgraded = connection.upgraded.load(Relaxed);
        let ends = upgraded || !self.is_http1() || connection.shared.drains() || self.is_last_of_http_10(answer, reply);
        let lasts = fate.map_or(!ends, |fate| fate.answer(!ends && !says_close(answer), connection));
        if !self.is_http1() {
            if self.is_head {
                leave_out_body(answer, reply);
            }
        } else if !lasts && !upgraded {
            self.close_after(answer);
        }
        let Self { id, mut record, offer, .. } = self;
        if let Some(offer) = offer
            && !upgraded
        {
            *connection.declined.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        }
        if !answer.headers.keys().any(|name| *name == X_REQUEST_ID) {
            answer.headers.append(&X_REQUEST_ID, id);
        }
        if let Some(record) = &mut record {
            record.answered(answer);
        }
        record
    }

    /// Whether the connection ends with this answer of HTTP/1.0: the app says so, or only that end tells where the body
    /// ends.
    fn is_last_of_http_10<B: http_body::Body>(&self, answer: &Parts, reply: &Reply<B>) -> bool {
        let ends_by_itself =
            || self.is_head || reply.size_hint().exact().is_some() || answer.headers.contains_key(CONTENT_LENGTH);
        self.version == Version::HTTP_10 && (says_close(answer) || !ends_by_itself())
    }

    fn close_after(&self, answer: &mut Parts) {
        answer.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.version == Version::HTTP_10 {
            // To an answer of another version hyper would add `keep-alive`, if the client has asked for that.
            answer.version = Version::HTTP_10;
        }
    }
}

fn says_close(answer: &Parts) -> bool {
    let values = answer.headers.get_all(CONNECTION).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// hyper sends none over HTTP/1. `Content-Length` says what it would be.
fn leave_out_body<B: http_body::Body>(answer: &mut Parts, reply: &mut Reply<B>) {
    if reply.is_end_stream() {
        return;
    }
    if let Some(length) = reply.size_hint().exact() {
        answer.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *reply = Reply::Own { bytes: None, ticket: None };
}

/// Every request a worker answers by itself is not one of the app's: neither counted nor limited.
fn asks_for_metrics(request: &Request<Incoming>, shared: &Shared) -> bool {
    !shared.http.metrics_path.is_empty()
        && request.uri().path() == shared.http.metrics_path
        && matches!(*request.method(), Method::GET | Method::HEAD)
}

fn metrics_page<B>(shared: &Shared) -> Response<Reply<B>> {
    let mut response = Response::new(Reply::own(metrics::render(&shared.scoreboard, &shared.listeners)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

fn is_quarantined(request: &Request<Incoming>, shared: &Shared, begun: u64) -> bool {
    shared.http.quarantine
        && shared.scoreboard.quarantined(begun / 1_000_000, request.method().as_str(), request.uri().path())
}

fn is_too_many(request: &Request<Incoming>, shared: &Shared) -> bool {
    let limit = shared.http.limit_concurrency;
    limit > 0
        && shared.row.in_flight() >= limit
        && !shared.http.limit_exempt.iter().any(|path| path == request.uri().path())
}

/// What the scanner looks for in HTTP/1 and h2 does not look for itself.
fn fault_of_http2(request: &Request<Incoming>, shared: &Shared) -> Option<Refusal> {
    let (http, headers) = (&shared.http, request.headers());
    let over = |size: usize, limit: usize| limit > 0 && size > limit;
    let mut hosts = headers.get_all(HOST).iter();
    let (host, authority) = (hosts.next(), request.uri().authority());
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if hosts.next().is_some() {
        Some(Refusal::HOST_REPEATED)
    } else if host.is_none() && authority.is_none() {
        Some(Refusal::NO_HOST)
    } else if host
        .zip(authority)
        .is_some_and(|(host, named)| !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()))
    {
        // RFC 9113, section 8.3.1.
        Some(Refusal::HOST_DIFFERS)
    } else if over(target, http.limit_request_line) {
        Some(Refusal::LINE_LONG)
    } else if over(headers.len(), http.limit_request_fields) {
        Some(Refusal::FIELDS_MANY)
    } else if headers
        .iter()
        .any(|(name, value)| over(name.as_str().len() + 2 + value.len(), http.limit_request_field_size))
    {
        Some(Refusal::FIELD_LONG)
    } else if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        Some(Refusal::EXPECT)
    } else if http.limit_request_body > 0 && length.is_some_and(|length: u64| length > http.limit_request_body) {
        Some(Refusal::BODY_LONG)
    } else {
        None
    }
}

/// A request is in flight as long as this lives: until its answer's last byte is handed to the connection.
pub(super) struct Ticket {
    connection: Arc<Connection>,
    http1: bool,
    /// In nanoseconds of the monotonic clock.
    begun: u64,
    note: Option<Place>,
}

impl Ticket {
    fn new(connection: Arc<Connection>, begun: u64, request: &Request<Incoming>, manner: &Manner) -> Self {
        let shared = connection.shared;
        if manner.is_http1() {
            connection.activity.request_begins();
        }
        if shared.row.request_begun() == shared.row.recycle_at() {
            shared.say(ToMaster::RecycleRequested);
        }
        let note = shared.notepad.begin(begun / 1_000_000, request, &manner.id);
        Self { connection, http1: manner.is_http1(), begun, note }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Connection { shared, activity, .. } = &*self.connection;
        let now = clock::nanoseconds();
        shared.row.took(now.saturating_sub(self.begun));
        if let Some(place) = &self.note {
            shared.notepad.end(place);
        }
        shared.row.request_ended();
        // Of HTTP/2 the wire sees it: h2 may hold the end of an answer back for long.
        if self.http1 {
            activity.request_ends(now / 1_000_000);
        }
    }
}

pin_project_lite::pin_project! {
    /// The app's body, or what the worker itself answers. A ticket only while a request of the app's is under way.
    #[project = ReplyPart]
    pub(super) enum Reply<B> {
        App {
            #[pin]
            body: B,
            ticket: Option<Ticket>,
        },
        Own {
            bytes: Option<Bytes>,
            ticket: Option<Ticket>,
        },
    }
}

impl<B> Reply<B> {
    pub(super) fn own(text: String) -> Self {
        Self::Own { bytes: Some(text.into()), ticket: None }
    }

    fn hold(&mut self, held: Ticket) {
        match self {
            Self::App { ticket, .. } | Self::Own { ticket, .. } => *ticket = Some(held),
        }
    }
}

impl<B: http_body::Body> http_body::Body for Reply<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            ReplyPart::App { body, .. } => {
                // Copies nothing where the app's data are `Bytes`, which they nearly always are.
                let whole = |frame: Frame<B::Data>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
                body.poll_frame(cx).map_ok(whole)
            }
            ReplyPart::Own { bytes, .. } => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::App { body, .. } => body.is_end_stream(),
            Self::Own { bytes, .. } => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::App { body, .. } => body.size_hint(),
            Self::Own { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}
