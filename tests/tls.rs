//! Promise: with `[tls]` every address speaks TLS 1.2 and 1.3 and nothing older, certificates are changed by a reload
//! without a lost request, and one that cannot be used is refused with a sentence before anything is changed.
//!
//! Needs curl, openssl and sslscan.

mod common;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use common::{Connection, Launch, PATIENCE, Signal, Supervisor, eventually, get, now, request};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};

/// Who signs; made anew by each test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
struct Pair {
    chain: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        self.issue_for(&KeyPair::generate().expect("a key"), change)
    }

    fn issue_for(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let certificate = params.signed_by(key, &self.0).expect("a certificate");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

const ONLY_1_2: &[&SupportedProtocolVersion] = &[&TLS12];
const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// A client that trusts one authority alone.
struct Client {
    versions: &'static [&'static SupportedProtocolVersion],
    protocols: &'static [&'static str],
    shows: Option<Pair>,
}

/// It offers both versions, no protocol, and shows nothing.
const PLAIN: Client = Client { versions: BOTH, protocols: &[], shows: None };

impl Client {
    fn trusting(self, authority: &Authority) -> Arc<ClientConfig> {
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

type Https = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// Shakes hands to the end.
fn try_connect(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Https> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    shake_hands(tcp, config)
}

fn shake_hands(mut tcp: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<Https> {
    let name = "localhost".try_into().expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).expect("a client");
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(Connection::over(StreamOwned::new(session, tcp)))
}

#[track_caller]
fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Https {
    try_connect(address, config).unwrap_or_else(|error| panic!("no handshake: {error}"))
}

fn certificate(connection: &Https) -> Vec<u8> {
    connection.stream().conn.peer_certificates().expect("a server shows one")[0].to_vec()
}

fn write(path: &std::path::Path, text: &str) {
    fs::write(path, text).expect("our own file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
}

trait WithTls {
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

fn replace(supervisor: &Supervisor, pair: &Pair) {
    write(&supervisor.path("chain.pem"), &pair.chain);
    write(&supervisor.path("key.pem"), &pair.key);
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A program that `make needs` provides.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program} (make needs): {error}"))
}

#[test]
fn https_is_served_to_the_last_byte() {
    let authority = Authority::new();
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    for (versions, spoken) in [(ONLY_1_2, ProtocolVersion::TLSv1_2), (BOTH, ProtocolVersion::TLSv1_3)] {
        let config = Client { versions, ..PLAIN }.trusting(&authority);
        let mut connection = connect(supervisor.address(), &config);
        assert_eq!(connection.stream().conn.protocol_version(), Some(spoken));
        for _ in 0..3 {
            assert_eq!(connection.get("/health").expect("keep-alive").status, 200);
        }
        let body = vec![b'x'; 1 << 20];
        let headers = [("Content-Type", "text/plain"), ("Connection", "close")];
        let echoed = connection.ask(&request("POST", "/debug/echo", &headers, &body)).expect("an answer");
        assert_eq!((echoed.status, echoed.body == body), (200, true));
        // Without close_notify this is an error: a client could not tell the end from a cut (RFC 8446, section 6.1).
        connection.wait_eof().expect("the server says that it is done");
    }
    supervisor.stop();
}

#[test]
fn curl_is_content_and_a_stranger_to_the_authority_is_not() {
    let authority = Authority::new();
    let supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    write(&supervisor.path("authority.pem"), &authority.0.pem());
    let port = supervisor.address().port();
    let (url, resolve) = (format!("https://localhost:{port}/health"), format!("localhost:{port}:127.0.0.1"));
    let known = supervisor.path("authority.pem").display().to_string();
    let answered = run("curl", &["-sS", "--noproxy", "*", "--resolve", &resolve, "--cacert", &known, &url]);
    assert_eq!(String::from_utf8_lossy(&answered.stdout), r#"{"status":"alive"}"#, "{}", text(&answered));
    let refused = run("curl", &["-sS", "--noproxy", "*", "--resolve", &resolve, &url]);
    assert_eq!(refused.status.code(), Some(60), "{}", text(&refused));
}

/// PKCS#8 is what all others of these tests have.
#[test]
fn keys_of_every_kind_and_form_serve() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = run("openssl", &["genrsa", "-traditional", "-out", &path("pkcs1.pem"), "2048"]);
    assert!(made.status.success(), "{}", text(&made));
    let arguments = ["ecparam", "-name", "prime256v1", "-genkey", "-out", &path("sec1.pem")];
    let made = run("openssl", &arguments);
    assert!(made.status.success(), "{}", text(&made));
    let mut pairs = Vec::new();
    for (name, begins) in [("pkcs1", "BEGIN RSA PRIVATE KEY"), ("sec1", "BEGIN EC PRIVATE KEY")] {
        let (key, chain) = (path(&format!("{name}.pem")), path("chain.pem"));
        let made = run(
            "openssl",
            &[
                "req",
                "-x509",
                "-key",
                &key,
                "-out",
                &chain,
                "-days",
                "30",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:false",
            ],
        );
        assert!(made.status.success(), "{}", text(&made));
        let read = |path: &str| fs::read_to_string(path).expect("openssl wrote it");
        let pair = Pair { chain: read(&chain), key: read(&key) };
        assert!(pair.key.contains(begins), "{}", pair.key.lines().next().unwrap_or_default());
        pairs.push(pair);
    }
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        pairs.push(authority.issue_for(&KeyPair::generate_for(algorithm).expect("a key"), |_| {}));
    }
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    for pair in pairs {
        replace(&supervisor, &pair);
        told(&supervisor, 0, &["tls.certfile", "tls.keyfile"]);
        let port = supervisor.address().port();
        let answered = run("curl", &["-sSk", "--noproxy", "*", &format!("https://127.0.0.1:{port}/health")]);
        assert!(answered.status.success(), "{}", text(&answered));
    }
    supervisor.stop();
}

#[test]
fn nothing_old_and_nothing_weak_is_spoken() {
    let authority = Authority::new();
    let supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let address = supervisor.address().to_string();
    let scanned = text(&run("sslscan", &["--no-colour", &address]));
    for (version, state) in [
        ("SSLv2", "disabled"),
        ("SSLv3", "disabled"),
        ("TLSv1.0", "disabled"),
        ("TLSv1.1", "disabled"),
        ("TLSv1.2", "enabled"),
        ("TLSv1.3", "enabled"),
    ] {
        let line = scanned.lines().find(|line| line.split_whitespace().eq([version, state]));
        assert!(line.is_some(), "{version} should be {state}:\n{scanned}");
    }
    let ciphers: Vec<_> = scanned
        .lines()
        .filter(|line| line.starts_with("Preferred") || line.starts_with("Accepted"))
        .filter_map(|line| line.split_whitespace().nth(4))
        .collect();
    assert!(ciphers.len() >= 6, "{scanned}");
    for cipher in ciphers {
        // Forward secrecy and authenticated encryption, each.
        let exchange = cipher.starts_with("TLS_") || cipher.starts_with("ECDHE-");
        let sealed = cipher.contains("GCM") || cipher.contains("POLY1305");
        assert!(exchange && sealed, "{cipher}:\n{scanned}");
    }
    assert!(scanned.contains("renegotiation not supported"), "{scanned}");
    assert_eq!(scanned.matches("not vulnerable to heartbleed").count(), 2, "{scanned}");

    // sslscan's own library may be built without the old versions; this one says what the server answers.
    for version in ["-tls1", "-tls1_1"] {
        let asked = run("openssl", &["s_client", "-connect", &address, version, "-cipher", "ALL:@SECLEVEL=0"]);
        let refused = ["Cipher is (NONE)", "SSL alert number"].iter().all(|words| text(&asked).contains(words));
        assert!(refused, "{version}: {}", text(&asked));
    }
}

#[test]
fn the_protocol_is_agreed_on_in_the_handshake() {
    let authority = Authority::new();
    let pair = authority.issue(|_| {});
    let both = Launch::new().tls(&pair).serving(2);
    let one = Launch::new().tls(&pair).set("http.http2", "false").serving(2);
    for (offered, with_http2, without) in [
        (&[] as &[&str], None, None),
        (&["http/1.1"], Some("http/1.1"), Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2"), Some("http/1.1")),
        (&["h3", "http/1.1"], Some("http/1.1"), Some("http/1.1")),
    ] {
        for (supervisor, agreed) in [(&both, with_http2), (&one, without)] {
            let config = Client { protocols: offered, ..PLAIN }.trusting(&authority);
            let connection = connect(supervisor.address(), &config);
            assert_eq!(connection.stream().conn.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
        }
    }
    let config = Client { protocols: &["gopher"], ..PLAIN }.trusting(&authority);
    let refused = try_connect(both.address(), &config).map(drop).expect_err("nobody speaks gopher");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");

    for (supervisor, version) in [(&both, "2"), (&one, "1.1")] {
        let url = format!("https://{}/health", supervisor.address());
        let asked =
            run("curl", &["-sSk", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", &url]);
        assert_eq!(String::from_utf8_lossy(&asked.stdout), format!("{version} 200"), "{}", text(&asked));
    }
}

#[test]
fn clients_show_a_certificate_where_one_is_asked_for() {
    let authority = Authority::new();
    let launch = Launch::misbehave().tls(&authority.issue(|_| {})).client_ca(&authority);
    let mut supervisor = launch.serving(2);
    let named = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Otters, Inc.");
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("alice,CN=root".to_owned()));
    };
    let alice = authority.issue(named);
    let der = CertificateDer::from_pem_slice(alice.chain.as_bytes()).expect("PEM");
    for versions in [ONLY_1_2, BOTH] {
        let config = Client { versions, shows: Some(alice.clone()), ..PLAIN }.trusting(&authority);
        // The second is a resumption: nothing is shown again, and still known.
        for _ in 0..2 {
            let mut connection = connect(supervisor.address(), &config);
            let answer = connection.get("/certificate").expect("an answer");
            let subject = r"CN=alice\,CN=root,O=Otters\, Inc.";
            assert_eq!(answer.text(), format!("{subject} {}", der.len()));
        }
    }

    let config = Client { shows: Some(alice), ..PLAIN }.trusting(&authority);
    let told = connect(supervisor.address(), &config).get("/client").expect("an answer").json();
    assert_eq!((&told["tls"], &told["scheme"]), (&true.into(), &"https".into()), "{told}");

    let stranger = Authority::new().issue(named);
    let expired = authority.issue(|params| params.not_after = date_time_ymd(2020, 1, 1));
    for shows in [None, Some(stranger), Some(expired)] {
        for versions in [ONLY_1_2, BOTH] {
            let config = Client { versions, shows: shows.clone(), ..PLAIN }.trusting(&authority);
            // With TLS 1.3 a client is done before the server has seen its certificate.
            let asked = try_connect(supervisor.address(), &config).map(|mut connection| connection.get("/certificate"));
            assert!(!matches!(asked, Ok(Ok(_))), "{asked:?}", asked = asked.map(|answer| answer.map(|one| one.text())));
        }
    }
    supervisor.stop();
}

/// All workers of a generation have one ticket key; the next generation, whose `client_ca` may be another, has its own.
#[test]
fn a_session_is_resumed_by_any_worker_until_a_reload() {
    let authority = Authority::new();
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let ask = |config: &Arc<ClientConfig>| {
        let mut connection = connect(supervisor.address(), config);
        let pid = connection.get("/debug/connections").expect("an answer").pid().expect("it names its worker");
        (connection.stream().conn.handshake_kind(), pid)
    };
    let config = PLAIN.trusting(&authority);
    // A worker takes no ticket longer than the longest it has made, so each must have made one.
    eventually("both workers have made a ticket", PATIENCE, || {
        let pids: std::collections::BTreeSet<_> = (0..8).map(|_| ask(&PLAIN.trusting(&authority)).1).collect();
        (pids.len() == 2).then_some(())
    });
    ask(&config);
    let resumed: Vec<_> = (0..16).map(|_| ask(&config)).collect();
    assert!(resumed.iter().all(|(kind, _)| *kind == Some(HandshakeKind::Resumed)), "{resumed:?}");
    let pids: std::collections::BTreeSet<_> = resumed.iter().map(|(_, pid)| pid).collect();
    assert_eq!(pids.len(), 2, "{resumed:?}");
    told(&supervisor, 0, &["generation 2 serves"]);
    eventually("only new workers serve", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
    assert_eq!(ask(&config).0, Some(HandshakeKind::Full));
    supervisor.stop();
}

#[track_caller]
fn told(supervisor: &Supervisor, code: i32, fragments: &[&str]) {
    let output = supervisor.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    for fragment in fragments {
        assert!(text(&output).contains(fragment), "{fragment:?} is not in {}", text(&output));
    }
}

/// A client that asks until told to finish; any failure is a loss.
struct Asking {
    /// The certificate of each request's connection.
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: thread::JoinHandle<Result<(), String>>,
}

impl Asking {
    #[expect(clippy::disallowed_methods, reason = "the ban is the master's: a client is a thread of the test")]
    fn start(address: SocketAddr, config: &Arc<ClientConfig>, keep_alive: bool, stop: &Arc<AtomicBool>) -> Self {
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
                let answer = connection.ask(&request("GET", "/debug/connections", headers, b""));
                let answer = answer.map_err(|failure| failure.to_string())?;
                if answer.status != 200 {
                    return Err(format!("status {}", answer.status));
                }
                told.lock().expect("nobody panicked").push(certificate(&connection));
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

    fn last_seen(&self) -> Option<Vec<u8>> {
        self.seen.lock().expect("nobody panicked").last().cloned()
    }
}

#[test]
fn a_new_certificate_at_the_same_path_is_served_after_a_reload_and_nothing_is_lost() {
    let authority = Authority::new();
    let config = PLAIN.trusting(&authority);
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let address = supervisor.address();
    let first = certificate(&connect(address, &config));

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6).map(|index| Asking::start(address, &config, index % 2 == 0, &stop)).collect();
    // One that is in the middle of a request while its worker is replaced.
    let mut slow = connect(address, &config);
    slow.send(&request("GET", "/debug/sleep/1500", &[], b"")).expect("a request is sent");

    let mut shown = vec![first];
    for round in 2..=4 {
        replace(&supervisor, &authority.issue(|_| {}));
        told(&supervisor, 0, &[&format!("generation {round} serves; with the new workers: tls.certfile, tls.keyfile")]);
        // Old workers drain meanwhile; who connects now comes to a new one.
        shown.push(eventually("the new certificate is shown", PATIENCE, || {
            let now = certificate(&connect(address, &config));
            (!shown.contains(&now)).then_some(now)
        }));
    }
    assert_eq!(slow.answer().expect("what was begun is finished").status, 200);
    eventually("every client has come to the last certificate", PATIENCE, || {
        clients.iter().all(|client| client.last_seen().as_ref() == shown.last()).then_some(())
    });
    stop.store(true, Relaxed);
    let mut served = 0;
    for client in clients {
        client.thread.join().expect("a client does not panic").unwrap_or_else(|loss| panic!("lost: {loss}"));
        let mut seen = std::mem::take(&mut *client.seen.lock().expect("nobody panicked"));
        served += seen.len();
        seen.dedup();
        let order: Vec<_> = seen.iter().map(|one| shown.iter().position(|known| known == one)).collect();
        assert!(order.iter().all(Option::is_some), "a certificate nobody made: {order:?}");
        assert_eq!(order.first(), Some(&Some(0)), "{order:?}");
    }
    eprintln!("{served} requests over {} certificates", shown.len());
    supervisor.stop();
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_a_sentence() {
    let authority = Authority::new();
    let good = authority.issue(|_| {});
    let expired = authority.issue(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = authority.issue(|params| params.not_before = date_time_ymd(2099, 1, 1));
    let other = authority.issue(|_| {});
    let mismatched = Pair { chain: good.chain.clone(), key: other.key };
    let cases = [
        (&expired, "tls.certfile: the certificate in {dir}/chain.pem expired on 2020-01-01T00:00:00Z; renew it"),
        (&early, "tls.certfile: the certificate in {dir}/chain.pem is not valid before 2099-01-01T00:00:00Z"),
        (
            &mismatched,
            "tls.keyfile: the key in {dir}/key.pem does not belong to the first certificate in {dir}/chain.pem",
        ),
        (&Pair { chain: String::new(), ..good.clone() }, "tls.certfile: there is no certificate in {dir}/chain.pem"),
    ];
    let mut running = Launch::new().tls(&good).serving(2);
    let config = PLAIN.trusting(&authority);
    let serves = |supervisor: &Supervisor| {
        assert_eq!(connect(supervisor.address(), &config).get("/health").expect("an answer").status, 200);
    };
    for (pair, sentence) in cases {
        for command in ["check", "run"] {
            let launch = Launch::new().tls(pair).arg(command);
            let folder = launch.path("").display().to_string();
            let wanted = sentence.replace("{dir}", folder.trim_end_matches('/'));
            let output = launch.run();
            assert_eq!(output.status.code(), Some(2), "{}", text(&output));
            let lines: Vec<_> = text(&output).lines().map(str::to_owned).collect();
            assert!(lines.len() == 1 && lines[0].contains(&wanted), "{wanted}:\n{}", text(&output));
        }
        replace(&running, pair);
        let wanted = sentence.replace("{dir}", running.path("").display().to_string().trim_end_matches('/'));
        told(&running, 1, &["refused, all goes on as before", &wanted]);
        serves(&running);
        // Whoever asks after a service needs no certificate that could serve.
        assert_eq!(running.status()["generation"].as_u64(), Some(1));
    }
    fs::remove_file(running.path("key.pem")).expect("it was there");
    told(&running, 1, &["tls.keyfile: there is no file"]);
    serves(&running);
    replace(&running, &good);
    told(&running, 0, &["generation 2 serves"]);
    serves(&running);
    running.stop();
}

/// The files are the master's: a worker has no right to read them, and needs none.
#[test]
fn workers_of_another_user_serve_with_a_key_they_may_not_read() {
    assert!(nix::unistd::Uid::effective().is_root(), "only root can give its rights away: run the tests as root");
    let authority = Authority::new();
    let launch = Launch::new().tls(&authority.issue(|_| {})).set("process.user", r#""nobody""#);
    let mut supervisor = launch.set("service.sqlite_path", r#""{dir}/data/facts.db""#).serving(2);
    let config = PLAIN.trusting(&authority);
    let first = certificate(&connect(supervisor.address(), &config));
    for pid in supervisor.worker_pids() {
        supervisor.signal_worker(pid, Signal::SIGKILL);
        supervisor.wait_gone(pid);
    }
    supervisor.wait_serving(2);
    assert_eq!(certificate(&connect(supervisor.address(), &config)), first);
    replace(&supervisor, &authority.issue(|_| {}));
    told(&supervisor, 0, &["with the new workers: tls.certfile, tls.keyfile"]);
    assert_ne!(certificate(&connect(supervisor.address(), &config)), first);
    supervisor.stop();
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let authority = Authority::new();
    let mut supervisor =
        Launch::new().tls(&authority.issue(|_| {})).set("http.header_timeout", r#""500ms""#).serving(2);
    // The head of a record that never comes.
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0]] {
        let started = now();
        let mut tcp = TcpStream::connect(supervisor.address()).expect("a connection");
        tcp.write_all(begun).expect("a few bytes");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(tcp.read(&mut [0]).expect("a clean end"), 0);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(500), "{took:?}");
    }
    // Clients that are done with it are not hurried.
    assert_eq!(
        connect(supervisor.address(), &PLAIN.trusting(&authority)).get("/debug/sleep/800").expect("an answer").status,
        200
    );
    supervisor.stop();
}

/// The PROXY header comes before the handshake, and in the clear.
#[test]
fn a_proxy_header_stands_before_the_handshake() {
    let authority = Authority::new();
    let launch = Launch::misbehave().tls(&authority.issue(|_| {})).set("server.proxy_protocol", r#""v1""#);
    let mut supervisor = launch.serving(2);
    let mut tcp = TcpStream::connect(supervisor.address()).expect("a connection");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    tcp.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 999 443\r\n").expect("a few bytes");
    let mut connection = shake_hands(tcp, &PLAIN.trusting(&authority)).expect("a handshake");
    let told = connection.get("/client").expect("an answer").json();
    assert_eq!((&told["address"], &told["tls"]), (&"192.0.2.7".into(), &true.into()), "{told}");
    supervisor.stop();
}

#[test]
fn plain_http_is_told_what_is_spoken_here() {
    let authority = Authority::new();
    let supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let answer = get(supervisor.address(), "/health");
    assert_eq!((answer.status, answer.closes()), (400, true));
    assert_eq!(answer.json()["error"], "This port speaks TLS, and was asked in plain HTTP");
    let mut plain = Connection::open(supervisor.address()).expect("a connection");
    let long = request("POST", "/facts", &[], &vec![b'x'; 200_000]);
    assert_eq!(plain.ask(&long).expect("no reset destroys the answer").status, 400);
}

/// Anybody can make handshakes fail: a line a second says so, with the number of those between.
#[test]
fn failed_handshakes_do_not_fill_the_log() {
    let authority = Authority::new();
    let supervisor = Launch::new().set("workers.count", "1").tls(&authority.issue(|_| {})).serving(1);
    let started = now();
    for _ in 0..200 {
        let mut tcp = TcpStream::connect(supervisor.address()).expect("a connection");
        tcp.write_all(&[0x16, 3, 1, 0, 4, 1, 0, 0, 0]).expect("a few bytes");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // An alert, and the end.
        let mut alert = Vec::new();
        match tcp.read_to_end(&mut alert) {
            Ok(_) => assert_eq!(alert.first(), Some(&0x15), "{alert:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    let lines = supervisor.wait_log("handshake_failed", 1, PATIENCE).len();
    let most = started.elapsed().as_secs() as usize + 2;
    assert!(lines <= most, "{lines} lines in {:?}", started.elapsed());
    // Who only knocks, as balancers do, has not failed.
    drop(TcpStream::connect(supervisor.address()).expect("a connection"));
    assert_eq!(
        connect(supervisor.address(), &PLAIN.trusting(&authority)).get("/health").expect("an answer").status,
        200
    );
}

#[test]
fn a_stop_finishes_what_was_begun() {
    let authority = Authority::new();
    let config = PLAIN.trusting(&authority);
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let mut slow: Vec<_> = (0..4).map(|_| connect(supervisor.address(), &config)).collect();
    for connection in &mut slow {
        connection.send(&request("GET", "/debug/sleep/1000", &[], b"")).expect("a request is sent");
    }
    eventually("the app has them", PATIENCE, || {
        let status = supervisor.status();
        let workers = status["workers"].as_array().expect("a list");
        let begun: u64 = workers.iter().filter_map(|worker| worker["in_flight"].as_u64()).sum();
        (begun == 4).then_some(())
    });
    supervisor.signal(Signal::SIGTERM);
    for connection in &mut slow {
        let answer = connection.answer().expect("what was begun is finished");
        assert_eq!((answer.status, answer.closes()), (200, true));
        connection.wait_eof().expect("the server says that it is done");
    }
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}
