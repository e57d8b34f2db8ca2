//! The lingering close.
//!
//! Owns: what a client still sends after our last byte. It is read and thrown away, because a close with unread bytes
//! would send an RST, and an RST destroys what the client has not read yet; some clients begin to read only when they
//! have sent all. Refuses: which clients are waited for (`wire`, `tls`).

use std::{
    future::Future,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long a client may be silent …
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// … and how long a client may go on sending.
pub(super) const MOST: Duration = Duration::from_secs(30);

const SCRATCH: usize = 8192;

#[derive(Debug, Default)]
pub(super) struct Linger(Option<Begun>);

#[derive(Debug)]
struct Begun {
    silence: Pin<Box<Sleep>>,
    until: Instant,
}

impl Linger {
    /// Whether the client has been waited for, or has sent more.
    pub(super) fn has_begun(&self) -> bool {
        self.0.is_some()
    }

    fn begun(&mut self, patience: Duration) -> &mut Begun {
        self.0.get_or_insert_with(|| Begun { silence: Box::pin(sleep(patience)), until: Instant::now() + MOST })
    }

    /// Ready when the client ends, or its time is over. `patience` is the time for a client that sends nothing; one
    /// that sends may be silent for `SILENCE`, and has `MOST` in all.
    pub(super) fn poll<T>(&mut self, stream: &mut T, patience: Duration, cx: &mut Context<'_>) -> Poll<()>
    where
        T: AsyncRead + Unpin,
    {
        let mut scrap = [MaybeUninit::uninit(); SCRATCH];
        loop {
            let mut scrap = ReadBuf::uninit(&mut scrap);
            match Pin::new(&mut *stream).poll_read(cx, &mut scrap) {
                Poll::Ready(Ok(())) if !scrap.filled().is_empty() => {
                    let Begun { silence, until } = self.begun(SILENCE);
                    let now = Instant::now();
                    // The timer does not say so while a client sends without a pause: this task then has used up its
                    // budget whenever it asks.
                    if now >= *until {
                        return Poll::Ready(());
                    }
                    silence.as_mut().reset((now + SILENCE).min(*until));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if !self.has_begun() && patience.is_zero() => return Poll::Ready(()),
                Poll::Pending => return self.begun(patience).silence.as_mut().poll(cx),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::repeat, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_without_a_pause_is_not_waited_for_longer() {
        let begun = Begun { silence: Box::pin(sleep(SILENCE)), until: Instant::now() + Duration::from_millis(50) };
        let (mut linger, mut client) = (Linger(Some(begun)), repeat(7));
        let ended = timeout(SILENCE * 5, poll_fn(|cx| linger.poll(&mut client, SILENCE, cx))).await;
        ended.expect("it ends");
    }
}
