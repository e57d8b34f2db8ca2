//! The messages between a command of the operator and the master, and the places where the file of the control socket
//! can be.
//!
//! Owns: requests, answers and the status as JSON (one object on a line, with a version), and the file paths of the
//! control socket. Refuses: to do I/O; `master::control` and `ctl` send and wait.
//!
//! A connection carries one request, any number of progress lines and one answer.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The version of the protocol, which every request names. A master answers only requests of its own version. The
/// status may get new fields without a new version.
pub(crate) const VERSION: u32 = 1;

/// The values of [`Status::code`].
pub(crate) const FROM_DISK: &str = "from disk";
pub(crate) const IN_PROGRAM: &str = "in the program";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    version: u32,
    pub(crate) command: ControlCommand,
    /// The service that the request is for. If a request does not have this field, any service that gets the request
    /// answers.
    #[serde(default, skip_serializing_if = "Meant::is_anyone")]
    pub(crate) meant: Meant,
}

/// The service that a command line names. If a master gets a command that is meant for another service, it refuses the
/// command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meant {
    /// The settings file of the service: an absolute path without symbolic links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// The `process.name` of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
}

impl Meant {
    fn is_anyone(&self) -> bool {
        *self == Self::default()
    }
}

/// A description of the service that answers, by which an operator can tell services apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// The addresses that the service listens on.
    pub(crate) addresses: Vec<String>,
    /// The absolute path of the service's settings file; `None` if it has no such file.
    pub(crate) file: Option<String>,
    /// The folder in which the service was started.
    pub(crate) folder: String,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, addresses, file, folder } = self;
        let addresses = addresses.join(", ");
        match file {
            Some(file) => write!(f, "{name} (pid {pid}, {addresses}, {file})"),
            None => write!(f, "{name} (pid {pid}, {addresses}, in {folder})"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ControlCommand {
    Status,
    /// Asks for the page of metrics in the format OpenMetrics.
    Metrics,
    Scale(Scale),
    Reload,
    /// Asks what a reload would change. The master changes nothing.
    Changes,
    /// Asks for the settings that are in effect, in the form in which `oxicorn config` prints settings.
    Config {
        json: bool,
    },
    /// Asks for an upgrade. `program` is the absolute path of the new program. If it is `None`, the upgrade uses the
    /// file path by which the service was started.
    Upgrade {
        program: Option<String>,
        /// If true, the service upgrades even if it could not go back to the running program.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Asks the service to stop. If `now` is true, it stops as after a SIGINT, otherwise as after a SIGTERM.
    Stop {
        now: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scale {
    To(u32),
    By(i32),
}

/// One line that the master sends to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    Progress { progress: String },
    Answer(ControlResponse),
}

/// The answer to a request. It is the last line that the master sends on a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ControlResponse {
    pub(crate) ok: bool,
    /// One sentence that says what happened, or why nothing happened.
    pub(crate) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Box<Status>>,
    /// The service that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<Service>,
}

/// The status of a service, which `oxicorn status --json` prints. New fields may be added, but no field may be renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) state: MasterState,
    pub(crate) generation: u32,
    pub(crate) uptime_s: f64,
    pub(crate) target_workers: u32,
    pub(crate) listeners: Vec<ListenerStatus>,
    #[serde(default)]
    pub(crate) speaks: Speaks,
    #[serde(default)]
    pub(crate) health: HealthCheck,
    #[serde(default)]
    pub(crate) settings_file: Option<String>,
    /// The folder in which the service was started.
    #[serde(default)]
    pub(crate) folder: String,
    pub(crate) workers: Vec<WorkerStatus>,
    /// The slots that should have a worker but have no process. The last worker of such a slot failed, and the next
    /// worker has to wait before it is forked.
    #[serde(default)]
    pub(crate) empty_slots: Vec<EmptySlot>,
    /// Where workers get the app's code from. Empty if the master is older than this field.
    #[serde(default)]
    pub(crate) code: String,
    /// True if no worker is recycled, because the last reload or upgrade was refused and workers load their code from
    /// the disk.
    #[serde(default)]
    pub(crate) recycling_held: bool,
    pub(crate) totals: StatusTotals,
    #[serde(default)]
    pub(crate) crash_suspect: Option<CrashSuspect>,
    /// The requests in quarantine, which all workers answer with 503: see `http.quarantine`.
    #[serde(default)]
    pub(crate) quarantined: Vec<Quarantined>,
    pub(crate) last_reload: Option<LastReload>,
    #[serde(default)]
    pub(crate) last_upgrade: Option<LastReload>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MasterState {
    Booting,
    Running,
    Reloading,
    Stopping,
    Upgrading,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    pub(crate) address: String,
    /// The number of connections that wait to be accepted. For unix sockets it is 0, because the kernel does not report
    /// the number.
    pub(crate) queued: u64,
}

/// The protocols that clients must use at the listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Speaks {
    pub(crate) tls: bool,
    /// True if clients must show a certificate.
    pub(crate) client_ca: bool,
    /// The value of `server.proxy_protocol`.
    pub(crate) proxy_protocol: String,
}

/// What the command `health` asks if the operator gives no URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthCheck {
    pub(crate) path: String,
    /// True if any answer with a status below 500 shows that the service is alive; false if only one with a 2xx status
    /// does.
    pub(crate) any_answer: bool,
}

impl HealthCheck {
    /// Returns the check of a service. `health_path` is the value of `http.health_path`. If it is empty, the app may
    /// have no path for health checks, so `any_answer_is_alive`, the word of the runtime, counts then.
    pub(crate) fn of(health_path: &str, any_answer_is_alive: bool) -> Self {
        match health_path {
            "" => Self { any_answer: any_answer_is_alive, ..Self::default() },
            path => Self::at(path),
        }
    }

    pub(crate) fn is_alive(&self, status: u16) -> bool {
        (200..if self.any_answer { 500 } else { 300 }).contains(&status)
    }

    /// Returns the check of a path that the operator names, so only a 2xx status counts.
    pub(crate) fn at(path: &str) -> Self {
        Self { path: path.to_owned(), any_answer: false }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self::at("/health")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) slot: u32,
    pub(crate) pid: u32,
    pub(crate) generation: u32,
    pub(crate) state: WorkerState,
    pub(crate) age_s: f64,
    /// How long the heartbeat of the worker is overdue, in milliseconds; 0 if it is not overdue.
    pub(crate) heartbeat_age_ms: u64,
    pub(crate) requests: u64,
    pub(crate) in_flight: u64,
    pub(crate) connections: u64,
    pub(crate) rss_bytes: u64,
    /// The number of requests after which the worker is recycled; 0 means never.
    pub(crate) recycle_at: u64,
    /// The number of workers of this slot that ended before this worker.
    pub(crate) restarts: u32,
    /// How the previous worker of this slot ended.
    #[serde(default)]
    pub(crate) last_exit: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WorkerState {
    Starting,
    Serving,
    Draining,
    Killed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EmptySlot {
    pub(crate) slot: u32,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    /// The number of workers of this slot that died one after another before they had answered a request.
    #[serde(default)]
    pub(crate) failures: u32,
    /// The seconds until the next worker of this slot is forked. `None` if the slot does not wait because of a failure.
    #[serde(default)]
    pub(crate) next_try_s: Option<f64>,
}

/// The request that is suspected of crashing workers, because it was in flight at the majority of the last deaths of
/// workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CrashSuspect {
    /// The method and the URL path of the request.
    pub(crate) request: String,
    /// The number of deaths at which this request was in flight.
    pub(crate) deaths: u64,
    /// The number of deaths that were compared, which are the most recent deaths of workers.
    pub(crate) of: u64,
}

impl fmt::Display for CrashSuspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, deaths, of } = self;
        write!(f, "{request} was in flight in {deaths} of the last {of} deaths")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quarantined {
    pub(crate) request: String,
    pub(crate) ends_in_s: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusTotals {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) responses: Responses,
    pub(crate) shed: u64,
    /// The number of requests that were refused because they were malformed, too large or too slow to arrive.
    #[serde(default)]
    pub(crate) refused: u64,
    /// The number of requests that were not handed to the app, because the client had gone before.
    #[serde(default)]
    pub(crate) abandoned: u64,
    /// The number of connections that waited at the socket of one slot and were accepted by the worker of another slot.
    #[serde(default)]
    pub(crate) rescued: u64,
    pub(crate) recycled: u64,
    pub(crate) crashed: u64,
    pub(crate) hung: u64,
    pub(crate) reloads: u64,
    #[serde(default)]
    pub(crate) upgrades: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Responses {
    #[serde(rename = "1xx")]
    pub(crate) informational: u64,
    #[serde(rename = "2xx")]
    pub(crate) ok: u64,
    #[serde(rename = "3xx")]
    pub(crate) redirects: u64,
    #[serde(rename = "4xx")]
    pub(crate) client_errors: u64,
    #[serde(rename = "5xx")]
    pub(crate) server_errors: u64,
}

/// How the last reload, or the last upgrade, ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastReload {
    pub(crate) ok: bool,
    pub(crate) reason: Option<String>,
    /// The time at which the reload or the upgrade ended, in UTC and in the format of RFC 3339.
    pub(crate) at: String,
}

impl Status {
    /// Returns how many of the slots from 0 to `target_workers` - 1 have a worker that serves.
    pub(crate) fn served(&self) -> u32 {
        let serves = |slot: &u32| self.workers.iter().any(|w| w.slot == *slot && w.state == WorkerState::Serving);
        (0..self.target_workers).filter(serves).count() as u32
    }

    pub(crate) fn all_serve(&self) -> bool {
        self.served() == self.target_workers
    }
}

impl Request {
    pub(crate) fn new(command: ControlCommand, meant: Meant) -> Self {
        Self { version: VERSION, command, meant }
    }

    /// Reads a request from a line. The error is the sentence by which the master refuses the request.
    pub(crate) fn read(line: &[u8]) -> Result<Self, String> {
        // Read only the version first, because a request of another version may have a command of any form.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let refused = |error: serde_json::Error| format!("not a request: {error}");
        let Versioned { version } = serde_json::from_slice(line).map_err(refused)?;
        if version != VERSION {
            return Err(format!(
                "the request is of protocol version {version}, this master speaks {VERSION}; use the oxicorn program \
                 that it runs"
            ));
        }
        serde_json::from_slice(line).map_err(refused)
    }
}

impl ControlResponse {
    pub(crate) fn done(reason: impl Into<String>) -> Self {
        Self { ok: true, reason: reason.into(), status: None, service: None }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self { ok: false, reason: reason.into(), status: None, service: None }
    }
}

/// Returns a message as the line of JSON that is sent over the socket.
pub(crate) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain structs, which JSON can hold");
    line.push(b'\n');
    line
}

/// A folder in which a master may put its socket when `control.socket` is `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Folder {
    /// A folder that another program, such as systemd, has made.
    Given(PathBuf),
    /// A folder that the master makes, with mode 0700. In `/tmp` any user can make a folder with this name first, so
    /// the master checks the owner and the mode.
    Private(PathBuf),
}

/// Returns the folders in which a master may put its socket, the best one first. The folder of a login session
/// (`XDG_RUNTIME_DIR`) is removed when the user logs out, so it comes last.
pub(crate) fn server_folders(uid: u32, env: impl Fn(&str) -> Option<OsString>) -> Vec<Folder> {
    let service = runtime_directories(&env).into_iter().next().map(Folder::Given);
    let private = private_folders(uid).into_iter().map(Folder::Private);
    service.into_iter().chain(private).chain(login_folder(&env).map(Folder::Given)).collect()
}

/// Returns the folders in which the commands of user `uid` look for a service: every folder that [`server_folders`] may
/// return for a master, whatever environment the master has.
pub(crate) fn client_folders(name: &str, uid: u32, env: impl Fn(&str) -> Option<OsString>) -> Vec<Folder> {
    let login = login_folder(&env).into_iter().chain([PathBuf::from(format!("/run/user/{uid}"))]);
    // The `RuntimeDirectory=` of a systemd unit usually has the name of the service.
    let of_units = |folder: &Path| (!name.contains('/')).then(|| folder.join(name));
    let login = login.flat_map(|folder| [of_units(&folder), Some(folder)]).flatten();
    let given =
        runtime_directories(&env).into_iter().chain(of_units(Path::new("/run"))).chain(login).map(Folder::Given);
    let mut folders = Vec::new();
    for folder in given.chain(private_folders(uid).into_iter().map(Folder::Private)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Returns the folders that systemd names in `RUNTIME_DIRECTORY`, with colons between them if the unit has several.
fn runtime_directories(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let list = env("RUNTIME_DIRECTORY").and_then(|list| list.into_string().ok()).unwrap_or_default();
    list.split(':').map(PathBuf::from).filter(|folder| folder.is_absolute()).collect()
}

fn login_folder(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    env("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute())
}

fn private_folders(uid: u32) -> Vec<PathBuf> {
    let system = (uid == 0).then(|| PathBuf::from("/run/oxicorn-0"));
    system.into_iter().chain([PathBuf::from(format!("/tmp/oxicorn-{uid}"))]).collect()
}

/// Returns the file names that the control socket may have. A master takes the first name that is free. The first name
/// is only the name of the service. The second name also has a hash of the start folder, for a second service with the
/// same name. The other names also have a number, for further services that were started in the same folder.
pub(crate) fn socket_names(name: &str, folder: &Path) -> impl Iterator<Item = String> {
    let name = name.replace('/', "_");
    // FNV-1a gives the same hash in every build of the program. It does no harm that other users can compute the hash.
    let hash = folder
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let first = [format!("{name}.sock"), format!("{name}-{hash:08x}.sock")];
    first.into_iter().chain((2..10).map(move |number| format!("{name}-{hash:08x}-{number}.sock")))
}

/// Returns true if `file` is one of the [`socket_names`] of the service `name`, whatever its folder.
pub(crate) fn is_socket_of(name: &str, file: &str) -> bool {
    let Some(rest) = file.strip_prefix(&name.replace('/', "_")).and_then(|rest| rest.strip_suffix(".sock")) else {
        return false;
    };
    let Some(rest) = rest.strip_prefix('-') else { return rest.is_empty() };
    let (hash, number) = rest.split_once('-').unwrap_or((rest, "2"));
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    hash.len() == 8 && hash.bytes().all(hex) && number.len() == 1 && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_this_form_and_are_read_back() {
        for (command, text) in [
            (ControlCommand::Status, r#"{"version":1,"command":"status"}"#),
            (ControlCommand::Scale(Scale::To(4)), r#"{"version":1,"command":{"scale":{"to":4}}}"#),
            (ControlCommand::Scale(Scale::By(-1)), r#"{"version":1,"command":{"scale":{"by":-1}}}"#),
            (
                ControlCommand::Upgrade { program: None, force: false },
                r#"{"version":1,"command":{"upgrade":{"program":null}}}"#,
            ),
            (
                ControlCommand::Upgrade { program: None, force: true },
                r#"{"version":1,"command":{"upgrade":{"program":null,"force":true}}}"#,
            ),
            (ControlCommand::Stop { now: true }, r#"{"version":1,"command":{"stop":{"now":true}}}"#),
        ] {
            let request = Request::new(command, Meant::default());
            assert_eq!(line(&request), format!("{text}\n").as_bytes());
            assert_eq!(Request::read(text.as_bytes()), Ok(request));
        }
        let meant = Meant { file: Some("/a/supervisor.toml".to_owned()), name: None };
        let text = r#"{"version":1,"command":"reload","meant":{"file":"/a/supervisor.toml"}}"#;
        assert_eq!(line(&Request::new(ControlCommand::Reload, meant.clone())), format!("{text}\n").as_bytes());
        assert_eq!(Request::read(text.as_bytes()).unwrap().meant, meant);
        let newer = r#"{"version":1,"command":"reload","meant":{"moon":"full"},"more":1}"#;
        assert_eq!(Request::read(newer.as_bytes()), Ok(Request::new(ControlCommand::Reload, Meant::default())));
    }

    #[test]
    fn bytes_that_are_not_a_request_are_refused_with_a_sentence() {
        for (text, told) in [
            (&b"\xff\xfe"[..], "not a request"),
            (b"", "not a request"),
            (b"status", "not a request"),
            (b"{}", "missing field `version`"),
            (br#"{"version":1}"#, "missing field `command`"),
            (br#"{"version":1,"command":"dance"}"#, "unknown variant `dance`, expected one of `status`"),
            (br#"{"version":1,"command":{"scale":{"to":-4}}}"#, "invalid value: integer `-4`"),
            (br#"{"version":2,"command":{"dance":["later"]}}"#, "protocol version 2, this master speaks 1"),
        ] {
            let refused = Request::read(text).unwrap_err();
            assert!(refused.contains(told), "{}: {refused}", String::from_utf8_lossy(text));
        }
        assert!(Request::read("[".repeat(60_000).as_bytes()).is_err());
    }

    #[test]
    fn progress_and_the_last_reply_are_read_as_such() {
        let progress = Reply::Progress { progress: "1 of 2 workers serve".to_owned() };
        let answer = Reply::Answer(ControlResponse::done("2 workers serve"));
        for (reply, text) in [
            (progress, r#"{"progress":"1 of 2 workers serve"}"#),
            (answer, r#"{"ok":true,"reason":"2 workers serve"}"#),
        ] {
            assert_eq!(serde_json::to_string(&reply).unwrap(), text);
            assert_eq!(serde_json::from_str::<Reply>(text).unwrap(), reply);
        }
    }

    #[test]
    fn the_client_looks_in_every_folder_that_the_master_may_use() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let shown = |folders: Vec<Folder>| {
            let shown = folders.iter().map(|folder| match folder {
                Folder::Given(path) => path.display().to_string(),
                Folder::Private(path) => format!("private {}", path.display()),
            });
            shown.collect::<Vec<_>>()
        };
        assert_eq!(shown(server_folders(7, env(&[]))), ["private /tmp/oxicorn-7"]);
        assert_eq!(shown(server_folders(0, env(&[]))), ["private /run/oxicorn-0", "private /tmp/oxicorn-0"]);
        let both = env(&[("RUNTIME_DIRECTORY", "/run/x:/run/y"), ("XDG_RUNTIME_DIR", "/run/login/7")]);
        assert_eq!(shown(server_folders(7, both)), ["/run/x", "private /tmp/oxicorn-7", "/run/login/7"]);
        let places =
            "/run/x /run/y /run/a /run/login/7/a /run/login/7 /run/user/7/a /run/user/7 private /tmp/oxicorn-7";
        assert_eq!(shown(client_folders("a", 7, both)).join(" "), places);
        let useless = env(&[("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "relative")]);
        assert_eq!(shown(server_folders(7, useless)), ["private /tmp/oxicorn-7"]);
        assert_eq!(shown(client_folders("../b", 7, useless)), ["/run/user/7", "private /tmp/oxicorn-7"]);
    }

    #[test]
    fn a_second_service_of_one_name_has_a_socket_of_its_own() {
        let names: Vec<_> = socket_names("../b", Path::new("/srv/b")).collect();
        assert_eq!(names.len(), 10);
        assert_eq!(names[0], ".._b.sock");
        assert!(names.iter().all(|file| is_socket_of("../b", file)), "{names:?}");
        assert_ne!(names[1], socket_names("../b", Path::new("/srv/c")).nth(1).unwrap());
        assert_eq!(socket_names("a", Path::new("")).nth(1).unwrap(), "a-811c9dc5.sock");
        for other in ["a.sock2", "ab.sock", "a-.sock", "a-811c9dc.sock", "a-811C9DC5.sock", "a-811c9dc5-12.sock", "a"] {
            assert!(!is_socket_of("a", other), "{other}");
        }
    }
}
