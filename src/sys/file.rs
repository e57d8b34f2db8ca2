//! The identity of the file that a path leads to, and the check that a folder belongs to one user alone.
//!
//! Owns: reading device and inode, owner and mode. Refuses: to decide what to do if a path leads to another file than
//! before.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// The numbers of device and inode, which together identify a file. A path does not identify a file, because it may
/// lead to another file later.
pub(crate) type FileId = (u64, u64);

pub(crate) fn id(found: &fs::Metadata) -> FileId {
    (found.dev(), found.ino())
}

/// Returns the identity of the file at `path`; for a symbolic link, the identity of the link itself.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|found| id(&found))
}

/// Returns the identity of the file that `path` leads to; for a symbolic link, the identity of its target.
pub(crate) fn id_behind(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|found| id(&found))
}

/// Returns true if `folder` belongs to user `uid` and no other user can read or write it. Returns false for a symbolic
/// link, because the user who made the link could make it lead to another folder later.
///
/// # Errors
/// ENOENT: there is no such folder. EACCES: this process may not search a folder above it.
pub(crate) fn is_private_folder(folder: &Path, uid: u32) -> io::Result<bool> {
    let found = fs::symlink_metadata(folder)?;
    Ok(found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}
