//! `oxicorn health`: one GET, for containers that have no curl; over TLS where the service speaks it.
//!
//! Owns: which address is meant, one short deadline. Refuses: redirects, bodies, and to verify a certificate: this asks
//! the service of its own settings, on its own machine, whether it is alive, and not who it is. So it takes no https URL.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error as TlsError, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Failed;
use crate::{
    settings::{Bind, ProxyProtocol, Settings},
    sys::clock,
};

/// For all of it: connecting, asking and the answer's first line.
const PATIENCE_MS: u64 = 3_000;
/// A status line is far shorter.
const LINE_MAX: usize = 1024;

#[derive(Debug, PartialEq)]
struct Probe {
    address: Address,
    path: String,
    /// Said first, in the clear.
    proxy_header: &'static [u8],
    tls: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Exit 0 where the answer's status is 2xx.
pub(crate) fn health(url: Option<&str>, settings: Option<&Settings>) -> Result<(), Failed> {
    let probe = probe(url, settings).map_err(Failed::Refused)?;
    let place = match &probe.address {
        Address::Tcp { host, port } => {
            format!("{}://{host}:{port}{}", if probe.tls { "https" } else { "http" }, probe.path)
        }
        Address::Unix(path) => format!("unix:{} {}", path.display(), probe.path),
    };
    match ask(&probe) {
        Ok(status) if (200..300).contains(&status) => Ok(()),
        Ok(status) => Err(Failed::Refused(format!("{place} answers {status}"))),
        Err(error) => Err(Failed::Refused(format!("{place}: {error}"))),
    }
}

fn probe(url: Option<&str>, settings: Option<&Settings>) -> Result<Probe, String> {
    let url = url.unwrap_or("/health");
    if url.starts_with('/') {
        let settings = settings.ok_or("the settings are not valid (oxicorn check says why); give a whole URL")?;
        return Ok(Probe {
            address: first_bind(settings)?,
            path: url.to_owned(),
            proxy_header: proxy_header(settings.server.proxy_protocol),
            tls: settings.tls.certfile.is_some(),
        });
    }
    let plain = |address, path| Probe { address, path, proxy_header: b"", tls: false };
    if let Some(path) = url.strip_prefix("unix:") {
        return Ok(plain(Address::Unix(path.into()), "/health".to_owned()));
    }
    let refused = || format!("\"{url}\" is not http://host:port/path, unix:/path or a path");
    let uri: http::Uri = url.parse().map_err(|_| refused())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(refused)?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let address = Address::Tcp { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) };
    Ok(plain(address, path.to_owned()))
}

/// Where one is required, that of a connection of the peer's own: `UNKNOWN` in version 1, `LOCAL` in version 2.
fn proxy_header(required: ProxyProtocol) -> &'static [u8] {
    match required {
        ProxyProtocol::Off | ProxyProtocol::Auto => b"",
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n",
        ProxyProtocol::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

fn first_bind(settings: &Settings) -> Result<Address, String> {
    if settings.tls.client_ca.is_some() {
        return Err(
            "tls.client_ca makes clients show a certificate, and health has none; ask by `oxicorn status`".to_owned()
        );
    }
    match settings.server.bind.first() {
        Some(Bind::Tcp { port: 0, .. }) => Err("server.bind leaves the port to the kernel; give a URL".to_owned()),
        Some(Bind::Tcp { host, port }) => {
            let bare = host.trim_matches(['[', ']']);
            let host = match () {
                () if bare.parse() == Ok(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.to_string(),
                () if bare.parse() == Ok(Ipv6Addr::UNSPECIFIED) => format!("[{}]", Ipv6Addr::LOCALHOST),
                () if bare.parse::<Ipv6Addr>().is_ok() => format!("[{bare}]"),
                () => bare.to_owned(),
            };
            Ok(Address::Tcp { host, port: *port })
        }
        Some(Bind::Unix(path)) => Ok(Address::Unix(path.clone())),
        Some(Bind::Fd(_)) | None => Err("server.bind names no address to ask; give a URL".to_owned()),
    }
}

fn ask(probe: &Probe) -> io::Result<u16> {
    let until = clock::now() + PATIENCE_MS;
    let (socket, host) = match &probe.address {
        Address::Tcp { host, port } => (connect(host, *port, until)?, format!("{host}:{port}")),
        Address::Unix(path) => (connect_unix(path)?, "localhost".to_owned()),
    };
    let mut stream = Hurried { socket, until };
    stream.write_all(probe.proxy_header)?;
    if probe.tls {
        status_of(StreamOwned::new(session()?, stream), &host, &probe.path)
    } else {
        status_of(stream, &host, &probe.path)
    }
}

fn connect(host: &str, port: u16, until: u64) -> io::Result<Socket> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host.trim_matches(['[', ']']), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A unix socket takes a connection at once or has no room: to wait for that would know no end.
fn connect_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::other("nobody accepts, and its queue is full"),
        _ => error,
    })?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// No ALPN is offered: that is HTTP/1.1.
fn session() -> io::Result<ClientConnection> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whoever))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// Takes every certificate: whoever answers at the address that we are bound to is asked.
#[derive(Debug)]
struct Whoever;

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A socket whose every read and write ends by `until`.
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

/// The status of one GET.
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

/// A socket's timeout shows as EAGAIN.
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

    fn bound_to(bind: Bind) -> Settings {
        let mut settings = Settings::default();
        settings.server.bind = vec![bind];
        settings
    }

    fn plain(address: Address) -> Probe {
        Probe { address, path: "/health".to_owned(), proxy_header: b"", tls: false }
    }

    fn tcp(host: &str, port: u16) -> Bind {
        Bind::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn what_is_asked() {
        let probed = |url: Option<&str>, bind: Bind| {
            let Probe { address, path, .. } = probe(url, Some(&bound_to(bind)))?;
            Ok::<_, String>(match address {
                Address::Tcp { host, port } => format!("{host}:{port} {path}"),
                Address::Unix(socket) => format!("{} {path}", socket.display()),
            })
        };
        for (url, bind, expected) in [
            (None, tcp("127.0.0.1", 8000), "127.0.0.1:8000 /health"),
            (None, tcp("0.0.0.0", 80), "127.0.0.1:80 /health"),
            (None, tcp("[::]", 80), "[::1]:80 /health"),
            (None, tcp("::", 80), "[::1]:80 /health"),
            (None, Bind::Unix("/run/a".into()), "/run/a /health"),
            (Some("/ready"), tcp("example.org", 81), "example.org:81 /ready"),
            (Some("http://[::1]:9/x?y=1"), tcp("a", 1), "[::1]:9 /x?y=1"),
            (Some("http://localhost"), tcp("a", 1), "localhost:80 /"),
            (Some("unix:/run/b"), tcp("a", 1), "/run/b /health"),
        ] {
            assert_eq!(probed(url, bind).as_deref(), Ok(expected), "{url:?}");
        }
        for (url, bind, told) in [
            (Some("https://a/"), tcp("a", 1), "is not http://"),
            (Some("localhost:80"), tcp("a", 1), "is not http://"),
            (Some(""), tcp("a", 1), "is not http://"),
            (None, tcp("127.0.0.1", 0), "leaves the port to the kernel"),
            (None, Bind::Fd(3), "names no address"),
        ] {
            let refused = probed(url, bind).unwrap_err();
            assert!(refused.contains(told), "{url:?}: {refused}");
        }
        assert!(probe(None, None).unwrap_err().contains("oxicorn check"));
    }

    /// A server of one answer, and what it was asked.
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
            let address = Address::Tcp { host: "127.0.0.1".to_owned(), port };
            (ask(&plain(address)), server.join().unwrap())
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
    fn a_full_queue_is_no_health_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let refused = ask(&plain(Address::Unix(path))).unwrap_err().to_string();
        assert!(refused.contains("its queue is full"), "{refused}");
    }

    #[test]
    fn silence_has_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let before = clock::now();
        std::thread::scope(|scope| {
            for tls in [false, true] {
                let probe = Probe { tls, ..plain(address.clone()) };
                scope.spawn(move || assert_eq!(ask(&probe).unwrap_err().kind(), ErrorKind::TimedOut, "{tls}"));
            }
        });
        assert!((PATIENCE_MS..PATIENCE_MS + 2_000).contains(&(clock::now() - before)));
    }
}
