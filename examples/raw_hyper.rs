//! A service without a framework. It implements tower's `Service`, which answers a request with a response. oxicorn
//! serves every such service that can be cloned.
//!
//! Run `cargo run --example raw_hyper`, then `curl --data hello http://127.0.0.1:8000/`.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    process::ExitCode,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower_service::Service;

fn main() -> ExitCode {
    oxicorn::main(async |_worker| Ok::<_, Infallible>(Echo))
}

/// A service that answers a POST with the body of the request.
#[derive(Clone)]
struct Echo;

impl Service<Request<oxicorn::Body>> for Echo {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<oxicorn::Body>) -> Self::Future {
        Box::pin(async move {
            if request.method() != Method::POST {
                return Ok(answer(StatusCode::OK, "send me a POST\n".into()));
            }
            Ok(match request.into_body().collect().await {
                Ok(body) => answer(StatusCode::OK, body.to_bytes()),
                Err(_) => answer(StatusCode::BAD_REQUEST, "the body broke off\n".into()),
            })
        })
    }
}

fn answer(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}
