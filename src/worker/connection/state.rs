//! The state that the parts of one connection share, and the connection's one timer.
//!
//! Owns: the fields of this state, the counting and logging of refusals and of clients that do not read, and the moment
//! at which the timer fires. Refuses: the order of the steps of a connection (`connection`), and the length of each
//! deadline (`activity`).

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

/// When a deadline is over, the connection is closed this many milliseconds later. In between, the event loop turns
/// once, so that a request that has already arrived is still served.
const LAST_CALL_MS: u64 = 2;

/// The state of one connection, which its parts share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: &'static Shared,
    pub(super) peer: Peer,
    /// What the connection itself and its PROXY header say about the client. The headers of a request may name another
    /// client.
    pub(super) client: ClientInfo,
    /// The client's certificate, if `tls.client_ca` asks for one.
    pub(super) certificate: Option<ClientCertificate>,
    /// True if ALPN has chosen HTTP/1.1. In this case the worker does not look for HTTP/2, and refuses a client that
    /// begins it anyway.
    pub(super) agreed_on_http1: bool,
    pub(super) activity: Activity,
    /// The requests of the connection that the app has, and the futures that wait for the end of these requests.
    pub(super) request_ends: Arc<RequestEnds>,
    /// The stream's descriptor, for questions to the kernel. It may be used only while hyper holds the stream. hyper
    /// holds the stream when a request is handed to the app, while the worker's list holds this connection, and while
    /// the watch for the client's end runs. After the stream is closed, the kernel may give the number to another file.
    pub(super) socket: RawFd,
    pub(super) position: ListPosition,
    /// True if the client has ended its side, or may have done so before the event loop could see it. In both cases the
    /// kernel is asked before the app gets a request.
    pub(super) ending: AtomicBool,
    /// True if the bytes that were read so far end in the middle of a body. This is used for HTTP/1 only.
    pub(super) in_body: AtomicBool,
    /// The reason why the worker answers no more requests of the connection; it is not set while the worker answers.
    /// With HTTP/1 the last response reports the reason.
    pub(super) refusal: OnceLock<Refusal>,
    /// True once the connection was upgraded to a protocol of the app.
    pub(super) upgraded: AtomicBool,
    /// The last upgrade that the client asked for and did not get. hyper keeps this upgrade pending, and grants it at
    /// the end of the connection. The worker then gets the stream back, and closes it.
    pub(super) declined: Mutex<Option<OnUpgrade>>,
}

impl Connection {
    /// Counts a refusal, and logs it.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.shared.refused(refusal, self.peer);
    }

    /// Refuses everything that comes next on the connection. The stream under hyper sends the reason to the client
    /// before it closes the connection.
    pub(super) fn refuse(&self, refusal: Refusal) {
        if self.refusal.set(refusal).is_ok() {
            self.refused(refusal);
        }
    }

    /// Logs that the client does not read. `end` is the end of the log's sentence and says what was done.
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

    /// Sends the last response and does the lingering close, if an upgrade was declined. On other connections hyper
    /// closes the stream. But if a client has asked for an upgrade, hyper keeps the upgrade pending until the
    /// connection ends. Then hyper grants the upgrade instead of closing the stream.
    pub(super) async fn close_if_declined(&self) {
        let declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(declined) = declined
            && let Ok(mut stream) = declined.await
        {
            // If the time runs out, the client did not even read the last response, and the worker does not wait any
            // longer. So the result does not matter.
            let _ =
                timeout(linger::SILENCE + linger::MOST, poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await;
        }
    }

    /// Notes whether the scanner is inside a body now. Call it after each piece that was read and scanned.
    pub(super) fn has_read(&self, scanner: &Scanner) {
        self.in_body.store(scanner.in_body(), Relaxed);
        if self.activity.is_reading_on() {
            // Make the kernel acknowledge the bytes now, because no response will carry the acknowledgement. A client
            // with Nagle's algorithm, such as nginx, holds its next request back until its last bytes are acknowledged.
            fd::acknowledge(self.socket);
        }
    }

    /// Writes the line of the access log for a request that was refused before it became an `Exchange`. `head` holds
    /// the bytes of the request that have arrived.
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

/// The one timer of a connection. If the next deadline becomes earlier, the timer is set again at once. If the next
/// deadline becomes later, the timer still fires at the old time, and is set again then.
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

    /// Returns the activity that has lasted too long, if there is one. If not, the task is woken at the next deadline.
    pub(super) fn overdue(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Option<Overdue> {
        self.due(connection.activity.deadline(connection.shared), cx)
    }

    /// Takes the next deadline and what is due then. Returns what is due if the deadline is over. If not, the task is
    /// woken at the deadline.
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
