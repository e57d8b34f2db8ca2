//! Checks that need two keys at once, or need to look at this machine: accounts, folders, files.
//!
//! Owns: problems and warnings that concern several keys or the machine. Refuses: to read a value; `value` does.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::ErrorKind,
    path::Path,
};

use super::{
    model::{Bind, ControlSocket, Group, Http, LogTarget, Owner, Settings, User},
    origin::{GivenValue, Origin},
    problem::Problem,
    resolved::Resolved,
    tls::Tls,
};
use crate::sys::host;

/// Looks up the accounts of `process.user`, `process.group` and `server.unix_owner`, and sets them in `settings`.
/// Returns the problems.
pub(super) fn accounts(settings: &mut Settings, entries: &BTreeMap<String, GivenValue>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, message: String| problems.push(Problem::at(Origin::Default, key, message));
    let written = |key: &str| entries.get(key).and_then(|entry| entry.value.as_str()).filter(|name| !name.is_empty());
    let (uid, gid) = host::effective_ids();

    if let Some(name) = written("process.group") {
        match find_group(name) {
            Ok(group) if uid == 0 || group.gid == gid => settings.process.group = Some(group),
            Ok(Group { name, .. }) => {
                refuse(
                    "process.group",
                    format!("only root may change to the group {name}; this process runs as uid {uid}"),
                );
            }
            Err(message) => refuse("process.group", message),
        }
    }
    if let Some(name) = written("process.user") {
        // In containers a uid often has no account. Then its group is unknown, and the operator must set
        // `process.group`.
        let group = settings.process.group.as_ref().map(|group| group.gid);
        match find_user(name).map(|(name, id, login)| (name, id, login.or(group))) {
            Ok((_, _, None)) => refuse(
                "process.user",
                format!("uid {name} has no account here, so its group is unknown; set process.group as well"),
            ),
            Ok((name, id, Some(gid))) if uid == 0 || id == uid => {
                settings.process.user = Some(User { name, uid: id, gid });
            }
            Ok((name, id, _)) => refuse(
                "process.user",
                format!("only root may change to another user ({name}, uid {id}); this process runs as uid {uid}"),
            ),
            Err(message) => refuse("process.user", message),
        }
    }
    if let Some(name) = written("server.unix_owner") {
        let (user, group) = name.split_once(':').unwrap_or((name, ""));
        let user = (!user.is_empty()).then(|| find_user(user).map(|(_, uid, _)| uid)).transpose();
        let group = (!group.is_empty()).then(|| find_group(group).map(|group| group.gid)).transpose();
        match (user, group) {
            (Ok(Some(owner)), _) if uid != 0 && owner != uid => refuse(
                "server.unix_owner",
                format!("only root may give a socket to another user ({name}); this process runs as uid {uid}"),
            ),
            (Ok(uid), Ok(gid)) => settings.server.unix_owner = Owner { name: name.to_owned(), uid, gid },
            (user, group) => {
                for message in user.err().into_iter().chain(group.err()) {
                    refuse("server.unix_owner", message);
                }
            }
        }
    }
    problems
}

/// Looks up a user by its name or number, and returns name, uid and primary gid. The gid is `None` for a number that
/// has no account.
fn find_user(name: &str) -> Result<(String, u32, Option<u32>), String> {
    let found = match name.parse() {
        Ok(id) => host::user_by_id(id)
            .map(|user| Some(user.map_or((name.to_owned(), id, None), |(name, id, gid)| (name, id, Some(gid))))),
        Err(_) => host::user_by_name(name).map(|user| user.map(|(name, id, gid)| (name, id, Some(gid)))),
    };
    match found {
        Ok(user) => user.ok_or_else(|| format!("there is no user \"{name}\" here")),
        Err(error) => Err(format!("the user \"{name}\" cannot be looked up: {error}")),
    }
}

fn find_group(name: &str) -> Result<Group, String> {
    let found = match name.parse() {
        Ok(id) => host::group_by_id(id).map(|group| Some(group.unwrap_or((name.to_owned(), id)))),
        Err(_) => host::group_by_name(name),
    };
    match found {
        Ok(group) => {
            let group = group.map(|(name, gid)| Group { name, gid });
            group.ok_or_else(|| format!("there is no group \"{name}\" here"))
        }
        Err(error) => Err(format!("the group \"{name}\" cannot be looked up: {error}")),
    }
}

/// Returns the problems that concern several keys or the machine. `failed` are the keys whose value could not be read.
/// If one of them is in `[tls]`, no missing key of `[tls]` is reported. `again` is true in a reload or an upgrade. Then
/// the keys that only a restart can change are not checked.
pub(super) fn problems(settings: &Settings, failed: &HashSet<String>, again: bool) -> Vec<Problem> {
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

    own_page_problems(&settings.http, &mut refuse);
    tls_problems(&settings.tls, failed, cfg!(feature = "tls"), &mut refuse);
    for (key, target) in [("log.file", &settings.log.file), ("log.access", &settings.log.access)] {
        if let LogTarget::File(path) = target {
            folder_exists(key, path, &mut refuse);
        }
    }
    if let (ControlSocket::Path(path), false) = (&settings.control.socket, again) {
        folder_exists("control.socket", path, &mut refuse);
    }
    if let (Some(path), false) = (&settings.process.pidfile, again) {
        folder_exists("process.pidfile", path, &mut refuse);
    }
    problems
}

/// Adds the problems of the table `[tls]`. `has_tls` is true if the program was built with the feature `tls`.
/// Refuses a path that two of the worker's own pages have, because only one of them would be shown.
fn own_page_problems(http: &Http, refuse: &mut impl FnMut(&str, String)) {
    let pages = [
        ("http.metrics_path", &http.metrics_path),
        ("http.health_path", &http.health_path),
        ("http.ready_path", &http.ready_path),
    ];
    for (at, (key, path)) in pages.iter().enumerate().filter(|(_, (_, path))| !path.is_empty()) {
        if let Some((other, _)) = pages[..at].iter().find(|(_, other)| other == path) {
            refuse(key, format!("\"{path}\" is {other} too; each page needs a path of its own"));
        }
    }
}

fn tls_problems(tls: &Tls, failed: &HashSet<String>, has_tls: bool, refuse: &mut impl FnMut(&str, String)) {
    let files = [("tls.certfile", &tls.certfile), ("tls.keyfile", &tls.keyfile), ("tls.client_ca", &tls.client_ca)];
    match (&tls.certfile, &tls.keyfile) {
        _ if !has_tls => {
            for (key, _) in files.iter().filter(|(_, path)| path.is_some()) {
                refuse(key, "this program was built without TLS: the feature `tls` of oxicorn is off".to_owned());
            }
        }
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
    for (key, path) in files {
        let Some(path) = path.as_ref().filter(|_| has_tls) else { continue };
        match fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => refuse(key, format!("{} is not a file", path.display())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                refuse(key, format!("there is no file {}", path.display()));
            }
            // Do not report the file: the user of this command may have fewer rights than the master. If the master
            // cannot see the file either, the master reports that when it reads the file.
            Err(_) => {}
        }
    }
}

fn folder_exists(key: &str, path: &Path, refuse: &mut impl FnMut(&str, String)) {
    let folder = path.parent().map(|folder| (folder, fs::metadata(folder).map(|found| found.is_dir())));
    match folder {
        Some((folder, Err(error))) if error.kind() != ErrorKind::NotFound => {
            refuse(key, format!("the folder {} cannot be seen: {error}", folder.display()));
        }
        Some((folder, Ok(false) | Err(_))) => {
            refuse(key, format!("there is no folder {}", folder.display()));
        }
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
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests are always built with the feature `tls`, so this test passes `false` for `has_tls` to act like a build
    /// without the feature.
    #[test]
    fn a_program_without_tls_refuses_each_key_and_looks_at_no_file() {
        let there_is_none = Some("/dev/null/x".into());
        let mut tls = Settings::default().tls;
        let refused = |tls: &Tls| {
            let mut refused = Vec::new();
            tls_problems(tls, &HashSet::new(), false, &mut |key, message| refused.push((key.to_owned(), message)));
            refused
        };
        assert_eq!(refused(&tls), []);
        (tls.certfile, tls.client_ca) = (there_is_none.clone(), there_is_none);
        let built = "this program was built without TLS: the feature `tls` of oxicorn is off";
        let wanted = ["tls.certfile", "tls.client_ca"].map(|key| (key.to_owned(), built.to_owned()));
        assert_eq!(refused(&tls), wanted);
    }
}
