//! The body of a response on its way to hyper, and the guard in this body that counts the request as in flight.
//!
//! Owns: the guard that counts a request as in flight until the last byte of its response is handed to the connection,
//! and the one type of body that hyper gets. Refuses: the head of the response (`exchange`), and the line in the access
//! log (`access_log`).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Request};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::Connection;
use crate::{channel::ToMaster, scoreboard::Entry, sys::clock};

/// A guard that counts a request as in flight until the guard is dropped. It is dropped when the last byte of the
/// response is handed to the connection.
pub(super) struct InFlightGuard {
    pub(super) connection: Arc<Connection>,
    http1: bool,
    /// The moment at which the request began, in nanoseconds of the monotonic clock.
    begun: u64,
    note: Option<Entry>,
}

impl InFlightGuard {
    pub(super) fn new(
        connection: Arc<Connection>,
        begun: u64,
        request: &Request<Incoming>,
        id: &HeaderValue,
        http1: bool,
    ) -> Self {
        let shared = connection.shared;
        if http1 {
            connection.activity.request_begins();
        }
        if shared.row.request_begun() == shared.row.recycle_at() {
            shared.send(ToMaster::RecycleRequested);
        }
        connection.request_ends.begins(begun, http1);
        let note = shared.in_flight_table.begin(begun / 1_000_000, request, id);
        Self { connection, http1, begun, note }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let Connection { shared, activity, request_ends, .. } = &*self.connection;
        let now = clock::nanoseconds();
        shared.row.took(now.saturating_sub(self.begun));
        if let Some(place) = &self.note {
            shared.in_flight_table.end(place);
        }
        shared.row.request_ended();
        request_ends.ends(self.begun, self.http1);
        // With HTTP/2 the connection notes the end of a request when the last frame has passed, because h2 may hold the
        // end of a response back for long.
        if self.http1 {
            activity.request_ends(now / 1_000_000);
        }
    }
}

pin_project_lite::pin_project! {
    /// The body of a response that the app or the worker itself has made. It has a guard only if the app has got the
    /// request.
    #[project = ResponseBodyPart]
    pub(super) enum ResponseBody<B> {
        App {
            #[pin]
            body: B,
            guard: Option<InFlightGuard>,
        },
        Own {
            bytes: Option<Bytes>,
            guard: Option<InFlightGuard>,
        },
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn own(text: String) -> Self {
        Self::Own { bytes: Some(text.into()), guard: None }
    }

    pub(super) fn hold(&mut self, held: InFlightGuard) {
        match self {
            Self::App { guard, .. } | Self::Own { guard, .. } => *guard = Some(held),
        }
    }
}

impl<B: http_body::Body> http_body::Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            ResponseBodyPart::App { body, .. } => {
                // `copy_to_bytes` copies nothing if the app's data are `Bytes`, as they nearly always are.
                let whole = |frame: Frame<B::Data>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
                body.poll_frame(cx).map_ok(whole)
            }
            ResponseBodyPart::Own { bytes, .. } => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
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
