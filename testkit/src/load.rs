//! The one client that measures every peer. A load says how many connections it uses, at which pace, and what it asks
//! for. The client notes how each request ended.
//!
//! Owns: the threads, the pace, and the clock that measures a request. Refuses: to send a request again, and to count a
//! request twice or not at all.
//!
//! At *saturation*, each connection sends the next request as soon as the last answer is there. A *paced* load sends at
//! a fixed rate, which slow answers do not change. Each request is due at a fixed time. Its latency counts from that
//! time, even if all connections were still waiting for an answer.

mod end;
mod http1;
mod http2;
mod pace;
mod tally;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread::{Builder, JoinHandle, available_parallelism, sleep},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::LocalSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

pub use self::{end::End, tally::Tally};
use crate::now;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the client waits for an answer. The client assumes that a later answer will never come, and a longer wait
/// would delay the turn.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed connection attempt. Without this pause the client would try again as fast as the server
/// refuses.
const AFTER_REFUSAL: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    /// How many requests are sent in a second; `None` means saturation.
    pub rate: Option<f64>,
    pub wire: Wire,
    pub path: &'static str,
    /// The bytes in the body of a request; 0 means a GET.
    pub body: usize,
    /// With `(n, path)`, every n-th request asks for `path`, which the server answers slowly. The end of such a request
    /// is counted, but its latency is not.
    pub slow: Option<(u64, &'static str)>,
    /// True if the body of each answer is the pid of the worker that answered.
    pub who: bool,
    pub mark: Arc<Mark>,
}

#[derive(Clone, Default)]
pub struct Wire {
    /// True if each request gets a new connection.
    pub per_request: bool,
    pub tls: Option<TlsConnector>,
    /// `None` for HTTP/1; for HTTP/2 the number of streams that each connection uses at the same time.
    pub streams: Option<usize>,
}

/// The moment at which the benchmark does something to the server. The tally separates requests that were sent before
/// this moment from later requests.
pub struct Mark {
    epoch: Instant,
    /// The moment in nanoseconds since `epoch`. `u64::MAX` until the benchmark does something to the server.
    at: AtomicU64,
    /// The pid of the worker to which the benchmark does something. 0 if it does something to the whole service.
    victim: AtomicU32,
}

impl Mark {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epoch: now(), at: AtomicU64::new(u64::MAX), victim: AtomicU32::new(0) })
    }

    pub fn set(&self, victim: u32) -> Instant {
        let at = now();
        self.victim.store(victim, Ordering::Relaxed);
        self.at.store((at - self.epoch).as_nanos() as u64, Ordering::Release);
        at
    }

    fn get(&self) -> Option<(Instant, u32)> {
        let at = self.at.load(Ordering::Acquire);
        (at != u64::MAX).then(|| (self.epoch + Duration::from_nanos(at), self.victim.load(Ordering::Relaxed)))
    }
}

impl Load {
    /// Makes a load of keep-alive connections that send the next request as soon as they have an answer.
    pub fn saturating(address: SocketAddr, connections: usize, path: &'static str) -> Self {
        Self {
            address,
            connections,
            rate: None,
            wire: Wire::default(),
            path,
            body: 0,
            slow: None,
            who: false,
            mark: Mark::new(),
        }
    }

    pub fn paced(address: SocketAddr, connections: usize, path: &'static str, rate: f64) -> Self {
        Self { rate: Some(rate), ..Self::saturating(address, connections, path) }
    }

    pub fn start(self) -> Running {
        // The client uses half of the cores. The server needs the other half, and more client threads would only
        // compete with the server.
        let cores = available_parallelism().map_or(1, usize::from);
        let threads = (cores / 2).clamp(1, self.connections);
        let (begun, stop) = (now(), Arc::new(AtomicBool::new(false)));
        let threads = (0..threads)
            .map(|thread| {
                let mut load = self.clone();
                load.connections = (self.connections + thread) / threads;
                load.rate = self.rate.map(|rate| rate / threads as f64);
                let stop = Arc::clone(&stop);
                let named = Builder::new().name("client".to_owned());
                named.spawn(move || drive(load, begun, stop)).expect("a thread can be started")
            })
            .collect();
        Running { begun, stop, threads }
    }

    pub fn run(self, time: Duration) -> Tally {
        let running = self.start();
        sleep(time);
        running.finish()
    }

    fn request(&self, path: &str) -> Vec<u8> {
        let method = if self.body == 0 { "GET" } else { "POST" };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\n", self.address);
        if self.wire.per_request {
            head += "Connection: close\r\n";
        }
        if self.body > 0 {
            head += &format!("Content-Type: application/octet-stream\r\nContent-Length: {}\r\n", self.body);
        }
        let mut request = (head + "\r\n").into_bytes();
        request.resize(request.len() + self.body, b'x');
        request
    }
}

/// A load that is running, with the threads that send its requests.
pub struct Running {
    begun: Instant,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Running {
    /// Lets each request in flight end, and returns what was measured.
    pub fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let time = self.begun.elapsed();
        let tallies = self.threads.into_iter().map(|thread| thread.join().expect("the client does not panic"));
        let mut whole = tallies.reduce(Tally::with).expect("there is a thread");
        whole.time = time;
        whole
    }
}

/// The state that all connections of one thread share.
struct Thread {
    load: Load,
    stop: Arc<AtomicBool>,
    queue: Option<pace::Queue>,
    asked: Cell<u64>,
    tally: RefCell<Tally>,
}

fn drive(load: Load, begun: Instant, stop: Arc<AtomicBool>) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let queue = load.rate.map(|_| pace::Queue::default());
    let connections = load.connections;
    let thread = Rc::new(Thread { load, stop, queue, asked: Cell::new(0), tally: RefCell::new(Tally::new(begun)) });
    let all = LocalSet::new();
    all.block_on(&runtime, async {
        let mut tasks: Vec<_> = (0..connections)
            .map(|_| {
                let thread = Rc::clone(&thread);
                if thread.load.wire.streams.is_some() {
                    tokio::task::spawn_local(http2::connection(thread))
                } else {
                    tokio::task::spawn_local(http1::connection(thread))
                }
            })
            .collect();
        if let Some(queue) = &thread.queue {
            queue.fill(begun, thread.load.rate.unwrap_or(1.0), || thread.is_over()).await;
        }
        for task in tasks.drain(..) {
            task.await.expect("a connection does not panic");
        }
    });
    thread.tally.replace(Tally::new(begun))
}

/// The times of one request, and how it ended.
struct Outcome {
    due: Instant,
    sent: Instant,
    end: End,
    slow: bool,
    /// The pid of the worker that answered this request. If the request failed, this is the pid of the worker that
    /// answered the previous request on the same connection.
    server: Option<u32>,
}

impl Thread {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until the next request is due, and returns the time at which it is due; `None` when the load is over.
    async fn next(&self) -> Option<Instant> {
        match &self.queue {
            Some(queue) => queue.next().await,
            None => (!self.is_over()).then(now),
        }
    }

    /// Returns true if the next request asks for the slow path. Call this function once for each request, because it
    /// counts the requests.
    fn is_slow(&self) -> bool {
        let asked = self.asked.get() + 1;
        self.asked.set(asked);
        self.load.slow.is_some_and(|(every, _)| asked.is_multiple_of(every))
    }

    fn note(&self, outcome: &Outcome) {
        self.tally.borrow_mut().note(outcome, now(), self.load.mark.get());
    }

    async fn connect(&self) -> Result<Stream, End> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.load.address)).await;
        let tcp = match connected {
            Err(_) => return Err(End::ConnectTimeout),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(End::Refused),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Err(End::Reset),
            Ok(Err(_)) => return Err(End::NoConnection),
            Ok(Ok(tcp)) => tcp,
        };
        if !self.load.wire.per_request {
            let _ = tcp.set_nodelay(true);
        }
        let Some(connector) = &self.load.wire.tls else { return Ok(Stream::Tcp(tcp)) };
        let name = ServerName::try_from("localhost").expect("a name");
        match timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await {
            Err(_) => Err(End::ConnectTimeout),
            Ok(Err(_)) => Err(End::NoTls),
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
