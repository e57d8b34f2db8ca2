//! The smallest service there is, twice: under the supervisor, or, with `BARE` set, on hyper and a loop that accepts.
//! What the second takes of CPU and memory is hyper's; what the first takes more is oxicorn's.
//!
//! Owns: the service, and the loop a reader would write after hyper's own example. Refuses: to be measured by itself.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    process::ExitCode,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower_service::Service;

/// As in the binary: what is measured is not glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct Plain;

impl<B> Service<Request<B>> for Plain {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello, world\n")));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        ready(Ok(response))
    }
}

fn main() -> ExitCode {
    if std::env::var_os("BARE").is_none() {
        return oxicorn::main(async |_worker| Ok::<_, Infallible>(Plain));
    }
    match bare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plain: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says its address on the first line of its output, and serves until it is killed.
#[tokio::main(flavor = "current_thread")]
async fn bare() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(|request| Plain.call(request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
