//! The identity of the file that a path leads to, and whether a folder belongs to one user alone.
//!
//! Owns: device and inode, owner and mode. Refuses: to decide what follows if a path leads to another file.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Device and inode. They identify a file; a path only says where one is.
pub(crate) type FileId = (u64, u64);

pub(crate) fn id(found: &fs::Metadata) -> FileId {
    (found.dev(), found.ino())
}

/// Returns the identity of the file at `path` itself, also if it is a link.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|found| id(&found))
}

/// Returns the identity of the file that `path` leads to, links followed.
pub(crate) fn id_behind(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|found| id(&found))
}

/// Whether `folder` is a folder of user `uid` that no other user can read or write. A link is not: the user who made it
/// could let it lead elsewhere.
///
/// # Errors
/// ENOENT, and EACCES of a folder above.
pub(crate) fn is_private_folder(folder: &Path, uid: u32) -> io::Result<bool> {
    let found = fs::symlink_metadata(folder)?;
    Ok(found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}
