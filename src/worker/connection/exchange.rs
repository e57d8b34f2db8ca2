//! One request and its answer.
//!
//! Owns: the counting of requests, `http.metrics_path`, panics of the app, and `Connection: close` while the worker
//! drains. Refuses: when a connection ends (`connection`), and everything that is bytes (`wire`).

use std::{
    error::Error,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE},
};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tower_service::Service;

use super::{Activity, Connection};
use crate::{Body, channel::ToMaster, metrics, scoreboard::Place, sys::clock, worker::shared::Shared};

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

/// Answers one request: by the app, or by the worker itself. Its ticket is made here and now, not when the future is
/// first polled: the connection must count as busy from its head on.
pub(super) fn answer<S, B>(
    mut request: Request<Incoming>,
    app: S,
    connection: Arc<Connection>,
) -> impl Future<Output = Result<Response<Reply<B>>, BoxError>> + Send + 'static
where
    S: Serve<B>,
    B: Answer,
{
    let shared = connection.shared;
    let ticket = if asks_for_metrics(&request, shared) {
        // The page is whole at once: there is no time in which it would be under way.
        connection.activity.set(clock::coarse());
        None
    } else {
        if let Some(certificate) = &connection.certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        Some(Ticket::new(connection, &request))
    };
    async move {
        let mut response = match ticket {
            Some(ticket) => ask(request, app, ticket).await,
            None => metrics_page(shared),
        };
        if shared.drains() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Every request a worker answers by itself is not one of the app's: neither counted nor limited.
fn asks_for_metrics(request: &Request<Incoming>, shared: &Shared) -> bool {
    !shared.http.metrics_path.is_empty()
        && request.uri().path() == shared.http.metrics_path
        && matches!(*request.method(), Method::GET | Method::HEAD)
}

fn metrics_page<B>(shared: &Shared) -> Response<Reply<B>> {
    let text = metrics::render(&shared.scoreboard, &shared.listeners);
    let mut response = Response::new(Reply::Own { bytes: Some(text.into()), _ticket: None });
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

async fn ask<S, B>(request: Request<Incoming>, mut app: S, ticket: Ticket) -> Response<Reply<B>>
where
    S: Serve<B>,
{
    let row = ticket.connection.shared.row;
    let answered = Caught {
        future: async move {
            poll_fn(|cx| app.poll_ready(cx)).await.map_err(Into::into)?;
            app.call(request.map(Body)).await.map_err(Into::into)
        },
    };
    let response = match answered.await {
        Ok(response) => response.map(|body| Reply::App { body, _ticket: ticket }),
        Err(error) => {
            tracing::error!(
                event = "service_error",
                error = error.as_ref() as &dyn Error,
                "the service failed; answered 500"
            );
            let mut response = Response::new(Reply::Own { bytes: None, _ticket: Some(ticket) });
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    };
    row.responded(response.status());
    response
}

pin_project_lite::pin_project! {
    /// A panic of the app becomes an error of this one request; the connection and the worker go on.
    struct Caught<F> {
        #[pin]
        future: F,
    }
}

impl<T, F: Future<Output = Result<T, BoxError>>> Future for Caught<F> {
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Unwind safe: the future is dropped with the request, and nobody looks into it again.
        let polled = catch_unwind(AssertUnwindSafe(|| self.project().future.poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err("it panicked".into())))
    }
}

/// A request is in flight as long as this lives: until its answer's last byte is handed to the connection.
struct Ticket {
    connection: Arc<Connection>,
    /// In nanoseconds of the monotonic clock.
    begun: u64,
    note: Option<Place>,
}

impl Ticket {
    fn new(connection: Arc<Connection>, request: &Request<Incoming>) -> Self {
        let shared = connection.shared;
        connection.activity.set(Activity::BUSY);
        if shared.row.request_begun() == shared.row.recycle_at() {
            shared.say(&ToMaster::RecycleRequested);
        }
        let begun = clock::nanoseconds();
        let note = shared.notepad.begin(begun / 1_000_000, request);
        Self { connection, begun, note }
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
        activity.set(now / 1_000_000);
    }
}

pin_project_lite::pin_project! {
    /// The app's body, or what the worker itself answers.
    #[project = ReplyPart]
    pub(super) enum Reply<B> {
        App {
            #[pin]
            body: B,
            _ticket: Ticket,
        },
        Own {
            bytes: Option<Bytes>,
            _ticket: Option<Ticket>,
        },
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
