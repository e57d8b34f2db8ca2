//! The pid file. It is written completely or not at all, it is locked while its master lives, and a master removes it
//! only if the file is its own.
//!
//! Owns: the path of the file, and the lock that shows that its master lives. The number in the file proves nothing,
//! because another process or a thread may have this pid by now. Refuses: to replace a file whose master lives.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::fd::{AsFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use crate::sys::{
    exec, fd,
    file::{id, id_behind},
};

/// How often `claim` tries to lock the file before it gives up. A try fails if another master makes or removes the file
/// at the same time.
const TRIES: u32 = 100;

#[derive(Debug)]
pub(crate) struct Pidfile {
    path: PathBuf,
    /// The open pid file, which is locked if its file system supports locks. `None` after a takeover from an old
    /// program that no longer had the file.
    file: Option<File>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PidfileError {
    #[error(
        "process.pidfile {} belongs to a master that runs{pid}; stop that master, or give this service a pid file of \
         its own",
        .path.display()
    )]
    Taken { path: PathBuf, pid: String },
    #[error("process.pidfile {} could not be written", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Pidfile {
    /// Writes the pid to another file in the same folder, and then renames this file to `path`. So no reader sees only
    /// a part of the number.
    ///
    /// # Errors
    /// Another running master holds the file, or the file cannot be written.
    pub(crate) fn create(path: &Path) -> Result<Self, PidfileError> {
        let failed = |source| PidfileError::Write { path: path.to_owned(), source };
        // `stale` holds the lock of the old file until the new file is in place. So if two masters start at the same
        // time, one of them is refused.
        let stale = claim(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let written = fs::write(&beside, format!("{}\n", std::process::id())).and_then(|()| {
            // The file is opened for reading only, because a disk cannot be remounted read-only while one of its files
            // is open for writing.
            let file = fd::open_at_once(beside.as_ref())?;
            lock(&file);
            fs::rename(&beside, path)?;
            Ok(file)
        });
        if written.is_err() {
            // On a full disk the new file is incomplete, so it is removed. The old file is removed only if it is empty,
            // because `claim` may have made it only to lock it.
            let _ = fs::remove_file(&beside);
            if stale.metadata().is_ok_and(|found| found.len() == 0) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(Self { path: path.to_owned(), file: Some(written.map_err(failed)?) })
    }

    /// Takes over the file of the old program, which had the same pid. If the old program is of an older version that
    /// does not pass the open file, the file is opened again by its path.
    pub(crate) fn adopt(path: &Path, passed: Option<RawFd>) -> Self {
        let passed = passed.and_then(|number| exec::received(number).ok()).map(File::from);
        let found = || fd::open_at_once(path).ok().filter(|_| read(path) == Some(std::process::id()));
        let file = passed.filter(|file| is_at(path, file)).or_else(found).filter(lock);
        Self { path: path.to_owned(), file }
    }

    /// Writes the pid file again if it is gone, or if it was replaced by a file that no living master holds. Returns
    /// true if the file was written.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create). After an error the file at this path stays as it is.
    pub(crate) fn renew(&mut self) -> Result<bool, PidfileError> {
        if self.is_ours() {
            return Ok(false);
        }
        *self = Self::create(&self.path)?;
        Ok(true)
    }

    fn is_ours(&self) -> bool {
        self.file.as_ref().is_some_and(|file| is_at(&self.path, file))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file, which holds the lock.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Removes the file, unless another master has replaced it meanwhile.
    pub(crate) fn remove(self) {
        if self.is_ours()
            && read(&self.path) == Some(std::process::id())
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(
                event = "pidfile_not_removed",
                path = %self.path.display(),
                %error,
                "could not remove the pid file; remove it by hand"
            );
        }
    }
}

/// Locks the file at `path`. If the file is missing, makes an empty file first.
fn claim(path: &Path) -> Result<File, PidfileError> {
    let failed = |source| PidfileError::Write { path: path.to_owned(), source };
    for _ in 0..TRIES {
        let file = match fd::open_at_once(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::create_new(path),
            opened => opened,
        };
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match is_link(path) {
                true => return Err(failed(io::Error::new(error.kind(), "it is a link to a file that does not exist"))),
                false => continue,
            },
            Err(error) => return Err(failed(error)),
        };
        if !lock(&file) {
            let pid = read(path).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            return Err(PidfileError::Taken { path: path.to_owned(), pid });
        }
        if is_at(path, &file) {
            return Ok(file);
        }
    }
    Err(failed(io::ErrorKind::ResourceBusy.into()))
}

/// Locks the file, and returns true unless another process has the lock. On a file system without locks the result is
/// always true, so every file counts as stale.
fn lock(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

fn is_at(path: &Path, file: &File) -> bool {
    let ours = file.metadata().map(|found| id(&found));
    ours.is_ok_and(|ours| id_behind(path).is_ok_and(|found| found == ours))
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

fn read(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_master_that_holds_the_file_makes_another_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        // PID 1 lives, but it is not a master of this service.
        for stale in ["1\n", "4194305\n", "", "no number"] {
            fs::write(&path, stale).unwrap();
            let ours = Pidfile::create(&path).unwrap();
            assert_eq!(read(&path), Some(std::process::id()));
            assert!(matches!(Pidfile::create(&path), Err(PidfileError::Taken { .. })), "{stale:?}");
            ours.remove();
            assert!(!path.exists());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a half-written file was left");
    }

    #[test]
    fn a_missing_file_is_written_again_and_the_file_of_another_master_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut ours = Pidfile::create(&path).unwrap();
        assert!(!ours.renew().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(ours.renew().unwrap());
        assert_eq!(read(&path), Some(std::process::id()));

        fs::remove_file(&path).unwrap();
        let theirs = Pidfile::create(&path).unwrap();
        assert!(matches!(ours.renew(), Err(PidfileError::Taken { .. })));
        ours.remove();
        assert!(path.exists(), "the file of another master was removed");
        theirs.remove();
        assert!(!path.exists());
    }
}
