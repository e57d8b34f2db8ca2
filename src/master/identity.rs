//! Which service this is, and whether a command means it.
//!
//! Owns: the name, settings file and folder of this service as a command names them, and the control socket by which
//! commands find it. Two paths of a settings file are compared with all links followed as they lead now, so a `current`
//! link that has moved leads the command and the master to the same file. Refuses: to act on the command (the shell).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Shell, control::Site};
use crate::{
    protocol::{Meant, Service},
    settings::DEFAULT_FILE,
};

impl Shell {
    pub(super) fn service(&self) -> Service {
        Service {
            name: self.resolved.settings.process.name.clone(),
            pid: std::process::id(),
            addresses: self.listeners.addresses(),
            file: self.resolved.file.as_deref().map(shown),
            folder: shown(self.upgrades.folder()),
        }
    }

    /// Why a command is refused: it means another service. `None`: it means this one.
    pub(super) fn refusal(&self, meant: &Meant) -> Option<String> {
        let name = &self.resolved.settings.process.name;
        let wanted = match meant {
            Meant { name: Some(other), .. } if other != name => format!("the service named {other}"),
            Meant { file: Some(file), .. } if !self.is_own_file(file) => format!("the service of {file}"),
            Meant { .. } => return None,
        };
        let socket = self.control.as_ref().map_or_else(String::new, |control| control.path().display().to_string());
        Some(format!(
            "the command means {wanted}, and another service answers: {}; nothing was done. Use --socket {socket} if you \
             mean the other service",
            self.service()
        ))
    }

    fn is_own_file(&self, file: &str) -> bool {
        let folder = self.upgrades.folder();
        // A service without a file would, at a reload, take this one if it is there by then.
        let own = self.resolved.file.clone().unwrap_or_else(|| folder.join(DEFAULT_FILE));
        // A service that was started through a link: the next program follows that link again.
        let here = std::env::current_dir().unwrap_or_default();
        let named = own.strip_prefix(here).map(|rest| folder.join(rest));
        is_one_of(file, [Some(own.clone()), named.ok()].into_iter().flatten())
    }

    /// Makes the control socket again if it is gone, or makes it if it could not be made before.
    pub(super) fn look_after_control(&mut self) {
        let settings = &self.resolved.settings;
        let (socket, name) = (&settings.control.socket, &settings.process.name);
        let site = Site { socket, name, folder: self.upgrades.folder() };
        match &mut self.control {
            Some(control) => control.look_after(&site),
            none => *none = super::ControlServer::open_late(&site),
        }
    }
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
    fn a_file_is_the_same_by_whatever_links() {
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
        assert!(is("2/a.toml", "2/a.toml"), "one that is gone for the moment is still the same");
    }
}
