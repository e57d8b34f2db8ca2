//! Which file a path leads to, and whether a folder is one user's alone.
//!
//! Owns: device and inode, owner and mode. Refuses: what follows when a path leads to another file.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Device and inode: a path says where a file is, these say which.
pub(crate) type FileId = (u64, u64);

pub(crate) fn id(found: &fs::Metadata) -> FileId {
    (found.dev(), found.ino())
}

/// The file at `path` itself, be it a link.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|found| id(&found))
}

/// The file that `path` leads to, links followed.
pub(crate) fn id_behind(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|found| id(&found))
}

/// Whether `folder` is a folder of user `uid` that no other user can read or write. A link is not: whoever made it could
/// let it lead elsewhere.
///
/// # Errors
/// ENOENT, and EACCES of a folder above.
pub(crate) fn is_private_folder(folder: &Path, uid: u32) -> io::Result<bool> {
    let found = fs::symlink_metadata(folder)?;
    Ok(found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}
