//! Promise: behind nginx and HAProxy the app sees the real client, and reloads lose no request. The same is true when
//! nginx uses the files of deploy/nginx.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::common::{Connection, Launch, Load, Mode, PATIENCE, Supervisor, eventually, free_port, request, root};
use crate::https::{Asking, Authority, Client, PLAIN, connect};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

const CLIENTS: u64 = 8;

/// A running proxy in front of the supervisor. Its settings file lies in the supervisor's folder.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    /// Starts the proxy. `settings` gets the port to listen on and returns the text of the settings file.
    fn start(supervisor: &Supervisor, command: &[&str], settings: impl FnOnce(u16) -> String) -> Self {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        fs::write(supervisor.path("proxy.conf"), settings(port)).expect("the settings are written");
        let child = Command::new(command[0])
            .args(&command[1..])
            .current_dir(supervisor.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(supervisor.path("proxy.log")).expect("a file in our own folder"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started ({error}): apt-get install it", command[0]));
        let mut proxy = Self { child, address };
        eventually("the proxy listens", PATIENCE, || {
            if let Ok(Some(status)) = proxy.child.try_wait() {
                let log = fs::read_to_string(supervisor.path("proxy.log")).unwrap_or_default();
                panic!("{} ended with {status}: {log}", command[0]);
            }
            TcpStream::connect(address).ok().map(drop)
        });
        proxy
    }

    /// Connects to the proxy from the address `source`, with forged headers that name another client. Returns which
    /// client the app sees.
    fn told(&self, source: &str) -> serde_json::Value {
        let source: IpAddr = source.parse().expect("an address");
        let mut connection = Connection::open_from(source, self.address).expect("the proxy listens");
        let spoof = [("X-Forwarded-For", "203.0.113.5"), ("Forwarded", "for=203.0.113.6"), ("Connection", "close")];
        connection.ask(&request("GET", "/client", &spoof, b"")).expect("an answer").json()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Kills the whole process group, because the proxy's workers belong to it too.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Does ten reloads while clients ask without a pause.
#[track_caller]
fn assert_ten_reloads_lose_nothing(supervisor: &Supervisor, proxy: &Proxy) {
    let load = Load::start(proxy.address, "/client", CLIENTS, Mode::KeepAlive { think_ms: 0 });
    for _ in 0..10 {
        let answered = load.answered();
        eventually("requests are answered between two reloads", PATIENCE, || {
            (load.answered() >= answered + 50).then_some(())
        });
        let reloaded = supervisor.ctl(&["reload"]);
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    }
    let tally = load.finish();
    tally.assert_nothing_lost();
    assert!(tally.pids.len() >= 18, "only {} workers answered: the reloads were not under this load", tally.pids.len());
}

const NGINX: [&str; 7] = ["nginx", "-p", ".", "-c", "proxy.conf", "-e", "proxy.log"];

/// Returns a whole nginx configuration that contains `http`, the text of the site's own file. nginx then runs in the
/// foreground and keeps every file inside the test's folder.
fn nginx_conf(http: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = temporary.map(|kind| format!("  {kind}_temp_path {kind};\n")).concat();
    format!(
        "daemon off;\npid nginx.pid;\nworker_processes 1;\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n{temporary}{http}}}\n"
    )
}

/// Uses the files of deploy/nginx. The test replaces only the ports, the path of the certificate's file and the address
/// of the upstream.
#[test]
fn nginx_serves_with_the_files_of_deploy() {
    let authority = Authority::new();
    let pair = authority.issue(|_| {});
    let mut supervisor = Launch::misbehave().serving(2);
    crate::https::write(&supervisor.path("fullchain.pem"), &pair.chain);
    crate::https::write(&supervisor.path("privkey.pem"), &pair.key);
    let plain_port = free_port();
    let ours = |name: &str, changes: &[(&str, String)]| {
        let path = root().join("deploy/nginx").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        changes.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{name} does not hold {from:?} any more");
            text.replace(from, to)
        })
    };
    let upstream = supervisor.address();
    let compose = ours("upstream.compose.conf", &[("server backend:8000;", format!("server {upstream};"))]);
    let single = ours("upstream.conf", &[("server 127.0.0.1:8000;", format!("server {upstream};"))]);
    let here = supervisor.path("").display().to_string();
    let settings = |port: u16, upstream: &str| {
        let site = ours(
            "oxicorn.conf",
            &[
                ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
                ("listen 80;", format!("listen 127.0.0.1:{plain_port};")),
                ("/etc/nginx/tls/", here.clone()),
            ],
        );
        nginx_conf(&[&site, upstream].concat())
    };
    for (name, upstream) in [("upstream.compose.conf", &compose), ("upstream.conf", &single)] {
        fs::write(supervisor.path("tried.conf"), settings(free_port(), upstream)).expect("our own folder");
        let mut nginx = Command::new("nginx");
        let tried = nginx.args(["-t", "-p", ".", "-c", "tried.conf", "-e", "tried.log"]);
        let tried = tried.current_dir(supervisor.path("")).output().expect("nginx (make needs)");
        let told = String::from_utf8_lossy(&tried.stderr);
        assert!(tried.status.success() && !told.contains("[warn]"), "{name}: {told}");
    }
    let proxy = Proxy::start(&supervisor, &NGINX, |port| settings(port, &single));

    let config = PLAIN.trusting(&authority);
    let mut connection = connect(proxy.address, &config);
    let spoof = [
        ("X-Forwarded-For", "203.0.113.5"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Port", "1"),
        ("Forwarded", "for=203.0.113.6;host=evil.example"),
    ];
    let seen = connection.ask(&request("GET", "/client", &spoof, b"")).expect("an answer over TLS").json();
    assert_eq!((&seen["address"], &seen["scheme"]), (&"127.0.0.1".into(), &"https".into()), "{seen}");
    assert_eq!(seen["host"], format!("localhost:{}", proxy.address.port()), "{seen}");
    let over_http2 = Client { protocols: &["h2"], ..PLAIN }.trusting(&authority);
    assert_eq!(connect(proxy.address, &over_http2).stream().conn.alpn_protocol(), Some(&b"h2"[..]));
    // The workers' metrics must not be visible to the public, so nginx answers 404.
    assert_eq!(connection.get("/metrics").expect("an answer").status, 404);
    let plain = SocketAddr::from(([127, 0, 0, 1], plain_port));
    let moved = Connection::open(plain).and_then(|mut one| one.get("/client?a=b")).expect("an answer");
    assert_eq!((moved.status, moved.header("location")), (301, Some("https://localhost/client?a=b")));

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CLIENTS).map(|index| Asking::start(proxy.address, &config, "/client", index % 2 == 0, &stop)).collect();
    let asked = || clients.iter().map(Asking::asked).sum::<usize>();
    for _ in 0..3 {
        let before = asked();
        eventually("requests are answered between two reloads", PATIENCE, || (asked() >= before + 50).then_some(()));
        let reloaded = supervisor.ctl(&["reload"]);
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    }
    stop.store(true, Relaxed);
    let answered = asked();
    for client in clients {
        client.thread.join().expect("a client does not panic").unwrap_or_else(|loss| panic!("lost: {loss}"));
    }
    eprintln!("{answered} requests over TLS, three reloads");
    supervisor.stop();
}

/// Starts nginx so that it keeps its connections to the supervisor open and never retries, because a retry would hide a
/// lost request.
fn nginx_that_keeps_connections(supervisor: &Supervisor) -> Proxy {
    let upstream = supervisor.address();
    Proxy::start(supervisor, &NGINX, |port| {
        nginx_conf(&format!(
            "  keepalive_requests 1000000000;\n\
             upstream app {{ server {upstream}; keepalive {CLIENTS}; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{\n\
               proxy_pass http://app; proxy_next_upstream off;\n\
               proxy_http_version 1.1; proxy_set_header Connection '';\n\
               proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto https;\n\
               proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
               proxy_set_header X-Forwarded-Port $server_port;\n\
             }} }}\n"
        ))
    })
}

#[test]
fn nginx_with_keep_alive_to_the_workers_loses_nothing() {
    let mut supervisor = Launch::misbehave().serving(2);
    let proxy = nginx_that_keeps_connections(&supervisor);
    let seen = proxy.told("127.5.0.1");
    assert_eq!((seen["address"].as_str(), seen["scheme"].as_str()), (Some("127.5.0.1"), Some("https")), "{seen}");
    assert_eq!(seen["host"], format!("localhost:{}", proxy.address.port()));
    assert_ten_reloads_lose_nothing(&supervisor, &proxy);
    supervisor.stop();
}

/// If the worker ends a connection without `Connection: close`, nginx believes that the connection is still open, and
/// answers the next request with 502.
#[test]
fn nginx_keeps_its_connections_after_answers_that_come_before_the_body() {
    let mut supervisor = Launch::misbehave().serving(2);
    let proxy = nginx_that_keeps_connections(&supervisor);
    let post = request("POST", "/early/401", &[], &[b'a'; 20_000]);
    let times = crate::early::times() * 16 / CLIENTS as usize;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(proxy.address).expect("the proxy listens");
                for time in 0..times {
                    assert_eq!(connection.ask(&post).expect("an answer").status, 401, "time {time}");
                }
            });
        }
    });
    let accepted = supervisor.status()["totals"]["connections"].as_u64().expect("a count");
    // The limit has one connection more than there are clients, because the test itself opened a connection to check
    // whether the proxy listens.
    assert!(accepted <= CLIENTS + 1, "{accepted} connections for {CLIENTS} clients");
    supervisor.stop();
}

#[test]
fn haproxy_with_the_proxy_protocol_loses_nothing() {
    let mut supervisor = Launch::misbehave().set("server.proxy_protocol", r#""v2""#).serving(2);
    let upstream = supervisor.address();
    // HAProxy's health checks send a PROXY header of the kind LOCAL. If the worker refused such headers, HAProxy would
    // believe that the server is down.
    let proxy = Proxy::start(&supervisor, &["haproxy", "-db", "-f", "proxy.conf"], |port| {
        format!(
            "global\n  maxconn 1000\ndefaults\n  mode tcp\n  retries 0\n  timeout connect 10s\n  timeout client 60s\n\
             \x20 timeout server 60s\nfrontend in\n  bind 127.0.0.1:{port}\n  default_backend app\n\
             backend app\n  option httpchk GET /pid\n  server one {upstream} send-proxy-v2 check inter 100ms fall 1\n"
        )
    });
    let seen = proxy.told("127.5.0.1");
    assert_eq!((seen["address"].as_str(), seen["scheme"].as_str()), (Some("127.5.0.1"), Some("http")), "{seen}");
    assert!(seen["port"].is_u64() && seen["forwarding"] == serde_json::json!([]), "{seen}");
    assert_ten_reloads_lose_nothing(&supervisor, &proxy);
    supervisor.stop();
}
