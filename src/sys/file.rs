//! Which file this is, whatever path leads to it.
//!
//! Owns: device and inode, and comparing them. Refuses: what follows when a path leads to another file.

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
