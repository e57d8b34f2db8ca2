//! The state that the parts of one connection share, and the connection's one timer.
//!
//! Owns: the fields, the counting and logging of refusals and of clients that do not read, and the moment at which the
//! timer fires. Refuses: the order of a connection's life (`connection`), and the length of each deadline (`activity`).

use std::{
    future::{Future, poll_fn},
    os::fd::RawFd,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Context,
    time::Duration,
};

use hyper::{rt::Write, upgrade::OnUpgrade};
use tokio::time::{Instant, Sleep, timeout};

use super::{
    activity::{Activity, Overdue},
    linger, refusal_response,
};
use crate::{
    ClientCertificate,
    client_gone::RequestEnds,
    client_info::ClientInfo,
    sys::{clock, fd},
    worker::{
        connection_list::{ListPosition, Listed},
        scanner::{Refusal, Scanner},
        serve::Peer,
        shared::Shared,
    },
};

/// The time between the decision that a connection may close and the close, in milliseconds. In this time the event
/// loop turns once, so that a request that had already arrived is served.
const LAST_CALL_MS: u64 = 2;

/// The state of one connection, which its parts share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: &'static Shared,
    pub(super) peer: Peer,
    /// The client, as far as the connection itself and its PROXY header name it.
    pub(super) client: ClientInfo,
    /// The client's certificate, if `tls.client_ca` asks for one.
    pub(super) certificate: Option<ClientCertificate>,
    /// True if ALPN has chosen HTTP/1.1. HTTP/2 by prior knowledge is refused then.
    pub(super) agreed_on_http1: bool,
    pub(super) activity: Activity,
    /// The requests of the connection that the app has, and the futures that wait for the end of these requests.
    pub(super) request_ends: Arc<RequestEnds>,
    /// The stream's descriptor, for questions to the kernel. It may be used only while hyper holds the stream: while a
    /// request is handed over, while the list knows the connection, and to watch for the client's end. After the stream
    /// is closed, the kernel may give the number to another file.
    pub(super) socket: RawFd,
    pub(super) position: ListPosition,
    /// True if the client has ended its side, or if the event loop could not see whether it has.
    pub(super) ending: AtomicBool,
    /// True if the client is in the middle of a body, as far as its bytes have been read. Used for HTTP/1 only.
    pub(super) in_body: AtomicBool,
    /// Set when no more requests of the connection are answered. With HTTP/1 the last response reports this reason.
    pub(super) refusal: OnceLock<Refusal>,
    /// True once the connection was upgraded to a protocol of the app.
    pub(super) upgraded: AtomicBool,
    /// The last upgrade that the client asked for and did not get. hyper keeps it pending, so it is closed at the
    /// connection's end.
    pub(super) declined: Mutex<Option<OnUpgrade>>,
}

impl Connection {
    /// Counts a refusal, and logs it.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.shared.refused(refusal, self.peer);
    }

    /// Refuses everything that comes next on the connection. The stream under hyper sends the reason before it closes.
    pub(super) fn refuse(&self, refusal: Refusal) {
        if self.refusal.set(refusal).is_ok() {
            self.refused(refusal);
        }
    }

    /// Logs that the client does not read. `end` says what was done about it.
    pub(super) fn stalled(&self, end: &str) {
        if let Some(suppressed) = self.shared.stalls.pass() {
            tracing::info!(
                event = "client_stalled",
                client = %self.peer,
                suppressed,
                "a client did not read its response for http.write_timeout; {end}"
            );
        }
    }

    /// Sends the last response and does the lingering close, if an upgrade was declined. Otherwise hyper does this. But
    /// once a client has asked for an upgrade, hyper keeps it pending until the connection's end, and then grants it
    /// instead of closing.
    pub(super) async fn close_if_declined(&self) {
        let declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(declined) = declined
            && let Ok(mut stream) = declined.await
        {
            // If the time runs out, the client does not even read the last response, and is not waited for.
            let _ =
                timeout(linger::SILENCE + linger::MOST, poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await;
        }
    }

    /// Notes how far the scanner has read. It must be called with every piece that is read and scanned.
    pub(super) fn has_read(&self, scanner: &Scanner) {
        self.in_body.store(scanner.in_body(), Relaxed);
        if self.activity.is_reading_on() {
            // The kernel acknowledges these bytes now, because no response will carry the acknowledgement. A client
            // with Nagle's algorithm, such as nginx, holds its next request back until it has one.
            fd::acknowledge(self.socket);
        }
    }

    /// Writes the access log's line of a request that was refused before there was an exchange. `head` is what has
    /// arrived of the request.
    pub(super) fn log_refused(&self, refusal: Refusal, head: &[u8]) {
        if let Some(access) = &self.shared.access {
            let bytes =
                if refusal_response::is_to_head(head) { 0 } else { refusal_response::body(refusal).len() as u64 };
            access.refused(
                self.client.address(),
                head,
                refusal_response::status(refusal),
                bytes,
                self.activity.head_took(),
            );
        }
    }
}

impl Listed for Connection {
    fn position(&self) -> &ListPosition {
        &self.position
    }

    fn socket(&self) -> RawFd {
        self.socket
    }

    fn evictable_since(&self) -> Option<u64> {
        self.activity.evictable_since()
    }

    fn ask_to_leave(&self, idle_since: u64) {
        self.activity.ask_to_leave(idle_since);
    }
}

/// The one timer of a connection. An earlier deadline moves it at once. A later deadline is looked at when it fires.
pub(super) struct Timer<'a> {
    sleep: Pin<&'a mut Sleep>,
    /// When the timer fires, on the coarse clock.
    at: u64,
    last_call: bool,
}

impl<'a> Timer<'a> {
    pub(super) fn new(sleep: Pin<&'a mut Sleep>) -> Self {
        Self { sleep, at: u64::MAX, last_call: false }
    }

    /// Returns what has lasted too long, if anything has. Otherwise the task is woken when something has.
    pub(super) fn overdue(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Option<Overdue> {
        self.due(connection.activity.deadline(connection.shared), cx)
    }

    /// Returns the second value of `next` if its time has come. Otherwise the task is woken when the time has come.
    pub(super) fn due<D>(&mut self, next: Option<(u64, D)>, cx: &mut Context<'_>) -> Option<D> {
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
