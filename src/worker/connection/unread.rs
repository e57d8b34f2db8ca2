//! Handles the part of a request's body that the app does not read.
//!
//! Owns: the decision to read and discard the unread part so that another request can follow, the limits for this
//! reading, and the faults of the body that the response must report. Refuses: the body as the app reads it (`body`),
//! and the response (`exchange`).
//!
//! hyper stops reading as soon as a body is dropped before its end. If the head of the response was already sent by
//! then, without `Connection: close`, the client's next request is lost. So a body that the app drops is kept here
//! until the response is made.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use super::Connection;
use crate::worker::scanner::Refusal;

/// The most bytes of an unread body that are read and discarded. If more bytes are left, it is cheaper to close the
/// connection and let the client make a new one. Go's net/http has the same limit.
const CHEAP: u64 = 256 * 1024;
/// The most time for reading and discarding the rest of a body.
const MOST: Duration = Duration::from_secs(30);

/// What the body of a request means for its response and for the connection.
#[derive(Debug, Default)]
pub(super) struct BodyOutcome {
    /// The reason why the body ended badly. It is not set while the body has no fault.
    fault: OnceLock<Refusal>,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
enum Rest {
    #[default]
    WithApp,
    /// The app has dropped the body before its end.
    Left(Unread),
    /// The response is made. `lasts` is true if the connection continues, because the response did not say `Connection:
    /// close`.
    Answered { lasts: bool },
}

impl BodyOutcome {
    pub(super) fn fault(&self) -> Option<Refusal> {
        self.fault.get().copied()
    }

    /// Stores the fault of the body. If the body has a fault already, that fault stays, and this returns false.
    pub(super) fn set_fault(&self, refusal: Refusal) -> bool {
        self.fault.set(refusal).is_ok()
    }

    /// Notes that the app has dropped the body before its end. `unread` is the rest of the body.
    pub(super) fn leave(&self, unread: Unread, connection: &Arc<Connection>) {
        let mut rest = self.rest();
        match *rest {
            Rest::WithApp => *rest = Rest::Left(unread),
            Rest::Answered { lasts: true } if self.fault().is_none() => _ = unread.read_on(connection),
            Rest::Answered { .. } | Rest::Left(_) => {}
        }
    }

    /// Notes that the response is made. `lasts` is true if the response allows another request on the connection.
    /// Returns true if another request can really follow. After a fault of the body, or if the rest of the body is not
    /// read, no request can follow.
    pub(super) fn answer(&self, lasts: bool, connection: &Arc<Connection>) -> bool {
        let lasts = lasts && self.fault().is_none();
        match mem::replace(&mut *self.rest(), Rest::Answered { lasts }) {
            Rest::Left(unread) => lasts && unread.read_on(connection),
            Rest::WithApp | Rest::Answered { .. } => lasts,
        }
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Unread {
    pub(super) incoming: Incoming,
    /// True if the client has asked for `100 Continue`, and nothing of the body has come.
    pub(super) awaited: bool,
}

impl Unread {
    /// Reads and discards the rest of the body if only a few bytes are missing. Returns true if another request can
    /// follow.
    fn read_on(mut self, connection: &Arc<Connection>) -> bool {
        // A client that got no `100 Continue` may leave out the body. So the next bytes may be the body or a new
        // request, and the worker cannot know which.
        if self.awaited {
            return false;
        }
        while !self.incoming.is_end_stream() {
            match Pin::new(&mut self.incoming).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_))) => return false,
                Poll::Ready(None) => return true,
                Poll::Pending => return self.await_rest(connection),
            }
        }
        true
    }

    fn await_rest(mut self, connection: &Arc<Connection>) -> bool {
        let has_come = !connection.in_body.load(Relaxed);
        let is_little = self.incoming.size_hint().exact().is_some_and(|left| left <= CHEAP);
        let runtime = match Handle::try_current() {
            Ok(runtime) if has_come || is_little => runtime,
            _ => return false,
        };
        let connection = Arc::clone(connection);
        let silence = Some(connection.shared.http.body_timeout).filter(|limit| !limit.is_zero()).unwrap_or(MOST);
        connection.activity.rest_begins();
        runtime.spawn(async move {
            let all = async { while let Ok(Some(Ok(_))) = timeout(silence, self.incoming.frame()).await {} };
            let _ = timeout(MOST, all).await;
            connection.activity.rest_ends();
        });
        true
    }
}
