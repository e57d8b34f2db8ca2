//! The effective settings of a run: one typed struct, resolved once from every source.
//!
//! Owns: the meaning of each key, its default, and the one precedence (default < file < well-known environment
//! name < `OXICORN_*` < command line). Refuses: serde (that is `settings::file`), and decisions that need two
//! keys at once (`settings::check`).

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Everything the supervisor is tuned by. A zero duration or count that the key's comment calls a limit is "off".
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub server: Server,
    pub workers: Workers,
    pub http: Http,
    pub tls: Tls,
    pub log: Log,
    pub control: Control,
    pub process: Process,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub bind: Vec<Bind>,
    pub backlog: u32,
    pub reuse_port: bool,
    pub proxy_protocol: ProxyProtocol,
    pub unix_mode: u32,
    pub unix_owner: String,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    Off,
    V1,
    V2,
    Auto,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workers {
    /// Already evaluated: `auto` and formulas are numbers by now; at least 1.
    pub count: u32,
    pub max_requests: u64,
    pub max_requests_jitter: u64,
    pub max_age: Duration,
    pub max_rss: u64,
    pub timeout: Duration,
    pub boot_timeout: Duration,
    pub graceful_timeout: Duration,
    pub shutdown_delay: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    pub keep_alive: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub worker_connections: u64,
    pub limit_concurrency: u64,
    pub limit_exempt: Vec<String>,
    pub metrics_path: String,
    pub limit_request_line: usize,
    pub limit_request_fields: usize,
    pub limit_request_field_size: usize,
    pub limit_request_body: u64,
    pub request_timeout: Duration,
    pub http2: bool,
    pub forwarded_allow_ips: Vec<AllowIp>,
}

/// One entry of `http.forwarded_allow_ips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowIp {
    Any,
    Net { address: IpAddr, prefix: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub certfile: Option<PathBuf>,
    pub keyfile: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
    pub file: LogTarget,
    pub access: LogTarget,
    pub access_exclude: Vec<String>,
    pub access_format: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub socket: ControlSocket,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlSocket {
    Auto,
    Off,
    Path(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub name: String,
    pub user: Option<User>,
    pub group: Option<Group>,
    pub umask: Option<u32>,
    pub pidfile: Option<PathBuf>,
    pub env_file: Option<PathBuf>,
    /// What `env_file` holds, in order; applied in the worker, below the real environment.
    pub env: Vec<(String, String)>,
}

/// A name or number of `process.user`, looked up when the settings were resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
}

/// The tables an app declared with [`App::table`](crate::App::table), parsed and typed.
#[derive(Clone, Default)]
pub struct Tables(pub(crate) HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Tables {
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>()).cloned().and_then(|value| value.downcast().ok())
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({})", self.0.len())
    }
}
