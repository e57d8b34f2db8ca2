//! The start folder. Relative paths on the command line and in the environment are resolved against it.
//!
//! Owns: the path of the folder as the operator wrote it, and the folder to which that path leads now. Each reload and
//! each upgrade follows the symbolic links in the path again. Refuses: to join a relative path if the folder is gone.

use std::{
    env, fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::folders::Base;
use crate::sys::file::id_behind;

#[derive(Clone, Debug)]
pub(crate) struct StartFolder {
    path: PathBuf,
    /// The path of the same folder, without symbolic links. They were resolved when `path` was read. The value is
    /// `None` if `path` led to no folder at that time.
    real: Option<PathBuf>,
}

impl StartFolder {
    /// Returns the current folder of this process. Its path is `$PWD` if `$PWD` leads to this folder, else the kernel's
    /// path. `$PWD` is preferred because it keeps the symbolic links that the operator used in the shell.
    pub(crate) fn here() -> Self {
        match env::current_dir() {
            Ok(real) => {
                let named = env::var_os("PWD").map(PathBuf::from).filter(|path| path.is_absolute());
                let path = named.filter(|path| is_same(path, Path::new("."))).unwrap_or_else(|| real.clone());
                Self { path, real: Some(real) }
            }
            Err(_) => Self { path: removed_folder(), real: None },
        }
    }

    /// Returns the folder to which `path` leads now.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let real = fs::canonicalize(&path).ok().filter(|real| real.is_dir());
        Self { path, real }
    }

    /// Returns the start folder with a known `path`. `real` is the folder to which `path` led earlier. If `real` is
    /// `None`, this function looks again to which folder `path` leads.
    pub(crate) fn known(path: PathBuf, real: Option<PathBuf>) -> Self {
        if real.is_some() { Self { path, real } } else { Self::at(path) }
    }

    /// Returns the path as the operator wrote it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn real(&self) -> Option<&Path> {
        self.real.as_deref()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.real.is_none()
    }

    pub(super) fn base(&self) -> Base {
        Base::new(self.path.clone(), self.is_gone())
    }

    /// Appends a relative path to this folder; an absolute path stays as it is.
    ///
    /// # Errors
    /// A sentence for the operator: the path is relative and the start folder is gone.
    pub(crate) fn join(&self, path: &Path) -> Result<PathBuf, String> {
        self.base().join(path)
    }

    /// Makes this the current folder of the process. If the folder is gone, the process stays in its current folder.
    pub(crate) fn enter(&self) {
        if let Some(real) = &self.real {
            // If this fails, the folder is gone by now. The code that needs the folder reports that.
            let _ = env::set_current_dir(real);
        }
    }
}

/// Returns the path that the current folder had before it was removed. The kernel appends " (deleted)" to that path;
/// this function removes that mark.
fn removed_folder() -> PathBuf {
    let marked = fs::read_link("/proc/self/cwd").unwrap_or_else(|_| PathBuf::from("."));
    let name = marked.as_os_str().as_bytes();
    PathBuf::from(std::ffi::OsStr::from_bytes(name.strip_suffix(b" (deleted)").unwrap_or(name)))
}

/// Returns true if both paths lead to the same file or folder.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    id_behind(one).is_ok_and(|one| id_behind(other).is_ok_and(|other| one == other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_gone_refuses_relative_paths_only() {
        let parent = tempfile::tempdir().unwrap();
        let folder = StartFolder::at(parent.path().join("gone"));
        assert_eq!(folder.join(Path::new("/etc/a.toml")).unwrap(), Path::new("/etc/a.toml"));
        let refused = folder.join(Path::new("a.toml")).unwrap_err();
        assert!(refused.starts_with("a.toml is a relative path") && refused.contains("/gone;"), "{refused}");
    }

    #[test]
    fn links_are_followed_each_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        for (index, release) in ["one", "two"].into_iter().enumerate() {
            fs::create_dir(path(release)).unwrap();
            if index > 0 {
                fs::remove_file(path("current")).unwrap();
            }
            std::os::unix::fs::symlink(path(release), path("current")).unwrap();
            let folder = StartFolder::at(path("current"));
            assert_eq!(folder.path(), path("current"));
            assert_eq!(folder.real(), Some(fs::canonicalize(path(release)).unwrap().as_path()));
        }
    }
}
