//! One connection, from accept to its last byte.
//!
//! Owns: the order of its life (PROXY header, TLS handshake, HTTP, end), the clock of idle keep-alive, and its part in a
//! drain. Refuses: bytes (`wire`), requests (`exchange`), parsing (hyper), and deciding when to drain.
//!
//! Why an answer and not a FIN ends a connection: a request that crosses our FIN can be read but never answered, so the
//! only loss-free way out is to be the one who says `Connection: close` (RFC 9112, section 9.6).

mod exchange;
mod wire;

use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};

pub(crate) use self::exchange::{Answer, BoxError, Serve};
use self::wire::Wire;
use super::{
    accept::Peer,
    shared::{Open, Shared},
    tls,
};
use crate::{ClientCertificate, sys::clock};

/// Between deciding that an idle connection may close and closing it the event loop turns once: what had already
/// arrived is then served.
const LAST_CALL: Duration = Duration::from_millis(2);

/// What the parts of one connection know of it: made once it is known who speaks, shared by its wire and its exchanges.
#[derive(Debug)]
struct Connection {
    shared: &'static Shared,
    peer: Peer,
    /// Of the client, where `tls.client_ca` asks for one.
    certificate: Option<ClientCertificate>,
    accepted: Instant,
    activity: Activity,
}

/// Serves one connection to its end; it counts as open as long as `open` lives.
pub(super) async fn serve<T, S, B>(stream: T, peer: Peer, open: Open, shared: &'static Shared, app: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Serve<B>,
    B: Answer,
{
    let _open = open;
    let accepted = Instant::now();
    // The place of the PROXY header: it changes whom the app takes for its client, and ends `header_timeout` after
    // `accepted`.
    let known = |certificate| Arc::new(Connection { shared, peer, certificate, accepted, activity: Activity::new() });
    match &shared.tls {
        None => http(stream, known(None), app).await,
        // Boxed, or connections without TLS would have to be as large as those with it.
        Some(config) => {
            if let Some(stream) = Box::pin(tls::shake_hands(stream, config, peer, accepted, shared)).await {
                let certificate = tls::shown(&stream);
                Box::pin(http(stream, known(certificate), app)).await;
            }
        }
    }
}

/// Speaks HTTP on a stream to its end.
async fn http<T, S, B>(stream: T, connection: Arc<Connection>, app: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Serve<B>,
    B: Answer,
{
    let shared = connection.shared;
    let wire = Wire::new(stream, Arc::clone(&connection));
    let service = {
        let connection = Arc::clone(&connection);
        service_fn(move |request| exchange::answer(request, app.clone(), Arc::clone(&connection)))
    };
    let activity = &connection.activity;
    let mut serving = pin!(http1::Builder::new().serve_connection(wire, service));
    let mut idle = pin!(sleep(shared.http.keep_alive));
    let mut end = pin!(shared.end.notified());
    let mut leaving = false;
    let mut last_call = false;
    let mut enrolled = false;

    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            if leaving {
                return Poll::Pending;
            }
            if !enrolled {
                // Polled for its waker alone: this task's never changes, and `ends` is what is asked.
                enrolled = true;
                let _ = end.as_mut().poll(cx);
                arm(idle.as_mut(), shared, cx);
            }
            let may_close = if shared.ends() {
                activity.unoccupied()
            } else if idle.is_elapsed() && !shared.http.keep_alive.is_zero() {
                let spare = activity.idle_left(shared.http.keep_alive);
                let due = spare == Some(Duration::ZERO);
                let close = due && std::mem::replace(&mut last_call, due);
                if !close {
                    last_call = due;
                    let wait = if due { LAST_CALL } else { spare.unwrap_or(shared.http.keep_alive) };
                    idle.as_mut().reset(Instant::now() + wait);
                    arm(idle.as_mut(), shared, cx);
                }
                close
            } else {
                false
            };
            if !may_close {
                return Poll::Pending;
            }
            leaving = true;
            serving.as_mut().graceful_shutdown();
        }
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(event = "connection_error", error = &error as &dyn Error, "a connection ended with an error");
    }
}

/// Registers the task with its timer; later polls need only ask whether it has elapsed.
fn arm(idle: Pin<&mut Sleep>, shared: &Shared, cx: &mut Context<'_>) {
    if !shared.http.keep_alive.is_zero() {
        let _ = idle.poll(cx);
    }
}

/// What a connection is doing, in one word: idle since a millisecond of the coarse clock, or one of three states.
#[derive(Debug)]
struct Activity(AtomicU64);

impl Activity {
    /// Accepted, and not one byte seen.
    const FRESH: u64 = u64::MAX;
    /// Bytes of a head have arrived.
    const READING: u64 = u64::MAX - 1;
    /// A request is with the app, or its answer under way.
    const BUSY: u64 = u64::MAX - 2;

    fn new() -> Self {
        Self(AtomicU64::new(Self::FRESH))
    }

    fn set(&self, state: u64) {
        self.0.store(state, Relaxed);
    }

    fn bytes_arrived(&self) {
        if self.0.load(Relaxed) != Self::BUSY {
            self.set(Self::READING);
        }
    }

    /// No request has begun on it.
    fn unoccupied(&self) -> bool {
        !matches!(self.0.load(Relaxed), Self::READING | Self::BUSY)
    }

    /// How much of its keep-alive an idle connection has left.
    fn idle_left(&self, keep_alive: Duration) -> Option<Duration> {
        match self.0.load(Relaxed) {
            Self::FRESH | Self::READING | Self::BUSY => None,
            since => Some(keep_alive.saturating_sub(Duration::from_millis(clock::coarse().saturating_sub(since)))),
        }
    }
}
