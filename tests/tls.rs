//! Promise: with `[tls]`, every address speaks TLS 1.2 and 1.3 and nothing older. A reload changes the certificates
//! without losing a request. A certificate that cannot be used is refused with a clear message before anything changes.
//!
//! Needs curl, openssl and sslscan.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::common::{
    Connection, Launch, PATIENCE, Signal, Supervisor, eventually, free_port, get, metric, now, request, text,
};
use crate::https::{
    Asking, Authority, BOTH, Client, ONLY_1_2, PLAIN, Pair, WithTls, certificate, connect, shake_hands, try_connect,
    write,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};
use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject},
};

fn replace(supervisor: &Supervisor, pair: &Pair) {
    write(&supervisor.path("chain.pem"), &pair.chain);
    write(&supervisor.path("key.pem"), &pair.key);
}

/// Runs a program that `make needs` provides.
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
        // If the server did not send close_notify, this would be an error, because the client could not distinguish the
        // end from a cut (RFC 8446, section 6.1).
        connection.wait_eof().expect("the server says that it is done");
    }
    supervisor.stop();
}

#[test]
fn a_client_that_trusts_the_ca_connects_and_others_do_not() {
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

/// All other tests use keys in the form PKCS#8. This test covers the forms PKCS#1 and SEC 1.
#[test]
fn keys_of_every_kind_and_form_can_be_served() {
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
        supervisor.assert_reload(0, &["tls.certfile", "tls.keyfile"]);
        let port = supervisor.address().port();
        let answered = run("curl", &["-sSk", "--noproxy", "*", &format!("https://127.0.0.1:{port}/health")]);
        assert!(answered.status.success(), "{}", text(&answered));
    }
    supervisor.stop();
}

#[test]
fn old_versions_and_weak_ciphers_are_refused() {
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
        // Every cipher that the server offers must have forward secrecy and authenticated encryption.
        let exchange = cipher.starts_with("TLS_") || cipher.starts_with("ECDHE-");
        let sealed = cipher.contains("GCM") || cipher.contains("POLY1305");
        assert!(exchange && sealed, "{cipher}:\n{scanned}");
    }
    assert!(scanned.contains("renegotiation not supported"), "{scanned}");
    assert_eq!(scanned.matches("not vulnerable to heartbleed").count(), 2, "{scanned}");

    // The TLS library inside sslscan may be built without the old TLS versions, so this test tries these versions with
    // openssl.
    for version in ["-tls1", "-tls1_1"] {
        let asked = run("openssl", &["s_client", "-connect", &address, version, "-cipher", "ALL:@SECLEVEL=0"]);
        let refused = ["Cipher is (NONE)", "SSL alert number"].iter().all(|words| text(&asked).contains(words));
        assert!(refused, "{version}: {}", text(&asked));
    }
}

#[test]
fn the_handshake_agrees_on_the_protocol() {
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
    // The server speaks the protocol that ALPN chose. If ALPN chose none, the client may begin with HTTP/2.
    for (offered, spoken) in [(&[] as &[&str], &b"\0\0"[..]), (&["h2"], b"\0\0"), (&["http/1.1"], b"HTTP/1.1 505 ")] {
        let config = Client { protocols: offered, ..PLAIN }.trusting(&authority);
        let mut connection = connect(both.address(), &config);
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
        assert_eq!(connection.read(spoken.len()).expect("an answer"), spoken, "{offered:?}");
    }
    let config = Client { protocols: &["gopher"], ..PLAIN }.trusting(&authority);
    let refused = try_connect(both.address(), &config).map(drop).expect_err("the server does not speak gopher");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");

    for (supervisor, version) in [(&both, "2"), (&one, "1.1")] {
        let url = format!("https://{}/health", supervisor.address());
        let asked =
            run("curl", &["-sSk", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", &url]);
        assert_eq!(String::from_utf8_lossy(&asked.stdout), format!("{version} 200"), "{}", text(&asked));
    }
}

#[test]
fn clients_show_a_certificate_when_the_settings_ask_for_one() {
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
        // The second connection resumes the session. The client does not show its certificate again in a resumed
        // session, but the server must still know the certificate.
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
            // With TLS 1.3, the client completes its handshake before the server has seen the client's certificate. The
            // client may therefore see the refusal only at its first request.
            let asked = try_connect(supervisor.address(), &config).map(|mut connection| connection.get("/certificate"));
            assert!(!matches!(asked, Ok(Ok(_))), "{asked:?}", asked = asked.map(|answer| answer.map(|one| one.text())));
        }
    }
    supervisor.stop();
}

/// All workers of a generation share one ticket key. The next generation has its own key, because its `client_ca` may
/// differ.
#[test]
fn a_session_can_be_resumed_by_any_worker_until_a_reload() {
    let authority = Authority::new();
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let ask = |config: &Arc<ClientConfig>| {
        let mut connection = connect(supervisor.address(), config);
        let pid = connection.get("/debug/connections").expect("an answer").pid().expect("it names its worker");
        (connection.stream().conn.handshake_kind(), pid)
    };
    let config = PLAIN.trusting(&authority);
    // A worker refuses a ticket that is longer than every ticket it has made itself. Each worker must therefore first
    // make a ticket.
    eventually("both workers have made a ticket", PATIENCE, || {
        let pids: std::collections::BTreeSet<_> = (0..8).map(|_| ask(&PLAIN.trusting(&authority)).1).collect();
        (pids.len() == 2).then_some(())
    });
    ask(&config);
    let resumed: Vec<_> = (0..16).map(|_| ask(&config)).collect();
    assert!(resumed.iter().all(|(kind, _)| *kind == Some(HandshakeKind::Resumed)), "{resumed:?}");
    let pids: std::collections::BTreeSet<_> = resumed.iter().map(|(_, pid)| pid).collect();
    assert_eq!(pids.len(), 2, "{resumed:?}");
    supervisor.assert_reload(0, &["generation 2 serves"]);
    eventually("only new workers serve", PATIENCE, || (supervisor.worker_pids().len() == 2).then_some(()));
    assert_eq!(ask(&config).0, Some(HandshakeKind::Full));
    supervisor.stop();
}

#[test]
fn a_reload_serves_the_new_certificate_at_the_same_path_and_loses_nothing() {
    let authority = Authority::new();
    let config = PLAIN.trusting(&authority);
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let address = supervisor.address();
    let first = certificate(&connect(address, &config));

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..6).map(|index| Asking::start(address, &config, "/debug/connections", index % 2 == 0, &stop)).collect();
    // This client is in the middle of a request while the master replaces the client's worker.
    let mut slow = connect(address, &config);
    slow.send(&request("GET", "/debug/sleep/1500", &[], b"")).expect("a request is sent");

    let mut shown = vec![first];
    for round in 2..=4 {
        replace(&supervisor, &authority.issue(|_| {}));
        supervisor.assert_reload(
            0,
            &[&format!("generation {round} serves; with the new workers: tls.certfile, tls.keyfile")],
        );
        // The old workers drain now and no longer accept, so a client that connects reaches a new worker, which has the
        // new certificate.
        shown.push(eventually("the new certificate is shown", PATIENCE, || {
            let now = certificate(&connect(address, &config));
            (!shown.contains(&now)).then_some(now)
        }));
    }
    assert_eq!(slow.answer().expect("the request is finished").status, 200);
    eventually("every client has come to the last certificate", PATIENCE, || {
        clients.iter().all(|client| client.last_seen().as_ref() == shown.last()).then_some(())
    });
    stop.store(true, Relaxed);
    let mut served = 0;
    for client in clients {
        client.thread.join().expect("a client does not panic").unwrap_or_else(|loss| panic!("lost: {loss}"));
        let mut seen = std::mem::take(&mut *client.seen.lock().expect("no client panicked"));
        served += seen.len();
        seen.dedup();
        let order: Vec<_> = seen.iter().map(|one| shown.iter().position(|known| known == one)).collect();
        assert!(order.iter().all(Option::is_some), "a certificate that this test did not make: {order:?}");
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
        running.assert_reload(1, &["refused, nothing was changed", &wanted]);
        serves(&running);
        // A command that only asks a running service does not need a usable certificate.
        assert_eq!(running.status()["generation"].as_u64(), Some(1));
    }
    fs::remove_file(running.path("key.pem")).expect("it was there");
    running.assert_reload(1, &["tls.keyfile: there is no file"]);
    serves(&running);
    replace(&running, &good);
    running.assert_reload(0, &["generation 2 serves"]);
    serves(&running);
    running.stop();
}

/// The master reads the files with the certificate and the key. The workers have no right to read these files and do
/// not need this right.
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
    supervisor.assert_reload(0, &["with the new workers: tls.certfile, tls.keyfile"]);
    assert_ne!(certificate(&connect(supervisor.address(), &config)), first);
    supervisor.stop();
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let authority = Authority::new();
    let mut supervisor =
        Launch::new().tls(&authority.issue(|_| {})).set("http.header_timeout", r#""500ms""#).serving(2);
    // The second case sends the head of a TLS record whose content never comes.
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0]] {
        let started = now();
        let mut tcp = TcpStream::connect(supervisor.address()).expect("a connection");
        tcp.write_all(begun).expect("a few bytes");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(tcp.read(&mut [0]).expect("a clean end"), 0);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(500), "{took:?}");
    }
    // The time limit counts only for the handshake. The worker does not cut the connection of a client that has
    // completed its handshake.
    assert_eq!(
        connect(supervisor.address(), &PLAIN.trusting(&authority)).get("/debug/sleep/800").expect("an answer").status,
        200
    );
    supervisor.stop();
}

/// The PROXY header comes in plain text, before the TLS handshake.
#[test]
fn a_proxy_header_comes_before_the_handshake() {
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
fn a_plain_http_request_is_told_that_the_port_speaks_tls() {
    let authority = Authority::new();
    let supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let answer = get(supervisor.address(), "/health");
    assert_eq!((answer.status, answer.closes()), (400, true));
    assert_eq!(answer.json()["error"], "This port speaks TLS, but the request is plain HTTP");
    let mut plain = Connection::open(supervisor.address()).expect("a connection");
    let long = request("POST", "/facts", &[], &vec![b'x'; 200_000]);
    assert_eq!(plain.ask(&long).expect("no reset destroys the answer").status, 400);
}

/// Reads the counter of failed handshakes on the metrics page.
fn handshakes_failed(supervisor: &Supervisor) -> u64 {
    let page = supervisor.ctl(&["status", "--format", "openmetrics"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    metric(&page, "oxicorn_tls_handshakes_failed_total").unwrap_or_else(|| panic!("the counter is not in {page}"))
}

/// Any client can make handshakes fail, so failed handshakes must not fill the log. At most one line a second reports
/// how many handshakes failed since the last line. The metrics count each failed handshake.
#[test]
fn failed_handshakes_are_counted_and_do_not_fill_the_log() {
    let authority = Authority::new();
    let mut supervisor = Launch::new().set("workers.count", "1").tls(&authority.issue(|_| {})).serving(1);
    assert_eq!(handshakes_failed(&supervisor), 0);
    let started = now();
    for _ in 0..200 {
        let mut tcp = TcpStream::connect(supervisor.address()).expect("a connection");
        tcp.write_all(&[0x16, 3, 1, 0, 4, 1, 0, 0, 0]).expect("a few bytes");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // The server answers with a TLS alert, and then the connection ends.
        let mut alert = Vec::new();
        match tcp.read_to_end(&mut alert) {
            Ok(_) => assert_eq!(alert.first(), Some(&0x15), "{alert:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    let lines = supervisor.wait_log("handshake_failed", 1, PATIENCE).len();
    let most = started.elapsed().as_secs() as usize + 2;
    assert!(lines <= most, "{lines} lines in {:?}", started.elapsed());
    // A client that only connects, as load balancers do, does not count as a failed handshake.
    drop(TcpStream::connect(supervisor.address()).expect("a connection"));
    assert_eq!(
        connect(supervisor.address(), &PLAIN.trusting(&authority)).get("/health").expect("an answer").status,
        200
    );
    // A client that sends plain HTTP does not count as a failed handshake either. Its request counts as a refused
    // request.
    assert_eq!(get(supervisor.address(), "/health").status, 400);
    assert_eq!(handshakes_failed(&supervisor), 200);
    // A client that does not know the authority sends a TLS alert, and this counts as a failed handshake. The count
    // must not change when the reload replaces the worker that counted.
    try_connect(supervisor.address(), &PLAIN.trusting(&Authority::new())).map(drop).expect_err("an unknown authority");
    eventually("it is counted", PATIENCE, || (handshakes_failed(&supervisor) == 201).then_some(()));
    supervisor.assert_reload(0, &["generation 2 serves"]);
    assert_eq!(handshakes_failed(&supervisor), 201);
    supervisor.stop();
}

/// The service's certificate is for another address, and this machine does not know the authority that issued it.
/// `oxicorn health` must succeed all the same.
#[test]
fn oxicorn_health_asks_over_tls_when_the_service_speaks_it() {
    let authority = Authority::new();
    let port = free_port();
    for (bind, proxied) in [
        (format!("127.0.0.1:{port}"), "off"),
        ("unix:{dir}/web.sock".to_owned(), "off"),
        (format!("127.0.0.1:{port}"), "v2"),
    ] {
        let launch =
            Launch::new().tls(&authority.issue(|_| {})).set("server.proxy_protocol", &format!("\"{proxied}\""));
        let mut supervisor = launch.set("server.bind", &format!("[\"{bind}\"]")).serving(2);
        let health = |url: &[&str]| {
            let output = supervisor.ctl(&[&["health"], url].concat());
            (output.status.code(), text(&output))
        };
        assert_eq!(health(&[]), (Some(0), String::new()), "{bind}, {proxied}");
        assert_eq!(health(&["/ready"]), (Some(0), String::new()), "{bind}, {proxied}");
        let (code, told) = health(&["/nowhere"]);
        assert!(code == Some(1) && told.contains("answers 404"), "{told}");
        if proxied == "off" && !bind.starts_with("unix:") {
            assert!(told.contains(&format!("https://{bind}/nowhere")), "{told}");
            // When the caller names an address, the command must fail. Another service may answer at this address, and
            // the command must not report that service's health as the health of this service.
            assert_eq!(health(&[&format!("http://{bind}/health")]).0, Some(1));
            let (code, told) = health(&[&format!("https://{bind}/health")]);
            assert!(code == Some(1) && told.contains("is not http://"), "{told}");
        }
        supervisor.stop();
    }
    let launch = Launch::new().tls(&authority.issue(|_| {})).client_ca(&authority);
    let supervisor = launch.set("server.bind", &format!("[\"127.0.0.1:{port}\"]")).serving(2);
    let asked = supervisor.ctl(&["health"]);
    let told = text(&asked);
    assert!(asked.status.success() && told.contains("tls.client_ca") && told.contains("2 workers serve"), "{told}");
}

#[test]
fn a_certificate_near_its_end_causes_a_warning_at_each_reading() {
    let authority = Authority::new();
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 6);
    let end = end.to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = date_time_ymd(end.year().into(), end.month().cast_unsigned(), end.day().cast_unsigned());
    let mut supervisor = Launch::new().tls(&authority.issue(|params| params.not_after = day)).serving(2);
    let folder = supervisor.path("").display().to_string();
    let sentence =
        format!("tls.certfile: the certificate in {folder}chain.pem expires on {end}T00:00:00Z, 5 days from now");
    let warned = |times: usize| {
        let log = supervisor.log();
        let lines: Vec<_> = log.lines_of("settings_warning").collect();
        assert_eq!(lines.len(), times, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains(&sentence) && line.contains("WARN")), "{sentence}: {lines:?}");
    };
    warned(1);
    let checked = supervisor.ctl(&["check"]);
    assert!(checked.status.success() && text(&checked).contains(&sentence), "{}", text(&checked));
    supervisor.assert_reload(0, &["generation 2 serves"]);
    warned(2);
    let upgraded = supervisor.ctl(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", text(&upgraded));
    warned(3);
    replace(&supervisor, &authority.issue(|_| {}));
    supervisor.assert_reload(0, &["generation 4 serves"]);
    warned(3);
    supervisor.stop();
}

#[test]
fn a_stop_finishes_a_request_over_tls() {
    let authority = Authority::new();
    let config = PLAIN.trusting(&authority);
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let mut slow: Vec<_> = (0..4).map(|_| connect(supervisor.address(), &config)).collect();
    for connection in &mut slow {
        connection.send(&request("GET", "/debug/sleep/1000", &[], b"")).expect("it is sent");
    }
    eventually("the app has them", PATIENCE, || {
        let status = supervisor.status();
        let workers = status["workers"].as_array().expect("a list");
        let begun: u64 = workers.iter().filter_map(|worker| worker["in_flight"].as_u64()).sum();
        (begun == 4).then_some(())
    });
    supervisor.signal(Signal::SIGTERM);
    for connection in &mut slow {
        let answer = connection.answer().expect("the request is finished");
        assert_eq!((answer.status, answer.closes()), (200, true));
        connection.wait_eof().expect("the server says that it is done");
    }
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}
