//! What an operator's command and the master say to each other, and where they meet.
//!
//! Owns: requests, answers and the status as JSON, one object a line, with a version; the paths of the control socket.
//! A connection carries one request, any number of progress lines, one answer. Refuses: io; sending and waiting are
//! `master::control`'s and `ctl`'s.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Of requests. A master answers its own version only; the status may grow fields without a new one.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    version: u32,
    command: Command,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    Status,
    /// The same counts as OpenMetrics.
    Metrics,
    Scale(Scale),
    Reload,
    /// What a reload would change; nothing is done.
    Changes,
    /// `program`: an absolute path, if not the one the service was started by.
    Upgrade {
        program: Option<String>,
    },
    /// `now`: as SIGINT, not as SIGTERM.
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

/// A line from the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    Progress { progress: String },
    Answer(Answer),
}

/// The last line of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    /// A sentence: what happened, or why nothing did.
    pub(crate) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Box<Status>>,
}

/// What `oxicorn status --json` prints. Fields may be added, not renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) state: MasterState,
    pub(crate) generation: u32,
    pub(crate) uptime_s: f64,
    pub(crate) target_workers: u32,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) workers: Vec<Worker>,
    /// Slots below the target without any process: their last worker failed, and the next has to wait.
    #[serde(default)]
    pub(crate) empty_slots: Vec<EmptySlot>,
    pub(crate) totals: Totals,
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
pub(crate) struct Listener {
    pub(crate) address: String,
    /// Connections that wait to be accepted; 0 for unix sockets, of which the kernel does not tell.
    pub(crate) queued: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) slot: u32,
    pub(crate) pid: u32,
    pub(crate) generation: u32,
    pub(crate) state: WorkerState,
    pub(crate) age_s: f64,
    /// How long the beat it promised is overdue; 0 while it keeps its promises.
    pub(crate) heartbeat_age_ms: u64,
    pub(crate) requests: u64,
    pub(crate) in_flight: u64,
    pub(crate) connections: u64,
    pub(crate) rss_bytes: u64,
    /// The count of requests at which it is recycled; 0 is never.
    pub(crate) recycle_at: u64,
    /// Workers of this slot that ended before this one.
    pub(crate) restarts: u32,
    /// How the last of them ended.
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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) responses: Responses,
    pub(crate) shed: u64,
    /// Requests that were not what they must be, or too large or too slow.
    #[serde(default)]
    pub(crate) refused: u64,
    /// Connections accepted by another worker than that of their slot.
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
    /// RFC 3339, UTC.
    pub(crate) at: String,
}

impl Request {
    pub(crate) fn new(command: Command) -> Self {
        Self { version: VERSION, command }
    }

    /// What a line asks for, or the sentence that refuses it.
    pub(crate) fn read(line: &[u8]) -> Result<Command, String> {
        // The version alone first: what another version's command looks like is not ours to know.
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
        let Self { command, .. } = serde_json::from_slice(line).map_err(refused)?;
        Ok(command)
    }
}

impl Answer {
    pub(crate) fn done(reason: impl Into<String>) -> Self {
        Self { ok: true, reason: reason.into(), status: None }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self { ok: false, reason: reason.into(), status: None }
    }
}

/// One message as it goes over the socket.
pub(crate) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain structs, which JSON can hold");
    line.push(b'\n');
    line
}

/// Where a master puts its socket when `control.socket` is `auto`, best first. Only the last is there to be made.
pub(crate) fn server_sockets(name: &str, uid: u32, env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    // systemd gives a list where a unit has several folders.
    let runtime = env("RUNTIME_DIRECTORY").and_then(|list| list.into_string().ok());
    let runtime = runtime.and_then(|list| list.split(':').next().map(PathBuf::from));
    let session = env("XDG_RUNTIME_DIR").map(PathBuf::from);
    let given = runtime.into_iter().chain(session).filter(|folder| folder.is_absolute());
    given.chain([private_folder(uid)]).map(|folder| folder.join(file(name))).collect()
}

/// Where to look for a master whose socket is at none of our settings' own places.
pub(crate) fn client_sockets(name: &str, uid: u32, env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut paths = server_sockets(name, uid, env);
    let service = Path::new("/run").join(name).join(file(name));
    if !name.contains('/') && !paths.contains(&service) {
        paths.insert(0, service);
    }
    paths
}

/// Private by its mode, 0700: in `/tmp` anybody can make a folder of this name first.
pub(crate) fn private_folder(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/oxicorn-{uid}"))
}

fn file(name: &str) -> String {
    format!("{}.sock", name.replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_like_this_and_are_read_back() {
        for (command, text) in [
            (Command::Status, r#"{"version":1,"command":"status"}"#),
            (Command::Scale(Scale::To(4)), r#"{"version":1,"command":{"scale":{"to":4}}}"#),
            (Command::Scale(Scale::By(-1)), r#"{"version":1,"command":{"scale":{"by":-1}}}"#),
            (Command::Upgrade { program: None }, r#"{"version":1,"command":{"upgrade":{"program":null}}}"#),
            (Command::Stop { now: true }, r#"{"version":1,"command":{"stop":{"now":true}}}"#),
        ] {
            assert_eq!(line(&Request::new(command.clone())), format!("{text}\n").as_bytes());
            assert_eq!(Request::read(text.as_bytes()), Ok(command));
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_sentence() {
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
    fn replies_are_told_apart() {
        let progress = Reply::Progress { progress: "1 of 2 workers serve".to_owned() };
        let answer = Reply::Answer(Answer::done("2 workers serve"));
        for (reply, text) in [
            (progress, r#"{"progress":"1 of 2 workers serve"}"#),
            (answer, r#"{"ok":true,"reason":"2 workers serve"}"#),
        ] {
            assert_eq!(serde_json::to_string(&reply).unwrap(), text);
            assert_eq!(serde_json::from_str::<Reply>(text).unwrap(), reply);
        }
    }

    #[test]
    fn the_places_where_they_meet() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let shown = |paths: Vec<PathBuf>| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(shown(server_sockets("a", 7, env(&[]))), ["/tmp/oxicorn-7/a.sock"]);
        let both = env(&[("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("XDG_RUNTIME_DIR", "/run/user/7")]);
        let places = ["/run/a/a.sock", "/run/user/7/a.sock", "/tmp/oxicorn-7/a.sock"];
        assert_eq!(shown(server_sockets("a", 7, both)), places);
        assert_eq!(shown(client_sockets("a", 7, both)), places);
        assert_eq!(shown(client_sockets("a", 7, env(&[]))), ["/run/a/a.sock", "/tmp/oxicorn-7/a.sock"]);
        let useless = env(&[("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "relative")]);
        assert_eq!(shown(server_sockets("../b", 7, useless)), ["/tmp/oxicorn-7/.._b.sock"]);
        assert_eq!(shown(client_sockets("../b", 7, useless)), ["/tmp/oxicorn-7/.._b.sock"]);
    }
}
