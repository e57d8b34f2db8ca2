//! One connection, from accept to its last byte.
//!
//! Owns: the order of its life (PROXY header, TLS handshake, HTTP, end), its one timer, and its part in a drain. Refuses:
//! bytes (`wire`), requests (`exchange`), parsing (`scanner`, hyper), and deciding when to drain.
//!
//! Why an answer and not a FIN ends a connection: a request that crosses our FIN can be read but never answered, so the
//! only loss-free way out is to be the one who says `Connection: close` (RFC 9112, section 9.6); or GOAWAY, twice (RFC
//! 9113, section 6.8).

mod activity;
mod body;
mod departure;
mod exchange;
mod greeting;
mod http2;
mod introduction;
mod linger;
mod refusal;
mod tls;
mod unread;
mod wire;

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    os::fd::{AsRawFd, RawFd},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{rt::Write, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioExecutor;
use rustls::ServerConfig;
use tokio::time::{Instant, Sleep, sleep, timeout};

pub use self::body::{Body, BodyError};
pub(crate) use self::exchange::{Answer, BoxError, Serve};
use self::{
    activity::{Activity, Overdue},
    departure::Stream,
    greeting::Greeting,
    http2::Http2,
    introduction::{Introduction, Prefixed, introduce},
    tls::{Handshake, shake_hands},
    wire::Wire,
};
use super::{
    accept::Peer,
    crowd::Seat,
    scanner::{Refusal, Scanner},
    shared::{Call, Open, Shared},
};
use crate::{
    ClientCertificate,
    client::Client,
    settings::ProxyProtocol,
    sys::{clock, fd},
};

/// Between deciding that a connection may close and closing it the event loop turns once: what had already arrived is
/// then served.
const LAST_CALL_MS: u64 = 2;

/// The headers that hyper reads without memory of their own.
const FIELDS_ON_THE_STACK: usize = 100;
/// The most headers, limits or not: twice as many do not fit into a `HeaderMap`.
const FIELDS_MAX: usize = 16_384;

/// Of HTTP/2, each stream may hold a head in memory: less than HTTP/1 grants one.
const HTTP2_HEAD_MAX: usize = 64 * 1024;
const HTTP2_STREAMS: u32 = 100;

/// What the parts of one connection know of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: &'static Shared,
    peer: Peer,
    /// As far as the connection itself and its PROXY header tell.
    client: Client,
    /// Of the client, where `tls.client_ca` asks for one.
    certificate: Option<ClientCertificate>,
    /// ALPN has chosen HTTP/1.1, so HTTP/2 by prior knowledge is refused.
    agreed_on_http1: bool,
    activity: Activity,
    /// The stream's descriptor, to ask the kernel about it. It is used only while a request is handed over and while
    /// the crowd knows the connection: hyper holds the stream then. After the stream is closed, the kernel may give the
    /// number to another file.
    pub(super) socket: RawFd,
    pub(super) seat: Seat,
    /// The client has ended its side, or the event loop could not see whether it has.
    ending: AtomicBool,
    /// The client is in the middle of a body, as far as its bytes have been read. With HTTP/1.
    in_body: AtomicBool,
    /// Why no more of its requests is answered: the last word of a connection of HTTP/1.
    refusal: OnceLock<Refusal>,
    /// It speaks what the app makes of it.
    upgraded: AtomicBool,
    /// The last upgrade that a client asked for and did not get.
    declined: Mutex<Option<OnUpgrade>>,
}

impl Connection {
    /// Counts a refusal, and tells of it.
    fn refused(&self, refusal: Refusal) {
        self.shared.refused(refusal, self.peer);
    }

    /// The wire says so before it closes.
    fn refuse(&self, refusal: Refusal) {
        if self.refusal.set(refusal).is_ok() {
            self.refused(refusal);
        }
    }

    /// Tells of a client that does not read.
    fn stalled(&self, end: &str) {
        if let Some(suppressed) = self.shared.stalls.pass() {
            tracing::info!(
                event = "client_stalled",
                client = %self.peer,
                suppressed,
                "a client did not read its answer for http.write_timeout; {end}"
            );
        }
    }

    /// Once an upgrade was asked for, hyper keeps it pending to the connection's end, and then grants it instead of
    /// closing. So the last word and the lingering close are left to us.
    async fn close_if_declined(&self) {
        let declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(declined) = declined
            && let Ok(mut stream) = declined.await
        {
            // A client that does not even read the last word is not waited for.
            let _ =
                timeout(linger::SILENCE + linger::MOST, poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await;
        }
    }

    /// To be called with every piece that is read and scanned.
    fn has_read(&self, scanner: &Scanner) {
        self.in_body.store(scanner.in_body(), Relaxed);
        if self.activity.is_reading_on() {
            // No answer will carry the acknowledgement, and a client with Nagle's algorithm, such as nginx, holds its
            // next request back until it has one.
            fd::acknowledge(self.socket);
        }
    }

    /// Since when it has been idle, if it may be asked to leave.
    pub(super) fn may_leave_since(&self) -> Option<u64> {
        self.activity.may_leave_since()
    }

    /// Ends it at the next turn of its task, so that another takes its place, unless it was active after `idle_since`.
    pub(super) fn ask_to_leave(&self, idle_since: u64) {
        self.activity.ask_to_leave(idle_since);
    }

    /// Gives a request that was refused before there was an exchange its line in the access log. `head` is what arrived.
    fn log_refused(&self, refusal: Refusal, head: &[u8]) {
        if let Some(access) = &self.shared.access {
            let bytes = if refusal::is_to_head(head) { 0 } else { refusal::body(refusal).len() as u64 };
            access.refused(self.client.address(), head, refusal::status(refusal), bytes, self.activity.head_took());
        }
    }
}

/// Serves one connection to its end; it counts as open as long as `open` lives. `waited`: its client may have left
/// before the connection was accepted, and the event loop may not know.
pub(super) async fn serve<T, S, B>(stream: T, peer: Peer, waited: bool, open: Open, shared: &'static Shared, app: S)
where
    T: Stream + AsRawFd + Send + 'static,
    S: Serve<B>,
    B: Answer,
{
    let connection = Arc::new(Connection {
        shared,
        peer,
        client: Client::of_peer(peer.remote),
        certificate: None,
        agreed_on_http1: false,
        activity: Activity::new(),
        socket: stream.as_raw_fd(),
        seat: Seat::default(),
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
        // In a box, or the connections that do without would have to be as large as those with it.
        (_, tls) => Box::pin(introduced(stream, tls.as_ref(), connection, &mut timer, open, app)).await,
    }
}

/// The PROXY header and the TLS handshake, then HTTP.
async fn introduced<T, S, B>(
    stream: T,
    tls: Option<&Arc<ServerConfig>>,
    mut connection: Arc<Connection>,
    timer: &mut Timer<'_>,
    open: Open,
    app: S,
) where
    T: Stream + Send + 'static,
    S: Serve<B>,
    B: Answer,
{
    let stream = match introduce(stream, alone(&mut connection), timer).await {
        Introduction::Done(stream) => stream,
        Introduction::Refused(stream, refusal) => return dismiss(stream, refusal, connection, open).await,
        Introduction::Over => return,
    };
    let Some(tls) = tls else { return Box::pin(http(stream, connection, timer, open, app)).await };
    match shake_hands(stream, tls, alone(&mut connection), timer).await {
        Handshake::Done(stream) => Box::pin(http(stream, connection, timer, open, app)).await,
        Handshake::Refused(stream, refusal) => dismiss(stream, refusal, connection, open).await,
        Handshake::Over => {}
    }
}

/// Before HTTP begins nobody else knows of the connection.
fn alone(connection: &mut Arc<Connection>) -> &mut Connection {
    Arc::get_mut(connection).expect("it is not shared yet")
}

/// Says why, instead of HTTP.
async fn dismiss<T>(stream: T, refusal: Refusal, connection: Arc<Connection>, open: Open)
where
    T: Stream,
{
    connection.refuse(refusal);
    let mut wire = Wire::http1(stream, Vec::new(), connection, open);
    // Nobody is left to be told of an error.
    let _ = poll_fn(|cx| Pin::new(&mut wire).poll_shutdown(cx)).await;
}

/// Speaks HTTP on a stream to its end.
async fn http<T, S, B>(mut stream: T, connection: Arc<Connection>, timer: &mut Timer<'_>, open: Open, app: S)
where
    T: Stream + Send + 'static,
    S: Serve<B>,
    B: Answer,
{
    let shared = connection.shared;
    let called = pin!(shared.called());
    let mut call = Call::new(called);
    let greeting = if shared.http.http2 && !connection.agreed_on_http1 {
        greeting::read(&mut stream, &connection, timer, &mut call).await
    } else {
        Greeting::default()
    };
    let service = {
        let connection = Arc::clone(&connection);
        service_fn(move |request| exchange::answer(request, app.clone(), Arc::clone(&connection)))
    };
    if greeting.is_http2 {
        // In boxes: without them, each connection of HTTP/1 would be as large as one of HTTP/2.
        let mut keeper = Box::new(Http2::new(&connection));
        let wire = http2::Wire::new(stream, greeting.bytes, keeper.link(), Arc::clone(&connection), open);
        let mut serving = Box::pin(http2(shared).serve_connection(wire, service));
        live(serving.as_mut(), &connection, timer, call, &mut *keeper).await;
    } else {
        let wire = Wire::http1(stream, greeting.bytes, Arc::clone(&connection), open);
        let serving = pin!(http1(shared).serve_connection(wire, service).with_upgrades());
        live(serving, &connection, timer, call, &mut Http1::default()).await;
        connection.close_if_declined().await;
    }
}

fn http1(shared: &Shared) -> conn::http1::Builder {
    let mut builder = conn::http1::Builder::new();
    // Who sends a FIN after the request still gets the answer.
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
    builder
}

/// Either of hyper's connections.
trait Speaks: Future<Output = hyper::Result<()>> {
    /// Ends once what was begun is answered.
    fn leave(self: Pin<&mut Self>);
}

impl<T, S, B> Speaks for conn::http1::UpgradeableConnection<Wire<T>, S>
where
    Self: Future<Output = hyper::Result<()>>,
    T: Stream + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
{
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S, B, E> Speaks for conn::http2::Connection<http2::Wire<T>, S, E>
where
    Self: Future<Output = hyper::Result<()>>,
    T: Stream + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// What a connection needs besides polling hyper: its time limits, and its part in a drain.
trait Keeper {
    /// The next thing to do. With `Wait` there is none now, and the task is woken when there is.
    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> Step;
}

enum Step {
    Wait,
    /// The stream under hyper has something to do.
    Poll,
    /// hyper is to end.
    Leave,
    End(Ended),
}

/// Of HTTP/1, which learns of a drain with its next answer.
#[derive(Default)]
struct Http1 {
    leaving: bool,
}

impl Keeper for Http1 {
    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> Step {
        let Connection { shared, activity, .. } = connection;
        let told = shared.ends() && activity.unoccupied();
        match timer.overdue(connection, cx) {
            Some(Overdue::Blocked) => return Step::End(Ended::Blocked),
            Some(Overdue::Head) => connection.refuse(refusal::HEAD_LATE),
            Some(Overdue::Silent | Overdue::Idle) => {}
            None if (told || activity.is_asked_to_leave()) && !self.leaving => {}
            None => return Step::Wait,
        }
        self.leaving = true;
        activity.leaves();
        Step::Leave
    }
}

/// Polls hyper until the connection is over, and tells it when to leave.
async fn live<C: Speaks>(
    mut serving: Pin<&mut C>,
    connection: &Arc<Connection>,
    timer: &mut Timer<'_>,
    mut call: Call<'_>,
    keeper: &mut impl Keeper,
) {
    let mut member = None;
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(Ended::Error));
            }
            call.listen(connection.shared, cx);
            member.get_or_insert_with(|| connection.shared.crowd.enter(connection, cx.waker()));
            match keeper.step(connection, timer, cx) {
                Step::Wait => return Poll::Pending,
                Step::Poll => {}
                Step::Leave => serving.as_mut().leave(),
                Step::End(ended) => return Poll::Ready(Err(ended)),
            }
        }
    })
    .await;
    match served {
        Ok(()) => {}
        Err(Ended::Blocked) => connection.stalled("its connection was dropped"),
        Err(Ended::Error(error)) => say_error(&error),
        Err(Ended::Deaf) => say_error(&io::Error::new(io::ErrorKind::TimedOut, "the client does not answer a PING")),
    }
}

fn say_error(error: &(dyn Error + 'static)) {
    tracing::debug!(event = "connection_error", error, "a connection ended with an error");
}

enum Ended {
    /// The client did not read.
    Blocked,
    /// The client is gone.
    Deaf,
    Error(hyper::Error),
}

/// The one timer of a connection. Only an earlier deadline moves it: a later one is found when it fires.
struct Timer<'a> {
    sleep: Pin<&'a mut Sleep>,
    /// When it fires, on the coarse clock.
    at: u64,
    last_call: bool,
}

impl<'a> Timer<'a> {
    fn new(sleep: Pin<&'a mut Sleep>) -> Self {
        Self { sleep, at: u64::MAX, last_call: false }
    }

    /// What has lasted too long, if anything; otherwise the task is woken when something has.
    fn overdue(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Option<Overdue> {
        self.due(connection.activity.deadline(connection.shared), cx)
    }

    /// What is to be done now, if its time has come; otherwise the task is woken when it has.
    fn due<D>(&mut self, next: Option<(u64, D)>, cx: &mut Context<'_>) -> Option<D> {
        let (deadline, what) = next?;
        if deadline >= self.at && !self.sleep.is_elapsed() {
            return None;
        }
        let now = clock::coarse();
        let due = deadline <= now;
        if std::mem::replace(&mut self.last_call, due) && due {
            return Some(what);
        }
        self.at = if due { now + LAST_CALL_MS } else { deadline };
        self.sleep.as_mut().reset(Instant::now() + Duration::from_millis(self.at - now));
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        None
    }
}
