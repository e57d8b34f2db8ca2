//! `oxicorn health`: sends one GET to the service, for containers that have no curl. It uses TLS if the service does.
//!
//! Owns: the choice of the address and the path, the statuses that mean alive, and one short deadline for the whole
//! command. The running master says where it listens, which protocols it speaks there, and which path it is asked at. The settings are read only if no master answers, because the settings
//! file may have been edited since the start. Refuses: to follow redirects, to read bodies, to take https URLs, and to
//! verify certificates. The command only asks a service on the same machine if it is alive, so the identity of the
//! server does not matter.

#[cfg(feature = "tls")]
mod any_certificate;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    ControlEndpoint,
    conversation::{Failed, ask_status},
};
use crate::{
    log::terminal,
    protocol::{HealthCheck, Status, WorkerState},
    settings::{Bind, Settings},
    sys::clock,
};

/// The time for the whole command: asking the master, connecting, sending the GET and reading the first line of the
/// answer.
const PATIENCE_MS: u64 = 3_000;
/// The time that the master has to answer, as a part of `PATIENCE_MS`. A master normally answers in about a
/// millisecond.
const MASTER: Duration = Duration::from_secs(1);
/// The largest number of bytes that are read to find the end of the status line. A real status line is much shorter.
const LINE_MAX: usize = 1024;

/// What the GET needs: the addresses of the service, the path and the statuses that count, and the protocols that the
/// service speaks.
#[derive(Debug, PartialEq)]
struct HealthProbe {
    /// The addresses of the service. If one of them accepts no connection, the next one is tried.
    addresses: Vec<HealthAddress>,
    check: HealthCheck,
    /// The PROXY header that the service requires; empty if it requires none. It is sent first, before the TLS
    /// handshake.
    proxy_header: &'static [u8],
    tls: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum HealthAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Sends one GET to the service, and succeeds if the status of the answer means that the service is alive. `settings` is
/// called only if no master answers; it returns `None` if the settings are not valid. `any_answer_is_alive` is the word
/// of this program's runtime.
pub(crate) fn health(
    url: Option<&str>,
    endpoint: &ControlEndpoint,
    settings: &dyn Fn() -> Option<Settings>,
    any_answer_is_alive: bool,
) -> Result<(), Failed> {
    let until = clock::now() + PATIENCE_MS;
    if let Some(url) = url.filter(|url| !url.starts_with('/')) {
        return ask_all(&of_url(url).map_err(Failed::Refused)?, until).map_err(Failed::Refused);
    }
    let asked = url.map(HealthCheck::at);
    let running = endpoint.connect(MASTER).and_then(|reached| ask_status(&reached, MASTER).map_err(Failed::Refused));
    match running {
        Ok(status) if status.speaks.client_ca => of_workers(&status),
        Ok(status) => ask_all(&of_master(&status, asked.as_ref().unwrap_or(&status.health)), until),
        Err(unknown) => {
            // The reason may have several lines, one for each service found, but the note must be one line.
            let unknown = unknown.to_string().replace('\n', " ");
            terminal::note(&format!(
                "the running service was not asked where it listens, so the settings say: {unknown}"
            ));
            let settings =
                settings().ok_or("the settings are not valid (the command check says why); give a whole URL");
            settings.map_err(str::to_owned).and_then(|settings| {
                let own = HealthCheck::of(&settings.http.health_path, any_answer_is_alive);
                ask_all(&of_settings(&settings, asked.as_ref().unwrap_or(&own))?, until)
            })
        }
    }
    .map_err(Failed::Refused)
}

/// Sends the GET to the first address that accepts a connection, and succeeds if the status means alive.
fn ask_all(probe: &HealthProbe, until: u64) -> Result<(), String> {
    let path = &probe.check.path;
    let mut refused = Vec::new();
    for address in &probe.addresses {
        let place = match address {
            HealthAddress::Tcp { host, port } => {
                format!("{}://{host}:{port}{}", if probe.tls { "https" } else { "http" }, path)
            }
            HealthAddress::Unix(socket) => format!("unix:{} {path}", socket.display()),
        };
        match connect(address, until) {
            Ok(socket) => {
                return match ask(socket, address, probe, until) {
                    Ok(status) if probe.check.is_alive(status) => Ok(()),
                    Ok(status) => Err(format!("{place} answers {status}")),
                    Err(error) => Err(format!("{place}: {error}")),
                };
            }
            Err(error) => refused.push(format!("{place}: {error}")),
        }
    }
    Err(if refused.is_empty() { "there is no address to ask; give a URL".to_owned() } else { refused.join("; ") })
}

fn of_url(url: &str) -> Result<HealthProbe, String> {
    let plain = |address, check| HealthProbe { addresses: vec![address], check, proxy_header: b"", tls: false };
    if let Some(path) = url.strip_prefix("unix:") {
        return Ok(plain(HealthAddress::Unix(path.into()), HealthCheck::default()));
    }
    let refused = || format!("\"{url}\" is not http://host:port/path, unix:/path or a path");
    let uri: http::Uri = url.parse().map_err(|_| refused())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(refused)?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let address = HealthAddress::Tcp { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) };
    Ok(plain(address, HealthCheck::at(path)))
}

/// Builds a probe from the status of the running master. It leaves out addresses to which no client can connect, such
/// as an unnamed unix socket.
fn of_master(status: &Status, check: &HealthCheck) -> HealthProbe {
    let addresses = status.listeners.iter().flat_map(|listener| match listener.address.strip_prefix("unix:") {
        Some(socket) if socket.starts_with('/') => vec![HealthAddress::Unix(socket.into())],
        Some(_) => Vec::new(),
        None => listener.address.parse::<SocketAddr>().map_or_else(|_| Vec::new(), |tcp| reachable(&tcp)),
    });
    HealthProbe {
        addresses: addresses.collect(),
        check: check.clone(),
        proxy_header: proxy_header(&status.speaks.proxy_protocol),
        tls: status.speaks.tls,
    }
}

/// Succeeds if the master says that at least one worker serves. It is used if clients must show a certificate, because
/// `health` has none and cannot ask a worker.
fn of_workers(status: &Status) -> Result<(), String> {
    let serving = status.workers.iter().filter(|worker| worker.state == WorkerState::Serving).count();
    let told = format!(
        "each client needs a certificate (tls.client_ca), so the master was asked: it says that {serving} workers serve"
    );
    if serving == 0 {
        return Err(told);
    }
    terminal::note(&told);
    Ok(())
}

fn of_settings(settings: &Settings, check: &HealthCheck) -> Result<HealthProbe, String> {
    if settings.tls.client_ca.is_some() {
        return Err("tls.client_ca makes clients show a certificate, and health has none".to_owned());
    }
    let addresses = settings.server.bind.iter().flat_map(|bind| match bind {
        Bind::Tcp { host, port } => {
            let bare = host.trim_matches(['[', ']']);
            match bare.parse::<IpAddr>() {
                Ok(ip) => reachable(&SocketAddr::new(ip, *port)),
                Err(_) if *port == 0 => Vec::new(),
                Err(_) => vec![HealthAddress::Tcp { host: bare.to_owned(), port: *port }],
            }
        }
        Bind::Unix(path) => vec![HealthAddress::Unix(path.clone())],
        Bind::Fd(_) => Vec::new(),
    });
    let addresses: Vec<_> = addresses.collect();
    if addresses.is_empty() {
        return Err(
            "server.bind names no address to ask: the kernel, or another program, chose it; give a URL".to_owned()
        );
    }
    Ok(HealthProbe {
        addresses,
        check: check.clone(),
        proxy_header: proxy_header(&settings.server.proxy_protocol.to_string()),
        tls: settings.tls.certfile.is_some(),
    })
}

/// Returns the addresses at which a bound address can be reached. For a wildcard address the result is the loopback
/// addresses. For `[::]` the result is `::1` and 127.0.0.1, because `[::]` takes IPv4 too and `::1` may be missing on
/// this machine.
fn reachable(bound: &SocketAddr) -> Vec<HealthAddress> {
    let at = |ip: IpAddr| HealthAddress::Tcp {
        host: SocketAddr::new(ip, 0).to_string().trim_end_matches(":0").to_owned(),
        port: bound.port(),
    };
    match bound.ip() {
        _ if bound.port() == 0 => Vec::new(),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![at(Ipv4Addr::LOCALHOST.into())],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![at(Ipv6Addr::LOCALHOST.into()), at(Ipv4Addr::LOCALHOST.into())],
        ip => vec![at(ip)],
    }
}

/// Returns the PROXY header to send; it is empty if none is required. The header must not name a client, because no
/// proxy passes on a connection here. So it says `UNKNOWN` in version 1, and `LOCAL` in version 2.
fn proxy_header(required: &str) -> &'static [u8] {
    match required {
        "v1" => b"PROXY UNKNOWN\r\n",
        "v2" => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        _ => b"",
    }
}

fn connect(address: &HealthAddress, until: u64) -> io::Result<Socket> {
    match address {
        HealthAddress::Tcp { host, port } => connect_tcp(host, *port, until),
        HealthAddress::Unix(path) => connect_unix(path),
    }
}

fn ask(socket: Socket, address: &HealthAddress, probe: &HealthProbe, until: u64) -> io::Result<u16> {
    let host = match address {
        HealthAddress::Tcp { host, port } => format!("{host}:{port}"),
        HealthAddress::Unix(_) => "localhost".to_owned(),
    };
    let mut stream = Hurried { socket, until };
    stream.write_all(probe.proxy_header)?;
    if !probe.tls {
        return status_of(stream, &host, &probe.check.path);
    }
    #[cfg(feature = "tls")]
    return status_of(any_certificate::over_tls(stream)?, &host, &probe.check.path);
    #[cfg(not(feature = "tls"))]
    Err(io::Error::new(ErrorKind::Unsupported, "TLS is spoken there, and this program was built without it"))
}

fn connect_tcp(host: &str, port: u16, until: u64) -> io::Result<Socket> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host.trim_matches(['[', ']']), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects without waiting. If the accept queue of a unix socket is full, a wait for room in the queue could last for
/// ever. If the queue has room, the connect succeeds at once.
fn connect_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::other("no process accepts connections, and the queue is full"),
        _ => error,
    })?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// A socket whose reads and writes fail when the time `until` is reached.
struct Hurried {
    socket: Socket,
    until: u64,
}

impl Read for Hurried {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.until)?))?;
        self.socket.read(buffer).map_err(in_time)
    }
}

impl Write for Hurried {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.until)?))?;
        self.socket.write(bytes).map_err(in_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends one GET, and returns the status code of the answer.
fn status_of<S: Read + Write>(mut stream: S, host: &str, path: &str) -> io::Result<u16> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: oxicorn-health\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut line, mut chunk) = (Vec::new(), [0; 256]);
    while !line.contains(&b'\n') {
        match stream.read(&mut chunk)? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed without an answer")),
            len => line.extend(&chunk[..len]),
        }
        if line.len() > LINE_MAX {
            break;
        }
    }
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP/1"))
}

fn left(until: u64) -> io::Result<Duration> {
    match until.saturating_sub(clock::now()) {
        0 => Err(late()),
        ms => Ok(Duration::from_millis(ms)),
    }
}

/// Replaces the error EAGAIN, with which the kernel reports the timeout of a socket, by an error that names the
/// timeout.
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { late() } else { error }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("no answer within {PATIENCE_MS} ms"))
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead, net::TcpListener};

    use super::*;

    fn plain(address: HealthAddress) -> HealthProbe {
        HealthProbe { addresses: vec![address], check: HealthCheck::default(), proxy_header: b"", tls: false }
    }

    fn asked(probe: &HealthProbe) -> io::Result<u16> {
        let until = clock::now() + PATIENCE_MS;
        ask(connect(&probe.addresses[0], until)?, &probe.addresses[0], probe, until)
    }

    fn shown(probe: HealthProbe) -> String {
        let address = |address: &HealthAddress| match address {
            HealthAddress::Tcp { host, port } => format!("{host}:{port}"),
            HealthAddress::Unix(socket) => socket.display().to_string(),
        };
        let addresses: Vec<_> = probe.addresses.iter().map(address).collect();
        format!("{} {}", addresses.join(","), probe.check.path)
    }

    #[test]
    fn a_url_names_what_is_asked() {
        for (url, expected) in [
            ("http://[::1]:9/x?y=1", "[::1]:9 /x?y=1"),
            ("http://localhost", "localhost:80 /"),
            ("unix:/run/b", "/run/b /health"),
        ] {
            assert_eq!(of_url(url).map(shown).as_deref(), Ok(expected), "{url:?}");
        }
        for url in ["https://a/", "localhost:80", ""] {
            let refused = of_url(url).unwrap_err();
            assert!(refused.contains("is not http://"), "{url:?}: {refused}");
        }
    }

    #[test]
    fn every_kind_of_listener_can_be_asked() {
        let tcp = |host: &str, port| Bind::Tcp { host: host.to_owned(), port };
        let probed = |bind: &[Bind]| {
            let mut settings = Settings::default();
            settings.server.bind = bind.to_vec();
            of_settings(&settings, &HealthCheck::default()).map(shown)
        };
        for (bind, expected) in [
            (tcp("127.0.0.1", 8000), "127.0.0.1:8000"),
            (tcp("0.0.0.0", 80), "127.0.0.1:80"),
            (tcp("[::]", 80), "[::1]:80,127.0.0.1:80"),
            (tcp("::", 80), "[::1]:80,127.0.0.1:80"),
            (tcp("[fe80::1]", 80), "[fe80::1]:80"),
            (tcp("example.org", 81), "example.org:81"),
            (Bind::Unix("/run/a".into()), "/run/a"),
        ] {
            assert_eq!(probed(&[Bind::Fd(3), bind]), Ok(format!("{expected} /health")));
        }
        for bind in [tcp("127.0.0.1", 0), tcp("localhost", 0), Bind::Fd(3)] {
            assert!(probed(&[bind]).unwrap_err().contains("names no address"));
        }
    }

    #[test]
    fn the_master_names_where_it_really_listens() {
        let line = |address: &str| serde_json::json!({ "address": address, "queued": 0 });
        let listeners: Vec<_> =
            ["0.0.0.0:81", "[::]:82", "10.0.0.1:83", "unix:/run/a", "unix:(unnamed)"].map(line).to_vec();
        let totals = serde_json::to_value(crate::protocol::StatusTotals::default()).unwrap();
        let status = serde_json::json!({
            "version": "", "pid": 1, "state": "running", "generation": 1, "uptime_s": 0.0, "target_workers": 1,
            "listeners": listeners, "workers": [], "totals": totals, "last_reload": null,
            "speaks": { "tls": true, "client_ca": false, "proxy_protocol": "v1" },
        });
        let mut status: Status = serde_json::from_value(status).unwrap();
        assert_eq!(status.health, HealthCheck::at("/health"), "an older master does not say what to ask");
        let probe = of_master(&status, &HealthCheck::at("/ready"));
        assert!(probe.tls && probe.proxy_header.starts_with(b"PROXY"));
        assert_eq!(shown(probe), "127.0.0.1:81,[::1]:82,127.0.0.1:82,10.0.0.1:83,/run/a /ready");
        assert!(of_workers(&status).unwrap_err().contains("0 workers serve"));
        status.listeners.clear();
        assert!(ask_all(&of_master(&status, &HealthCheck::at("/ready")), 0).unwrap_err().contains("no address to ask"));
    }

    #[test]
    fn the_next_address_is_asked_if_one_takes_no_connection() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = HealthAddress::Tcp { host: "127.0.0.1".to_owned(), port };
        let probe = HealthProbe {
            addresses: vec![HealthAddress::Unix(folder.path().join("none")), open.clone()],
            ..plain(open)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap());
            assert_eq!(ask_all(&probe, clock::now() + PATIENCE_MS), Ok(()));
        });
    }

    /// Asks a server that gives `answer`. Returns the status that the probe found, and the request that the server got.
    fn asked_of(answer: &'static [u8]) -> (io::Result<u16>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = Vec::new();
                let mut reader = io::BufReader::new(stream.try_clone().unwrap());
                while !lines.ends_with(b"\r\n\r\n") {
                    reader.read_until(b'\n', &mut lines).unwrap();
                }
                stream.write_all(answer).unwrap();
                lines
            });
            let address = HealthAddress::Tcp { host: "127.0.0.1".to_owned(), port };
            (asked(&plain(address)), server.join().unwrap())
        })
    }

    #[test]
    fn only_a_status_line_is_an_answer() {
        let (status, asked) = asked_of(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(status.unwrap(), 503);
        assert!(asked.starts_with(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:"));
        assert_eq!(asked_of(b"HTTP/1.0 200\n").0.unwrap(), 200);
        assert_eq!(asked_of(b"SSH-2.0-nobody\n").0.unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(asked_of(b"").0.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(asked_of(&[b'x'; 4096]).0.unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn any_answer_below_500_is_a_sign_of_life_where_the_app_may_have_no_path() {
        for (check, status, alive) in [
            (HealthCheck::of("", false), 200, true),
            (HealthCheck::of("", false), 404, false),
            (HealthCheck::of("", true), 404, true),
            (HealthCheck::of("", true), 302, true),
            (HealthCheck::of("", true), 500, false),
            (HealthCheck::of("", true), 503, false),
            (HealthCheck::of("/alive", true), 404, false),
            (HealthCheck::at("/alive"), 204, true),
        ] {
            assert_eq!(check.is_alive(status), alive, "{check:?} {status}");
        }
        assert_eq!(HealthCheck::of("/alive", true), HealthCheck::at("/alive"));
    }

    #[test]
    fn a_service_with_a_full_queue_is_unhealthy_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let refused = asked(&plain(HealthAddress::Unix(path))).unwrap_err().to_string();
        assert!(refused.contains("the queue is full"), "{refused}");
    }

    #[test]
    fn a_silent_server_fails_at_the_end_of_the_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = HealthAddress::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let before = clock::now();
        std::thread::scope(|scope| {
            for tls in [false, true] {
                let probe = HealthProbe { tls, ..plain(address.clone()) };
                scope.spawn(move || assert_eq!(asked(&probe).unwrap_err().kind(), ErrorKind::TimedOut, "{tls}"));
            }
        });
        assert!((PATIENCE_MS..PATIENCE_MS + 2_000).contains(&(clock::now() - before)));
    }
}
