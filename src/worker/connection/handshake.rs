//! Does the TLS handshake, which comes before HTTP on a connection.
//!
//! Owns: the deadline of the handshake, the log line for a failed handshake, and the refusal of plain HTTP that is sent
//! to a TLS port. Refuses: certificates and keys (`settings::tls` reads them, and makes the configuration), and HTTP.

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use rustls::{
    Error as TlsError, InvalidMessage, ServerConfig,
    server::{Accepted, Acceptor},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::{
    Connection, Timer,
    linger::{self, Linger},
    refusal_response,
};
use crate::{
    ClientCertificate,
    worker::{scanner::Refusal, shared::WakeListener},
};

/// The most bytes of a ClientHello that are read at once. rustls takes at least 4 KiB at a time, so it takes each piece
/// whole.
const CHUNK: usize = 2048;

#[expect(clippy::large_enum_variant, reason = "only one exists at a time, and it is taken apart at once")]
pub(super) enum Handshake<T> {
    Done(TlsStream<T>),
    /// The client did not send TLS. The caller should send the refusal to the client.
    Refused(T, Refusal),
    /// Nothing more should be done on the connection.
    Over,
}

/// Does the TLS handshake, and stores the client's certificate in `connection`.
pub(super) async fn shake_hands<T>(
    stream: T,
    config: &Arc<ServerConfig>,
    connection: &mut Connection,
    timer: &mut Timer<'_>,
) -> Handshake<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let shared = connection.shared;
    let negotiated = {
        let mut negotiating = pin!(negotiate(stream, Arc::clone(config)));
        let called = pin!(shared.wake_signal());
        let mut call = WakeListener::new(called);
        poll_fn(|cx| {
            call.listen(shared, cx);
            match negotiating.as_mut().poll(cx) {
                Poll::Pending if shared.ends() => Poll::Ready(Ok(Handshake::Over)),
                Poll::Pending if timer.overdue(connection, cx).is_some() => {
                    let late = io::Error::new(
                        io::ErrorKind::TimedOut,
                        "it did not end within http.header_timeout, or workers.drain_idle in a drain",
                    );
                    Poll::Ready(Err((late, None)))
                }
                polled => polled,
            }
        })
        .await
    };
    match negotiated {
        Ok(Handshake::Done(stream)) => {
            connection.client.comes_by_tls();
            let (_, session) = stream.get_ref();
            connection.agreed_on_http1 = session.alpn_protocol() == Some(b"http/1.1");
            let shown = session.peer_certificates().and_then(|chain| chain.first());
            connection.certificate = shown.map(ClientCertificate::of);
            Handshake::Done(stream)
        }
        Ok(other) => other,
        Err((error, stream)) => {
            log_failed(connection, &error);
            if let Some(mut stream) = stream
                && stream.shutdown().await.is_ok()
            {
                // The client must still read the TLS alert. A close with unread bytes would send an RST, which destroys
                // the alert, so the worker lingers.
                let mut linger = Linger::default();
                poll_fn(|cx| linger.poll(&mut stream, linger::SILENCE, cx)).await;
            }
            Handshake::Over
        }
    }
}

async fn negotiate<T>(mut stream: T, config: Arc<ServerConfig>) -> Result<Handshake<T>, (io::Error, Option<T>)>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    match hello(&mut stream).await {
        Ok(Hello::Accepted(accepted)) => {
            let accept = StartHandshake::from_parts(*accepted, stream).into_stream(config).into_fallible();
            accept.await.map(Handshake::Done).map_err(|(error, stream)| (error, Some(stream)))
        }
        Ok(Hello::Plain) => Ok(Handshake::Refused(stream, refusal_response::PLAIN_HTTP)),
        Ok(Hello::Silence) => Ok(Handshake::Over),
        Err(error) => Err((error, Some(stream))),
    }
}

/// What the first bytes of a client turn out to be.
enum Hello {
    Accepted(Box<Accepted>),
    /// The bytes are not the beginning of a TLS record. The client would not understand a TLS alert.
    Plain,
    /// The client left without sending anything, as the probes of load balancers do.
    Silence,
}

async fn hello<T: AsyncRead + AsyncWrite + Unpin>(stream: &mut T) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut silent = true;
    loop {
        chunk.clear();
        if stream.read_buf(&mut chunk).await? == 0 {
            return if silent { Ok(Hello::Silence) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        silent = false;
        if acceptor.read_tls(&mut chunk.as_slice())? != chunk.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello::Accepted(Box::new(accepted))),
            Ok(None) => {}
            Err((TlsError::InvalidMessage(InvalidMessage::InvalidContentType), _)) => return Ok(Hello::Plain),
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write_all(&mut bytes)?;
                stream.write_all(&bytes).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// Counts a failed handshake, and logs it. One line a second has the level info, and the others have the level debug.
/// Any client can cause such lines, so they must not fill a disk.
fn log_failed(connection: &Connection, error: &io::Error) {
    let Connection { shared, peer, .. } = connection;
    shared.row.handshake_failed();
    let error = error as &dyn Error;
    match shared.handshakes.pass() {
        Some(suppressed) => {
            tracing::info!(event = "handshake_failed", client = %peer, error, suppressed, "a TLS handshake failed")
        }
        None => tracing::debug!(event = "handshake_failed", client = %peer, error, "a TLS handshake failed"),
    }
}
