//! The pid file: written whole, removed only while it is still ours.
//!
//! Owns: its one path. Refuses: deciding what another master's pid file means beyond "it lives".

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(crate) struct Pidfile {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PidfileError {
    #[error("process.pidfile {} names process {pid}, which is running; stop it, or remove the file", .path.display())]
    Taken { path: PathBuf, pid: u32 },
    #[error("process.pidfile {} could not be written", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Pidfile {
    /// Writes beside and renames, so that no reader ever sees half a number.
    pub(crate) fn create(path: &Path) -> Result<Self, PidfileError> {
        if let Some(pid) = read(path)
            && pid != std::process::id()
            && Path::new("/proc").join(pid.to_string()).exists()
        {
            return Err(PidfileError::Taken { path: path.to_owned(), pid });
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        fs::write(&beside, format!("{}\n", std::process::id()))
            .and_then(|()| fs::rename(&beside, path))
            .map_err(|source| PidfileError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// Goes on for the program before, which had this pid too.
    pub(crate) fn adopt(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A second instance may have replaced it meanwhile; then it is not ours to remove.
    pub(crate) fn remove(self) {
        if read(&self.path) == Some(std::process::id())
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(event = "pidfile_left", path = %self.path.display(), %error, "the pid file could not be removed; remove it by hand");
        }
    }
}

fn read(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_replaces_a_stale_file_and_leaves_a_strangers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "4194305\n").unwrap();
        let ours = Pidfile::create(&path).unwrap();
        assert_eq!(read(&path), Some(std::process::id()));
        fs::write(&path, "1\n").unwrap();
        ours.remove();
        assert_eq!(read(&path), Some(1), "another's file was removed");
        assert!(matches!(Pidfile::create(&path), Err(PidfileError::Taken { pid: 1, .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a half-written file was left");
    }
}
