//! Many clients that run in one thread and never retry. Each of their requests ends in exactly one class.
//!
//! Owns: the behaviour of the clients, the ends of their requests, and the stalls of their own thread. Refuses: to
//! judge a loss or a wait (the report does).

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    runtime::{Builder, Handle},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::common::{Failure, Random, Tally, now};

/// The time limit for one request. A request that takes longer counts as failed.
const TOO_LONG: Duration = Duration::from_secs(15);

/// A request that waits longer than this is recorded as an event of its own, so that the report can explain it.
pub const LONG_WAIT: Duration = Duration::from_millis(500);

/// The address or addresses that the clients connect to.
#[derive(Clone, Debug)]
pub enum Target {
    /// Several TCP addresses, which the clients use in turn.
    Tcp(Vec<SocketAddr>),
    Unix(PathBuf),
}

/// One kind of client: how it behaves, and how many there are.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Each client uses one connection until the server says `Connection: close` or has closed it before the next
    /// request. `think_ms` is the longest pause between two requests; with 0 the clients saturate the service.
    KeepAlive { clients: u64, think_ms: u64 },
    /// Each client opens a new connection for each request, and sends the next request as soon as the last one is
    /// answered.
    PerRequest { clients: u64 },
    /// New connections come at a fixed rate, whether or not earlier requests were answered. Each client is silent for
    /// up to `silent_ms` before its first byte.
    Arrivals { per_second: u64, silent_ms: u64 },
}

impl Manner {
    pub fn name(self) -> String {
        match self {
            Self::KeepAlive { clients, think_ms: 0 } => format!("{clients} keep-alive, saturating"),
            Self::KeepAlive { clients, think_ms } => format!("{clients} keep-alive, think 0-{think_ms} ms"),
            Self::PerRequest { clients } => format!("{clients} with a connection per request"),
            Self::Arrivals { per_second, silent_ms: 0 } => format!("{per_second} connections a second"),
            Self::Arrivals { per_second, silent_ms } => format!("{per_second} a second, silent 0-{silent_ms} ms"),
        }
    }
}

/// A request that was lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub failure: Failure,
    pub at: Instant,
    /// The pid of the worker that had answered an earlier request on this connection; `None` if there was no earlier
    /// answer.
    pub pid: Option<u32>,
}

/// A request that was answered late: it waited longer than `LONG_WAIT`.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    pub from: Instant,
    pub to: Instant,
    /// How long the client itself was silent while the request waited.
    pub silent: Duration,
    pub pid: Option<u32>,
}

/// The results of all requests of one kind of client.
#[derive(Debug, Default)]
pub struct Score {
    pub tally: Tally,
    pub losses: Vec<Loss>,
    pub slow: Vec<Slow>,
}

/// A period in which a worker stood still because the test stopped or blocked it.
#[derive(Clone, Copy, Debug)]
pub struct Hang {
    pub pid: u32,
    pub from: Instant,
    pub to: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    finishing: AtomicBool,
    answered: AtomicU64,
    blocks: Mutex<Vec<Block>>,
}

type Block = tokio::task::JoinHandle<Result<Option<Hang>, Loss>>;

/// The clients while they run. `finish` ends them and returns the outcome.
#[derive(Debug)]
pub struct Swarm {
    target: Target,
    shared: Arc<Shared>,
    handle: Handle,
    thread: Option<JoinHandle<Outcome>>,
}

/// The results of all kinds of client, in the order in which the kinds were given. The other fields help a reader to
/// judge these results.
#[derive(Debug)]
pub struct Outcome {
    pub scores: Vec<(Manner, Score)>,
    /// The hangs that [`Swarm::block_a_worker`] caused.
    pub blocks: Vec<Hang>,
    /// The losses among the requests with which the swarm itself blocked workers.
    pub block_losses: Vec<Loss>,
    /// The longest time for which the clients' own thread stood still.
    pub stall: Duration,
}

impl Swarm {
    pub fn start(target: Target, path: &'static str, manners: &[Manner], seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime for the clients");
        let handle = runtime.handle().clone();
        let (manners, at, told) = (manners.to_vec(), target.clone(), Arc::clone(&shared));
        let clients = move || runtime.block_on(swarm(at, path, manners, seed, told));
        let thread = thread::Builder::new().spawn(clients).expect("a thread for the clients");
        Self { target, shared, handle, thread: Some(thread) }
    }

    /// Returns how many requests have been answered with 200 so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// Blocks the thread of a worker for `ms` milliseconds. The worker is the one that takes a new connection. The
    /// first request on this connection asks for the worker's pid, and the second request blocks the worker. If the
    /// worker closes the connection after the first answer, nothing is blocked.
    pub fn block_a_worker(&self, ms: u64) {
        let block = self.handle.spawn(block(self.target.clone(), ms));
        lock(&self.shared.blocks).push(block);
    }

    /// Tells the clients to stop, lets each of them finish its present request, and returns the outcome.
    pub fn finish(mut self) -> Outcome {
        self.shared.finishing.store(true, Relaxed);
        let thread = self.thread.take().expect("finished once");
        thread.join().expect("the clients do not panic")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.shared.finishing.store(true, Relaxed);
    }
}

async fn swarm(target: Target, path: &'static str, manners: Vec<Manner>, seed: u64, shared: Arc<Shared>) -> Outcome {
    let mut clients = JoinSet::new();
    let mut random = Random::new(seed);
    let stall = tokio::spawn(watch_stalls(Arc::clone(&shared)));
    let scores: Vec<_> = manners.iter().map(|_| Arc::new(Mutex::new(Score::default()))).collect();
    for (&manner, score) in manners.iter().zip(&scores) {
        let client =
            |random| Client { target: target.clone(), shared: Arc::clone(&shared), score: Arc::clone(score), random };
        match manner {
            Manner::KeepAlive { clients: count, think_ms } => {
                for _ in 0..count {
                    clients.spawn(client(random.fork()).keep_alive(path, think_ms));
                }
            }
            Manner::PerRequest { clients: count } => {
                for _ in 0..count {
                    clients.spawn(client(random.fork()).per_request(path));
                }
            }
            Manner::Arrivals { per_second, silent_ms } => {
                clients.spawn(client(random.fork()).arrivals(path, per_second, silent_ms));
            }
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    let scores = scores.iter().map(|score| std::mem::take(&mut *lock(score)));
    let scores = manners.iter().copied().zip(scores).collect();
    let (mut blocks, mut block_losses) = (Vec::new(), Vec::new());
    let begun = std::mem::take(&mut *lock(&shared.blocks));
    for block in begun {
        match block.await.expect("a client does not panic") {
            Ok(hang) => blocks.extend(hang),
            Err(loss) => block_losses.push(loss),
        }
    }
    Outcome { scores, blocks, block_losses, stall: stall.await.expect("the watch does not panic") }
}

async fn block(target: Target, ms: u64) -> Result<Option<Hang>, Loss> {
    let lost = |pid| move |failure| Loss { failure, at: now(), pid };
    let mut wire = Wire::open(&target, 0).await.map_err(lost(None))?;
    let answer = wire.ask(&get("/debug/connections", false)).await.map_err(lost(None))?;
    let Some(pid) = answer.pid.filter(|_| !answer.closes) else { return Ok(None) };
    let from = now();
    wire.ask(&get(&format!("/debug/block/{ms}"), true)).await.map_err(lost(Some(pid)))?;
    Ok(Some(Hang { pid, from, to: now() }))
}

/// Returns the longest time for which the clients' own thread stood still. The report needs it, because every measured
/// wait contains such stalls.
async fn watch_stalls(shared: Arc<Shared>) -> Duration {
    const NAP: Duration = Duration::from_millis(5);
    let mut longest = Duration::ZERO;
    while !shared.finishing.load(Relaxed) {
        let asleep = now();
        sleep(NAP).await;
        longest = longest.max(asleep.elapsed().saturating_sub(NAP));
    }
    longest
}

struct Client {
    target: Target,
    shared: Arc<Shared>,
    score: Arc<Mutex<Score>>,
    random: Random,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.shared.finishing.load(Relaxed)
    }

    async fn keep_alive(mut self, path: &str, think_ms: u64) {
        let bytes = get(path, false);
        let mut kept: Option<Wire> = None;
        if think_ms > 0 {
            sleep(self.random.millis(think_ms)).await;
        }
        while self.goes_on() {
            let from = now();
            let wire = kept.take().and_then(|mut wire| (!wire.is_over()).then_some(wire));
            let pid = wire.as_ref().and_then(|wire| wire.pid);
            let asked = timeout(TOO_LONG, async {
                let mut wire = match wire {
                    Some(wire) => wire,
                    None => Wire::open(&self.target, self.random.number()).await?,
                };
                let answer = wire.ask(&bytes).await?;
                Ok((wire, answer))
            });
            let asked = asked.await.unwrap_or(Err(Failure::Timeout));
            if let Some((wire, false)) = self.note(from, Duration::ZERO, pid, asked).await {
                kept = Some(wire);
            }
            if think_ms > 0 {
                sleep(self.random.millis(think_ms)).await;
            }
        }
    }

    async fn per_request(mut self, path: &str) {
        let bytes = get(path, true);
        while self.goes_on() {
            self.one(&bytes, Duration::ZERO).await;
        }
    }

    async fn arrivals(mut self, path: &str, per_second: u64, silent_ms: u64) {
        let bytes: Arc<[u8]> = get(path, true).into();
        let gap = Duration::from_secs(1) / u32::try_from(per_second).expect("some thousands at most");
        let mut open = JoinSet::new();
        let mut due = tokio::time::Instant::now();
        while self.goes_on() {
            sleep_until(due).await;
            due += gap;
            let silent = self.random.millis(silent_ms);
            let random = self.random.fork();
            let Self { target, shared, score, .. } = &self;
            let mut one = Self { target: target.clone(), shared: Arc::clone(shared), score: Arc::clone(score), random };
            let bytes = Arc::clone(&bytes);
            open.spawn(async move { one.one(&bytes, silent).await });
            while open.try_join_next().is_some() {}
        }
        open.join_all().await;
    }

    async fn one(&mut self, bytes: &[u8], silent: Duration) {
        let (from, port) = (now(), self.random.number());
        let asked = timeout(TOO_LONG + silent, async {
            let mut wire = Wire::open(&self.target, port).await?;
            if !silent.is_zero() {
                sleep(silent).await;
            }
            let answer = wire.ask(bytes).await?;
            Ok((wire, answer))
        });
        let asked = asked.await.unwrap_or(Err(Failure::Timeout));
        self.note(from, silent, None, asked).await;
    }

    /// Counts the request in its class. If the request was answered, returns its connection, and true if the connection
    /// must be closed.
    async fn note(
        &self,
        from: Instant,
        silent: Duration,
        pid: Option<u32>,
        asked: Result<(Wire, Answer), Failure>,
    ) -> Option<(Wire, bool)> {
        let at = now();
        let outcome = asked.and_then(|(wire, answer)| match answer.status {
            200 => Ok((wire, answer)),
            status => Err(Failure::BadStatus(status)),
        });
        match outcome {
            Ok((wire, answer)) => {
                self.shared.answered.fetch_add(1, Relaxed);
                let wait = (at - from).saturating_sub(silent);
                let mut score = lock(&self.score);
                score.tally.ok += 1;
                score.tally.waits.push(wait);
                if let Some(pid) = answer.pid {
                    *score.tally.pids.entry(pid).or_default() += 1;
                }
                if wait > LONG_WAIT {
                    score.slow.push(Slow { from, to: at, silent, pid: answer.pid });
                }
                Some((wire, answer.closes))
            }
            Err(failure) => {
                {
                    let mut score = lock(&self.score);
                    *score.tally.failures.entry(failure).or_default() += 1;
                    score.losses.push(Loss { failure, at, pid });
                }
                // Without this pause, a client whose connection is refused would try again in a busy loop.
                sleep(Duration::from_millis(5)).await;
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no client panics while it holds a score")
}

fn get(path: &str, close: bool) -> Vec<u8> {
    let close = if close { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n").into_bytes()
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection, on which each request is sent at most once.
struct Wire {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
    pid: Option<u32>,
}

struct Answer {
    status: u16,
    closes: bool,
    pid: Option<u32>,
}

impl Wire {
    async fn open(target: &Target, turn: u64) -> Result<Self, Failure> {
        let opened = async {
            let stream: Box<dyn Stream> = match target {
                Target::Tcp(addresses) => {
                    let address = addresses[usize::try_from(turn % addresses.len() as u64).expect("an index")];
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
                Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
            };
            Ok(stream)
        };
        let stream = opened.await.map_err(|error| classify(&error, false))?;
        Ok(Self { stream, unread: Vec::new(), pid: None })
    }

    /// Returns true if the server has already closed the connection. A correct client checks this before it sends a
    /// request.
    fn is_over(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_ready()
    }

    async fn ask(&mut self, bytes: &[u8]) -> Result<Answer, Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let wrote = std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_write(cx, rest)).await;
            rest = &rest[wrote.map_err(|error| classify(&error, false))?..];
        }
        let head = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let text = std::str::from_utf8(&self.unread[..head]).expect("an HTTP head is ASCII");
        let header = |name: &str| {
            text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an HTTP status line");
        let length = header("content-length").and_then(|(_, length)| length.trim().parse::<usize>().ok());
        let length = length.expect("every route that is asked for says its length");
        let closes = header("connection").is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("close"));
        while self.unread.len() < head + length {
            self.fill().await?;
        }
        let pid = pid(&self.unread[head..head + length]);
        self.unread.drain(..head + length);
        self.pid = pid;
        Ok(Answer { status, closes, pid })
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        let mut chunk = [0; 4096];
        let begun = !self.unread.is_empty();
        let mut buffer = ReadBuf::new(&mut chunk);
        let read = std::future::poll_fn(|cx: &mut Context<'_>| -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, &mut buffer)
        });
        read.await.map_err(|error| classify(&error, begun))?;
        match buffer.filled() {
            [] if begun => Err(Failure::CutInResponse),
            [] => Err(Failure::EofBeforeResponse),
            bytes => {
                self.unread.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Returns the number after `"pid":`. It does not parse the rest of the answer, because parsing would be slow for a
/// hundred thousand answers.
fn pid(body: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("\"pid\":")?;
    rest.split(|sign: char| !sign.is_ascii_digit()).next()?.parse().ok()
}

fn classify(error: &io::Error, begun: bool) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::Refused,
        // connect() on a unix socket fails with this error when the socket's queue is full.
        io::ErrorKind::WouldBlock => Failure::Refused,
        io::ErrorKind::TimedOut => Failure::Timeout,
        _ if begun => Failure::CutInResponse,
        _ => Failure::ResetBeforeFirstByte,
    }
}
