//! Tells the handler of a request that the client has gone.
//!
//! Owns: the list of the requests that are under way on a connection, the flags that tell that a client has gone, and
//! the future that an app gets. Refuses: to watch the socket (`worker::connection::end_watch`), and to end a request
//! whose client has gone. Such a request continues unless the app ends it.
//!
//! A request is identified by the time at which it began. If the app does not ask about the client, a request costs
//! only a few writes to memory.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

/// A future that completes when the client no longer waits for the response. An app gets it from
/// [`ClientInfo::gone`](crate::ClientInfo::gone).
///
/// The future completes when the client ends its side of the connection (FIN), resets the connection (RST), or resets
/// the stream of the request (HTTP/2). It also completes when the request is over. A request is over when the worker
/// has handed the last byte of the response to the connection. So a task that waits for this future always ends.
///
/// A client of HTTP/1 may end its side of the connection and still wait for the response, as `nc -N` does. The future
/// completes in this case too. The worker still sends the response, and the app decides whether the request continues.
/// With HTTP/2 this cannot happen.
///
/// With HTTP/2 the worker drops the handler's future when the client resets the stream. If the app must act when a
/// client has gone, wait for this future in a task of its own.
///
/// ```
/// # use std::time::Duration;
/// async fn report(request: axum::extract::Request) -> &'static str {
///     let gone = request.extensions().get::<oxicorn::ClientInfo>().map(oxicorn::ClientInfo::gone);
///     tokio::select! {
///         () = async { tokio::time::sleep(Duration::from_secs(10)).await } => "the long report\n",
///         () = gone.expect("every request has it") => "the client does not read this\n",
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(report));
/// ```
#[derive(Clone)]
pub struct ClientGone(
    /// `None` if there is no connection, as in a unit test. Then the future never completes.
    Option<Arc<GoneFlag>>,
);

#[derive(Default)]
struct GoneFlag(Mutex<Raised>);

#[derive(Default)]
struct Raised {
    raised: bool,
    wakers: Vec<Waker>,
}

impl GoneFlag {
    fn raised() -> Self {
        Self(Mutex::new(Raised { raised: true, wakers: Vec::new() }))
    }

    fn raise(&self) {
        let wakers = {
            let mut state = lock(&self.0);
            state.raised = true;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Future for ClientGone {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(signal) = &self.0 else { return Poll::Pending };
        let mut state = lock(&signal.0);
        if state.raised {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl fmt::Debug for ClientGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = self.0.as_ref().is_some_and(|signal| lock(&signal.0).raised);
        f.debug_struct("ClientGone").field("gone", &gone).finish()
    }
}

/// The requests that are under way on one connection, and the futures that wait until a request is over or the client
/// has gone.
#[derive(Default)]
pub(crate) struct RequestEnds {
    /// For HTTP/1: the time at which the current request began; 0 while no request is under way.
    current: AtomicU64,
    /// True once the app has asked, for any request of this connection, whether the client has gone.
    asked: AtomicBool,
    /// The waker of the connection's task. After the app has asked for the first time, this task watches the socket.
    task: OnceLock<Waker>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// For HTTP/2: the times at which the requests that are under way began.
    streams: Vec<u64>,
    waiting: Vec<(u64, Arc<GoneFlag>)>,
    /// True once the client has ended its side of the connection, or has reset it.
    client_ended: bool,
}

impl RequestEnds {
    /// Notes that a request begins. `begun` is its start in nanoseconds of the monotonic clock. No two requests of a
    /// thread have the same `begun`.
    pub(crate) fn begins(&self, begun: u64, http1: bool) {
        if http1 {
            self.current.store(begun, SeqCst);
        } else {
            lock(&self.inner).streams.push(begun);
        }
    }

    pub(crate) fn ends(&self, begun: u64, http1: bool) {
        if http1 {
            // The swap must come before the load. If an app asks on another thread at the same time, either this
            // function sees that the app has asked, or the app sees that the request is over.
            self.current.swap(0, SeqCst);
            if !self.asked.load(SeqCst) {
                return;
            }
        }
        let mut inner = lock(&self.inner);
        inner.streams.retain(|one| *one != begun);
        let ended: Vec<_> = inner.waiting.extract_if(.., |(one, _)| *one == begun).collect();
        drop(inner);
        ended.iter().for_each(|(_, signal)| signal.raise());
    }

    /// Notes that the client has ended its side of the connection, or reset it.
    pub(crate) fn client_ends(&self) {
        let waiting = {
            let mut inner = lock(&self.inner);
            inner.client_ended = true;
            std::mem::take(&mut inner.waiting)
        };
        waiting.iter().for_each(|(_, signal)| signal.raise());
    }

    /// Returns true if the app has asked, for any request of this connection, whether the client has gone. The worker
    /// watches the socket only if this is true.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(SeqCst)
    }

    /// Keeps the waker of the connection's task, which is woken when the app asks for the first time.
    pub(crate) fn watched_by(&self, waker: &Waker) {
        self.task.get_or_init(|| waker.clone());
    }

    fn gone(&self, begun: u64) -> ClientGone {
        let is_first = !self.asked.swap(true, SeqCst);
        let mut inner = lock(&self.inner);
        let under_way = self.current.load(SeqCst) == begun || inner.streams.contains(&begun);
        if !under_way || inner.client_ended {
            return ClientGone(Some(Arc::new(GoneFlag::raised())));
        }
        let known = inner.waiting.iter().find(|(one, _)| *one == begun).map(|(_, signal)| Arc::clone(signal));
        let signal = known.unwrap_or_else(|| {
            let signal = Arc::<GoneFlag>::default();
            inner.waiting.push((begun, Arc::clone(&signal)));
            signal
        });
        drop(inner);
        if is_first && let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
        ClientGone(Some(signal))
    }
}

impl fmt::Debug for RequestEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestEnds").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// Connects a [`ClientInfo`](crate::ClientInfo) to its connection and to the start of its request. The default is
/// connected to no request.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLink(Option<(Arc<RequestEnds>, u64)>);

impl RequestLink {
    pub(crate) fn new(ends: &Arc<RequestEnds>, begun: u64) -> Self {
        Self(Some((Arc::clone(ends), begun)))
    }

    pub(crate) fn gone(&self) -> ClientGone {
        self.0.as_ref().map_or(ClientGone(None), |(ends, begun)| ends.gone(*begun))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_gone(gone: &ClientGone) -> bool {
        Pin::new(&mut gone.clone()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_request_is_over_for_early_and_for_late_calls_of_gone() {
        for http1 in [true, false] {
            let ends = Arc::<RequestEnds>::default();
            let (first, second) = (RequestLink::new(&ends, 10), RequestLink::new(&ends, 20));
            ends.begins(10, http1);
            let early = first.gone();
            assert!(!is_gone(&early) && !is_gone(&first.gone()));
            ends.ends(10, http1);
            ends.begins(20, http1);
            assert!(is_gone(&early) && is_gone(&first.gone()), "HTTP/1: {http1}");
            assert!(!is_gone(&second.gone()), "the next request has an end of its own");
            ends.ends(20, http1);
        }
    }

    #[test]
    fn streams_end_one_by_one() {
        let ends = Arc::<RequestEnds>::default();
        [10, 20].into_iter().for_each(|begun| ends.begins(begun, false));
        let (first, second) = (RequestLink::new(&ends, 10).gone(), RequestLink::new(&ends, 20).gone());
        ends.ends(20, false);
        assert!(!is_gone(&first) && is_gone(&second));
    }

    #[test]
    fn a_client_that_has_ended_its_side_is_gone_for_later_requests_too() {
        let ends = Arc::<RequestEnds>::default();
        ends.begins(10, true);
        let gone = RequestLink::new(&ends, 10).gone();
        assert!(ends.is_asked());
        ends.client_ends();
        assert!(is_gone(&gone));
        ends.ends(10, true);
        ends.begins(20, true);
        assert!(is_gone(&RequestLink::new(&ends, 20).gone()));
    }

    #[test]
    fn a_client_of_no_connection_is_never_gone() {
        assert!(!is_gone(&RequestLink::default().gone()));
    }
}
