//! The entry of one request in the access log, from the request's head to the last byte of its response.
//!
//! Owns: the write of the line when the entry is dropped, however the request ended. Refuses: the format of the line
//! (`format`).

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::response::Parts;
use http_body::{Body, Frame, SizeHint};

use super::{
    AccessLog,
    format::{self, AccessFacts},
};
use crate::sys::clock;

#[derive(Debug)]
pub(in crate::worker) struct AccessEntry {
    log: &'static AccessLog,
    /// When the head of the request was read, in nanoseconds of the monotonic clock.
    begun: u64,
    facts: AccessFacts,
}

impl AccessEntry {
    pub(super) fn new(log: &'static AccessLog, begun: u64, facts: AccessFacts) -> Self {
        Self { log, begun, facts }
    }

    /// Notes the status of the response, and the values of the headers that the line shows.
    pub(in crate::worker) fn answered(&mut self, answer: &Parts) {
        self.facts.status = Some(answer.status);
        self.facts.response_headers = format::keep(&self.log.response_headers, &answer.headers);
    }
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        self.facts.took_ns = clock::nanoseconds().saturating_sub(self.begun);
        self.log.write(&self.facts);
    }
}

pin_project_lite::pin_project! {
    /// A response's body that counts its bytes for the access log. When this body is dropped, its entry is dropped too,
    /// and writes the line.
    pub(in crate::worker) struct LoggedBody<B> {
        #[pin]
        body: B,
        entry: Option<Box<AccessEntry>>,
    }
}

impl<B> LoggedBody<B> {
    pub(in crate::worker) fn new(body: B, entry: Option<Box<AccessEntry>>) -> Self {
        Self { body, entry }
    }
}

impl<B: Body<Data = Bytes>> Body for LoggedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        if let Some(entry) = this.entry
            && let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            entry.facts.bytes += data.remaining() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
