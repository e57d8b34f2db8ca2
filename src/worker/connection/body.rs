//! A request's body on its way to the app.
//!
//! Owns: `http.body_timeout`, `http.limit_request_body` where the scanner does not count, and what a body that ended
//! badly means for the answer. Refuses: framing (`scanner`, hyper).

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::{Connection, refusal};
use crate::worker::scanner::Refusal;

/// A request's body as it arrives from the connection.
///
/// It ends with an error when it is longer than `http.limit_request_body`, when the client is silent for
/// `http.body_timeout` while the app waits for more, when its framing is wrong, and when the client goes away.
/// Whatever the app answers to one of the first three is replaced by 413, 408 or 400, unless its head is already sent.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    /// `None`: there is no body.
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    connection: Arc<Connection>,
    fault: Arc<Fault>,
    left: u64,
    /// Made at the first wait, and not touched again before it fires.
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the app waits.
    waits_since: Option<Instant>,
}

/// Why a body ended badly, for the exchange to answer.
#[derive(Debug, Default)]
pub(super) struct Fault(OnceLock<Refusal>);

impl Fault {
    pub(super) fn get(&self) -> Option<Refusal> {
        self.0.get().copied()
    }
}

/// Why the body of a request ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is longer than `http.limit_request_body`: so many bytes.
    #[error("the body is longer than http.limit_request_body allows, {limit} bytes")]
    TooLarge { limit: u64 },
    /// The client was silent for `http.body_timeout` while the app waited.
    #[error("the body stopped for longer than http.body_timeout, {after:?}")]
    TimedOut { after: Duration },
    /// What the client sent is no body.
    #[error("the body cannot be understood: {reason}")]
    Malformed { reason: &'static str },
    /// The client went away, or reset the stream.
    #[error("the body was cut off")]
    Cut(#[source] hyper::Error),
}

impl Body {
    pub(super) fn new(incoming: Incoming, connection: &Arc<Connection>) -> (Self, Option<Arc<Fault>>) {
        if incoming.is_end_stream() {
            return (Self { incoming, watch: None }, None);
        }
        let fault = Arc::new(Fault::default());
        let limit = connection.shared.http.limit_request_body;
        let watch = Watch {
            connection: Arc::clone(connection),
            fault: Arc::clone(&fault),
            left: if limit == 0 { u64::MAX } else { limit },
            timer: None,
            waits_since: None,
        };
        (Self { incoming, watch: Some(watch) }, Some(fault))
    }
}

impl Watch {
    fn fail(&self, refusal: Refusal) -> BodyError {
        let http = &self.connection.shared.http;
        if self.fault.0.set(refusal).is_ok() {
            self.connection.refused(refusal);
        }
        match refusal.status {
            408 => BodyError::TimedOut { after: http.body_timeout },
            413 => BodyError::TooLarge { limit: http.limit_request_body },
            _ => BodyError::Malformed { reason: refusal.reason },
        }
    }

    /// The bytes may have been refused on the way: then hyper passes on what the wire said.
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
        BodyError::Cut(error)
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

    /// Ready when the client has been silent for too long.
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
        let this = &mut *self;
        let polled = Pin::new(&mut this.incoming).poll_frame(cx);
        let Some(watch) = &mut this.watch else { return polled.map_err(BodyError::Cut) };
        if let Some(refusal) = watch.fault.get() {
            return Poll::Ready(Some(Err(watch.fail(refusal))));
        }
        let Poll::Ready(frame) = polled else {
            ready!(watch.poll_silence(cx));
            return Poll::Ready(Some(Err(watch.fail(refusal::BODY_LATE))));
        };
        watch.waits_since = None;
        Poll::Ready(frame.map(|frame| frame.map_err(|error| watch.cut(error)).and_then(|frame| watch.count(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
