//! The settings as types: one struct for each section, with one field for each key.
//!
//! Owns: the type of each value, and its default. Refuses: to read a value (`value` does), and to choose its source
//! (`resolve` does).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{access_format::AccessFormat, cpus, duration, size, tls::Tls, written};

/// The settings of the supervisor. This struct has one field for each section of `supervisor.toml`, and each section
/// has one field for each of its keys.
///
/// A duration or a number of 0 switches a limit off if the documentation of the field says so. If a field is an
/// `Option`, an empty string in the file means `None`. [`Settings::default`] returns the defaults.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Settings {
    /// The listening sockets: the section `[server]`.
    pub server: Server,
    /// The worker processes: the section `[workers]`.
    pub workers: Workers,
    /// HTTP and its limits: the section `[http]`.
    pub http: Http,
    /// TLS and its files: the section `[tls]`.
    pub tls: Tls,
    /// The log and the access log: the section `[log]`.
    pub log: Log,
    /// The control socket: the section `[control]`.
    pub control: Control,
    /// The processes and their rights: the section `[process]`.
    pub process: Process,
    /// The folder in which relative paths begin: the folder of the settings file, or without such a file the folder in
    /// which the service was started.
    ///
    /// Links in its path are followed when the settings are read. Therefore all workers of a generation use the same
    /// folder, even if a link leads elsewhere later.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The folder in which relative paths of state begin, such as the path of a database.
    ///
    /// It is the folder in `$STATE_DIRECTORY` if a service manager sets this variable (if it names several, the first),
    /// else [`folder`](Self::folder).
    #[serde(skip)]
    pub state_folder: PathBuf,
}

/// The listening sockets: `[server]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Server {
    /// The addresses on which the service listens: `"host:port"`, `":port"` (every IPv4 address), `"[::]:port"`,
    /// `"unix:/path"` or `"fd://3"` (a socket that was passed to the process). If the variable PORT is set, the service
    /// listens on that port of every IPv4 address instead. If systemd passes sockets (`LISTEN_FDS`), the service uses
    /// only these.
    pub bind: Vec<Bind>,
    /// The number of connections that may wait, on each listening socket, until a worker accepts them. It is at least
    /// 1; the kernel lowers a larger number to `net.core.somaxconn`.
    pub backlog: u32,
    /// If true, each worker listens on sockets of its own (`SO_REUSEPORT`). If false, all workers share one socket for
    /// each address.
    pub reuse_port: bool,
    /// The version of the PROXY protocol with whose header each connection must begin: `"v1"`, `"v2"` or `"auto"`
    /// (either version). With `"off"`, connections begin without such a header. Only a peer in
    /// `http.forwarded_allow_ips`, or a peer on a unix socket, may send the header; any other connection is refused.
    pub proxy_protocol: ProxyProtocol,
    /// The permission bits of the files of unix sockets, in octal. With `"0660"` the owner and the group can connect.
    #[serde(serialize_with = "written::octal")]
    pub unix_mode: u32,
    /// The user and the group that own the files of unix sockets: `"user:group"`, `"user"` or `":group"`. If the user,
    /// the group or both are not named, the user or the group of the master is used.
    pub unix_owner: Owner,
}

/// The owner of the files of unix sockets. Its accounts were looked up when the settings were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// The owner as it was written: `user:group`, `user` or `:group`; empty if it is not set.
    pub name: String,
    /// The user's number. `None`: the user of the master.
    pub uid: Option<u32>,
    /// The group's number. `None`: the group of the master.
    pub gid: Option<u32>,
}

/// One entry of `server.bind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bind {
    /// A TCP address, written `host:port` or `[::]:port`.
    Tcp {
        /// An IP address without brackets, or a name. For a name, every address to which it resolves is bound.
        host: String,
        /// The port. 0: the kernel chooses a free port.
        port: u16,
    },
    /// The absolute path of a unix socket, written `unix:/path`.
    Unix(PathBuf),
    /// The number of a listening socket that was passed to the process, written `fd://3`.
    Fd(i32),
}

/// The PROXY protocol with which connections must begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProxyProtocol {
    /// Connections begin without a PROXY header.
    Off,
    /// Connections begin with a header of version 1, which is text.
    V1,
    /// Connections begin with a header of version 2, which is binary.
    V2,
    /// Connections begin with a header of version 1 or 2; each connection may choose.
    Auto,
}

/// The worker processes: `[workers]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Workers {
    /// The number of workers, from 1 to 256: a number, `"auto"` (the CPUs that this process may use, by affinity and
    /// cgroup quota, rounded up) or a formula such as `"2n+1"`, in which n is the number that `"auto"` stands for. The
    /// variable `WEB_CONCURRENCY` sets this key too.
    ///
    /// The value is always the number: `auto` and formulas are evaluated when the settings are read.
    pub count: u32,
    /// The number of requests after which a worker is replaced, which limits a slow memory leak. With 0 there is no
    /// limit.
    pub max_requests: u64,
    /// The upper bound of a random number that is added to `max_requests`. The number is drawn for each worker, so that
    /// workers are not all replaced at once. With 0 nothing is added; without `max_requests` this key does nothing.
    pub max_requests_jitter: u64,
    /// The age at which a worker is replaced, such as `"1d"`. A random time is added to it, at most the same share of
    /// it as `max_requests_jitter` is of `max_requests`. With 0 there is no limit.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// The resident memory above which a worker is replaced, in bytes or as a size such as `"512MiB"`. The memory is
    /// measured once a second. With 0 there is no limit.
    #[serde(with = "size")]
    pub max_rss: u64,
    /// If true, the old worker serves until the new worker of its slot serves. If false, the old worker ends before the
    /// new one starts, one slot after the other, and connections wait meanwhile. Set false for an app of which two
    /// copies cannot run at once, because of its memory, a GPU or a file lock.
    pub overlap: bool,
    /// The time after which the master kills and replaces a worker that sends no heartbeat. With 0 the master does not
    /// notice a worker that hangs.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The time after which the master kills a new worker that is not ready yet. With 0 there is no limit.
    #[serde(with = "duration")]
    pub boot_timeout: Duration,
    /// The time that a draining worker has to finish its requests before the master kills it. A worker drains at a
    /// stop, reload, upgrade, recycle or scale. The value cannot be 0.
    #[serde(with = "duration")]
    pub graceful_timeout: Duration,
    /// The time after which a draining worker closes a connection that is idle. With 0 an idle connection stays open
    /// until `http.keep_alive` or `graceful_timeout` ends it.
    #[serde(with = "duration")]
    pub drain_idle: Duration,
    /// The time for which the service continues to serve after SIGTERM while `/ready` answers 503, such as `"5s"`, so
    /// that load balancers stop sending traffic before the workers drain. With 0 the workers begin to drain at once.
    #[serde(with = "duration")]
    pub shutdown_delay: Duration,
}

/// HTTP and its limits: `[http]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Http {
    /// The time after which a worker closes a connection that is idle. A proxy in front of the service must close its
    /// connections sooner (nginx: 60s). With 0 there is no limit.
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    /// The time within which the whole head of a request must arrive. If it does not, the worker answers 408. With 0
    /// there is no limit.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// The longest pause that a client may make while the body of its request is read. If the pause is longer, the
    /// worker answers 408. With 0 there is no limit.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// The longest time for which a client may read nothing of its response. After this time the worker closes the
    /// connection, or with HTTP/2 only the stream. With 0 there is no limit.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// The number of connections that each worker may have open. At this limit, a new connection replaces the
    /// connection that has been idle longest; if no connection is idle, the new one waits. With 0 there is no limit.
    pub worker_connections: u64,
    /// The number of requests that each worker may have in progress. Above this limit a request is answered 503 with
    /// the header Retry-After. With 0 there is no limit.
    pub limit_concurrency: u64,
    /// The paths whose requests are served even above `limit_concurrency`, such as those of health checks. Each entry
    /// must be the whole path of a request.
    pub limit_exempt: Vec<String>,
    /// If true, workers answer a request with 503 for one minute if the same request was in progress in most of the
    /// last crashes of workers. If false, a request that crashes workers is served again and again.
    pub quarantine: bool,
    /// The path at which every worker answers with the metrics of the whole service as OpenMetrics, such as
    /// `"/metrics"`. These requests do not reach the app and are not counted. If the value is empty, no path shows the
    /// metrics.
    pub metrics_path: String,
    /// The path at which every worker itself answers 200 to show that it is alive, such as `"/health"`. These requests
    /// do not reach the app and are not counted. If the value is empty, such a path is the app's own.
    pub health_path: String,
    /// The path at which every worker itself answers 200, and 503 once the service was asked to stop, such as
    /// `"/ready"`, so that load balancers stop sending traffic (see `workers.shutdown_delay`). These requests do not
    /// reach the app and are not counted. If the value is empty, such a path is the app's own.
    pub ready_path: String,
    /// The length of the longest request line that is accepted, in bytes, at most 65534. A longer line is answered 414.
    /// 0 means the maximum.
    pub limit_request_line: usize,
    /// The most header fields that a request may have, its trailers included. A request with more fields is answered
    /// 431. With 0 there is no limit.
    pub limit_request_fields: usize,
    /// The length of the longest header field that is accepted, in bytes, at most 65534. A longer field is answered
    /// 431. 0 means the maximum.
    pub limit_request_field_size: usize,
    /// The size of the largest body that a request may have, in bytes or as a size such as `"16MiB"`. A larger body is
    /// answered 413. With 0 there is no limit.
    #[serde(with = "size")]
    pub limit_request_body: u64,
    /// The longest time that a handler may take to answer a request, such as `"30s"`. After this time the worker drops
    /// the handler and answers 504. With 0 there is no limit.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// If true, the service speaks HTTP/2 as well as HTTP/1.1. If false, HTTP/2 is switched off.
    pub http2: bool,
    /// If true, a worker that has clearly more requests than the others closes HTTP/2 connections, so that their
    /// clients connect to another worker. If false, these connections stay open.
    pub http2_rebalance: bool,
    /// The peers whose `X-Forwarded-*` and Forwarded headers are trusted: IP addresses, networks such as
    /// `"10.0.0.0/8"`, or `"*"` for every peer. The variable `FORWARDED_ALLOW_IPS` sets this key too.
    pub forwarded_allow_ips: Vec<AllowIp>,
}

/// One entry of `http.forwarded_allow_ips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllowIp {
    /// Every peer, written `*`.
    Any,
    /// The peers of a network, or one peer.
    Net {
        /// Any address of the network. Only its first `prefix` bits count.
        address: IpAddr,
        /// The number of leading bits that must be equal. For a single address it is 32 (IPv4) or 128 (IPv6).
        prefix: u8,
    },
}

/// The log and the access log: `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Log {
    /// The least severe level of the events that are logged: `"error"`, `"warn"`, `"info"`, `"debug"` or `"trace"`. The
    /// variables `LOG_LEVEL` and `DEBUG=true` set this key too.
    pub level: Level,
    /// Levels for single targets, each with all targets below it, such as `"sqlx=warn"`, `"my_app=debug"` or
    /// `"noisy=off"`. The events of all other targets have the level in `log.level`.
    pub targets: Vec<TargetLevel>,
    /// The format of the log: `"text"`, or `"json"` with one object on each line.
    pub format: LogFormat,
    /// The path of the file to which the log is written, or `"-"` for stderr. After a rotation, SIGUSR1 makes the
    /// service open the file again.
    pub file: LogTarget,
    /// The path of the file to which the access log is written, `"-"` for stdout, or `"off"` for no access log.
    pub access: LogTarget,
    /// The paths whose requests are not written to the access log, such as `"/health"`. Each entry must be the whole
    /// path of a request.
    pub access_exclude: Vec<String>,
    /// The format of the access log: `"combined"`, `"json"` or a format string in the syntax of Gunicorn, such as
    /// `"%(h)s %(m)s %(U)s %(s)s"`.
    pub access_format: AccessFormat,
}

/// A level of the log. In comparisons the most severe level is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// Events that report a failure.
    Error,
    /// Events that need the attention of an operator.
    Warn,
    /// Events of normal operation that an operator wants to see.
    Info,
    /// Details that help to find a fault.
    Debug,
    /// Details of every single step.
    Trace,
}

/// One entry of `log.targets`, such as `sqlx=warn`. The target of an event is the path of its module, unless the event
/// names another target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetLevel {
    /// The target. The level also applies to targets below it, as `sqlx::query` is below `sqlx`.
    pub target: String,
    /// The least severe level that is logged for this target. `None`: no event is logged.
    pub level: Option<Level>,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// Each event is one line of text.
    Text,
    /// Each event is one JSON object on one line.
    Json,
}

/// The place to which the lines of a log are written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogTarget {
    /// Written `off`: the lines are not written.
    Off,
    /// Written `-`: stderr for `log.file`, stdout for `log.access`.
    Standard,
    /// The absolute path of a file.
    File(PathBuf),
}

/// The control socket: `[control]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Control {
    /// The path of the control socket, which `oxicorn status` and the other commands use; its mode is 0600. `"off"`:
    /// there is no such socket. `"auto"`: the socket is `<name>.sock` in `$RUNTIME_DIRECTORY`, else in `/run/oxicorn-0`
    /// (root) or `/tmp/oxicorn-<uid>`, else in `$XDG_RUNTIME_DIR`.
    pub socket: ControlSocket,
}

/// The place of the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
#[non_exhaustive]
pub enum ControlSocket {
    /// Written `auto`: in the first of the usual folders that can be used.
    Auto,
    /// Written `off`: there is no control socket.
    Off,
    /// The absolute path of the socket.
    Path(PathBuf),
}

/// The processes and their rights: `[process]`.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Process {
    /// The name of the service. ps shows it in titles such as `"oxicorn: master [shop] gen 1"` and `"oxicorn: worker 2
    /// [shop] gen 1"`, and the file of the control socket is called after it.
    pub name: String,
    /// The user that the workers run as, by name or number. The master keeps the user that it was started as. If the
    /// value is empty, the workers run as this user too.
    #[serde(serialize_with = "written::name")]
    pub user: Option<User>,
    /// The group that the workers run with, by name or number. If the value is empty, it is the primary group of
    /// `process.user`; if that is empty too, the workers keep the group of the master.
    #[serde(serialize_with = "written::name")]
    pub group: Option<Group>,
    /// The permission bits that new files of the workers do not get, in octal, such as `"027"`. If the value is empty,
    /// the workers keep the umask that the service was started with.
    #[serde(serialize_with = "written::umask")]
    pub umask: Option<u32>,
    /// The path of the file to which the master writes its pid. If the path is empty, there is no such file.
    #[serde(serialize_with = "written::path")]
    pub pidfile: Option<PathBuf>,
    /// The path of a file with lines `KEY=VALUE`, which set variables in the environment of the workers. A variable of
    /// the real environment overrides a line of the file. A reload reads the file again. If the path is empty, no file
    /// is read.
    #[serde(serialize_with = "written::path")]
    pub env_file: Option<PathBuf>,
    /// The variables in the file of `env_file`, in the order of the file. A worker adds those that its environment does
    /// not have.
    #[serde(skip)]
    pub env: Vec<(String, String)>,
}

impl fmt::Debug for Process {
    /// Shows all fields except `env`, because its values are often secrets.
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

/// The user of `process.user`. It was looked up when the settings were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct User {
    /// The user's name, or the number as it was written if it has no account.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The number of the user's primary group.
    pub gid: u32,
}

/// The group of `process.group`. It was looked up when the settings were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    /// The group's name, or the number as it was written if no group has it.
    pub name: String,
    /// The group's number.
    pub gid: u32,
}

impl Default for Settings {
    /// Returns the default of every key. For `workers.count` it is the number that `auto` gives on this machine now.
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
                overlap: true,
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
                health_path: String::new(),
                ready_path: String::new(),
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
