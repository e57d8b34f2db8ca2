//! The TLS handshake, before all HTTP on a connection.
//!
//! Owns: its deadline, the words for one that fails, and plain HTTP sent to a TLS port. Refuses: certificates and keys
//! (`settings::tls` read them, and made the configuration), and HTTP.

use std::{error::Error, io, pin::pin, sync::Arc};

use rustls::{
    Error as TlsError, InvalidMessage, ServerConfig,
    server::{Accepted, Acceptor},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::{refusal, wire::LINGER};
use crate::{
    ClientCertificate,
    worker::{accept::Peer, shared::Shared},
};

/// Read at once of a ClientHello; rustls takes 4 KiB and more at a time.
const CHUNK: usize = 2048;

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
    let (error, stream) = select! {
        // What has arrived is looked at before the clock is asked.
        biased;
        shaken = negotiate(stream, Arc::clone(config), peer, shared) => match shaken {
            Ok(stream) => return Some(stream),
            Err((error, stream)) => (error, Some(stream)),
        },
        () = &mut late, if !within.is_zero() => {
            (Some(io::Error::new(io::ErrorKind::TimedOut, "not done within http.header_timeout")), None)
        }
        () = &mut end => return None,
    };
    if let Some(error) = error {
        say_failed(peer, &error, shared);
    }
    if let Some(mut stream) = stream
        && stream.shutdown().await.is_ok()
    {
        // A close with unread bytes would be an RST, and an RST destroys what the client has not read yet.
        let _ = timeout(LINGER, copy(&mut stream, &mut sink())).await;
    }
    None
}

/// Who the client has shown to be; `None` where nobody asked.
pub(super) fn shown<T>(stream: &TlsStream<T>) -> Option<ClientCertificate> {
    let (_, session) = stream.get_ref();
    session.peer_certificates()?.first().map(ClientCertificate::of)
}

/// Gives the stream back with the error; without one where there is nothing to say.
async fn negotiate<T>(
    mut stream: T,
    config: Arc<ServerConfig>,
    peer: Peer,
    shared: &Shared,
) -> Result<TlsStream<T>, (Option<io::Error>, T)>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    match hello(&mut stream, peer, shared).await {
        Ok(Some(accepted)) => {
            let accept = StartHandshake::from_parts(accepted, stream).into_stream(config);
            accept.into_fallible().await.map_err(|(error, stream)| (Some(error), stream))
        }
        Ok(None) => Err((None, stream)),
        Err(error) => Err((Some(error), stream)),
    }
}

/// The first message. `None` is a client that left without a word, as the probes of balancers do, or was told what is
/// spoken here.
async fn hello<T>(stream: &mut T, peer: Peer, shared: &Shared) -> io::Result<Option<Accepted>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut silent = true;
    loop {
        chunk.clear();
        if stream.read_buf(&mut chunk).await? == 0 {
            return if silent { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        silent = false;
        if acceptor.read_tls(&mut chunk.as_slice())? != chunk.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Some(accepted)),
            Ok(None) => {}
            // No TLS record begins like this, and the alert would be rubbish to who sent it.
            Err((TlsError::InvalidMessage(InvalidMessage::InvalidContentType), _)) => {
                shared.refused(refusal::PLAIN_HTTP, peer);
                stream.write_all(&refusal::message(refusal::PLAIN_HTTP)).await?;
                return Ok(None);
            }
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write_all(&mut bytes)?;
                stream.write_all(&bytes).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// At level debug each, at level info one a second: anybody can make them fail, and they must not fill a disk.
fn say_failed(peer: Peer, error: &io::Error, shared: &Shared) {
    let error = error as &dyn Error;
    match shared.handshakes.pass() {
        Some(suppressed) => {
            tracing::info!(event = "handshake_failed", client = %peer, error, suppressed, "a TLS handshake failed")
        }
        None => tracing::debug!(event = "handshake_failed", client = %peer, error, "a TLS handshake failed"),
    }
}
