//! What the parts of one connection share: its state, and its one timer.
//!
//! Owns: the fields, counting and logging refusals and clients that do not read, and when the timer fires. Refuses: the
//! order of a connection's life (`connection`), and what each deadline is (`activity`).

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

/// Between deciding that a connection may close and closing it, the event loop turns once, so that what had already
/// arrived is served.
const LAST_CALL_MS: u64 = 2;

/// What the parts of one connection know of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: &'static Shared,
    pub(super) peer: Peer,
    /// As far as the connection itself and its PROXY header say.
    pub(super) client: ClientInfo,
    /// The client's certificate, if `tls.client_ca` asks for one.
    pub(super) certificate: Option<ClientCertificate>,
    /// ALPN has chosen HTTP/1.1, so HTTP/2 by prior knowledge is refused.
    pub(super) agreed_on_http1: bool,
    pub(super) activity: Activity,
    /// Its requests that the app has, and the futures that wait for their end.
    pub(super) request_ends: Arc<RequestEnds>,
    /// The stream's descriptor, to ask the kernel about it. It is used only while hyper holds the stream: while a
    /// request is handed over, while the list knows the connection, and to watch for the client's end. After the stream
    /// is closed, the kernel may give the number to another file.
    pub(super) socket: RawFd,
    pub(super) position: ListPosition,
    /// The client has ended its side, or the event loop could not see whether it has.
    pub(super) ending: AtomicBool,
    /// The client is in the middle of a body, as far as its bytes have been read. HTTP/1 only.
    pub(super) in_body: AtomicBool,
    /// Why no more of its requests is answered; the last response of a connection of HTTP/1 says it.
    pub(super) refusal: OnceLock<Refusal>,
    /// It speaks a protocol of the app.
    pub(super) upgraded: AtomicBool,
    /// The last upgrade that a client asked for and did not get.
    pub(super) declined: Mutex<Option<OnUpgrade>>,
}

impl Connection {
    /// Counts a refusal, and logs it.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.shared.refused(refusal, self.peer);
    }

    /// Refuses what comes next. The wire sends the reason before it closes.
    pub(super) fn refuse(&self, refusal: Refusal) {
        if self.refusal.set(refusal).is_ok() {
            self.refused(refusal);
        }
    }

    /// Logs a client that does not read.
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

    /// Once a client has asked for an upgrade, hyper keeps it pending until the connection's end, and then grants it
    /// instead of closing. So the last response and the lingering close are done here.
    pub(super) async fn close_if_declined(&self) {
        let declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(declined) = declined
            && let Ok(mut stream) = declined.await
        {
            // Do not wait for a client that does not even read the last response.
            let _ =
                timeout(linger::SILENCE + linger::MOST, poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await;
        }
    }

    /// Notes what the scanner has seen. Call it with every piece that is read and scanned.
    pub(super) fn has_read(&self, scanner: &Scanner) {
        self.in_body.store(scanner.in_body(), Relaxed);
        if self.activity.is_reading_on() {
            // No response will carry the acknowledgement, and a client with Nagle's algorithm, such as nginx, holds its
            // next request back until it has one.
            fd::acknowledge(self.socket);
        }
    }

    /// Writes the access log's line of a request that was refused before there was an exchange. `head` is what arrived.
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

/// The one timer of a connection. Only an earlier deadline moves it; a later one is found when it fires.
pub(super) struct Timer<'a> {
    sleep: Pin<&'a mut Sleep>,
    /// When it fires, on the coarse clock.
    at: u64,
    last_call: bool,
}

impl<'a> Timer<'a> {
    pub(super) fn new(sleep: Pin<&'a mut Sleep>) -> Self {
        Self { sleep, at: u64::MAX, last_call: false }
    }

    /// Returns what has lasted too long, if anything. Otherwise the task is woken when something has.
    pub(super) fn overdue(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Option<Overdue> {
        self.due(connection.activity.deadline(connection.shared), cx)
    }

    /// Returns what is to be done, if its time has come. Otherwise the task is woken when it has.
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
