//! The smallest possible service, in two forms. Without `BARE`, it runs under the supervisor. With `BARE=ADDRESS`, it
//! runs on hyper with a simple accept loop, and its CPU time and memory are those of hyper. What the first form needs
//! beyond that is the cost of oxicorn.
//!
//! Owns: the service, and the accept loop that a user would write after hyper's own example. Refuses: to measure (the
//! benchmark and the tests do).
//!
//! If `BARE_HTTP2` is set, the second form speaks only HTTP/2; with `BARE_TLS=CERTFILE,KEYFILE`, the second form speaks
//! TLS. Several processes may listen on one address.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    process::ExitCode,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::future::Either;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

/// The allocator is the same as in oxicorn's binary. With glibc's allocator, a comparison would also measure the
/// difference between allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static LARGE: [u8; 1 << 20] = [b'x'; 1 << 20];
/// How long `/slow` waits before it answers.
const SLOW: Duration = Duration::from_millis(20);

#[derive(Clone)]
struct Plain;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn text(body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

impl<B> Service<Request<B>> for Plain
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    // The most frequent answer is ready at once. `Either` returns it without a boxed future, because a box would cost
    // an allocation.
    type Future = Either<Ready<Answer>, Pin<Box<dyn Future<Output = Answer> + Send>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let at_once = |body| Either::Left(ready(text(body)));
        match request.uri().path() {
            "/pid" => at_once(std::process::id().to_string().into()),
            "/10k" => at_once(Bytes::from_static(&LARGE[..10 << 10])),
            "/1m" => at_once(Bytes::from_static(&LARGE)),
            "/slow" => Either::Right(Box::pin(async {
                tokio::time::sleep(SLOW).await;
                text(std::process::id().to_string().into())
            })),
            "/up" => Either::Right(Box::pin(async {
                let mut body = pin!(request.into_body());
                let mut length = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    length += frame.data_ref().map_or(0, Buf::remaining);
                }
                text(length.to_string().into())
            })),
            _ => at_once(Bytes::from_static(b"hello, world\n")),
        }
    }
}

fn main() -> ExitCode {
    let Some(address) = std::env::var("BARE").ok().and_then(|address| address.parse().ok()) else {
        return oxicorn::main(async |_worker| Ok::<_, Infallible>(Plain));
    };
    match bare(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plain: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves without the supervisor. Prints its address on the first line of its output, and serves until it is killed.
#[tokio::main(flavor = "current_thread")]
async fn bare(address: SocketAddr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener = socket.listen(2048)?;
    println!("{}", listener.local_addr()?);
    let (tls, http2) = (tls()?, std::env::var_os("BARE_HTTP2").is_some());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each kind of connection has a future of its own, because a common future would be as large as the largest
        // kind.
        match (tls.clone(), http2) {
            (None, false) => drop(tokio::spawn(serve_http1(stream))),
            (None, true) => drop(tokio::spawn(serve_http2(stream))),
            (Some(tls), false) => drop(tokio::spawn(async move { serve_http1(tls.accept(stream).await?).await })),
            (Some(tls), true) => drop(tokio::spawn(async move { serve_http2(tls.accept(stream).await?).await })),
        }
    }
}

async fn serve_http1(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<()> {
    let service = service_fn(|request| Plain.call(request));
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn serve_http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<()> {
    let service = service_fn(|request| Plain.call(request));
    let builder = http2::Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

fn tls() -> io::Result<Option<TlsAcceptor>> {
    let Ok(files) = std::env::var("BARE_TLS") else { return Ok(None) };
    let (certfile, keyfile) = files.split_once(',').ok_or_else(|| io::Error::other("BARE_TLS names two files"))?;
    let chain = CertificateDer::pem_file_iter(certfile).and_then(Iterator::collect).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(keyfile).map_err(io::Error::other)?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
