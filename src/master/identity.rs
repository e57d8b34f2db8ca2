//! Which service this is, and whether a command means it.
//!
//! Owns: name, settings file and folder as a caller knows them. A file is compared by its path with all links followed,
//! both as it leads today: a `current` link that has moved leads the command and the master alike. Refuses: what is done
//! for the command (the shell).

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

    /// Why nothing is done for a command that means another service.
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
             mean that one",
            self.service()
        ))
    }

    fn is_own_file(&self, file: &str) -> bool {
        let folder = self.upgrades.folder();
        // Without one, a reload would take the file that has come since.
        let own = self.resolved.file.clone().unwrap_or_else(|| folder.join(DEFAULT_FILE));
        // Where the service was started through a link, the next program follows it anew.
        let here = std::env::current_dir().unwrap_or_default();
        let named = own.strip_prefix(here).map(|rest| folder.join(rest));
        is_one_of(file, [Some(own.clone()), named.ok()].into_iter().flatten())
    }

    /// Makes the control socket again where it is gone, or makes it where it could not be made before.
    pub(super) fn look_after_control(&mut self) {
        let settings = &self.resolved.settings;
        let (socket, name) = (&settings.control.socket, &settings.process.name);
        let site = Site { socket, name, folder: self.upgrades.folder() };
        match &mut self.control {
            Some(control) => control.look_after(&site),
            none => *none = super::Control::open_late(&site),
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
