//! The app as a service of the library, with whichever of the two interfaces it has.
//!
//! Owns: the types that are one of two. Refuses: all work, which is that of the interfaces (`bridge`, `wsgi`).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use oxicorn::Body;
use tower_service::Service;

use crate::{
    bridge::{AnyCall, AsgiService, ResponseBody, Unfinished},
    wsgi::{WsgiBody, WsgiCall, WsgiService},
};

/// The service of a worker.
#[derive(Clone)]
pub(crate) enum PythonService {
    Asgi(AsgiService),
    Wsgi(WsgiService),
}

/// The future of the response to one request.
pub(crate) enum PythonCall {
    Asgi(AnyCall),
    Wsgi(WsgiCall),
}

/// The body of a response.
pub(crate) enum PythonBody {
    Asgi(ResponseBody),
    Wsgi(WsgiBody),
}

impl Service<Request<Body>> for PythonService {
    type Response = Response<PythonBody>;
    type Error = Unfinished;
    type Future = PythonCall;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Unfinished>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> PythonCall {
        match self {
            Self::Asgi(service) => PythonCall::Asgi(service.call(request)),
            Self::Wsgi(service) => PythonCall::Wsgi(service.call(request)),
        }
    }
}

impl Future for PythonCall {
    type Output = Result<Response<PythonBody>, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Asgi(call) => Pin::new(call).poll(cx).map_ok(|response| response.map(PythonBody::Asgi)),
            Self::Wsgi(call) => Pin::new(call).poll(cx).map_ok(|response| response.map(PythonBody::Wsgi)),
        }
    }
}

impl http_body::Body for PythonBody {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Unfinished>>> {
        match self.get_mut() {
            Self::Asgi(body) => Pin::new(body).poll_frame(cx),
            Self::Wsgi(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Asgi(body) => body.is_end_stream(),
            Self::Wsgi(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Asgi(body) => body.size_hint(),
            Self::Wsgi(body) => body.size_hint(),
        }
    }
}
