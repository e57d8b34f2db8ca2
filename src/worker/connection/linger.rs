//! The lingering close: after the last response, the worker still reads for a while before it closes the socket.
//!
//! Owns: the reads that discard what a client still sends after our last byte. A close with unread bytes would send an
//! RST, which destroys what the client has not read yet. Some clients begin to read only when they have sent
//! everything. Refuses: the choice of the clients for which to linger (`http1`, `handshake`).

use std::{
    future::Future,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long a client may be silent during the lingering close.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// How long the lingering close may last in all if the client continues to send.
pub(super) const MOST: Duration = Duration::from_secs(30);

const SCRATCH: usize = 8192;

#[derive(Debug, Default)]
pub(super) struct Linger(Option<Deadlines>);

#[derive(Debug)]
struct Deadlines {
    silence: Pin<Box<Sleep>>,
    until: Instant,
}

impl Linger {
    /// Returns true if the lingering close has begun: the worker has waited for the client, or the client has sent more
    /// bytes.
    pub(super) fn has_begun(&self) -> bool {
        self.0.is_some()
    }

    fn deadlines(&mut self, patience: Duration) -> &mut Deadlines {
        self.0.get_or_insert_with(|| Deadlines { silence: Box::pin(sleep(patience)), until: Instant::now() + MOST })
    }

    /// Becomes ready when the client has ended its side, or when the client's time is over. If the client sends
    /// nothing, its time is `patience`. If it sends something, it may be silent for `SILENCE` after each piece, and its
    /// time is `MOST` in all.
    pub(super) fn poll<T>(&mut self, stream: &mut T, patience: Duration, cx: &mut Context<'_>) -> Poll<()>
    where
        T: AsyncRead + Unpin,
    {
        let discarded = poll_discard(stream, cx, |_| {
            let Deadlines { silence, until } = self.deadlines(SILENCE);
            let now = Instant::now();
            if now >= *until {
                return false;
            }
            silence.as_mut().reset((now + SILENCE).min(*until));
            true
        });
        match discarded {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending if !self.has_begun() && patience.is_zero() => Poll::Ready(()),
            Poll::Pending => self.deadlines(patience).silence.as_mut().poll(cx),
        }
    }
}

/// Reads and discards what the client sends. It calls `goes_on` with each piece, and becomes ready when `goes_on`
/// returns false or when the client has ended its side. A timer alone would not stop a client that sends without a
/// pause. The reads use up the budget of polls that tokio gives this task, and a timer does not fire when no budget is
/// left.
pub(super) fn poll_discard<T>(stream: &mut T, cx: &mut Context<'_>, mut goes_on: impl FnMut(&[u8]) -> bool) -> Poll<()>
where
    T: AsyncRead + Unpin,
{
    let mut scratch = [MaybeUninit::uninit(); SCRATCH];
    loop {
        let mut discarded = ReadBuf::uninit(&mut scratch);
        match ready!(Pin::new(&mut *stream).poll_read(cx, &mut discarded)) {
            Ok(()) if !discarded.filled().is_empty() && goes_on(discarded.filled()) => {}
            _ => return Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::repeat, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_without_a_pause_does_not_prolong_the_linger() {
        let begun = Deadlines { silence: Box::pin(sleep(SILENCE)), until: Instant::now() + Duration::from_millis(50) };
        let (mut linger, mut client) = (Linger(Some(begun)), repeat(7));
        let ended = timeout(SILENCE * 5, poll_fn(|cx| linger.poll(&mut client, SILENCE, cx))).await;
        ended.expect("the linger ends");
    }
}
