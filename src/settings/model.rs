//! The settings as types: one struct a section, each key a field.
//!
//! Owns: the shape of each value and its default. Refuses: how a value is written (`value`) and where it comes from
//! (`resolve`).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{AccessFormat, Tls, cpus, duration, show, size};

/// Everything the supervisor is tuned by. A zero duration or count that the key's comment calls a limit is "off".
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    pub server: Server,
    pub workers: Workers,
    pub http: Http,
    pub tls: Tls,
    pub log: Log,
    pub control: Control,
    pub process: Process,
    /// The folder in which relative paths begin: that of the settings file, else the one that the service was started in.
    /// Links are followed once: the workers of a generation stay in one folder, wherever a link leads later.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The folder in which the relative paths of state begin, such as a database's: `$STATE_DIRECTORY` if a service manager
    /// sets it (of several folders the first), else [`folder`](Self::folder).
    #[serde(skip)]
    pub state_folder: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Server {
    pub bind: Vec<Bind>,
    pub backlog: u32,
    pub reuse_port: bool,
    pub proxy_protocol: ProxyProtocol,
    #[serde(serialize_with = "show::octal")]
    pub unix_mode: u32,
    pub unix_owner: Owner,
}

/// Who a unix socket belongs to, looked up when the settings were resolved; `None` is whoever makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// As written: `user:group`, `user`, `:group`.
    pub name: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// One entry of `server.bind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// `host:port`, `[::]:port`; a name binds every address it resolves to.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// `fd://3`: a listening socket inherited from whoever started us.
    Fd(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    Off,
    V1,
    V2,
    Auto,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workers {
    /// Already evaluated: `auto` and formulas are numbers by now; at least 1.
    pub count: u32,
    pub max_requests: u64,
    pub max_requests_jitter: u64,
    #[serde(with = "duration")]
    pub max_age: Duration,
    #[serde(with = "size")]
    pub max_rss: u64,
    #[serde(with = "duration")]
    pub timeout: Duration,
    #[serde(with = "duration")]
    pub boot_timeout: Duration,
    #[serde(with = "duration")]
    pub graceful_timeout: Duration,
    #[serde(with = "duration")]
    pub drain_idle: Duration,
    #[serde(with = "duration")]
    pub shutdown_delay: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Http {
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    pub worker_connections: u64,
    pub limit_concurrency: u64,
    pub limit_exempt: Vec<String>,
    pub quarantine: bool,
    pub metrics_path: String,
    pub limit_request_line: usize,
    pub limit_request_fields: usize,
    pub limit_request_field_size: usize,
    #[serde(with = "size")]
    pub limit_request_body: u64,
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    pub http2: bool,
    pub http2_rebalance: bool,
    pub forwarded_allow_ips: Vec<AllowIp>,
}

/// One entry of `http.forwarded_allow_ips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowIp {
    Any,
    Net { address: IpAddr, prefix: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log {
    pub level: Level,
    /// For a target and all below it, in place of `level`.
    pub targets: Vec<TargetLevel>,
    pub format: LogFormat,
    pub file: LogTarget,
    pub access: LogTarget,
    pub access_exclude: Vec<String>,
    pub access_format: AccessFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// One entry of `log.targets`: `sqlx=warn`. A target is a module path, or what an event names instead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetLevel {
    /// The target; the level is also for those below it, as `sqlx::query` is below `sqlx`.
    pub target: String,
    /// `None`: no event is logged.
    pub level: Option<Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Where lines go. `-` is stderr for `log.file` and stdout for `log.access`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Standard,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    pub socket: ControlSocket,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum ControlSocket {
    Auto,
    Off,
    Path(PathBuf),
}

#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    pub name: String,
    #[serde(serialize_with = "show::name")]
    pub user: Option<User>,
    #[serde(serialize_with = "show::name")]
    pub group: Option<Group>,
    #[serde(serialize_with = "show::umask")]
    pub umask: Option<u32>,
    #[serde(serialize_with = "show::path")]
    pub pidfile: Option<PathBuf>,
    #[serde(serialize_with = "show::path")]
    pub env_file: Option<PathBuf>,
    /// What `env_file` holds, in order; applied in the worker, below the real environment.
    #[serde(skip)]
    pub env: Vec<(String, String)>,
}

impl fmt::Debug for Process {
    /// Without `env`: its values are often secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, user, group, umask, pidfile, env_file, env: _ } = self;
        f.debug_struct("Process")
            .field("name", name)
            .field("user", user)
            .field("group", group)
            .field("umask", umask)
            .field("pidfile", pidfile)
            .field("env_file", env_file)
            .finish_non_exhaustive()
    }
}

/// A name or number of `process.user`, looked up when the settings were resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    pub gid: u32,
}

impl Default for Settings {
    /// The defaults as seen from here: `workers.count` is what `auto` gives on this machine now.
    fn default() -> Self {
        Self::defaults(cpus::available(), PathBuf::from("."))
    }
}

impl Settings {
    pub(super) fn defaults(cpus: u32, folder: PathBuf) -> Self {
        let strings = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        Self {
            server: Server {
                bind: vec![Bind::Tcp { host: "127.0.0.1".to_owned(), port: 8000 }],
                backlog: 2048,
                reuse_port: true,
                proxy_protocol: ProxyProtocol::Off,
                unix_mode: 0o660,
                unix_owner: Owner::default(),
            },
            workers: Workers {
                count: cpus.min(cpus::WORKERS_MAX),
                max_requests: 0,
                max_requests_jitter: 0,
                max_age: Duration::ZERO,
                max_rss: 0,
                timeout: Duration::from_secs(30),
                boot_timeout: Duration::from_secs(60),
                graceful_timeout: Duration::from_secs(30),
                drain_idle: Duration::from_secs(5),
                shutdown_delay: Duration::ZERO,
            },
            http: Http {
                keep_alive: Duration::from_secs(75),
                header_timeout: Duration::from_secs(10),
                body_timeout: Duration::from_secs(30),
                write_timeout: Duration::from_secs(30),
                worker_connections: 1000,
                limit_concurrency: 0,
                limit_exempt: strings(&["/health", "/health/live", "/ready", "/health/ready"]),
                quarantine: false,
                metrics_path: String::new(),
                limit_request_line: 8190,
                limit_request_fields: 100,
                limit_request_field_size: 8190,
                limit_request_body: 16 << 20,
                request_timeout: Duration::ZERO,
                http2: true,
                http2_rebalance: false,
                forwarded_allow_ips: vec![
                    AllowIp::Net { address: IpAddr::V4(Ipv4Addr::LOCALHOST), prefix: 32 },
                    AllowIp::Net { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
                ],
            },
            tls: Tls { certfile: None, keyfile: None, client_ca: None, material: None },
            log: Log {
                level: Level::Info,
                targets: Vec::new(),
                format: LogFormat::Text,
                file: LogTarget::Standard,
                access: LogTarget::Off,
                access_exclude: Vec::new(),
                access_format: AccessFormat::combined(),
            },
            control: Control { socket: ControlSocket::Auto },
            process: Process {
                name: "oxicorn".to_owned(),
                user: None,
                group: None,
                umask: None,
                pidfile: None,
                env_file: None,
                env: Vec::new(),
            },
            state_folder: folder.clone(),
            folder,
        }
    }
}
