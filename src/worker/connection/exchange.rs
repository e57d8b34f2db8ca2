//! Answers one request: passes it to the app, or makes the response itself.
//!
//! Owns: the count of requests, their ids, the treatment of a request whose client has left, `http.quarantine`,
//! `http.limit_concurrency`, `http.request_timeout`, the panics of the app, the limits of an HTTP/2 request, and
//! `Connection: close` while the worker drains. Refuses: the end of a connection (`connection`), the check that a client
//! is still there (`client_left`), the transfer of bytes (`http1`), the search for faults of a body (`body`), and what
//! the worker's own pages say (`own_pages`).

use std::{
    error::Error,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker, ready},
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep},
};

use super::{
    Body, Connection,
    client_left::ClientLeft,
    refusal_response,
    reply::{InFlightGuard, ResponseBody},
    unread::BodyOutcome,
};
use crate::{
    client_gone::RequestLink,
    metrics,
    scoreboard::X_REQUEST_ID,
    sys::clock,
    worker::{
        access_log::{AccessEntry, LoggedBody},
        forwarded,
        own_pages::PageContent,
        scanner::http2_fault,
        serve::{AppBody, BoxError, Serve},
        shared::Shared,
    },
};

/// Answers one request, by the app or by the worker itself. This function decides whether the app or the worker
/// answers, creates the guard that counts the request, and calls the app. It does all this before it returns the
/// future, and not at the future's first poll. So the connection counts as busy as soon as the head has come, and the
/// future need not hold the request, which is large.
pub(super) fn answer<S, B>(
    mut request: Request<Incoming>,
    app: S,
    connection: Arc<Connection>,
) -> Exchange<S::Future, B>
where
    S: Serve<B>,
    B: AppBody,
{
    let shared = connection.shared;
    let begun = clock::nanoseconds();
    let http1 = request.version() < Version::HTTP_2;
    let offer = request.extensions().get::<OnUpgrade>().filter(|_| http1).cloned();
    let id = shared.request_ids.settle(request.headers_mut());
    let mut client = forwarded::client(&mut request, &connection.client, &shared.trust);
    let entry = shared.access.as_ref().and_then(|log| log.begin(begun, client.address(), &request));
    if connection.client_has_left(begun / 1_000_000) {
        shared.abandoned(connection.peer);
        // The entry is dropped without a status, so its line in the access log says 499.
        return Exchange::Abandoned;
    }
    let is_head = *request.method() == Method::HEAD;
    let extras = ResponseExtras { version: request.version(), is_head, id, entry, offer };
    client.request = RequestLink::new(&connection.request_ends, begun);
    request.extensions_mut().insert(client);
    if let Some(certificate) = &connection.certificate {
        request.extensions_mut().insert(certificate.clone());
    }
    let own = if let Some(page) = shared.own_pages.find(&request) {
        let metrics = || metrics::render(&shared.scoreboard, &shared.listeners);
        Some(own_page(page.content(metrics, shared.is_stopping())))
    } else if let Some(refusal) = if http1 { None } else { http2_fault(&request, &shared.http) } {
        connection.refused(refusal);
        Some(refusal_response::response(refusal))
    } else if is_quarantined(&request, shared, begun) {
        shared.quarantined(&request);
        Some(refusal_response::response(refusal_response::QUARANTINED))
    } else if is_too_many(&request, shared) {
        shared.shed();
        Some(refusal_response::response(refusal_response::OVERLOADED))
    } else {
        None
    };
    if let Some(response) = own {
        // The worker's own response is complete at once, so the request never counts as under way.
        connection.activity.idles();
        let (_, outcome) = Body::of(request, &connection);
        return Exchange::Own { own: Some(Box::new(Own { response, connection, outcome, extras })) };
    }
    let guard = InFlightGuard::new(connection, begun, &request, &extras.id, extras.is_http1());
    let connects = request.method() == Method::CONNECT;
    let (request, outcome) = Body::of(request, &guard.connection);
    let call = AppCall::of(app, request);
    Exchange::App { call, limit: None, in_flight: Some(InFlight { guard, outcome, connects, extras }) }
}

pin_project_lite::pin_project! {
    /// The future that makes the response to one request.
    #[project = ExchangePart]
    pub(super) enum Exchange<F, B> {
        App {
            #[pin]
            call: AppCall<F, B>,
            // The timer of `http.request_timeout`. It begins when the app's future is first pending.
            limit: Option<Pin<Box<Sleep>>>,
            // The data from which the response is made; `None` once the request is answered.
            in_flight: Option<InFlight>,
        },
        Own {
            own: Option<Box<Own<B>>>,
        },
        /// The client has left, so the connection ends without a response.
        Abandoned,
    }
}

impl<F, B, E> Future for Exchange<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: http_body::Body,
{
    type Output = Result<Response<LoggedBody<ResponseBody<B>>>, ClientLeft>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ENDED: &str = "a future is not polled after its end";
        Poll::Ready(Ok(match self.project() {
            ExchangePart::Own { own } => own.take().expect(ENDED).end(),
            ExchangePart::Abandoned => return Poll::Ready(Err(ClientLeft)),
            ExchangePart::App { mut call, limit, in_flight } => {
                let answered = match call.as_mut().poll(cx) {
                    Poll::Ready(answered) => Some(answered),
                    Poll::Pending => {
                        let after = in_flight.as_ref().expect(ENDED).guard.connection.shared.http.request_timeout;
                        if after.is_zero() {
                            return Poll::Pending;
                        }
                        let limit = limit.get_or_insert_with(|| Box::pin(sleep(after)));
                        // tokio gives each task a budget of polls. The timer is polled without this budget, so that it
                        // fires even if the app has used the budget up.
                        ready!(pin!(unconstrained(limit.as_mut())).poll(cx));
                        None
                    }
                };
                let in_flight = in_flight.take().expect(ENDED);
                if in_flight.outcome.is_some() {
                    // Drop the app's future now. It may still hold the request's body, and the body must be dropped
                    // before the response is made.
                    call.set(AppCall::Failed { error: None });
                }
                in_flight.end(answered)
            }
        }))
    }
}

pin_project_lite::pin_project! {
    /// The call of the app with one request. A panic of the app is an error of this one request; the connection and the
    /// worker continue.
    #[project = AppCallPart]
    enum AppCall<F, B> {
        Called {
            #[pin]
            future: F,
        },
        /// The service was not ready, and is called when it becomes ready.
        Waits {
            future: Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>,
        },
        Failed {
            error: Option<BoxError>,
        },
    }
}

impl<F, B> AppCall<F, B> {
    fn of<S>(mut app: S, request: Request<Body>) -> Self
    where
        S: Serve<B, Future = F>,
        F: Future<Output = Result<Response<B>, S::Error>>,
        B: AppBody,
    {
        // `AssertUnwindSafe` is right here and in `poll`, because a future or service that panicked is dropped with its
        // request and never used again.
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

impl<F, B, E> Future for AppCall<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        catch_unwind(AssertUnwindSafe(|| match self.project() {
            AppCallPart::Called { future } => future.poll(cx).map_err(Into::into),
            AppCallPart::Waits { future } => future.as_mut().poll(cx),
            AppCallPart::Failed { error } => Poll::Ready(Err(error.take().unwrap_or_else(panicked))),
        }))
        .unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    }
}

fn panicked() -> BoxError {
    "it panicked".into()
}

/// The data that the worker keeps while the app has a request. The worker needs these data to make the response.
struct InFlight {
    guard: InFlightGuard,
    /// The outcome of the request's body; `None` if the request has no body.
    outcome: Option<Arc<BodyOutcome>>,
    connects: bool,
    extras: ResponseExtras,
}

impl InFlight {
    /// Makes the response to the request. `answered` is `None` if the app took too long.
    fn end<B: http_body::Body>(
        self,
        answered: Option<Result<Response<B>, BoxError>>,
    ) -> Response<LoggedBody<ResponseBody<B>>> {
        let Self { guard, outcome, connects, extras } = self;
        let (connection, http1) = (&guard.connection, extras.is_http1());
        let shared = connection.shared;
        let (mut parts, mut reply) = match (outcome.as_ref().and_then(|outcome| outcome.fault()), answered) {
            (Some(refusal), _) => refusal_response::response(refusal).into_parts(),
            (None, Some(Ok(response))) => {
                let (parts, body) = response.into_parts();
                (parts, ResponseBody::App { body, guard: None })
            }
            (None, Some(Err(error))) => {
                tracing::error!(
                    event = "service_error",
                    error = error.as_ref() as &dyn Error,
                    "the service failed; answered 500"
                );
                refusal_response::response(refusal_response::FAILED).into_parts()
            }
            (None, None) => {
                if let Some(suppressed) = shared.timeouts.pass() {
                    tracing::warn!(
                        event = "request_timeout",
                        suppressed,
                        "a request took longer than http.request_timeout; its handler was dropped, answered 504"
                    );
                }
                refusal_response::response(refusal_response::TOO_SLOW).into_parts()
            }
        };
        shared.row.responded(parts.status);
        if http1 && (parts.status == StatusCode::SWITCHING_PROTOCOLS || connects && parts.status.is_success()) {
            connection.upgraded.store(true, Relaxed);
        }
        let entry = extras.add_to(&mut parts, &mut reply, outcome, connection);
        reply.hold(guard);
        Response::from_parts(parts, LoggedBody::new(reply, entry))
    }
}

/// A request that the worker answers itself, without the app.
struct Own<B> {
    response: Response<ResponseBody<B>>,
    connection: Arc<Connection>,
    outcome: Option<Arc<BodyOutcome>>,
    extras: ResponseExtras,
}

impl<B: http_body::Body> Own<B> {
    fn end(self) -> Response<LoggedBody<ResponseBody<B>>> {
        let (mut parts, mut reply) = self.response.into_parts();
        let entry = self.extras.add_to(&mut parts, &mut reply, self.outcome, &self.connection);
        Response::from_parts(parts, LoggedBody::new(reply, entry))
    }
}

/// What the worker adds to every response, whether the app or the worker itself has made the response.
struct ResponseExtras {
    version: Version,
    is_head: bool,
    id: HeaderValue,
    entry: Option<Box<AccessEntry>>,
    /// The client's offer to speak another protocol; `None` if it made no offer.
    offer: Option<OnUpgrade>,
}

impl ResponseExtras {
    fn is_http1(&self) -> bool {
        self.version < Version::HTTP_2
    }

    /// Completes the head of a response, and notes it in the access log. Returns the entry of the log, in which the
    /// bytes of the response's body will be counted. `outcome` is the outcome of the request's body; `None` if the
    /// request has no body.
    fn add_to<B: http_body::Body>(
        self,
        answer: &mut Parts,
        reply: &mut ResponseBody<B>,
        outcome: Option<Arc<BodyOutcome>>,
        connection: &Arc<Connection>,
    ) -> Option<Box<AccessEntry>> {
        let upgraded = connection.upgraded.load(Relaxed);
        let ends = upgraded || !self.is_http1() || connection.shared.drains() || self.is_last_of_http_10(answer, reply);
        let lasts = outcome.map_or(!ends, |outcome| outcome.answer(!ends && !says_close(answer), connection));
        if !self.is_http1() {
            if self.is_head {
                leave_out_body(answer, reply);
            }
        } else if !lasts && !upgraded {
            self.close_after(answer);
        }
        let Self { id, mut entry, offer, .. } = self;
        if let Some(offer) = offer
            && !upgraded
        {
            *connection.declined.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        }
        if !answer.headers.keys().any(|name| *name == X_REQUEST_ID) {
            answer.headers.append(&X_REQUEST_ID, id);
        }
        if let Some(entry) = &mut entry {
            entry.answered(answer);
        }
        entry
    }

    /// Returns true if this is a response of HTTP/1.0 after which the connection must end. The connection must end if
    /// the app says `Connection: close`, or if only the end of the connection can mark the end of the body.
    fn is_last_of_http_10<B: http_body::Body>(&self, answer: &Parts, reply: &ResponseBody<B>) -> bool {
        let ends_by_itself =
            || self.is_head || reply.size_hint().exact().is_some() || answer.headers.contains_key(CONTENT_LENGTH);
        self.version == Version::HTTP_10 && (says_close(answer) || !ends_by_itself())
    }

    fn close_after(&self, answer: &mut Parts) {
        answer.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.version == Version::HTTP_10 {
            // If the response had another version, hyper would add `keep-alive` for a client of HTTP/1.0 that has asked
            // for it.
            answer.version = Version::HTTP_10;
        }
    }
}

fn says_close(answer: &Parts) -> bool {
    let values = answer.headers.get_all(CONNECTION).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Removes the body of a response to HEAD over HTTP/2. Over HTTP/1 hyper removes it. `Content-Length` still says how
/// long the body would be.
fn leave_out_body<B: http_body::Body>(answer: &mut Parts, reply: &mut ResponseBody<B>) {
    if reply.is_end_stream() {
        return;
    }
    if let Some(length) = reply.size_hint().exact() {
        answer.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *reply = ResponseBody::Own { bytes: None, guard: None };
}

fn own_page<B>(content: PageContent) -> Response<ResponseBody<B>> {
    let PageContent { status, kind, text } = content;
    let mut response = Response::new(ResponseBody::own(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
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
