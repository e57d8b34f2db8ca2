//! The scenarios, each with the peers that take part, in the order in which they run.
//!
//! Owns: the list. Refuses: to measure (the files in `scenarios/` do), and to leave out a peer without a reason.

#[path = "scenarios/life.rs"]
mod life;
#[path = "scenarios/rest.rs"]
mod rest;
#[path = "scenarios/throughput.rs"]
mod throughput;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore},
};

use oxicorn_testkit::record::Turn;

use crate::{
    common::root,
    peers::{Need, Peer, Setup},
    server::Server,
};

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// True if the scenario is run when no scenario is named.
    pub default: bool,
    /// The largest number of rounds. In a slow scenario, more rounds add little.
    pub rounds: usize,
    pub sides: Vec<Side>,
    pub kind: Kind,
}

/// One peer that takes part in a scenario, with the setup that the scenario needs.
pub struct Side {
    pub label: String,
    pub peer: Peer,
    pub setup: Setup,
    pub path: &'static str,
    pub cannot: Option<&'static str>,
}

type Kept = dyn Fn(&Bench, &Side, &Server) -> Result<Turn, String>;

pub enum Kind {
    /// The servers keep running through all rounds.
    Kept(Box<Kept>),
    /// Each turn starts a new server.
    Fresh(fn(&Bench, &Side) -> Result<Turn, String>),
    /// All servers run in the same window, and none of them gets a request.
    Together(fn(&[&Server]) -> Vec<Turn>),
}

/// The settings that all turns of a run share.
pub struct Bench {
    pub seconds: f64,
    connector: TlsConnector,
}

impl Bench {
    pub fn new(seconds: f64) -> Self {
        Self { seconds, connector: connector() }
    }
}

/// The number of workers of each server, unless a scenario says otherwise.
const WORKERS: usize = 2;

fn two_workers() -> Setup {
    Setup { workers: WORKERS, ..Setup::default() }
}

/// Returns a side for every peer. The side of a peer that cannot fulfil `need` contains the reason.
fn everyone(need: Need, setup: &Setup, path: Option<&'static str>) -> Vec<Side> {
    let side = |peer: Peer| Side {
        label: peer.name().to_owned(),
        peer,
        setup: setup.clone(),
        path: path.unwrap_or(peer.path()),
        cannot: peer.cannot(need),
    };
    Peer::ALL.into_iter().map(side).collect()
}

fn variant(peer: Peer, label: &str, setup: Setup) -> Side {
    Side { label: label.to_owned(), peer, setup, path: peer.path(), cannot: None }
}

pub fn all() -> Vec<Scenario> {
    let usual = two_workers();
    let mut all = Vec::new();
    let mut add = |name, about, default, rounds, sides, kind| {
        all.push(Scenario { name, about, default, rounds, sides, kind });
    };
    let any = usize::MAX;

    for (name, connections, default) in
        [("steady-8", 8, false), ("steady-64", 64, true), ("steady-256", 256, false), ("steady-1000", 1000, false)]
    {
        let about = "keep-alive connections (as many as the name says) that ask as fast as they are answered";
        add(name, about, default, any, everyone(Need::Answer, &usual, None), throughput::saturate(connections));
    }
    let about = "1,000 requests a second on 64 connections, latency from the time each was due";
    add("latency", about, true, any, everyone(Need::Answer, &usual, None), throughput::latency());
    let about = "a connection for each request, 64 at once";
    add("new-connections", about, true, any, everyone(Need::Answer, &usual, None), throughput::new_connections());
    for (name, path, about) in [
        ("down-10k", "/10k", "10 KiB of answer, 16 connections"),
        ("down-1m", "/1m", "1 MiB of answer, 16 connections"),
    ] {
        let sides = everyone(Need::AnswerMore, &usual, Some(path));
        add(name, about, false, any, sides, throughput::bodies(0));
    }
    for (name, body, about) in [
        ("up-10k", 10 << 10, "10 KiB of request, 16 connections"),
        ("up-1m", 1 << 20, "1 MiB of request, 16 connections"),
    ] {
        let sides = everyone(Need::AnswerMore, &usual, Some("/up"));
        add(name, about, false, any, sides, throughput::bodies(body));
    }
    let about = "1,000 requests a second, every hundredth waits for 20 ms: latency of the others";
    add("mixed", about, false, any, everyone(Need::AnswerSlowly, &usual, None), throughput::mixed());

    let logging = Setup { access_log: true, ..usual.clone() };
    let mut sides = everyone(Need::Log, &logging, None);
    sides.insert(2, variant(Peer::Oxicorn, "oxicorn without log", usual.clone()));
    let about = "as steady-64, and a line in a file for each request (nginx: buffered, as its users set it)";
    add("access-log", about, true, any, sides, throughput::saturate(64));

    let one = Setup { workers: 1, ..usual.clone() };
    let everything = Setup { everything: true, ..one.clone() };
    let sides = vec![
        variant(Peer::Bare, "bare hyper", one.clone()),
        variant(Peer::Oxicorn, "oxicorn, everything on", everything.clone()),
        variant(Peer::Oxicorn, "oxicorn, everything on, access log", Setup { access_log: true, ..everything }),
    ];
    let about = "one worker, 32 connections, every limit and clock of oxicorn on";
    add("cost", about, true, any, sides, throughput::saturate(32));

    let tls = Setup { tls: Some(pem_files()), ..usual.clone() };
    let about = "as steady-64, over TLS";
    add("tls", about, false, any, everyone(Need::Answer, &tls, None), throughput::over_tls());
    let http2 = Setup { http2: true, ..usual.clone() };
    let about = "HTTP/2 by prior knowledge, 8 connections with 8 streams at once";
    add("http2", about, false, any, everyone(Need::Http2, &http2, None), throughput::http2(false));
    let both = Setup { http2: true, ..tls };
    let about = "the same over TLS";
    add("http2-tls", about, false, any, everyone(Need::Http2, &both, None), throughput::http2(true));

    for (name, workers) in [("scaling-1", 1), ("scaling-2", 2), ("scaling-4", 4), ("scaling-8", 8), ("scaling-16", 16)]
    {
        let sides = everyone(Need::Beside, &Setup { workers, ..usual.clone() }, None);
        add(name, "as steady-64, with this many workers", false, any, sides, throughput::saturate(64));
    }

    let recycling = Setup { max_requests: Some(1000), ..usual.clone() };
    let mut sides = everyone(Need::Recycle, &recycling, None);
    sides.insert(2, variant(Peer::Oxicorn, "oxicorn without recycling", usual.clone()));
    let about = "as steady-64, each worker is replaced after 1,000 requests";
    add("recycle", about, true, any, sides, throughput::recycling());

    let who = Some("/pid");
    let sides = everyone(Need::Reload, &usual, None);
    let about = "as steady-64, and 200 new connections a second: ten reloads, or as many as 25 s hold";
    add("reload", about, true, 3, sides, Kind::Fresh(life::reload));
    let about = "SIGKILL for one of two workers under 1,000 quick and 200 slow requests a second";
    add("crash", about, true, 8, everyone(Need::Replace, &usual, who), Kind::Fresh(life::crash));
    let about = "SIGKILL for one of two workers a second, five times; 50 health checks a second that never retry";
    add("storm", about, true, 2, everyone(Need::Replace, &usual, None), Kind::Fresh(life::storm));
    let watching = Setup { hung_after: Some(2), ..usual.clone() };
    let about = "SIGSTOP for one of two workers; a worker that is silent for 2 s counts as hung";
    add("hang", about, false, 3, everyone(Need::NoticeHang, &watching, who), Kind::Fresh(life::hang));
    let sides = everyone(Need::Stop, &usual, Some("/slow"));
    add("stop", "SIGTERM with 32 requests in flight", false, 4, sides, Kind::Fresh(life::stop));

    let about = "from exec to the first 200, two workers";
    add("start-up", about, true, any, everyone(Need::Answer, &usual, None), Kind::Fresh(rest::start_up));
    let about = "PSS of master and largest worker, idle and after load";
    add("memory", about, true, 2, everyone(Need::Answer, &usual, None), Kind::Fresh(rest::memory));
    let room = Setup { idle_connections: Some(8000), ..usual.clone() };
    let about = "PSS for each of 10,000 idle keep-alive connections";
    add("idle-connections", about, true, 2, everyone(Need::Answer, &room, None), Kind::Fresh(rest::idle_connections));
    let about = "wake-ups and CPU time of servers without requests, for 10 s";
    add("idle", about, true, 2, everyone(Need::Answer, &usual, None), Kind::Together(rest::idle));
    let about = "system calls for each request of one keep-alive connection, one worker (strace)";
    add("syscalls", about, true, 3, everyone(Need::Answer, &one, None), Kind::Kept(Box::new(rest::syscalls)));
    for (name, workers, apart, default, about) in [
        (
            "balance-4",
            4,
            rest::APART,
            true,
            "100 connections that arrive at 400 a second: how many each of 4 workers holds",
        ),
        ("balance-8", 8, rest::APART, true, "the same over 8 workers"),
        ("burst-4", 4, std::time::Duration::ZERO, false, "100 connections that arrive at once, over 4 workers"),
        ("burst-8", 8, std::time::Duration::ZERO, false, "the same over 8 workers"),
    ] {
        let sides = everyone(Need::AnswerMore, &Setup { workers, ..usual.clone() }, who);
        let kind = Kind::Kept(Box::new(move |_, side, server| rest::balance(side, server, apart)));
        add(name, about, default, any, sides, kind);
    }
    all
}

fn pem_files() -> (PathBuf, PathBuf) {
    let dir = root().join("target/bench");
    (dir.join("certificate.pem"), dir.join("key.pem"))
}

/// Makes the certificate that all servers use, and a client that trusts it.
fn connector() -> TlsConnector {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (certfile, keyfile) = pem_files();
    fs::create_dir_all(certfile.parent().expect("a folder")).expect("target/ is ours");
    fs::write(&certfile, cert.pem()).expect("target/ is ours");
    fs::write(&keyfile, signing_key.serialize_pem()).expect("target/ is ours");
    fs::set_permissions(&keyfile, fs::Permissions::from_mode(0o600)).expect("target/ is ours");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a sound certificate");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

impl Bench {
    /// Returns the settings of a client that speaks HTTP/2 or HTTP/1.1.
    fn tls(&self, http2: bool) -> TlsConnector {
        let mut config = ClientConfig::clone(self.connector.config());
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        TlsConnector::from(Arc::new(config))
    }
}
