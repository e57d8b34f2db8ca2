//! Reads the first bytes of a connection, which show whether the client speaks HTTP/1 or HTTP/2.
//!
//! Owns: the wait for the first bytes, and for the rest of the preface of HTTP/2 if it has begun (RFC 9113, section
//! 3.4). If the client sends nothing in time, the connection is handled as HTTP/1. Refuses: responses.

use std::{future::poll_fn, mem::MaybeUninit, pin::Pin, task::Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Connection, Timer};
use crate::worker::shared::WakeListener;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Default)]
pub(super) struct ProtocolDetect {
    pub(super) is_http2: bool,
    /// All bytes that were read so far. The code for HTTP/1 or HTTP/2 gets these bytes first, and then reads from the
    /// stream.
    pub(super) bytes: Vec<u8>,
}

/// Reads until the client's protocol is known, the stream ends, a deadline is over, or the grace of a drain ends.
/// `call` wakes the connection's task when the worker wakes all connections.
pub(super) async fn read<T>(
    stream: &mut T,
    connection: &Connection,
    timer: &mut Timer<'_>,
    call: &mut WakeListener<'_>,
) -> ProtocolDetect
where
    T: AsyncRead + Unpin,
{
    let mut bytes = Vec::new();
    poll_fn(|cx| {
        loop {
            let mut scratch = [MaybeUninit::uninit(); 4096];
            let mut new = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut new) {
                Poll::Ready(Ok(())) if !new.filled().is_empty() => {}
                // This is the end of the stream, or an error. The code for HTTP/1 reads next, and gets the same end or
                // error again.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    call.listen(connection.shared, cx);
                    let over = connection.shared.ends() || timer.overdue(connection, cx).is_some();
                    return if over { Poll::Ready(()) } else { Poll::Pending };
                }
            }
            bytes.extend_from_slice(new.filled());
            connection.activity.head_begins();
            if bytes.len() >= PREFACE.len() || !PREFACE.starts_with(&bytes) {
                return Poll::Ready(());
            }
        }
    })
    .await;
    ProtocolDetect { is_http2: bytes.starts_with(PREFACE), bytes }
}
