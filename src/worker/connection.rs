//! One HTTP/1.1 connection, from accept to its last byte.
//!
//! Owns: the clock of idle keep-alive, the counting of requests, `http.metrics_path`, `Connection: close` while the
//! worker drains, and the lingering close. Refuses: parsing (hyper), and deciding when to drain.
//!
//! Why an answer and not a FIN ends a connection: a request that crosses our FIN can be read but never answered, so the
//! only loss-free way out is to be the one who says `Connection: close` (RFC 9112, section 9.6).

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE},
};
use http_body::{Frame, SizeHint};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tower_service::Service;

use super::shared::{Open, Shared};
use crate::{Body, channel::ToMaster, metrics, scoreboard::Place, sys::clock};

/// How long the last bytes of a client are read and thrown away, so that no RST destroys the answer it has not read.
const LINGER: Duration = Duration::from_secs(2);

/// Between deciding that an idle connection may close and closing it the event loop turns once: what had already
/// arrived is then served.
const LAST_CALL: Duration = Duration::from_millis(2);

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

/// Serves one connection to its end; it counts as open as long as `open` lives.
pub(super) async fn serve<T, S, B>(stream: T, open: Open, shared: &'static Shared, app: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Serve<B>,
    B: Answer,
{
    let _open = open;
    let activity = Arc::new(Activity::new());
    let io = Io { inner: TokioIo::new(stream), activity: Arc::clone(&activity), linger: None };
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request| {
            let ticket = if asks_for_metrics(&request, shared) {
                // The page is whole at once: there is no time in which it would be under way.
                activity.set(clock::coarse());
                None
            } else {
                Some(Ticket::new(shared, Arc::clone(&activity), &request))
            };
            answer(request, app.clone(), shared, ticket)
        })
    };
    let mut connection = pin!(http1::Builder::new().serve_connection(io, service));
    let mut idle = pin!(sleep(shared.keep_alive));
    let mut end = pin!(shared.end.notified());
    let mut leaving = false;
    let mut last_call = false;
    let mut enrolled = false;

    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            if leaving {
                return Poll::Pending;
            }
            if !enrolled {
                // Polled for its waker alone: this task's never changes, and `ends` is what is asked.
                enrolled = true;
                let _ = end.as_mut().poll(cx);
                arm(idle.as_mut(), shared, cx);
            }
            let may_close = if shared.ends() {
                activity.unoccupied()
            } else if idle.is_elapsed() && !shared.keep_alive.is_zero() {
                let spare = activity.idle_left(shared.keep_alive);
                let due = spare == Some(Duration::ZERO);
                let close = due && std::mem::replace(&mut last_call, due);
                if !close {
                    last_call = due;
                    let wait = if due { LAST_CALL } else { spare.unwrap_or(shared.keep_alive) };
                    idle.as_mut().reset(Instant::now() + wait);
                    arm(idle.as_mut(), shared, cx);
                }
                close
            } else {
                false
            };
            if !may_close {
                return Poll::Pending;
            }
            leaving = true;
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(event = "connection_error", error = &error as &dyn Error, "a connection ended with an error");
    }
}

/// Registers the task with its timer; later polls need only ask whether it has elapsed.
fn arm(idle: Pin<&mut Sleep>, shared: &Shared, cx: &mut Context<'_>) {
    if !shared.keep_alive.is_zero() {
        let _ = idle.poll(cx);
    }
}

/// Every request a worker answers by itself is not one of the app's: neither counted nor limited.
fn asks_for_metrics(request: &Request<Incoming>, shared: &Shared) -> bool {
    !shared.metrics_path.is_empty()
        && request.uri().path() == shared.metrics_path
        && matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Without a ticket it is the metrics that are asked for.
async fn answer<S, B>(
    request: Request<Incoming>,
    app: S,
    shared: &'static Shared,
    ticket: Option<Ticket>,
) -> Result<Response<Reply<B>>, BoxError>
where
    S: Serve<B>,
{
    let mut response = match ticket {
        Some(ticket) => ask(request, app, ticket).await,
        None => metrics_page(shared),
    };
    if shared.drains() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
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
    let row = ticket.shared.row;
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
    shared: &'static Shared,
    activity: Arc<Activity>,
    /// In nanoseconds of the monotonic clock.
    begun: u64,
    note: Option<Place>,
}

impl Ticket {
    fn new(shared: &'static Shared, activity: Arc<Activity>, request: &Request<Incoming>) -> Self {
        activity.set(Activity::BUSY);
        if shared.row.request_begun() == shared.row.recycle_at() {
            shared.say(&ToMaster::RecycleRequested);
        }
        let begun = clock::nanoseconds();
        let note = shared.notepad.begin(begun / 1_000_000, request);
        Self { shared, activity, begun, note }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = clock::nanoseconds();
        self.shared.row.took(now.saturating_sub(self.begun));
        if let Some(place) = &self.note {
            self.shared.notepad.end(place);
        }
        self.shared.row.request_ended();
        self.activity.set(now / 1_000_000);
    }
}

pin_project_lite::pin_project! {
    /// The app's body, or what the worker itself answers.
    #[project = ReplyPart]
    enum Reply<B> {
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

/// What a connection is doing, in one word: idle since a millisecond of the coarse clock, or one of three states.
#[derive(Debug)]
struct Activity(AtomicU64);

impl Activity {
    /// Accepted, and not one byte seen.
    const FRESH: u64 = u64::MAX;
    /// Bytes of a head have arrived.
    const READING: u64 = u64::MAX - 1;
    /// A request is with the app, or its answer under way.
    const BUSY: u64 = u64::MAX - 2;

    fn new() -> Self {
        Self(AtomicU64::new(Self::FRESH))
    }

    fn set(&self, state: u64) {
        self.0.store(state, Relaxed);
    }

    fn bytes_arrived(&self) {
        if self.0.load(Relaxed) != Self::BUSY {
            self.set(Self::READING);
        }
    }

    /// No request has begun on it.
    fn unoccupied(&self) -> bool {
        !matches!(self.0.load(Relaxed), Self::READING | Self::BUSY)
    }

    /// How much of its keep-alive an idle connection has left.
    fn idle_left(&self, keep_alive: Duration) -> Option<Duration> {
        match self.0.load(Relaxed) {
            Self::FRESH | Self::READING | Self::BUSY => None,
            since => Some(keep_alive.saturating_sub(Duration::from_millis(clock::coarse().saturating_sub(since)))),
        }
    }
}

/// The stream under hyper: notices bytes, and closes only after the client had time to read our last ones.
struct Io<T> {
    inner: TokioIo<T>,
    activity: Arc<Activity>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> Read for Io<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.activity.bytes_arrived();
        Poll::Ready(read)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Write for Io<T> {
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
