//! An HTTP/1.1 client that never retries, so that every loss is seen. The client is written by hand, because HTTP
//! libraries retry.

use std::{
    collections::BTreeMap,
    fmt,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{PATIENCE, random::Random};

/// How a request failed. Each failure is of exactly one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nothing listens at this address, or no machine has this address.
    Refused,
    ResetBeforeFirstByte,
    EofBeforeResponse,
    /// The connection was reset or closed in the middle of a response.
    CutInResponse,
    BadStatus(u16),
    Timeout,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn classify(error: &std::io::Error, begun: bool) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable => Failure::Refused,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::Timeout,
        _ if begun => Failure::CutInResponse,
        _ => Failure::ResetBeforeFirstByte,
    }
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns true if the server said that this is the last answer on the connection.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.to_ascii_lowercase().contains("close"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// Returns the pid of the worker that answered, read from the JSON body. Returns `None` if the body has no `pid`.
    pub fn pid(&self) -> Option<u32> {
        let value: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        u32::try_from(value.get("pid")?.as_u64()?).ok()
    }
}

/// Returns a request as bytes. The request keeps the connection alive unless `headers` say otherwise.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Returns a request as [`request`] does, with a JSON body and `Connection: close`.
pub fn json_request(method: &str, path: &str, body: &serde_json::Value) -> Vec<u8> {
    let headers = [("Content-Type", "application/json"), ("Connection", "close")];
    request(method, path, &headers, body.to_string().as_bytes())
}

/// Sends one request on a new connection, and panics if it fails.
pub fn get(address: SocketAddr, path: &str) -> Response {
    Connection::open(address)
        .and_then(|mut connection| connection.ask(&request("GET", path, &[("Connection", "close")], b"")))
        .unwrap_or_else(|failure| panic!("GET {path}: {failure}"))
}

/// One connection, over TCP by default. Reads have a time limit, and nothing is sent twice.
pub struct Connection<S = TcpStream> {
    stream: S,
    unread: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| classify(&error, false))?;
        stream.set_nodelay(true).map_err(|error| classify(&error, false))?;
        let connection = Self { stream, unread: Vec::new() };
        connection.patience(Duration::from_secs(30));
        Ok(connection)
    }

    /// Opens a connection as [`open`](Self::open) does, but from the address `source`. Every address in 127.0.0.0/8
    /// belongs to this machine, so a test can appear as many clients.
    pub fn open_from(source: IpAddr, address: SocketAddr) -> Result<Self, Failure> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("an address of this machine");
        socket.connect_timeout(&address.into(), PATIENCE).map_err(|error| classify(&error, false))?;
        let connection = Self { stream: socket.into(), unread: Vec::new() };
        connection.stream.set_nodelay(true).map_err(|error| classify(&error, false))?;
        connection.patience(Duration::from_secs(30));
        Ok(connection)
    }

    /// Sets how long one read may take before the request counts as timed out.
    pub fn patience(&self, within: Duration) {
        self.stream.set_read_timeout(Some(within)).expect("a timeout that is not zero");
    }

    /// Sends a FIN: the client can send no more, but it can still read the answer.
    pub fn finish_sending(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("a connected socket");
    }

    /// Sends the last bytes and a FIN in one segment. Between two calls this thread may lose the CPU, and a FIN that
    /// comes long after the last byte means that the client has given up.
    pub fn send_last(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        SockRef::from(&self.stream).set_tcp_cork(true).expect("a socket of ours");
        self.send(bytes)?;
        self.finish_sending();
        Ok(())
    }

    /// Returns true if the server has closed the connection already. A correct client checks this before it writes.
    pub fn is_over(&self) -> bool {
        let mut byte = [0];
        self.stream.set_nonblocking(true).expect("a socket of ours");
        let over = matches!(self.stream.peek(&mut byte), Ok(0));
        self.stream.set_nonblocking(false).expect("a socket of ours");
        over
    }
}

impl Connection<UnixStream> {
    pub fn open_unix(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| classify(&error, false))?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout that is not zero");
        Ok(Self::over(stream))
    }
}

impl<S: Read + Write> Connection<S> {
    /// Makes a connection from a stream that is open already.
    pub fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).map_err(|error| classify(&error, false))
    }

    pub fn ask(&mut self, request: &[u8]) -> Result<Response, Failure> {
        self.send(request)?;
        self.answer()
    }

    pub fn get(&mut self, path: &str) -> Result<Response, Failure> {
        self.ask(&request("GET", path, &[], b""))
    }

    /// Reads more bytes into the buffer, and returns false at the end of the stream.
    fn fill(&mut self) -> Result<bool, Failure> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.unread.extend_from_slice(&chunk[..read]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(classify(&error, !self.unread.is_empty())),
            }
        }
    }

    fn fill_more(&mut self) -> Result<(), Failure> {
        if self.fill()? {
            return Ok(());
        }
        Err(if self.unread.is_empty() { Failure::EofBeforeResponse } else { Failure::CutInResponse })
    }

    /// Returns the bytes up to the end of the next `mark`, and reads from the connection until `mark` has come.
    fn take_until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.unread.drain(..at + mark.len()).collect());
            }
            self.fill_more()?;
        }
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        while self.unread.len() < count {
            if !self.fill()? {
                return Err(Failure::CutInResponse);
            }
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Reads the next response, until it is complete.
    pub fn answer(&mut self) -> Result<Response, Failure> {
        loop {
            let head = self.take_until(b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut lines = head.split("\r\n");
            let status = lines
                .next()
                .and_then(|line| line.split(' ').nth(1)?.parse().ok())
                .unwrap_or_else(|| panic!("not an HTTP response: {head:?}"));
            let headers = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect();
            let mut response = Response { status, headers, body: Vec::new() };
            if (100..200).contains(&status) {
                continue;
            }
            response.body = self.body(&response)?;
            return Ok(response);
        }
    }

    fn body(&mut self, response: &Response) -> Result<Vec<u8>, Failure> {
        if matches!(response.status, 204 | 304) {
            return Ok(Vec::new());
        }
        if let Some(length) = response.header("content-length") {
            return self.take(length.parse().unwrap_or_else(|_| panic!("Content-Length: {length}")));
        }
        let mut body = Vec::new();
        if response.header("transfer-encoding").is_some() {
            loop {
                let line = String::from_utf8_lossy(&self.take_until(b"\r\n")?).into_owned();
                let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
                body.extend(self.take(size)?);
                self.take(2)?;
                if size == 0 {
                    return Ok(body);
                }
            }
        }
        while self.fill()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Reads exactly `count` bytes, without parsing them.
    pub fn read(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        self.take(count)
    }

    /// Reads everything up to the clean end of the connection.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Failure> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Waits for the clean end of the connection, and asserts that no more bytes come.
    pub fn wait_eof(&mut self) -> Result<(), Failure> {
        while self.fill()? {}
        assert_eq!(String::from_utf8_lossy(&self.unread), "", "nothing comes after the last answer");
        Ok(())
    }
}

/// How the clients of a load use their connections.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// A client uses a connection until the server says `Connection: close`, or has closed it before the next request.
    KeepAlive { think_ms: u64 },
    /// A client opens a new connection for each request.
    PerRequest { think_ms: u64 },
    /// A client opens a new connection for each request, and waits 0 to `up_to_ms` before it sends the first byte.
    SlowFirstByte { up_to_ms: u64 },
}

/// How the requests of a load ended.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub ok: u64,
    pub failures: BTreeMap<Failure, u64>,
    /// How many answers came from each worker, by its pid.
    pub pids: BTreeMap<u32, u64>,
    pub waits: Vec<Duration>,
}

impl Tally {
    pub fn lost(&self) -> u64 {
        self.failures.values().sum()
    }

    pub fn of(&self, failure: Failure) -> u64 {
        self.failures.get(&failure).copied().unwrap_or(0)
    }

    pub fn max_wait(&self) -> Duration {
        self.waits.iter().copied().max().unwrap_or_default()
    }

    pub fn p99(&self) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort();
        waits.get(waits.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
    }

    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert_eq!(self.lost(), 0, "lost of {} requests: {:?}", self.ok + self.lost(), self.failures);
        assert!(self.ok > 0, "no request was made at all");
        eprintln!("{} requests, p99 {:?}, max {:?}, {} pids", self.ok, self.p99(), self.max_wait(), self.pids.len());
    }

    pub fn with(mut self, other: Self) -> Self {
        self.add(other);
        self
    }

    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.waits.extend(other.waits);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        for (pid, count) in other.pids {
            *self.pids.entry(pid).or_default() += count;
        }
    }
}

/// Clients that send requests until they are told to finish.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts `clients` threads, each of which sends one request at a time for `path`. Any status but 200 is a failure.
    pub fn start(address: SocketAddr, path: &str, clients: u64, mode: Mode) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients)
            .map(|seed| {
                let (stop, answered, path) = (Arc::clone(&stop), Arc::clone(&answered), path.to_owned());
                thread::spawn(move || run_client(address, &path, mode, seed, &stop, &answered))
            })
            .collect();
        Self { stop, answered, clients }
    }

    /// Returns the number of requests answered with 200 so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Lets each client finish its current request, and adds up the results.
    pub fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients.drain(..) {
            tally.add(client.join().expect("a client does not panic"));
        }
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run_client(
    address: SocketAddr,
    path: &str,
    mode: Mode,
    seed: u64,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(seed);
    let mut kept: Option<Connection> = None;
    let (bytes, think_ms) = match mode {
        Mode::KeepAlive { think_ms } => (request("GET", path, &[], b""), think_ms),
        Mode::PerRequest { think_ms } => (request("GET", path, &[("Connection", "close")], b""), think_ms),
        Mode::SlowFirstByte { .. } => (request("GET", path, &[("Connection", "close")], b""), 0),
    };
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let mut silent = Duration::ZERO;
        let connection = match kept.take().filter(|connection| !connection.is_over()) {
            Some(connection) => Ok(connection),
            None => Connection::open(address),
        };
        let outcome = connection.and_then(|mut connection| {
            if let Mode::SlowFirstByte { up_to_ms } = mode {
                silent = random.millis(up_to_ms);
                thread::sleep(silent);
            }
            let response = connection.ask(&bytes)?;
            Ok((connection, response))
        });
        match outcome {
            Ok((connection, response)) if response.status == 200 => {
                tally.ok += 1;
                answered.fetch_add(1, Ordering::Relaxed);
                tally.waits.push(started.elapsed().saturating_sub(silent));
                if let Some(pid) = response.pid() {
                    *tally.pids.entry(pid).or_default() += 1;
                }
                if matches!(mode, Mode::KeepAlive { .. }) && !response.closes() {
                    kept = Some(connection);
                }
            }
            Ok((_, response)) => *tally.failures.entry(Failure::BadStatus(response.status)).or_default() += 1,
            Err(failure) => {
                *tally.failures.entry(failure).or_default() += 1;
                // Without this pause, a client that is refused would send requests in a busy loop.
                thread::sleep(Duration::from_millis(5));
            }
        }
        thread::sleep(random.millis(think_ms));
    }
    tally
}

/// Measures stalls of the machine: it sleeps for a millisecond again and again. If a sleep takes longer, the machine
/// has stalled, and the supervisor is not at fault.
pub struct Canary {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Duration>>,
}

impl Canary {
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let started = Instant::now();
                thread::sleep(Duration::from_millis(1));
                longest = longest.max(started.elapsed());
            }
            longest
        });
        Self { stop, thread: Some(thread) }
    }

    /// Returns the longest stall since the start.
    pub fn longest(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("asked once").join().expect("the canary does not panic")
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
