//! Passes a request's body to the app.
//!
//! Owns: `http.body_timeout`, `http.limit_request_body` for bodies whose bytes the scanner does not count, and the
//! faults of a body that ends too early or is not valid. Refuses: framing (`scanner`, hyper), and the part of a body
//! that the app does not read (`unread`).

use std::{
    error::Error,
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header::EXPECT};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Connection, refusal_response,
    unread::{BodyOutcome, Unread},
};
use crate::worker::{scanner::Refusal, serve::BoxError};

/// A request's body as it arrives from the connection.
///
/// The body ends with an error in four cases: if it is longer than `http.limit_request_body`, if the client is silent
/// for `http.body_timeout` while the app waits for more, if the framing of the body is wrong, or if the client goes
/// away. In the first three cases the worker sends 413, 408 or 400 in place of the app's response, unless the head of
/// the app's response is already sent.
///
/// An app need not read the body. If the app drops it before its end, the worker reads and discards the rest of the
/// body if the rest is small. If the rest is large, the response says `Connection: close`.
///
/// For unit tests of a service, the feature `test-util` adds implementations of `From`, which make a body from bytes or
/// text.
#[derive(Debug)]
pub struct Body(Content);

#[derive(Debug)]
enum Content {
    /// The request has no body, or the body was taken.
    None,
    Received(ReceivedBody),
    #[cfg(feature = "test-util")]
    Given(Bytes),
}

#[derive(Debug)]
struct ReceivedBody {
    incoming: Incoming,
    connection: Arc<Connection>,
    outcome: Arc<BodyOutcome>,
    /// True if the client waits for `100 Continue` and nothing of the body has come. [`Unread`] needs to know this if
    /// the app does not read the body.
    awaited: bool,
    left: u64,
    /// The timer of `http.body_timeout`. It is made when the app first waits for the body. If it fires before the
    /// present wait has lasted long enough, it is set again.
    timer: Option<Pin<Box<Sleep>>>,
    /// The moment since which the app has been waiting for more of the body; `None` while it does not wait.
    waits_since: Option<Instant>,
}

/// Why the body of a request ended before all of it had come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The body is longer than `http.limit_request_body`.
    #[error("the body is longer than http.limit_request_body allows, {limit} bytes")]
    TooLarge {
        /// The value of `http.limit_request_body`, in bytes.
        limit: u64,
    },
    /// The client was silent for `http.body_timeout` while the app waited.
    #[error("the body stopped for longer than http.body_timeout, {after:?}")]
    TimedOut {
        /// The value of `http.body_timeout`.
        after: Duration,
    },
    /// The client's bytes are not a valid body.
    #[error("the body cannot be understood: {reason}")]
    Malformed {
        /// What is wrong with the body, in the words of the log.
        reason: &'static str,
    },
    /// The client went away in the middle of the body, or reset the stream of the request.
    #[error("the body was cut off")]
    Cut(#[source] BoxError),
}

impl Body {
    /// Returns the request with the body that the app gets, and the outcome of this body. The outcome is `None` if the
    /// request has no body.
    pub(super) fn of(
        request: Request<Incoming>,
        connection: &Arc<Connection>,
    ) -> (Request<Self>, Option<Arc<BodyOutcome>>) {
        let (parts, incoming) = request.into_parts();
        if incoming.is_end_stream() {
            return (Request::from_parts(parts, Self(Content::None)), None);
        }
        let outcome = Arc::new(BodyOutcome::default());
        let limit = connection.shared.http.limit_request_body;
        let received = ReceivedBody {
            incoming,
            connection: Arc::clone(connection),
            outcome: Arc::clone(&outcome),
            awaited: parts.headers.contains_key(EXPECT),
            left: if limit == 0 { u64::MAX } else { limit },
            timer: None,
            waits_since: None,
        };
        (Request::from_parts(parts, Self(Content::Received(received))), Some(outcome))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Content::Received(ReceivedBody { incoming, connection, outcome, awaited, .. }) =
            mem::replace(&mut self.0, Content::None)
            && !incoming.is_end_stream()
        {
            outcome.leave(Unread { incoming, awaited }, &connection);
        }
    }
}

impl ReceivedBody {
    fn fail(&self, refusal: Refusal) -> BodyError {
        let http = &self.connection.shared.http;
        if self.outcome.set_fault(refusal) {
            self.connection.refused(refusal);
        }
        match refusal.status {
            408 => BodyError::TimedOut { after: http.body_timeout },
            413 => BodyError::TooLarge { limit: http.limit_request_body },
            _ => BodyError::Malformed { reason: refusal.reason },
        }
    }

    /// Returns the error of a body that hyper could not read. The stream under hyper may have refused the bytes before
    /// hyper saw them. In this case the refusal is inside hyper's error, and becomes the fault of the body.
    fn cut(&self, error: hyper::Error) -> BodyError {
        let mut cause = error.source();
        while let Some(inner) = cause {
            let refusal =
                inner.downcast_ref::<io::Error>().and_then(|error| error.get_ref()?.downcast_ref::<Refusal>());
            if let Some(refusal) = refusal {
                return self.fail(*refusal);
            }
            cause = inner.source();
        }
        BodyError::Cut(error.into())
    }

    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => Err(self.fail(Refusal::BODY_LONG)),
        }
    }

    /// Becomes ready when the client has been silent for `http.body_timeout`. If that setting is 0, it stays pending.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.connection.shared.http.body_timeout;
        if limit.is_zero() {
            return Poll::Pending;
        }
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if since.elapsed() >= limit {
                return Poll::Ready(());
            }
            timer.as_mut().reset(since + limit);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let received = match &mut self.0 {
            Content::None => return Poll::Ready(None),
            Content::Received(received) => received,
            #[cfg(feature = "test-util")]
            Content::Given(bytes) if bytes.is_empty() => return Poll::Ready(None),
            #[cfg(feature = "test-util")]
            Content::Given(bytes) => return Poll::Ready(Some(Ok(Frame::data(mem::take(bytes))))),
        };
        let polled = Pin::new(&mut received.incoming).poll_frame(cx);
        if let Some(refusal) = received.outcome.fault() {
            return Poll::Ready(Some(Err(received.fail(refusal))));
        }
        let Poll::Ready(frame) = polled else {
            ready!(received.poll_silence(cx));
            return Poll::Ready(Some(Err(received.fail(refusal_response::BODY_LATE))));
        };
        received.awaited = false;
        received.waits_since = None;
        Poll::Ready(
            frame.map(|frame| frame.map_err(|error| received.cut(error)).and_then(|frame| received.count(frame))),
        )
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::None => true,
            Content::Received(received) => received.incoming.is_end_stream(),
            #[cfg(feature = "test-util")]
            Content::Given(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::None => SizeHint::with_exact(0),
            Content::Received(received) => received.incoming.size_hint(),
            #[cfg(feature = "test-util")]
            Content::Given(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

#[cfg(feature = "test-util")]
impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Given(bytes))
    }
}

#[cfg(feature = "test-util")]
impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

#[cfg(feature = "test-util")]
impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

#[cfg(feature = "test-util")]
impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}
