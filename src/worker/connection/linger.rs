//! The lingering close.
//!
//! Owns: what a client still sends behind our last byte. It is read and thrown away, because a close with unread bytes
//! would be an RST, and an RST destroys what the client has not read yet; some clients read only once they have sent all.
//! Refuses: which clients are waited for (`wire`, `tls`).

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
/// … and how long one may go on that is not.
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
    /// Whether the client was waited for, or has sent more.
    pub(super) fn has_begun(&self) -> bool {
        self.0.is_some()
    }

    fn begun(&mut self, patience: Duration) -> &mut Begun {
        self.0.get_or_insert_with(|| Begun { silence: Box::pin(sleep(patience)), until: Instant::now() + MOST })
    }

    /// Ready at the client's end, or when it was waited for long enough. `patience`: for a client that sends nothing; one
    /// that does is believed to go on.
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
                    silence.as_mut().reset((Instant::now() + SILENCE).min(*until));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if !self.has_begun() && patience.is_zero() => return Poll::Ready(()),
                Poll::Pending => return self.begun(patience).silence.as_mut().poll(cx),
            }
        }
    }
}
