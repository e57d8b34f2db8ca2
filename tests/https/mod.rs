//! Clients that speak TLS, and the certificates of the servers that they ask.
//!
//! Owns: the test's own certificate authority, the certificates that it signs, and a client that never retries.
//! Refuses: to test anything (`tests/tls.rs` and `tests/behind_proxies.rs` do).
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each user takes a part")]

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};

use crate::common::{Connection, Launch, PATIENCE, request};

/// A certificate authority. Each test makes one of its own.
pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

/// A certificate chain and its private key, both as PEM.
#[derive(Clone)]
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    pub fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        self.issue_for(&KeyPair::generate().expect("a key"), change)
    }

    pub fn issue_for(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let certificate = params.signed_by(key, &self.0).expect("a certificate");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

pub const ONLY_1_2: &[&SupportedProtocolVersion] = &[&TLS12];
pub const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// The settings of a TLS client that trusts only one authority.
pub struct Client {
    pub versions: &'static [&'static SupportedProtocolVersion],
    pub protocols: &'static [&'static str],
    pub shows: Option<Pair>,
}

/// A client that offers both TLS versions and no application protocol, and shows no certificate.
pub const PLAIN: Client = Client { versions: BOTH, protocols: &[], shows: None };

impl Client {
    pub fn trusting(self, authority: &Authority) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(self.versions)
            .expect("versions that ring has")
            .with_root_certificates(roots);
        let mut config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(|one| one.expect("PEM"));
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain.collect(), key).expect("a pair")
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub type Https = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// Opens a connection and completes the TLS handshake.
pub fn try_connect(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Https> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    shake_hands(tcp, config)
}

pub fn shake_hands(mut tcp: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<Https> {
    let name = "localhost".try_into().expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).expect("a client");
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(Connection::over(StreamOwned::new(session, tcp)))
}

#[track_caller]
pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Https {
    try_connect(address, config).unwrap_or_else(|error| panic!("no handshake: {error}"))
}

pub fn certificate(connection: &Https) -> Vec<u8> {
    connection.stream().conn.peer_certificates().expect("a server shows one")[0].to_vec()
}

pub fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("our own file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
}

pub trait WithTls {
    fn tls(self, pair: &Pair) -> Self;
    fn client_ca(self, authority: &Authority) -> Self;
}

impl WithTls for Launch {
    fn tls(self, pair: &Pair) -> Self {
        write(&self.path("chain.pem"), &pair.chain);
        write(&self.path("key.pem"), &pair.key);
        self.set("tls.certfile", r#""chain.pem""#).set("tls.keyfile", r#""key.pem""#)
    }

    fn client_ca(self, authority: &Authority) -> Self {
        write(&self.path("ca.pem"), &authority.0.pem());
        self.set("tls.client_ca", r#""ca.pem""#)
    }
}

/// A client in a thread that asks again and again until it is told to stop. The first failure ends the thread, and the
/// thread returns this failure.
pub struct Asking {
    /// For each answered request, the certificate that the server showed on its connection.
    pub seen: Arc<Mutex<Vec<Vec<u8>>>>,
    pub thread: thread::JoinHandle<Result<(), String>>,
}

impl Asking {
    #[expect(clippy::disallowed_methods, reason = "the ban is the master's: a client is a thread of the test")]
    pub fn start(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        path: &'static str,
        keep_alive: bool,
        stop: &Arc<AtomicBool>,
    ) -> Self {
        let (config, stop, seen) = (Arc::clone(config), Arc::clone(stop), Arc::<Mutex<Vec<_>>>::default());
        let told = Arc::clone(&seen);
        let thread = thread::spawn(move || {
            let mut kept: Option<Https> = None;
            let headers: &[(&str, &str)] = if keep_alive { &[] } else { &[("Connection", "close")] };
            while !stop.load(Relaxed) {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => try_connect(address, &config).map_err(|error| format!("handshake: {error}"))?,
                };
                let answer = connection.ask(&request("GET", path, headers, b""));
                let answer = answer.map_err(|failure| failure.to_string())?;
                if answer.status != 200 {
                    return Err(format!("status {}", answer.status));
                }
                told.lock().expect("no client panicked").push(certificate(&connection));
                if keep_alive && !answer.closes() {
                    kept = Some(connection);
                } else {
                    connection.wait_eof().map_err(|failure| format!("no clean end: {failure}"))?;
                }
            }
            Ok(())
        });
        Self { seen, thread }
    }

    /// Returns how many requests have been answered so far.
    pub fn asked(&self) -> usize {
        self.seen.lock().expect("no client panicked").len()
    }

    pub fn last_seen(&self) -> Option<Vec<u8>> {
        self.seen.lock().expect("no client panicked").last().cloned()
    }
}
