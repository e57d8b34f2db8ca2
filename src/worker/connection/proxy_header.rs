//! Reads the PROXY header, which comes before everything else on a connection.
//!
//! Owns: the rules that say which peers must, may or must not send a header, and the time by which a header must have
//! come. Refuses: the grammar of a header (`proxy_protocol`), and the headers in which requests name their client
//! (`forwarded`).

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Connection, Timer, client_left::ClientStream, delegate_write::delegate_write};
use crate::{
    settings::ProxyProtocol,
    worker::{
        proxy_protocol::{ParsedHeader, parse},
        scanner::Refusal,
        shared::WakeListener,
    },
};

const NOT_TRUSTED: Refusal =
    Refusal { status: 400, reason: "A PROXY header is accepted only from the proxies in forwarded_allow_ips" };
const MISSING: Refusal =
    Refusal { status: 400, reason: "The connection does not begin with the PROXY header that proxy_protocol asks for" };

pub(super) enum ProxyHeader<T> {
    /// The header was read, or no header is needed. The stream continues behind the header.
    Done(Prefixed<T>),
    /// The peer broke the rules. The caller should send the refusal to the peer.
    Refused(Prefixed<T>, Refusal),
    /// Nothing more should be done on the connection, because the peer left or was too slow, or because the worker
    /// ends.
    Over,
}

/// Reads the PROXY header if the settings ask for one. Stores the client that the header names in `connection`.
pub(super) async fn read_proxy_header<T>(
    stream: T,
    connection: &mut Connection,
    timer: &mut Timer<'_>,
) -> ProxyHeader<T>
where
    T: AsyncRead + Unpin,
{
    let mut stream = Prefixed::from(stream);
    if connection.shared.proxy_protocol == ProxyProtocol::Off {
        return ProxyHeader::Done(stream);
    }
    let trusted = connection.shared.trust.trusts(connection.client.address());
    match read(&mut stream, trusted, connection, timer).await {
        Some(Ok(source)) => {
            connection.client.comes_from(source);
            ProxyHeader::Done(stream)
        }
        Some(Err(refusal)) => ProxyHeader::Refused(stream, refusal),
        None => ProxyHeader::Over,
    }
}

/// Reads until the whole header has come, or until it is known that no header comes. Returns the client's address if
/// the header names one, or the refusal if the peer broke the rules. Returns `None` if the connection should end
/// without a response.
async fn read<T>(
    stream: &mut Prefixed<T>,
    trusted: bool,
    connection: &Connection,
    timer: &mut Timer<'_>,
) -> Option<Result<Option<SocketAddr>, Refusal>>
where
    T: AsyncRead + Unpin,
{
    let shared = connection.shared;
    let called = pin!(shared.wake_signal());
    let mut call = WakeListener::new(called);
    poll_fn(|cx| {
        call.listen(shared, cx);
        loop {
            if let Some(known) = judge(shared.proxy_protocol, trusted, &mut stream.prefix) {
                return Poll::Ready(Some(known));
            }
            let mut scratch = [MaybeUninit::uninit(); 512];
            let mut new = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut stream.stream).poll_read(cx, &mut new) {
                Poll::Ready(Ok(())) if !new.filled().is_empty() => stream.prefix.extend_from_slice(new.filled()),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    let over = shared.ends() || timer.overdue(connection, cx).is_some();
                    return if over { Poll::Ready(None) } else { Poll::Pending };
                }
            }
        }
    })
    .await
}

/// Returns what the first bytes of a connection mean; `None` while too few bytes have come. If they are a header, this
/// removes the header from `bytes`.
fn judge(accepted: ProxyProtocol, trusted: bool, bytes: &mut Vec<u8>) -> Option<Result<Option<SocketAddr>, Refusal>> {
    let required = accepted != ProxyProtocol::Auto;
    Some(match parse(accepted, bytes) {
        ParsedHeader::Absent if !required => Ok(None),
        ParsedHeader::More if trusted || !required => return None,
        _ if !trusted => Err(NOT_TRUSTED),
        ParsedHeader::More | ParsedHeader::Absent => Err(MISSING),
        ParsedHeader::Bad(reason) => Err(Refusal { status: 400, reason }),
        ParsedHeader::Header { length, source } => {
            bytes.drain(..length);
            Ok(source)
        }
    })
}

/// A stream, and the bytes that were already read from it. A reader of this type gets these bytes first.
#[derive(Debug)]
pub(super) struct Prefixed<T> {
    prefix: Vec<u8>,
    stream: T,
}

impl<T> From<T> for Prefixed<T> {
    fn from(stream: T) -> Self {
        Self { prefix: Vec::new(), stream }
    }
}

impl<T: ClientStream> ClientStream for Prefixed<T> {
    fn is_ending(&self) -> bool {
        self.stream.is_ending()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        let rest = self.prefix.split_off(count);
        buf.put_slice(&std::mem::replace(&mut self.prefix, rest));
        Poll::Ready(Ok(()))
    }
}

delegate_write!(Prefixed, stream);
