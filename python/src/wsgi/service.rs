//! A WSGI app as a service of the library.
//!
//! Owns: the future of one response, with the part of the request's body that is read before a thread is taken, and the
//! body of one response. Refuses: what happens between both and the thread (`exchange`).

use std::{
    fs::File,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use oxicorn::Body;

use super::{
    app::WsgiApp,
    exchange::{WsgiExchange, WsgiFirst, WsgiHead},
};
use crate::bridge::{Unfinished, log_file_error, read_part};

/// The service of a worker: it passes each request to a thread.
#[derive(Clone)]
pub(crate) struct WsgiService(pub(crate) Arc<WsgiApp>);

impl WsgiService {
    /// A request without a body joins the queue here and now. A body is looked at in the future's first poll, because by
    /// then hyper has put what it has already read of the body where it can be taken.
    pub(crate) fn call(&self, request: Request<Body>) -> WsgiCall {
        let (parts, body) = request.into_parts();
        let exchange = WsgiExchange::new(Arc::clone(&self.0), parts);
        let waits_for = if body.is_end_stream() {
            WaitsFor::queue(&exchange)
        } else if exchange.request.headers.contains_key(header::EXPECT) || self.0.body_buffer() == 0 {
            // The body is read when the app asks for it. The client gets its `100 Continue` then.
            exchange.take_body(body);
            WaitsFor::queue(&exchange)
        } else {
            exchange.take_body(body);
            WaitsFor::Body
        };
        WsgiCall { exchange, waits_for }
    }
}

/// The future of one response.
pub(crate) struct WsgiCall {
    exchange: Arc<WsgiExchange>,
    waits_for: WaitsFor,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// The first bytes of the body.
    Body,
    Response,
    /// The queue is full.
    Refused,
    Nothing,
}

impl WaitsFor {
    fn queue(exchange: &Arc<WsgiExchange>) -> Self {
        if exchange.app.queue(exchange) { Self::Response } else { Self::Refused }
    }
}

impl Future for WsgiCall {
    type Output = Result<Response<WsgiBody>, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { exchange, waits_for } = self.get_mut();
        if *waits_for == WaitsFor::Body {
            ready!(exchange.poll_ahead(exchange.app.body_buffer(), cx));
            *waits_for = match (exchange.is_faulty(), exchange.is_cut_off()) {
                // The worker answers a body with a fault, and no thread needs to see it.
                (true, _) => WaitsFor::Response,
                (false, true) => WaitsFor::Nothing,
                (false, false) => WaitsFor::queue(exchange),
            };
            if *waits_for == WaitsFor::Nothing {
                // The client has left. An app would only fail, and count as an error of the service.
                exchange.transport_ends();
                return Poll::Ready(Ok(cut_off()));
            }
            exchange.read_on();
        }
        if *waits_for == WaitsFor::Refused {
            *waits_for = WaitsFor::Nothing;
            exchange.transport_ends();
            return Poll::Ready(Ok(overloaded()));
        }
        exchange.poll_response(cx).map_ok(|(WsgiHead { status, reason, headers, .. }, first)| {
            *waits_for = WaitsFor::Nothing;
            let mut response = Response::new(match first {
                WsgiFirst::Nothing => WsgiBody::Whole(None),
                WsgiFirst::Whole(bytes) => WsgiBody::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())),
                WsgiFirst::File(file, left) => WsgiBody::File { file, left, exchange: Arc::clone(exchange) },
                WsgiFirst::Stream => WsgiBody::Stream(Arc::clone(exchange)),
            });
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            if let Some(reason) = reason {
                response.extensions_mut().insert(reason);
            }
            response
        })
    }
}

impl Drop for WsgiCall {
    fn drop(&mut self) {
        if self.waits_for != WaitsFor::Nothing {
            self.exchange.transport_ends();
        }
    }
}

/// Returns the response to a request whose client has left in its body. Nobody gets it, but the counters and the access
/// log have its status.
fn cut_off() -> Response<WsgiBody> {
    let mut response = Response::new(WsgiBody::Whole(None));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Returns the response to a request for which the queue has no place.
fn overloaded() -> Response<WsgiBody> {
    let mut response = Response::new(WsgiBody::Whole(Some(Bytes::from_static(b"Service Unavailable"))));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The body of a response.
pub(crate) enum WsgiBody {
    /// The app has given it at once, so its length is known.
    Whole(Option<Bytes>),
    /// The app has given a file, of which this many bytes are left to send.
    File {
        file: File,
        left: u64,
        exchange: Arc<WsgiExchange>,
    },
    Stream(Arc<WsgiExchange>),
}

impl http_body::Body for WsgiBody {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Unfinished>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::File { left: 0, exchange, .. } => exchange.poll_part(cx),
            Self::File { file, left, exchange } => Poll::Ready(Some(match read_part(file, left) {
                Ok(part) => Ok(Frame::data(part)),
                Err(error) => {
                    log_file_error(&exchange.request, &error);
                    Err(Unfinished)
                }
            })),
            Self::Stream(exchange) => exchange.poll_part(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::File { left, exchange, .. } => *left == 0 && exchange.is_drained(),
            Self::Stream(exchange) => exchange.is_drained(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            // The announced length, which hyper compares, is that of the whole file.
            Self::File { exchange, .. } if exchange.is_short() => SizeHint::default(),
            Self::File { left, .. } => SizeHint::with_exact(*left),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl Drop for WsgiBody {
    fn drop(&mut self) {
        if let Self::Stream(exchange) = self {
            exchange.transport_ends();
        }
    }
}
