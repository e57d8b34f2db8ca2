//! Serves one connection, from its accept to its last byte.
//!
//! Owns: the order of the steps of a connection (PROXY header, TLS handshake, HTTP, end), and what a connection does in
//! a drain. Refuses: the transfer of bytes (`http1`, `http2`), the answer to a request (`exchange`), parsing
//! (`scanner`, hyper), and the decision to drain (`worker`).
//!
//! The steps of a request from its accept to its log line, and the files that do these steps:
//!
//! ```text
//! accept     accept.rs            takes the connection from a listener, counts it, spawns its task
//! prepare    proxy_header.rs      reads the PROXY header, if the settings ask for one
//!            handshake.rs         the TLS handshake, with TLS
//! detect     protocol_detect.rs   the first bytes tell HTTP/1 from HTTP/2
//! scan       http1.rs, ../scanner verifies each byte before hyper parses it (HTTP/2: http2/wire.rs watches the frames)
//! exchange   exchange.rs          request id, client (../forwarded.rs), limits; begins the entry of the access log
//! app call   exchange.rs          AppCall polls the service; body.rs and unread.rs are the request's body
//! response   exchange.rs          ResponseExtras adds the id and `Connection: close`
//! body       reply.rs             ResponseBody; the InFlightGuard in it ends the request
//! access log ../access_log        LoggedBody counts the bytes; AccessEntry writes the line when it is dropped
//! ```
//!
//! A connection ends with a response, and not just with a FIN. The client may send a request before it has seen our
//! FIN, and the worker could read this request but never answer it. With HTTP/1 the only way to end a connection
//! without loss is to send `Connection: close` first (RFC 9112, section 9.6). With HTTP/2 it is to send GOAWAY twice
//! (RFC 9113, section 6.8).

mod activity;
mod body;
mod client_left;
mod delegate_write;
mod end_watch;
mod exchange;
#[cfg(feature = "tls")]
mod handshake;
mod http1;
mod http2;
mod linger;
mod protocol_detect;
mod proxy_header;
mod refusal_response;
mod reply;
mod state;
mod unread;

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    os::fd::AsRawFd,
    pin::{Pin, pin},
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{rt::Write, server::conn, service::service_fn};
use hyper_util::rt::TokioExecutor;
use tokio::time::sleep;

pub use self::body::{Body, BodyError};
#[cfg(feature = "tls")]
use self::handshake::{Handshake, shake_hands};
use self::{
    activity::{Activity, Overdue},
    client_left::ClientStream,
    end_watch::EndWatch,
    http1::Http1Wire,
    http2::{Http2Lifecycle, Http2Wire},
    protocol_detect::ProtocolDetect,
    proxy_header::{Prefixed, ProxyHeader, read_proxy_header},
    state::{Connection, Timer},
};
use super::{
    connection_list::ListPosition,
    scanner::Refusal,
    serve::{AppBody, BoxError, Peer, Serve},
    shared::{OpenGuard, Shared, WakeListener},
};
use crate::{
    client_info::{ClientInfo, Local},
    settings::{ProxyProtocol, ServerConfig},
};

/// The number of headers that hyper reads without allocating memory.
const FIELDS_ON_THE_STACK: usize = 100;
/// The most headers of a request, even if the settings set no limit, because a `HeaderMap` cannot hold twice this
/// number.
const FIELDS_MAX: usize = 16_384;

/// The longest head of a request of HTTP/2, in bytes. It is smaller than with HTTP/1, because each stream may hold a
/// head in memory.
const HTTP2_HEAD_MAX: usize = 64 * 1024;
const HTTP2_STREAMS: u32 = 100;

/// Serves one connection to its end. The connection counts as open until `open` is dropped. `waited` is true if the
/// client may have left before the connection was accepted, and the event loop may not have seen this.
pub(super) async fn serve<T, S, B>(
    stream: T,
    peer: Peer,
    local: Local,
    waited: bool,
    open: OpenGuard,
    shared: &'static Shared,
    app: S,
) where
    T: ClientStream + AsRawFd + Send + 'static,
    S: Serve<B>,
    B: AppBody,
{
    let connection = Arc::new(Connection {
        shared,
        peer,
        client: ClientInfo::of_connection(peer.remote, local),
        certificate: None,
        agreed_on_http1: false,
        activity: Activity::new(),
        request_ends: Arc::default(),
        socket: stream.as_raw_fd(),
        position: ListPosition::default(),
        ending: AtomicBool::new(waited),
        in_body: AtomicBool::new(false),
        refusal: OnceLock::new(),
        upgraded: AtomicBool::new(false),
        declined: Mutex::new(None),
    });
    let mut sleep = pin!(sleep(Duration::ZERO));
    let mut timer = Timer::new(sleep.as_mut());
    match (shared.proxy_protocol, &shared.tls) {
        (ProxyProtocol::Off, None) => http(Prefixed::from(stream), connection, &mut timer, open, app).await,
        // This future is in a box. Otherwise the task of a plain connection would be as large as the task of a
        // connection with a PROXY header and TLS.
        (_, tls) => Box::pin(introduced(stream, tls.as_ref(), connection, &mut timer, open, app)).await,
    }
}

/// Reads the PROXY header and does the TLS handshake, then serves HTTP.
async fn introduced<T, S, B>(
    stream: T,
    tls: Option<&Arc<ServerConfig>>,
    mut connection: Arc<Connection>,
    timer: &mut Timer<'_>,
    open: OpenGuard,
    app: S,
) where
    T: ClientStream + Send + 'static,
    S: Serve<B>,
    B: AppBody,
{
    let stream = match read_proxy_header(stream, alone(&mut connection), timer).await {
        ProxyHeader::Done(stream) => stream,
        ProxyHeader::Refused(stream, refusal) => return dismiss(stream, refusal, connection, open).await,
        ProxyHeader::Over => return,
    };
    let Some(tls) = tls else { return Box::pin(http(stream, connection, timer, open, app)).await };
    #[cfg(not(feature = "tls"))]
    match **tls {}
    #[cfg(feature = "tls")]
    match shake_hands(stream, tls, alone(&mut connection), timer).await {
        Handshake::Done(stream) => Box::pin(http(stream, connection, timer, open, app)).await,
        Handshake::Refused(stream, refusal) => dismiss(stream, refusal, connection, open).await,
        Handshake::Over => {}
    }
}

/// Returns the connection in a form that can be changed. A connection becomes shared when HTTP begins. If it is shared
/// already, this function panics.
fn alone(connection: &mut Arc<Connection>) -> &mut Connection {
    Arc::get_mut(connection).expect("it is not shared yet")
}

/// Sends the refusal to the client, and ends the connection before HTTP begins on it.
async fn dismiss<T>(stream: T, refusal: Refusal, connection: Arc<Connection>, open: OpenGuard)
where
    T: ClientStream,
{
    connection.refuse(refusal);
    let mut wire = Http1Wire::new(stream, Vec::new(), connection, open);
    // If this fails, the client cannot be told, and the connection ends all the same.
    let _ = poll_fn(|cx| Pin::new(&mut wire).poll_shutdown(cx)).await;
}

/// Serves HTTP on a stream to its end.
async fn http<T, S, B>(mut stream: T, connection: Arc<Connection>, timer: &mut Timer<'_>, open: OpenGuard, app: S)
where
    T: ClientStream + Send + 'static,
    S: Serve<B>,
    B: AppBody,
{
    let shared = connection.shared;
    let called = pin!(shared.wake_signal());
    let mut call = WakeListener::new(called);
    let greeting = if shared.http.http2 && !connection.agreed_on_http1 {
        protocol_detect::read(&mut stream, &connection, timer, &mut call).await
    } else {
        ProtocolDetect::default()
    };
    let service = {
        let connection = Arc::clone(&connection);
        service_fn(move |request| exchange::answer(request, app.clone(), Arc::clone(&connection)))
    };
    if greeting.is_http2 {
        // These values are in boxes. Otherwise the task of a connection of HTTP/1 would be as large as the task of a
        // connection of HTTP/2.
        let mut lifecycle = Box::new(Http2Lifecycle::new(&connection));
        let wire = Http2Wire::new(stream, greeting.bytes, lifecycle.state(), Arc::clone(&connection), open);
        let mut serving = Box::pin(http2(shared).serve_connection(wire, service));
        drive(serving.as_mut(), &connection, timer, call, &mut *lifecycle).await;
    } else {
        let wire = Http1Wire::new(stream, greeting.bytes, Arc::clone(&connection), open);
        let serving = pin!(http1(shared).serve_connection(wire, service).with_upgrades());
        drive(serving, &connection, timer, call, &mut Http1Lifecycle::default()).await;
        connection.close_if_declined().await;
    }
}

fn http1(shared: &Shared) -> conn::http1::Builder {
    let mut builder = conn::http1::Builder::new();
    // With `half_close`, a client that sends a FIN after its request still gets the response.
    builder.half_close(true);
    let fields = shared.http.limit_request_fields;
    if !(1..=FIELDS_ON_THE_STACK).contains(&fields) {
        builder.max_headers(if fields == 0 { FIELDS_MAX } else { fields.min(FIELDS_MAX) });
    }
    builder
}

fn http2(shared: &Shared) -> conn::http2::Builder<TokioExecutor> {
    let http = &shared.http;
    let (fields, size) = (http.limit_request_fields, http.limit_request_field_size);
    let head = if fields == 0 || size == 0 { HTTP2_HEAD_MAX } else { fields.saturating_mul(size).min(HTTP2_HEAD_MAX) };
    let mut builder = conn::http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(HTTP2_STREAMS).max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX));
    // A stream can become a web socket (RFC 8441). An app without web sockets refuses such a request as any other.
    builder.enable_connect_protocol();
    builder
}

/// Implemented by both types of hyper's connections, for HTTP/1 and for HTTP/2.
trait HttpConnection: Future<Output = hyper::Result<()>> {
    /// Tells hyper to end the connection once the requests under way are answered.
    fn begin_shutdown(self: Pin<&mut Self>);
}

impl<T, S, B> HttpConnection for conn::http1::UpgradeableConnection<Http1Wire<T>, S>
where
    Self: Future<Output = hyper::Result<()>>,
    T: ClientStream + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
{
    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S, B, E> HttpConnection for conn::http2::Connection<Http2Wire<T>, S, E>
where
    Self: Future<Output = hyper::Result<()>>,
    T: ClientStream + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// The decisions about a connection that hyper does not make. They concern its time limits, and its end in a drain.
trait Lifecycle {
    /// Returns true if hyper reads nothing while the app answers. In this case the task needs another way to notice
    /// that the client has gone.
    fn watches_client(&self) -> bool {
        false
    }

    /// Returns the next thing to do. `Wait` means that there is nothing to do now. The task is woken when there is
    /// something to do.
    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> NextStep;
}

enum NextStep {
    Wait,
    /// Poll hyper again, because the stream under it has something to do.
    Poll,
    /// Tell hyper to end the connection.
    Leave,
    End(Ended),
}

/// The lifecycle of a connection of HTTP/1. Its client learns of a drain with its next response.
#[derive(Default)]
struct Http1Lifecycle {
    leaving: bool,
}

impl Lifecycle for Http1Lifecycle {
    fn watches_client(&self) -> bool {
        true
    }

    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> NextStep {
        let Connection { shared, activity, .. } = connection;
        let told = shared.ends() && activity.unoccupied();
        match timer.overdue(connection, cx) {
            Some(Overdue::Blocked) => return NextStep::End(Ended::Blocked),
            Some(Overdue::Head) => connection.refuse(refusal_response::HEAD_LATE),
            Some(Overdue::Silent | Overdue::Idle) => {}
            None if (told || activity.is_asked_to_leave()) && !self.leaving => {}
            None => return NextStep::Wait,
        }
        self.leaving = true;
        activity.leaves();
        NextStep::Leave
    }
}

/// Polls hyper until the connection is over. Between the polls it does what `lifecycle` says, for example tells hyper
/// to end the connection.
async fn drive<C: HttpConnection>(
    mut serving: Pin<&mut C>,
    connection: &Arc<Connection>,
    timer: &mut Timer<'_>,
    mut call: WakeListener<'_>,
    lifecycle: &mut impl Lifecycle,
) {
    let mut membership = None;
    let mut end_watch = EndWatch::default();
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(Ended::Error));
            }
            call.listen(connection.shared, cx);
            membership.get_or_insert_with(|| {
                connection.request_ends.watched_by(cx.waker());
                connection.shared.connections.enter(connection, cx.waker())
            });
            if lifecycle.watches_client() && connection.request_ends.is_asked() {
                end_watch.poll(connection, cx);
            }
            match lifecycle.step(connection, timer, cx) {
                NextStep::Wait => return Poll::Pending,
                NextStep::Poll => {}
                NextStep::Leave => serving.as_mut().begin_shutdown(),
                NextStep::End(ended) => return Poll::Ready(Err(ended)),
            }
        }
    })
    .await;
    match served {
        Ok(()) => {}
        Err(Ended::Blocked) => connection.stalled("its connection was dropped"),
        Err(Ended::Error(error)) => log_error(&error),
        Err(Ended::Unresponsive) => {
            log_error(&io::Error::new(io::ErrorKind::TimedOut, "the client does not answer a PING"))
        }
    }
}

fn log_error(error: &(dyn Error + 'static)) {
    tracing::debug!(event = "connection_error", error, "a connection ended with an error");
}

enum Ended {
    /// The client did not read for `http.write_timeout`.
    Blocked,
    /// The client did not answer a PING.
    Unresponsive,
    Error(hyper::Error),
}
