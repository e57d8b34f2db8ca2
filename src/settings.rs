//! The effective settings of a run: one typed struct, resolved once from every source.
//!
//! Owns: the meaning of each key, its default, and the one precedence (default < file < well-known environment
//! name < `OXICORN_*` < command line < sockets passed to us). Refuses: the syntax of files (`settings::file`), how one
//! value is read (`settings::value`), and decisions that need two keys at once (`settings::check`).

mod access_format;
mod changes;
mod check;
mod cpus;
mod file;
mod keys;
mod passed;
mod problem;
mod show;
mod sources;
mod start;
mod table;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use toml::Value;

use self::start::Base;
pub use self::{
    access_format::AccessFormat,
    table::TableSpec,
    tls::Tls,
    value::{duration, size},
};
pub(crate) use self::{
    access_format::{Form, Part, headers},
    changes::Changes,
    cpus::WORKERS_MAX,
    file::DEFAULT_FILE,
    passed::{LISTEN_FDS, LISTEN_PID},
    problem::{Origin, Problem, Problems},
    sources::Sources,
    start::{StartFolder, is_same},
    tls::ServerConfig,
};

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

/// The folders in which the relative paths of one source begin, by what the file is for.
struct Bases {
    /// Files that are read; and sockets, which commands have to find by the same settings.
    read: Base,
    logs: Base,
    run: Base,
}

impl Bases {
    /// For paths in the settings file. A service manager names the folders that it made for the service to write to.
    fn of_file(read: Base, env: &BTreeMap<String, String>) -> Self {
        let given = |variable| given_folder(env, variable).map(|folder| Base::of_file(&folder));
        let logs = given(LOGS_DIRECTORY).unwrap_or_else(|| read.clone());
        let run = given(RUNTIME_DIRECTORY).unwrap_or_else(|| read.clone());
        Self { read, logs, run }
    }

    /// For paths in the environment and on the command line: they begin where they are typed.
    fn of_text(start: &StartFolder) -> Self {
        Self { read: start.base(), logs: start.base(), run: start.base() }
    }
}

const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
const LOGS_DIRECTORY: &str = "LOGS_DIRECTORY";
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// The folder that a service manager made, of several the first. A service manager gives absolute paths; others do not
/// count.
fn given_folder(env: &BTreeMap<String, String>, variable: &str) -> Option<PathBuf> {
    let first = env.get(variable)?.split(':').next().map(PathBuf::from)?;
    first.is_absolute().then_some(first)
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
    fn defaults(cpus: u32, folder: PathBuf) -> Self {
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

/// What the command line gave, uninterpreted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `-c`
    pub(crate) config: Option<PathBuf>,
    pub(crate) given: Vec<Given>,
    /// What followed `--`.
    pub(crate) program: Vec<String>,
}

/// One flag that sets a key.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// `section.key`
    pub(crate) key: &'static str,
    /// As typed: `--timeout`.
    pub(crate) flag: &'static str,
    pub(crate) text: String,
}

/// A value as somebody wrote it, and where.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl fmt::Debug for Entry {
    /// Without the value: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.origin)
    }
}

/// The outcome of [`resolve`].
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) settings: Settings,
    pub(crate) tables: Tables,
    /// Absolute.
    pub(crate) file: Option<PathBuf>,
    pub(crate) start: StartFolder,
    /// One sentence each, ready for the log.
    pub(crate) warnings: Vec<String>,
    /// By key path, the value that won. A key that is not here has its default.
    pub(crate) entries: BTreeMap<String, Entry>,
    /// What all this was read from.
    pub(crate) sources: Sources,
}

/// What only a restart can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    reuse_port: bool,
    user: Option<User>,
    group: Option<Group>,
    pidfile: Option<PathBuf>,
    name: String,
    control: ControlSocket,
}

impl Resolved {
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// Every key with its effective value: all of the supervisor's, and those given in an app's tables.
    fn flat(&self) -> BTreeMap<String, Value> {
        let ours = show::flat(&self.settings);
        let theirs = self.entries.iter().filter(|(path, _)| keys::find(path).is_none());
        ours.into_iter().chain(theirs.map(|(path, entry)| (path.clone(), entry.value.clone()))).collect()
    }

    /// As it is after `scale`, TTIN and TTOU.
    pub(crate) fn with_count(&self, count: u32) -> Self {
        let mut resolved = self.clone();
        if resolved.settings.workers.count != count {
            resolved.settings.workers.count = count;
            let entry = Entry { value: Value::Integer(count.into()), origin: Origin::Flag("scale, TTIN or TTOU") };
            resolved.entries.insert("workers.count".to_owned(), entry);
        }
        resolved
    }

    pub(crate) fn fixed(&self) -> Fixed {
        let Settings { server, process, control, .. } = &self.settings;
        Fixed {
            reuse_port: server.reuse_port,
            user: process.user.clone(),
            group: process.group.clone(),
            pidfile: process.pidfile.clone(),
            name: process.name.clone(),
            control: control.socket.clone(),
        }
    }

    /// What is to be said today of the certificate that is served.
    pub(crate) fn certificate_warnings(&self) -> Vec<String> {
        let placed = |problem: Problem| Problem { place: self.origin(&problem.key), ..problem };
        tls::aged(&self.settings.tls).into_iter().map(|problem| placed(problem).to_string()).collect()
    }

    /// Takes over what only a restart can change; the keys that would have.
    pub(crate) fn keep_until_restart(&mut self, running: &Fixed) -> Vec<&'static str> {
        let wanted = self.fixed();
        let Settings { server, process, control, .. } = &mut self.settings;
        let Fixed { reuse_port, user, group, pidfile, name, control: socket } = running.clone();
        let differs = [
            ("server.reuse_port", wanted.reuse_port != reuse_port),
            ("process.user", wanted.user != user),
            ("process.group", wanted.group != group),
            ("process.pidfile", wanted.pidfile != pidfile),
            ("process.name", wanted.name != name),
            ("control.socket", wanted.control != socket),
        ];
        server.reuse_port = reuse_port;
        (process.user, process.group, process.pidfile, process.name) = (user, group, pidfile, name);
        control.socket = socket;
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Tells the log of warnings that somebody has to do something about.
pub(crate) fn say_warnings(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(event = "settings_warning", "{warning}");
    }
}

/// The environment of this process. Names and values that are not UTF-8 cannot be meant for us.
pub(crate) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Where a running service is asked, and which one is meant.
#[derive(Clone, Debug)]
pub(crate) struct Whereabouts {
    pub(crate) socket: ControlSocket,
    pub(crate) name: String,
    /// The value of `--name`, which counts more than a file's.
    pub(crate) name_flag: Option<String>,
    /// The settings file, links followed.
    pub(crate) file: Option<PathBuf>,
    /// `-c` or `OXICORN_CONFIG` named it; else it was found in this folder.
    pub(crate) file_is_named: bool,
    /// The folder of the command.
    pub(crate) folder: PathBuf,
}

impl Whereabouts {
    /// Finds out which service is meant, also from a settings file with mistakes: a command must not lose that service, nor
    /// take another one for it. All is read that can be read; [`resolve`] reports the mistakes.
    ///
    /// `by_socket`: the command has `--socket`, and means any service that answers there.
    ///
    /// # Errors
    /// The settings file cannot be read, so it is not known which service is meant.
    pub(crate) fn find(
        flags: &Flags,
        env: &BTreeMap<String, String>,
        start: &StartFolder,
        by_socket: bool,
    ) -> Result<Self, Problems> {
        let name_flag = flags.given.iter().rfind(|given| given.key == "process.name").map(|given| given.text.clone());
        let read = file::find(flags, env, start, &Sources::default())
            .map_err(Problems)
            .and_then(|found| found.map(|found| Ok((found.text(start)?, found))).transpose());
        let is_told = by_socket || name_flag.is_some();
        let (text, found) = match read {
            // A file that only lies here does not matter to a command that says which service it means.
            Err(Problems(why)) if is_told && why.iter().all(|problem| problem.place == Origin::Default) => None,
            read => read?,
        }
        .unzip();
        let text = text.unwrap_or_default();
        let path = found.as_ref().map(|found| found.path.as_path());
        let folder = path.and_then(Path::parent);
        let (folder, base) = folder.map_or((start.path(), start.base()), |folder| (folder, Base::of_file(folder)));
        let mut given = file::salvaged(&text, &["control.socket", "process.name", "process.env_file"]);
        let env_file = file::env_file(flags, env, &given, &base, start)
            .and_then(|path| file::EnvFile::read(&path, start, &mut Sources::default()).ok())
            .unwrap_or_default();
        given.extend(environment_entries(&env_file.beneath(env), &[], &mut Vec::new()));

        let mut settings = Settings::defaults(1, folder.to_owned());
        let (of_file, of_text) = (Bases::of_file(base, env), Bases::of_text(start));
        for (path, entry) in given.iter().filter(|(path, _)| matches!(path.as_str(), "control.socket" | "process.name"))
        {
            let text = !matches!(entry.origin, Origin::File { .. });
            let bases = if text { &of_text } else { &of_file };
            // A value that is refused leaves the one below it.
            let _ = keys::find(path)
                .map(|key| (key.set)(&mut settings, &value::Input { value: &entry.value, text, bases, cpus: 1 }));
        }
        Ok(Self {
            socket: settings.control.socket,
            name: name_flag.clone().unwrap_or(settings.process.name),
            name_flag,
            file: path.map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
            file_is_named: found.is_some_and(|found| found.is_named()),
            folder: start.path().to_owned(),
        })
    }
}

/// What the settings are resolved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Serve,
    /// To look at them, or to find a service that runs. Whoever asks may not have the right to read its key, and a
    /// certificate that has expired since its start does not hide it.
    Ask,
}

/// Reads every source and settles each key. Nothing is remembered between calls: a reload calls it again.
///
/// # Errors
/// Every problem there is, from all sources and in all tables.
pub(crate) fn resolve(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    tables: &[TableSpec],
    purpose: Purpose,
) -> Result<Resolved, Problems> {
    resolve_from(Sources::default(), flags, env, start, tables, purpose)
}

/// As [`resolve`], of a service that has read settings before. Texts that were recorded are not read again. What they meant
/// then was sound: only a file system that has changed since could say otherwise, and it is not asked.
///
/// # Errors
/// As for [`resolve`].
pub(crate) fn resolve_from(
    mut sources: Sources,
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    tables: &[TableSpec],
    purpose: Purpose,
) -> Result<Resolved, Problems> {
    let mut problems = Vec::new();
    if !flags.program.is_empty() {
        problems.push(Problem::at(Origin::Flag("--"), "", keys::PROGRAM_REFUSED));
    }
    let read = file::find(flags, env, start, &sources)
        .and_then(|found| found.map(|found| found.read(start, &mut sources)).transpose());
    let file = read.map_err(|mut more| problems.append(&mut more)).ok().flatten();
    let folder = file.as_ref().and_then(|file| file.path.parent());
    let (folder, base) = folder.map_or((start.path(), start.base()), |folder| (folder, Base::of_file(folder)));

    let mut given = file.as_ref().map(|file| file.entries(tables, &mut problems)).unwrap_or_default();
    let env_file =
        file::env_file(flags, env, &given, &base, start).map(|path| file::EnvFile::read(&path, start, &mut sources));
    let env_file =
        env_file.and_then(|read| read.map_err(|mut more| problems.append(&mut more)).ok()).unwrap_or_default();
    given.extend(environment_entries(&env_file.beneath(env), tables, &mut problems));
    given.extend(flags.given.iter().map(|flag| {
        (flag.key.to_owned(), Entry { value: Value::String(flag.text.clone()), origin: Origin::Flag(flag.flag) })
    }));
    let mut warnings = env_file.warnings();
    given.extend(passed::sockets(env, std::process::id(), &mut problems, &mut warnings));

    problems.extend(tables.iter().flat_map(|spec| spec.set_twice(&given)));

    let cpus = cpus::available();
    let mut settings = Settings::defaults(cpus, std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned()));
    settings.state_folder = given_folder(env, STATE_DIRECTORY).unwrap_or_else(|| settings.folder.clone());
    let (of_file, of_text) = (Bases::of_file(base, env), Bases::of_text(start));
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut failed: HashSet<String> = HashSet::new();
    for (path, entry) in given {
        let text = !matches!(entry.origin, Origin::File { .. });
        let bases = if text { &of_text } else { &of_file };
        match tables.iter().find_map(|spec| spec.held(&path, &entry, &bases.read, &mut sources)) {
            Some((key, Ok(held))) => drop(entries.insert(key, held)),
            Some((_, Err(message))) => problems.push(Problem::at(entry.origin.clone(), &path, message)),
            None => {}
        }
        if let Some(key) = keys::find(&path)
            && let Err(message) = (key.set)(&mut settings, &value::Input { value: &entry.value, text, bases, cpus })
        {
            problems.push(Problem::at(entry.origin, &path, message));
            failed.insert(path);
            continue;
        }
        entries.insert(path, entry);
    }
    settings.process.env = env_file.pairs();

    let mut parsed = Tables::default();
    for spec in tables {
        if let Some(value) = spec.read(&entries, file.as_ref(), &mut problems) {
            parsed.0.insert(spec.type_id(), value);
        }
    }

    let placed = |problem: Problem| match entries.get(&problem.key) {
        Some(entry) => Problem { place: entry.origin.clone(), ..problem },
        None => problem,
    };
    let mut crossed = check::accounts(&mut settings, &entries);
    if purpose == Purpose::Serve {
        let mut findings = tls::Findings::default();
        let material = tls::read(&settings.tls, settings.http.http2, &mut sources, &mut findings);
        settings.tls.material = material.map(Arc::new);
        // A certificate that has expired since it was read is still better than none.
        if !sources.is_recorded() {
            crossed.extend(findings.problems);
            warnings.extend(findings.warnings.into_iter().map(|warning| placed(warning).to_string()));
        }
    }
    if !sources.is_recorded() {
        crossed.extend(check::problems(&settings, &failed, sources.is_again()));
    }
    problems.extend(crossed.into_iter().map(placed));
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let file = file.map(|file| file.path);
    let start = start.clone();
    let mut resolved = Resolved { settings, tables: parsed, file, start, warnings, entries, sources };
    resolved.warnings.extend(check::warnings(&resolved));
    Ok(resolved)
}

/// Well-known names first, then `OXICORN_<SECTION>__<KEY>`: later entries win.
fn environment_entries(
    env: &BTreeMap<String, (String, Origin)>,
    tables: &[TableSpec],
    problems: &mut Vec<Problem>,
) -> Vec<(String, Entry)> {
    let mut entries = Vec::new();
    let mut give = |path: String, text: String, origin: &Origin| {
        entries.push((path, Entry { value: Value::String(text), origin: origin.clone() }));
    };
    let known = |name: &str| env.get(name).filter(|(text, _)| !text.is_empty());
    if let Some((port, origin)) = known("PORT") {
        give("server.bind".to_owned(), format!("0.0.0.0:{port}"), origin);
    }
    if let Some((_, origin)) = known("DEBUG").filter(|(text, _)| text.eq_ignore_ascii_case("true")) {
        give("log.level".to_owned(), "debug".to_owned(), origin);
    }
    for (name, key) in [
        ("WEB_CONCURRENCY", "workers.count"),
        ("LOG_LEVEL", "log.level"),
        ("FORWARDED_ALLOW_IPS", "http.forwarded_allow_ips"),
    ] {
        if let Some((text, origin)) = known(name) {
            give(key.to_owned(), text.clone(), origin);
        }
    }
    for spec in tables {
        for alias in &spec.aliases {
            if let Some((text, origin)) = known(alias.name) {
                give(format!("{}.{}", spec.name, alias.key), text.clone(), origin);
            }
        }
    }
    for (name, (text, origin)) in env {
        let Some((section, key)) = name.strip_prefix("OXICORN_").and_then(|name| name.split_once("__")) else {
            continue;
        };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let path = match tables.iter().find(|spec| spec.name.to_ascii_lowercase().replace('-', "_") == section) {
            Some(spec) => format!("{}.{key}", spec.name),
            None => format!("{section}.{key}"),
        };
        if keys::find(&path).is_some() || tables.iter().any(|spec| path.split('.').next() == Some(spec.name)) {
            give(path, text.clone(), origin);
        } else if section == keys::PROGRAM {
            problems.push(Problem::at(origin.clone(), "", keys::PROGRAM_REFUSED));
        } else {
            let hint = keys::nearest(&path).map(|path| keys::variable(&path));
            problems.push(Problem { hint, ..Problem::at(origin.clone(), "", "unknown key") });
        }
    }
    entries
}

#[cfg(test)]
pub(crate) fn is_key(path: &str) -> bool {
    keys::find(path).is_some()
}
