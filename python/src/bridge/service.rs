//! The app as a service of the library.
//!
//! Owns: the future of one response, and the body of one response. Refuses: what happens between both and the app
//! (`exchange`).

use std::{
    fs::File,
    future::Future,
    io::{self, Read},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use oxicorn::Body;
use tower_service::Service;

use super::{
    app::{App, log_file_error},
    exchange::{Exchange, First, Head, Unfinished},
    websocket::{WebSocket, WebSocketCall, asks_for_web_socket},
};

/// The service of a worker: it passes each request to the app.
#[derive(Clone)]
pub(crate) struct AsgiService(pub(crate) Arc<App>);

impl Service<Request<Body>> for AsgiService {
    type Response = Response<ResponseBody>;
    type Error = Unfinished;
    type Future = AnyCall;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Unfinished>> {
        Poll::Ready(Ok(()))
    }

    /// A request without a body joins the next batch here and now. A body is looked at in the future's first poll,
    /// because by then hyper has put what it has already read of the body where it can be taken. So `receive()` does not
    /// wait for a body that came with the head.
    fn call(&mut self, request: Request<Body>) -> AnyCall {
        let (parts, body) = request.into_parts();
        if asks_for_web_socket(&parts) {
            return AnyCall::WebSocket(WebSocket::begin(Arc::clone(&self.0), parts));
        }
        let exchange = Exchange::new(Arc::clone(&self.0), parts);
        if body.is_end_stream() {
            exchange.enqueue();
            return AnyCall::Http(Call { exchange, body: None, is_over: false });
        }
        AnyCall::Http(Call { exchange, body: Some(body), is_over: false })
    }
}

/// The future of the response to one request.
pub(crate) enum AnyCall {
    Http(Call),
    WebSocket(WebSocketCall),
}

impl Future for AnyCall {
    type Output = Result<Response<ResponseBody>, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Http(call) => Pin::new(call).poll(cx),
            Self::WebSocket(call) => Pin::new(call).poll(cx),
        }
    }
}

/// The future of one response of HTTP.
pub(crate) struct Call {
    exchange: Arc<Exchange>,
    /// The body of the request, before the first poll.
    body: Option<Body>,
    is_over: bool,
}

impl Future for Call {
    type Output = Result<Response<ResponseBody>, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let call = self.get_mut();
        if let Some(body) = call.body.take() {
            call.exchange.take_body(body, cx);
            call.exchange.enqueue();
        }
        call.exchange.poll_response(cx).map_ok(|(Head { status, headers, .. }, first)| {
            call.is_over = true;
            let mut response = Response::new(match first {
                First::Nothing => ResponseBody::Whole(None),
                First::Whole(bytes) => ResponseBody::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())),
                First::File(file, left) => ResponseBody::File { file, left, exchange: Arc::clone(&call.exchange) },
                First::Stream => ResponseBody::Stream(Arc::clone(&call.exchange)),
            });
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            response
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_over {
            self.exchange.transport_ends();
        }
    }
}

/// The body of a response.
pub(crate) enum ResponseBody {
    /// The app has sent it in one message, so its length is known.
    Whole(Option<Bytes>),
    /// The app has named a file, of which this many bytes are left to send.
    File {
        file: File,
        left: u64,
        exchange: Arc<Exchange>,
    },
    Stream(Arc<Exchange>),
}

/// The most bytes of a file that are read at once. The file is read on the thread of the loop: what clients ask for
/// again and again is in the memory of the kernel, and another thread would cost more than the read.
const FILE_PART: u64 = 64 * 1024;

/// Reads the next part of a file. A file that has become shorter is an error.
pub(crate) fn read_part(file: &mut File, left: &mut u64) -> io::Result<Bytes> {
    let size = FILE_PART.min(*left);
    let mut part = Vec::with_capacity(size as usize);
    if file.take(size).read_to_end(&mut part)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    *left -= part.len() as u64;
    Ok(part.into())
}

impl http_body::Body for ResponseBody {
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
            Self::File { left, .. } => SizeHint::with_exact(*left),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Self::Stream(exchange) = self {
            exchange.transport_ends();
        }
    }
}
