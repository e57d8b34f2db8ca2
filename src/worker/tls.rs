//! The TLS handshake, before all HTTP on a connection.
//!
//! Owns: its deadline, the words for one that fails, and plain HTTP sent to a TLS port. Refuses: certificates and keys
//! (`settings::tls` read them, and made the configuration), and HTTP.

use std::{error::Error, io, pin::pin, sync::Arc, time::Duration};

use rustls::{Error as TlsError, InvalidMessage, ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::{accept::Peer, shared::Shared};
use crate::ClientCertificate;

/// Read at once of a ClientHello; rustls takes 4 KiB and more at a time.
const CHUNK: usize = 2048;

/// How long whoever sent plain HTTP may take to read the answer.
const LINGER: Duration = Duration::from_secs(2);

/// As every error of the reference service.
const PLAIN_HTTP: &str = r#"{"error":"this port speaks TLS: ask by https://","type":"bad_request","details":[]}"#;

/// Shakes hands within `http.header_timeout` of `accepted`. `None` is a connection that is over, and needs no more words.
pub(super) async fn shake_hands<T>(
    stream: T,
    config: &Arc<ServerConfig>,
    peer: Peer,
    accepted: Instant,
    shared: &'static Shared,
) -> Option<TlsStream<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let within = shared.http.header_timeout;
    let mut late = pin!(sleep_until(accepted + within));
    let mut end = pin!(shared.end.notified());
    end.as_mut().enable();
    if shared.ends() {
        return None;
    }
    let shaken = select! {
        // What has arrived is looked at before the clock is asked.
        biased;
        shaken = negotiate(stream, Arc::clone(config)) => shaken,
        () = &mut late, if !within.is_zero() => Err(io::Error::new(io::ErrorKind::TimedOut, "not done within http.header_timeout")),
        () = &mut end => return None,
    };
    shaken.unwrap_or_else(|error| {
        say_failed(peer, &error, shared);
        None
    })
}

/// Who the client has shown to be; `None` where nobody asked.
pub(super) fn shown<T>(stream: &TlsStream<T>) -> Option<ClientCertificate> {
    let (_, session) = stream.get_ref();
    session.peer_certificates()?.first().map(ClientCertificate::of)
}

/// `None` is a client that left without a word, as the probes of balancers do.
async fn negotiate<T>(mut stream: T, config: Arc<ServerConfig>) -> io::Result<Option<TlsStream<T>>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut silent = true;
    let accepted = loop {
        chunk.clear();
        if stream.read_buf(&mut chunk).await? == 0 {
            return if silent { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        silent = false;
        if acceptor.read_tls(&mut chunk.as_slice())? != chunk.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((error @ TlsError::InvalidMessage(InvalidMessage::InvalidContentType), _)) => {
                answer_plain(stream).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write_all(&mut bytes)?;
                stream.write_all(&bytes).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    };
    StartHandshake::from_parts(accepted, stream).into_stream(config).await.map(Some)
}

/// No TLS record begins like this. Most often it is a person with a browser, or a proxy set up for http.
async fn answer_plain<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{PLAIN_HTTP}",
        PLAIN_HTTP.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        // A close with unread bytes would be an RST, and an RST destroys what the client has not read yet.
        let _ = timeout(LINGER, copy(&mut stream, &mut sink())).await;
    }
}

/// At level debug each, at level info one a second: anybody can make them fail, and they must not fill a disk.
fn say_failed(peer: Peer, error: &io::Error, shared: &Shared) {
    let peer = peer.remote.map(tracing::field::display);
    let error = error as &dyn Error;
    match shared.handshakes.pass() {
        Some(more) => tracing::info!(
            event = "handshake_failed",
            peer,
            error,
            more,
            "a TLS handshake failed, and {more} more since the last such line"
        ),
        None => tracing::debug!(event = "handshake_failed", peer, error, "a TLS handshake failed"),
    }
}
