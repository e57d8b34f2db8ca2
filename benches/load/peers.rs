//! The peers: oxicorn, and the servers that its users would otherwise choose. Each peer runs with its default settings,
//! unless a scenario needs other settings.
//!
//! Owns: the names, versions and commands of the peers, and what each cannot do. Refuses: to tune only one of the
//! peers.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::common::{build_release_example, root};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Bare,
    Oxicorn,
    Reference,
    Nginx,
    NginxReuseport,
    Granian,
    GranianFastapi,
    Uvicorn,
    UvicornFastapi,
    Gunicorn,
    GunicornFastapi,
    GunicornUvicorn,
}

/// How a scenario needs a server to be set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    pub workers: usize,
    pub access_log: bool,
    /// True if oxicorn runs with all limits, time limits and counters that are off by default.
    pub everything: bool,
    /// The paths of the certificate and of the key.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub http2: bool,
    /// A worker is replaced after this many requests; `None` means never.
    pub max_requests: Option<u32>,
    /// After this many seconds of silence, a worker counts as hung; `None` means the default of the server.
    pub hung_after: Option<u32>,
    /// The server must allow this many connections, and must not close them while they are idle.
    pub idle_connections: Option<usize>,
}

/// How to start a server: the commands of its processes, which all listen on the same address.
pub struct Recipe {
    pub commands: Vec<Command>,
    /// True if the server has a master, so that its workers are other processes.
    pub has_master: bool,
}

const NO_MASTER: &str = "no master watches its processes";
const SAME_SUPERVISOR: &str = "the same supervisor as without a framework";

impl Peer {
    pub const ALL: [Self; 12] = [
        Self::Bare,
        Self::Oxicorn,
        Self::Reference,
        Self::Nginx,
        Self::NginxReuseport,
        Self::Granian,
        Self::GranianFastapi,
        Self::Uvicorn,
        Self::UvicornFastapi,
        Self::Gunicorn,
        Self::GunicornFastapi,
        Self::GunicornUvicorn,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper",
            Self::Oxicorn => "oxicorn",
            Self::Reference => "oxicorn reference",
            Self::Nginx => "nginx",
            Self::NginxReuseport => "nginx reuseport",
            Self::Granian => "Granian",
            Self::GranianFastapi => "Granian + FastAPI",
            Self::Uvicorn => "Uvicorn",
            Self::UvicornFastapi => "Uvicorn + FastAPI",
            Self::Gunicorn => "Gunicorn",
            Self::GunicornFastapi => "Gunicorn + FastAPI",
            Self::GunicornUvicorn => "Gunicorn + Uvicorn + FastAPI",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::Bare => "the service on hyper, a process for each worker, without a master",
            Self::Oxicorn => "the same service under oxicorn, its settings at their defaults",
            Self::Reference => "oxicorn's reference service (axum, SQLite), /health",
            Self::Nginx => "return 200, one listener",
            Self::NginxReuseport => "return 200, a listener for each worker",
            Self::Granian => "an ASGI app without a framework, uvloop",
            Self::GranianFastapi => "FastAPI, uvloop",
            Self::Uvicorn => "an ASGI app without a framework, uvloop and httptools",
            Self::UvicornFastapi => "FastAPI, uvloop and httptools",
            Self::Gunicorn => "its ASGI worker, an app without a framework, uvloop",
            Self::GunicornFastapi => "its ASGI worker, FastAPI, uvloop",
            Self::GunicornUvicorn => "uvicorn-worker, FastAPI, uvloop and httptools",
        }
    }

    pub fn is_fastapi(self) -> bool {
        matches!(self, Self::GranianFastapi | Self::UvicornFastapi | Self::GunicornFastapi | Self::GunicornUvicorn)
    }

    fn module(self) -> Option<&'static str> {
        match self {
            Self::Bare | Self::Oxicorn | Self::Reference | Self::Nginx | Self::NginxReuseport => None,
            Self::Granian | Self::GranianFastapi => Some("granian"),
            Self::Uvicorn | Self::UvicornFastapi => Some("uvicorn"),
            Self::Gunicorn | Self::GunicornFastapi | Self::GunicornUvicorn => Some("gunicorn"),
        }
    }

    /// Returns the URL path for which this peer gives its smallest answer.
    pub fn path(self) -> &'static str {
        if self == Self::Reference { "/health" } else { "/" }
    }

    /// Returns why this peer cannot be measured on this machine; `None` if it can.
    pub fn missing(self) -> Option<String> {
        if let Some(module) = self.module() {
            let lacks = !packages().join(module).is_dir() || python().is_none();
            return lacks.then(|| "it is not in target/bench-peers: make bench-peers".to_owned());
        }
        let is_nginx = matches!(self, Self::Nginx | Self::NginxReuseport);
        (is_nginx && nginx().is_none()).then(|| "there is no nginx on this machine: make bench-peers".to_owned())
    }

    /// Returns the names and versions of the programs of this peer.
    pub fn versions(self) -> Vec<(String, String)> {
        let own = |name: &str, version: String| vec![(name.to_owned(), version)];
        match (self, self.module()) {
            (Self::Bare, _) => own("hyper", locked("hyper")),
            (Self::Oxicorn | Self::Reference, _) => own("oxicorn", env!("CARGO_PKG_VERSION").to_owned()),
            (_, None) => own("nginx", version_of_nginx()),
            (_, Some(module)) => {
                let mut versions =
                    own("python", python().as_ref().map_or_else(String::new, |(_, version)| version.clone()));
                let mut names = vec![module, "uvloop"];
                names.extend((module == "uvicorn" || self == Self::GunicornUvicorn).then_some("httptools"));
                names.extend((self == Self::GunicornUvicorn).then_some("uvicorn_worker"));
                names.extend(self.is_fastapi().then_some("fastapi"));
                versions.extend(names.into_iter().map(|name| (name.to_owned(), installed(name))));
                versions
            }
        }
    }

    /// Returns why this peer cannot fulfil `need`, whatever its settings; `None` if it can.
    pub fn cannot(self, need: Need) -> Option<&'static str> {
        let is_nginx = matches!(self, Self::Nginx | Self::NginxReuseport);
        match need {
            Need::Answer => None,
            Need::AnswerMore if self == Self::Reference => Some("its /health has one answer"),
            Need::AnswerSlowly if self == Self::Reference => Some("its /health has one answer"),
            Need::AnswerSlowly if is_nginx => Some("it answers at once, or asks another server"),
            Need::AnswerMore | Need::AnswerSlowly => None,
            Need::Log if self == Self::Bare => Some("it has no access log"),
            Need::Log => None,
            Need::Http2 => match self {
                Self::Uvicorn | Self::UvicornFastapi | Self::GunicornUvicorn => Some("httptools speaks HTTP/1 alone"),
                _ => None,
            },
            Need::Reload | Need::Recycle | Need::Replace | Need::NoticeHang if self == Self::Bare => Some(NO_MASTER),
            Need::Reload | Need::Replace | Need::Recycle | Need::NoticeHang | Need::Stop if self.is_fastapi() => {
                (self != Self::GunicornUvicorn).then_some(SAME_SUPERVISOR)
            }
            Need::Reload | Need::Replace | Need::NoticeHang | Need::Stop if self == Self::Reference => {
                Some("the same supervisor as oxicorn")
            }
            Need::Recycle if self == Self::Reference => Some("the same supervisor as oxicorn"),
            Need::Recycle if is_nginx => Some("its workers have no limit of requests"),
            Need::Recycle if self == Self::Granian => Some("it limits the age of a worker, not its requests"),
            Need::NoticeHang if is_nginx || self == Self::Granian => Some("it does not watch for workers that hang"),
            Need::Stop if self == Self::Bare => Some("it has no graceful stop"),
            Need::Stop if is_nginx => Some("it answers at once, so that nothing is in flight"),
            Need::Reload | Need::Recycle | Need::Replace | Need::NoticeHang | Need::Stop => None,
            Need::Beside if matches!(self, Self::Bare | Self::Oxicorn) => None,
            Need::Beside => Some("shown only for oxicorn and bare hyper"),
        }
    }

    pub fn recipe(self, port: u16, setup: &Setup, dir: &Path) -> Recipe {
        let one = |command| Recipe { commands: vec![command], has_master: true };
        match self {
            Self::Bare => {
                let commands = (0..setup.workers).map(|_| bare(port, setup)).collect();
                Recipe { commands, has_master: false }
            }
            Self::Oxicorn => one(oxicorn(plain(), port, setup, dir)),
            Self::Reference => one(oxicorn(env!("CARGO_BIN_EXE_oxicorn").into(), port, setup, dir)),
            Self::Nginx => one(nginx_of(port, setup, dir, false)),
            Self::NginxReuseport => one(nginx_of(port, setup, dir, true)),
            Self::Granian | Self::GranianFastapi => one(granian(self.is_fastapi(), port, setup)),
            Self::Uvicorn | Self::UvicornFastapi => {
                // With one worker, uvicorn runs without a supervisor.
                Recipe { commands: vec![uvicorn(self.is_fastapi(), port, setup)], has_master: setup.workers > 1 }
            }
            Self::Gunicorn | Self::GunicornFastapi | Self::GunicornUvicorn => one(gunicorn(self, port, setup, dir)),
        }
    }
}

/// What a scenario needs of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Answer,
    AnswerMore,
    AnswerSlowly,
    Log,
    Http2,
    Reload,
    Recycle,
    Replace,
    NoticeHang,
    Stop,
    /// A scenario with this need is shown only for oxicorn and bare hyper.
    Beside,
}

/// Returns the path of the program that is built from tests/programs/plain.rs. The program is built only once.
fn plain() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build_release_example("plain")).clone()
}

fn bare(port: u16, setup: &Setup) -> Command {
    let mut command = Command::new(plain());
    command.env("BARE", format!("127.0.0.1:{port}"));
    if setup.http2 {
        command.env("BARE_HTTP2", "1");
    }
    if let Some((certfile, keyfile)) = &setup.tls {
        command.env("BARE_TLS", format!("{},{}", certfile.display(), keyfile.display()));
    }
    command
}

fn oxicorn(program: PathBuf, port: u16, setup: &Setup, dir: &Path) -> Command {
    let shown = dir.display();
    let mut server = format!("[server]\nbind = [\"127.0.0.1:{port}\"]\n");
    let mut workers = format!("[workers]\ncount = {}\n", setup.workers);
    let (mut http, mut log) = ("[http]\n".to_owned(), "[log]\n".to_owned());
    if let Some(requests) = setup.max_requests {
        workers += &format!("max_requests = {requests}\n");
    }
    if let Some(seconds) = setup.hung_after {
        workers += &format!("timeout = {seconds}\n");
    }
    if setup.everything {
        workers += "max_requests = 1000000000\n";
        http += "limit_concurrency = 1000\nrequest_timeout = \"30s\"\nmetrics_path = \"/metrics\"\n";
    }
    if let Some(connections) = setup.idle_connections {
        http += &format!("worker_connections = {connections}\nkeep_alive = \"10m\"\n");
    }
    if setup.access_log {
        log += &format!("access = \"{shown}/access.log\"\n");
    }
    let _ = write!(server, "{workers}{http}{log}[control]\nsocket = \"{shown}/control.sock\"\n");
    if let Some((certfile, keyfile)) = &setup.tls {
        let _ = write!(server, "[tls]\ncertfile = {certfile:?}\nkeyfile = {keyfile:?}\n");
    }
    fs::write(dir.join("supervisor.toml"), server).expect("the settings are written");
    let mut command = Command::new(program);
    command.env("OXICORN_CONFIG", dir.join("supervisor.toml"));
    command
}

fn nginx_of(port: u16, setup: &Setup, dir: &Path, reuseport: bool) -> Command {
    fs::write(dir.join("10k"), vec![b'x'; 10 << 10]).expect("a file in our own folder");
    fs::write(dir.join("1m"), vec![b'x'; 1 << 20]).expect("a file in our own folder");
    let shown = dir.display();
    let access = match setup.access_log {
        true => format!("access_log {shown}/access.log combined buffer=64k flush=1s;"),
        false => "access_log off;".to_owned(),
    };
    let mut listen = format!("listen 127.0.0.1:{port} backlog=2048");
    listen += if reuseport { " reuseport" } else { "" };
    listen += if setup.http2 { " http2" } else { "" };
    listen += if setup.tls.is_some() { " ssl" } else { "" };
    let tls = setup.tls.as_ref().map_or_else(String::new, |(certfile, keyfile)| {
        format!("ssl_certificate {}; ssl_certificate_key {};", certfile.display(), keyfile.display())
    });
    let keep_alive = if setup.idle_connections.is_some() { "keepalive_timeout 600;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {shown}/{name};\n"))
        .collect();
    // nginx gets a higher limit of requests on a connection. By default it closes a connection after 1,000 requests,
    // and the other peers do not.
    let text = format!(
        "daemon off;\nuser root;\nworker_processes {};\npid {shown}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections {}; }}\n\
         http {{\n{temporary}  {access}\n  keepalive_requests 1000000000;\n  {keep_alive}\n  client_max_body_size 16m;\n\
         server {{\n    {listen};\n    {tls}\n    root {shown};\n    default_type text/plain;\n\
         location / {{ return 200 \"hello, world\\n\"; }}\n\
         location = /pid {{ return 200 $pid; }}\n\
         location = /10k {{ }}\n    location = /1m {{ }}\n  }}\n}}\n",
        setup.workers,
        setup.idle_connections.unwrap_or(2048),
    );
    fs::write(dir.join("nginx.conf"), text).expect("the settings are written");
    let mut command = Command::new(nginx().expect("asked for only when it is there"));
    command.args(["-e", "stderr", "-c"]).arg(dir.join("nginx.conf"));
    command
}

fn python_of(module: &str) -> Command {
    let (program, _) = python().as_ref().expect("asked for only when it is there");
    let mut command = Command::new(program);
    let own = root().join("benches/load");
    let path = std::env::join_paths([packages(), own]).expect("paths without colons");
    command.args(["-m", module]).env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn app(fastapi: bool) -> &'static str {
    if fastapi { "asgi:fastapi" } else { "asgi:app" }
}

fn granian(fastapi: bool, port: u16, setup: &Setup) -> Command {
    let mut command = python_of("granian");
    command.args(["--interface", "asgi", "--loop", "uvloop", "--respawn-failed-workers", "--host", "127.0.0.1"]);
    command.args(["--port", &port.to_string(), "--workers", &setup.workers.to_string(), "--backlog", "2048"]);
    if setup.access_log {
        command.arg("--access-log");
    }
    if let Some((certfile, keyfile)) = &setup.tls {
        command.arg("--ssl-certificate").arg(certfile).arg("--ssl-keyfile").arg(keyfile);
    }
    if let Some(connections) = setup.idle_connections {
        command.args(["--http1-header-read-timeout", "60000", "--backpressure", &connections.to_string()]);
    }
    command.arg(app(fastapi));
    command
}

fn uvicorn(fastapi: bool, port: u16, setup: &Setup) -> Command {
    let mut command = python_of("uvicorn");
    command.args(["--loop", "uvloop", "--http", "httptools", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--workers", &setup.workers.to_string()]);
    command.arg(if setup.access_log { "--access-log" } else { "--no-access-log" });
    if let Some(requests) = setup.max_requests {
        command.args(["--limit-max-requests", &requests.to_string()]);
    }
    if let Some(seconds) = setup.hung_after {
        command.args(["--timeout-worker-healthcheck", &seconds.to_string()]);
    }
    if let Some((certfile, keyfile)) = &setup.tls {
        command.arg("--ssl-certfile").arg(certfile).arg("--ssl-keyfile").arg(keyfile);
    }
    if setup.idle_connections.is_some() {
        command.args(["--timeout-keep-alive", "600"]);
    }
    command.arg(app(fastapi));
    command
}

fn gunicorn(peer: Peer, port: u16, setup: &Setup, dir: &Path) -> Command {
    let mut command = python_of("gunicorn");
    let kind = if peer == Peer::GunicornUvicorn { "uvicorn_worker.UvicornWorker" } else { "asgi" };
    command.args(["-k", kind, "--no-control-socket", "--asgi-loop", "uvloop"]);
    command.args(["-b", &format!("127.0.0.1:{port}"), "-w", &setup.workers.to_string()]);
    if setup.access_log {
        command.arg("--access-logfile").arg(dir.join("access.log"));
    }
    if let Some(requests) = setup.max_requests {
        command.args(["--max-requests", &requests.to_string()]);
    }
    if let Some(seconds) = setup.hung_after {
        command.args(["--timeout", &seconds.to_string()]);
    }
    if setup.http2 {
        command.args(["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"]);
    }
    if let Some((certfile, keyfile)) = &setup.tls {
        command.arg("--certfile").arg(certfile).arg("--keyfile").arg(keyfile);
    }
    if let Some(connections) = setup.idle_connections {
        command.args(["--worker-connections", &connections.to_string(), "--keep-alive", "600"]);
    }
    command.arg(app(peer.is_fastapi()));
    command
}

fn packages() -> PathBuf {
    root().join("target/bench-peers")
}

/// Returns the path of the Python interpreter and its version. The interpreter itself is asked for its path, because
/// `python3` may be a launcher that starts the interpreter.
fn python() -> &'static Option<(PathBuf, String)> {
    static FOUND: OnceLock<Option<(PathBuf, String)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let script = "import platform, sys; print(sys.executable, platform.python_version())";
        let output = Command::new("python3").args(["-c", script]).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        let (program, version) = said.trim().rsplit_once(' ')?;
        Some((program.into(), version.to_owned()))
    })
}

/// Returns the path of nginx. Debian installs nginx in /usr/sbin, which is only in root's PATH.
fn nginx() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.find_map(|folder| Some(folder.join("nginx")).filter(|program| program.is_file()))
}

/// Returns the version of an installed Python package, from the name of its folder `name-1.2.3.dist-info`.
fn installed(name: &str) -> String {
    let entries = fs::read_dir(packages()).into_iter().flatten().flatten();
    let mut versions = entries.filter_map(|entry| {
        let file = entry.file_name().into_string().ok()?;
        Some(file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".dist-info")?.to_owned())
    });
    versions.next().unwrap_or_else(|| "?".to_owned())
}

fn locked(name: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let after = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, after)| after);
    after.and_then(|after| after.split('"').next()).unwrap_or("?").to_owned()
}

/// Returns the version that nginx prints, on stdout or stderr, as `nginx version: nginx/1.22.1`.
fn version_of_nginx() -> String {
    let asked = nginx().and_then(|program| Command::new(program).arg("-v").output().ok());
    let said = asked.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().rsplit('/').next().unwrap_or("?").to_owned()
}
