//! Accepts connections from the listeners that a worker inherited.
//!
//! Owns: the limits on the number of connections that are accepted in one turn of a loop, and that are open at once
//! (`http.worker_connections`); the reaction to an error of accept(2); and the guess that a client may have given up
//! while its connection was in the queue. Refuses: everything that happens to a connection after its accept
//! (`connection`).

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    select,
    task::{JoinHandle, yield_now},
    time::sleep,
};

use super::{
    connection,
    serve::{AppBody, Peer, Serve},
    shared::Shared,
};
use crate::{
    client_info::Local,
    listener::Socket,
    sys::{
        clock,
        fd::{self, GAVE_UP_AFTER, NotAccepted},
        poll::{Interest, wait},
    },
};

/// The most connections that an accept loop accepts in a row before the tasks of these connections get a turn. The
/// number is small, because a crash of the worker loses the connections that it has accepted and not yet answered.
/// Connections that still wait in the queue are not lost.
const ACCEPTS_PER_TURN: u32 = 4;

/// The pause after an accept that failed for lack of file descriptors or memory. During the pause new connections wait
/// in the queue. Open connections may end in this time, and free descriptors and memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The most connections that one call of `sweep` accepts. Because of this limit, the call ends even if clients arrive
/// faster than it accepts them.
const SWEEP_MAX: u32 = 4096;

enum TokioListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The address of a listener.
struct LocalAddress(Local);

impl LocalAddress {
    fn of(socket: &Socket) -> Self {
        Self(match socket {
            Socket::Tcp(socket) => socket.local_addr().map_or(Local::Unknown, Local::Tcp),
            Socket::Unix(socket) => {
                let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Into::into));
                path.map_or(Local::Unknown, Local::Unix)
            }
        })
    }

    /// Returns the address of this end of a connection. The kernel is asked only if the listener has no address of its
    /// own, as one that listens on all addresses.
    fn of_connection(&self, ask: impl FnOnce() -> io::Result<SocketAddr>) -> Local {
        match &self.0 {
            Local::Tcp(address) if address.ip().is_unspecified() => ask().map_or(Local::Unknown, Local::Tcp),
            local => local.clone(),
        }
    }
}

enum AcceptedStream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Starts a task that accepts the connections of a listener. The task runs until it is aborted or the listener is shut
/// down.
pub(super) fn poll<S, B>(socket: &Socket, shared: &'static Shared, app: S) -> io::Result<JoinHandle<()>>
where
    S: Serve<B>,
    B: AppBody,
{
    let listener = match socket {
        Socket::Tcp(socket) => TokioListener::Tcp(TcpListener::from_std(socket.try_clone()?)?),
        Socket::Unix(socket) => TokioListener::Unix(UnixListener::from_std(socket.try_clone()?)?),
    };
    let local = LocalAddress::of(socket);
    Ok(tokio::spawn(async move {
        let mut taken = 0;
        // True if an idle connection was closed since the last accept, to free its descriptor.
        let mut freed = false;
        // The last moment at which the queue was known to be empty. It is 0 in a new worker, which knows nothing about
        // the queue yet.
        let mut empty_at = 0;
        loop {
            let (mut was_empty, delays) = (false, shared.delays(clock::coarse()));
            let accepted = select! {
                biased;
                place_in = poll_fn(|_| listener.poll_crowded(shared)) => {
                    shared.vacated(place_in).await;
                    continue;
                }
                accepted = listener.accept(|| shared.is_about_to_drain(), &mut was_empty) => accepted,
            };
            let now = clock::coarse();
            // An event loop that was not held up notices a new connection at once, so the queue was empty until now. A
            // loop that was held up may have noticed the connection late.
            if was_empty && shared.delays(now) == delays {
                empty_at = now;
            }
            match accepted {
                Ok(stream) => {
                    freed = false;
                    let one_leaves = shared.make_place(1);
                    stream.serve(shared, app.clone(), &local, now - empty_at >= u64::from(GAVE_UP_AFTER));
                    taken += 1;
                    // `yield_now` lets the other tasks have a turn. If a connection was asked to give up its place, it
                    // ends in that turn.
                    if one_leaves || taken == ACCEPTS_PER_TURN {
                        taken = 0;
                        yield_now().await;
                    }
                }
                Err(error) => match fd::why_not_accepted(&error) {
                    // The listener was shut down at the final stop, by this worker or by a sibling.
                    NotAccepted::Closed => return,
                    // Only one idle connection is closed for each accept. Otherwise, if another process took every
                    // descriptor that is freed, the worker would close all its idle connections for nothing.
                    NotAccepted::Exhausted
                        if !std::mem::replace(&mut freed, true) && shared.free_descriptor().await => {}
                    NotAccepted::Exhausted => {
                        freed = false;
                        if let Some(suppressed) = shared.exhausted.pass() {
                            tracing::warn!(
                                event = "accept_exhausted",
                                %error,
                                suppressed,
                                "cannot accept now; new connections wait in the queue"
                            );
                        }
                        sleep(EXHAUSTED_PAUSE).await;
                    }
                    NotAccepted::Client => {
                        tracing::debug!(event = "accept_failed", %error, "a connection ended before it was accepted")
                    }
                },
            }
        }
    }))
}

/// Accepts all connections that are in the queue at this moment, because no worker will accept them later.
pub(super) fn sweep<S, B>(socket: &Socket, shared: &'static Shared, app: &S)
where
    S: Serve<B>,
    B: AppBody,
{
    take(socket, SWEEP_MAX, shared, app);
}

/// Accepts connections that are in the queue at this moment, but not more than `most`. Returns how many it accepted.
pub(super) fn take<S, B>(socket: &Socket, most: u32, shared: &'static Shared, app: &S) -> u32
where
    S: Serve<B>,
    B: AppBody,
{
    let local = LocalAddress::of(socket);
    let mut taken = 0;
    for _ in 0..most {
        let stream = match socket {
            Socket::Tcp(socket) => socket.accept().and_then(|(stream, remote)| {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(|stream| AcceptedStream::Tcp(stream, remote))
            }),
            Socket::Unix(socket) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(AcceptedStream::Unix)
            }),
        };
        match stream {
            Ok(stream) => {
                stream.serve(shared, app.clone(), &local, false);
                taken += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => break,
        }
    }
    taken
}

impl TokioListener {
    /// Becomes ready if a client waits in the queue and the worker has no place for it. The value is the time after
    /// which there may be a place. The caller polls again whenever a client arrives.
    fn poll_crowded(&self, shared: &Shared) -> Poll<Duration> {
        if !shared.is_full() {
            return Poll::Pending;
        }
        let socket = match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        };
        let has_come = wait(&[(socket, Interest::Read)], Some(Duration::ZERO)).is_ok_and(|ready| ready.contains(&true));
        let place_in = if has_come { shared.place_in() } else { Duration::ZERO };
        if place_in.is_zero() { Poll::Pending } else { Poll::Ready(place_in) }
    }

    /// Accepts the next connection. Sets `was_empty` to true if the queue was empty before. Once the master has said
    /// that this worker drains, this function accepts nothing and stays pending until the order to drain ends the task.
    async fn accept(&self, is_about_to_drain: impl Fn() -> bool, was_empty: &mut bool) -> io::Result<AcceptedStream> {
        let mut accept = pin!(async {
            match self {
                Self::Tcp(listener) => {
                    listener.accept().await.map(|(stream, remote)| AcceptedStream::Tcp(stream, remote))
                }
                // After a unix listener was shut down, accept(2) always returns EAGAIN, but epoll always reports the
                // listener as ready. tokio's `accept` would try again without end, and block the thread. `poll_accept`
                // returns `Pending` when the task's budget is used up. The code then checks whether the socket was shut
                // down.
                Self::Unix(listener) => {
                    poll_fn(|cx| match listener.poll_accept(cx) {
                        Poll::Pending if fd::hung_up(listener.as_fd()) => Poll::Ready(Err(fd::closed())),
                        accepted => accepted.map_ok(|(stream, _)| AcceptedStream::Unix(stream)),
                    })
                    .await
                }
            }
        });
        poll_fn(|cx| {
            if is_about_to_drain() {
                return Poll::Pending;
            }
            let accepted = accept.as_mut().poll(cx);
            *was_empty |= accepted.is_pending();
            accepted
        })
        .await
    }
}

impl AcceptedStream {
    /// Starts the task of the connection. `waited` is true if the connection may have waited in the queue for so long
    /// that its client has given up. If tokio accepted the connection, the task reads from it before the event loop can
    /// see that the client has left. This cannot happen to a stream that was made from a socket of std.
    fn serve<S, B>(self, shared: &'static Shared, app: S, local: &LocalAddress, waited: bool)
    where
        S: Serve<B>,
        B: AppBody,
    {
        // The connection is counted before its task first runs. A drain that begins before the task runs must wait for
        // this connection too.
        let open = shared.connection_opened();
        match self {
            Self::Tcp(stream, remote) => {
                let peer = Peer { remote: Some(remote) };
                // If this fails, the connection is already gone. The task that serves the connection then finds that
                // out.
                let _ = stream.set_nodelay(true);
                let local = local.of_connection(|| stream.local_addr());
                tokio::spawn(connection::serve(stream, peer, local, waited, open, shared, app));
            }
            Self::Unix(stream) => {
                let peer = Peer { remote: None };
                tokio::spawn(connection::serve(stream, peer, local.0.clone(), waited, open, shared, app));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as Std;

    use tokio::time::timeout;

    use super::*;

    /// A sibling, or the master on a reload, may shut the shared socket down while this worker waits for a connection.
    #[tokio::test]
    async fn a_shutdown_of_a_listener_ends_the_wait_for_a_connection() {
        let folder = tempfile::tempdir().unwrap();
        let unix = Std::bind(folder.path().join("socket")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for socket in [Socket::Unix(unix), Socket::Tcp(tcp)] {
            let listener = match &socket {
                Socket::Unix(unix) => {
                    unix.set_nonblocking(true).unwrap();
                    TokioListener::Unix(UnixListener::from_std(unix.try_clone().unwrap()).unwrap())
                }
                Socket::Tcp(tcp) => {
                    tcp.set_nonblocking(true).unwrap();
                    TokioListener::Tcp(TcpListener::from_std(tcp.try_clone().unwrap()).unwrap())
                }
            };
            let mut was_empty = false;
            let mut wait = Box::pin(listener.accept(|| false, &mut was_empty));
            assert!(timeout(Duration::from_millis(20), &mut wait).await.is_err(), "no connection waits");
            socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Both).unwrap();
            let ended = timeout(Duration::from_secs(5), wait).await.expect("the wait ends");
            let error = ended.err().expect("no connection came");
            assert_eq!(fd::why_not_accepted(&error), NotAccepted::Closed, "{socket:?}");
        }
    }
}
