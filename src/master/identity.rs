//! Decides whether a command is meant for this service.
//!
//! Owns: the name, settings file and folder of this service as a command names them. Two paths of a settings file are
//! compared only after all symbolic links in them are followed. So if a link such as `current` was changed, the path in
//! the command and the path of the master still lead to the same file. Refuses: to execute the command (the shell does
//! this).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Shell;
use crate::{
    protocol::{Meant, Service},
    settings::DEFAULT_FILE,
};

pub(super) fn service(shell: &Shell) -> Service {
    Service {
        name: shell.resolved.settings.process.name.clone(),
        pid: std::process::id(),
        addresses: shell.listeners.addresses(),
        file: shell.resolved.file.as_deref().map(shown),
        folder: shown(shell.upgrades.folder()),
    }
}

/// Returns why a command is refused if the command is meant for another service; `None` if it is meant for this
/// service.
pub(super) fn refusal(shell: &Shell, meant: &Meant) -> Option<String> {
    let name = &shell.resolved.settings.process.name;
    let wanted = match meant {
        Meant { name: Some(other), .. } if other != name => format!("the service named {other}"),
        Meant { file: Some(file), .. } if !is_own_file(shell, file) => format!("the service of {file}"),
        Meant { .. } => return None,
    };
    let socket = shell.control.as_ref().map_or_else(String::new, |control| control.path().display().to_string());
    Some(format!(
        "the command means {wanted}, and another service answers: {}; nothing was done. Use --socket {socket} if you \
         mean the other service",
        service(shell)
    ))
}

fn is_own_file(shell: &Shell, file: &str) -> bool {
    let folder = shell.upgrades.folder();
    // A service without a settings file reads the default file at the next reload, if it exists by then.
    let own = shell.resolved.file.clone().unwrap_or_else(|| folder.join(DEFAULT_FILE));
    // If the service was started through a symbolic link, the program of the next upgrade follows this link again. So a
    // command may also name the file by its path through the link.
    let here = std::env::current_dir().unwrap_or_default();
    let named = own.strip_prefix(here).map(|rest| folder.join(rest));
    is_one_of(file, [Some(own.clone()), named.ok()].into_iter().flatten())
}

fn is_one_of(file: &str, mut own: impl Iterator<Item = PathBuf>) -> bool {
    own.any(|own| shown(&own) == file || fs::canonicalize(&own).is_ok_and(|led| shown(&led) == file))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_settings_file_is_recognized_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for release in ["1", "2"] {
            fs::create_dir(root.join(release)).unwrap();
            fs::write(root.join(release).join("a.toml"), "").unwrap();
        }
        let current = root.join("current");
        symlink("1", &current).unwrap();
        let is = |file: &str, own: &str| is_one_of(&shown(&root.join(file)), [root.join(own)].into_iter());
        assert!(is("1/a.toml", "current/a.toml"));
        assert!(!is("2/a.toml", "current/a.toml"));
        fs::remove_file(&current).unwrap();
        symlink("2", &current).unwrap();
        assert!(is("2/a.toml", "current/a.toml"));
        assert!(!is("2/a.toml", "1/a.toml"));
        fs::remove_file(root.join("2/a.toml")).unwrap();
        assert!(is("2/a.toml", "2/a.toml"), "a file that is gone for the moment is still the same");
    }
}
