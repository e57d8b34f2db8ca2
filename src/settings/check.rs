//! What two keys mean together, and what this machine makes of one: accounts, folders, rights.
//!
//! Owns: cross-field sense, warnings, the list of what is not yet in effect. Refuses: the reading of a single value.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use super::{Bind, ControlSocket, Entry, Group, LogTarget, Origin, Problem, Resolved, Settings, User, show};
use crate::sys::host;

/// Keys that are read and checked and do nothing more. A value that differs from the default earns a warning.
pub(super) const NOT_YET: &[&str] = &["server.unix_owner", "tls.certfile", "tls.keyfile", "tls.client_ca"];

/// Looks up `process.user` and `process.group` and puts them in place.
pub(super) fn accounts(settings: &mut Settings, entries: &BTreeMap<String, Entry>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, message: String| problems.push(Problem::at(Origin::Default, key, message));
    let written = |key: &str| entries.get(key).and_then(|entry| entry.value.as_str()).filter(|name| !name.is_empty());
    let (uid, gid) = host::effective_ids();

    if let Some(name) = written("process.group") {
        let found = match name.parse() {
            Ok(id) => host::group_by_id(id).map(|group| Some(group.unwrap_or((name.to_owned(), id)))),
            Err(_) => host::group_by_name(name),
        };
        match found {
            Ok(Some((name, id))) if uid == 0 || id == gid => settings.process.group = Some(Group { name, gid: id }),
            Ok(Some((name, _))) => {
                refuse("process.group", format!("only root may change to the group {name}; we run as uid {uid}"));
            }
            Ok(None) => refuse("process.group", format!("there is no group \"{name}\" here")),
            Err(error) => refuse("process.group", format!("the group \"{name}\" cannot be looked up: {error}")),
        }
    }
    if let Some(name) = written("process.user") {
        let found = match name.parse() {
            // Containers run under numbers without an account; then only the operator knows the group.
            Ok(id) => host::user_by_id(id)
                .map(|user| user.or_else(|| Some((name.to_owned(), id, settings.process.group.as_ref()?.gid)))),
            Err(_) => host::user_by_name(name),
        };
        match found {
            Ok(Some((name, id, gid))) if uid == 0 || id == uid => {
                settings.process.user = Some(User { name, uid: id, gid });
            }
            Ok(Some((name, id, _))) => refuse(
                "process.user",
                format!("only root may change to another user ({name}, uid {id}); we run as uid {uid}"),
            ),
            Ok(None) if name.parse::<u32>().is_ok() => refuse(
                "process.user",
                format!("uid {name} has no account here, so its group is unknown; set process.group as well"),
            ),
            Ok(None) => refuse("process.user", format!("there is no user \"{name}\" here")),
            Err(error) => refuse("process.user", format!("the user \"{name}\" cannot be looked up: {error}")),
        }
    }
    problems
}

/// `failed` are the keys whose value could not be read: what they would have been paired with is not to blame.
pub(super) fn problems(settings: &Settings, failed: &HashSet<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, message: String| problems.push(Problem::at(Origin::Default, key, message));

    let mut seen = HashSet::new();
    for bind in &settings.server.bind {
        let any_port = matches!(bind, Bind::Tcp { port: 0, .. });
        if !any_port && !seen.insert(bind) {
            refuse("server.bind", format!("{bind} is listed twice"));
        }
        if let Bind::Unix(path) = bind {
            folder_exists("server.bind", path, &mut refuse);
        }
    }

    let tls = &settings.tls;
    match (&tls.certfile, &tls.keyfile) {
        _ if failed.iter().any(|key| key.starts_with("tls.")) => {}
        (Some(_), None) => refuse("tls.certfile", "a certificate needs its key: set tls.keyfile as well".to_owned()),
        (None, Some(_)) => refuse("tls.keyfile", "a key needs its certificate: set tls.certfile as well".to_owned()),
        (None, None) if tls.client_ca.is_some() => {
            refuse(
                "tls.client_ca",
                "clients show certificates only over TLS: set tls.certfile and tls.keyfile".to_owned(),
            );
        }
        (None, None) | (Some(_), Some(_)) => {}
    }
    for (key, path) in
        [("tls.certfile", &tls.certfile), ("tls.keyfile", &tls.keyfile), ("tls.client_ca", &tls.client_ca)]
    {
        if let Some(path) = path.as_ref().filter(|path| !path.is_file()) {
            refuse(key, format!("there is no file {}", path.display()));
        }
    }

    for (key, target) in [("log.file", &settings.log.file), ("log.access", &settings.log.access)] {
        if let LogTarget::File(path) = target {
            folder_exists(key, path, &mut refuse);
        }
    }
    if let ControlSocket::Path(path) = &settings.control.socket {
        folder_exists("control.socket", path, &mut refuse);
    }
    if let Some(path) = &settings.process.pidfile {
        folder_exists("process.pidfile", path, &mut refuse);
    }
    problems
}

fn folder_exists(key: &str, path: &Path, refuse: &mut impl FnMut(&str, String)) {
    match path.parent() {
        Some(folder) if !folder.is_dir() => refuse(key, format!("there is no folder {}", folder.display())),
        _ if path.is_dir() => refuse(key, format!("{} is a folder", path.display())),
        _ => {}
    }
}

pub(super) fn warnings(resolved: &Resolved) -> Vec<String> {
    let settings = &resolved.settings;
    let mut warnings = Vec::new();
    let mut warn = |key: &str, message: &str| {
        warnings.push(Problem::at(resolved.origin(key), key, message).to_string());
    };
    if settings.workers.max_requests_jitter > 0 && settings.workers.max_requests == 0 {
        warn("workers.max_requests_jitter", "does nothing while workers.max_requests is 0");
    }
    let usual = show::flat(&Settings::defaults(settings.workers.count, settings.folder.clone()));
    let present = show::flat(settings);
    for key in NOT_YET {
        if present.get(*key) != usual.get(*key) {
            warn(key, "not yet in effect; the value is checked and does nothing more");
        }
    }
    warnings
}
