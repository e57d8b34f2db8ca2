//! Handles the file of a unix socket, for the listeners and for the control socket.
//!
//! Owns: binding the socket with its mode, setting its owner, finding out if a live server answers at a path, and
//! removing the file if it was not replaced. Refuses: to decide what to do if another process uses the path, and to
//! change any file but the one that the caller identifies.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::Path,
};

use nix::{
    fcntl::{self, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::{Gid, Uid, fchownat},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    file::{FileId, id, id_at, id_behind},
    process,
};

/// The owner and the permission bits of a socket's file. If `uid` or `gid` is `None`, the file keeps its uid or gid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    pub(crate) mode: u32,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// What is at the path of a socket before it is bound.
#[derive(Debug)]
pub(crate) enum Occupant {
    Nothing,
    /// The socket of a process that has ended.
    Stale(FileId),
    /// A live server listens at the path. The socket is a connection to the server; from it the kernel can tell the
    /// server's pid.
    Server(Socket),
    NotASocket,
}

/// Binds a socket. The socket does not listen yet, and its file has `mode` from the first moment.
///
/// # Errors
/// EADDRINUSE: the path exists. EINVAL: the path is longer than 107 bytes. ENOENT: the folder of the path does not
/// exist. EACCES: this process may not write to the folder.
pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, FileId)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let before = process::umask(!mode & 0o777);
    let bound = socket.bind(&address);
    process::umask(before);
    bound?;
    Ok((socket.into(), id_at(path)?))
}

/// Finds out what is at `path`. If a socket is there, this function connects to it without waiting.
///
/// # Errors
/// This process may not see the path, or may not connect to the socket. In both cases it is not known if a server
/// listens there.
pub(crate) fn occupant(path: &Path) -> io::Result<Occupant> {
    let file = match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Ok(Occupant::NotASocket),
        Ok(found) => id(&found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
    };
    let visitor = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match visitor.connect(&SockAddr::unix(path)?).map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => Ok(Occupant::Stale(file)),
        Err(io::ErrorKind::NotFound) => Ok(Occupant::Nothing),
        Err(io::ErrorKind::PermissionDenied) => Err(io::ErrorKind::PermissionDenied.into()),
        // Any other error also means that a live server is there: the server's queue is full, or its socket is a
        // datagram socket.
        Ok(()) | Err(_) => Ok(Occupant::Server(visitor)),
    }
}

/// Returns true if the file at `path` is still `file`: it is neither gone nor replaced by another process.
pub(crate) fn is_still_there(path: &Path, file: FileId) -> bool {
    id_at(path).is_ok_and(|found| found == file)
}

/// Removes the file at `path` if it is still `file`. If another process has replaced it, that other file stays.
///
/// # Errors
/// EACCES or EROFS: this process may not write to the folder. If the file is gone already, that is no error.
pub(crate) fn remove(path: &Path, file: FileId) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if id(&found) == file => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives `file` the owner and mode in `rights`. It changes the inode that it has opened, and never follows a symbolic
/// link at `path`. Otherwise a user that can write to the folder could put a symbolic link there, and a chown by root
/// would give that user the target of the link.
///
/// # Errors
/// ENOENT: another file is at `path`. EPERM: this process has no right to change the owner.
pub(crate) fn set_rights(path: &Path, file: FileId, rights: Rights) -> io::Result<()> {
    let held = fcntl::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let itself = format!("/proc/self/fd/{}", held.as_raw_fd());
    if id_behind(itself.as_ref())? != file {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another process has put its own file there"));
    }
    let Rights { mode, uid, gid } = rights;
    if uid.is_some() || gid.is_some() {
        fchownat(&held, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::AT_EMPTY_PATH)?;
    }
    fs::set_permissions(&itself, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{MetadataExt, symlink},
        net::UnixStream,
    };

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_path_is_free_stale_served_or_not_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        assert!(matches!(occupant(&path), Ok(Occupant::Nothing)));
        let server = UnixListener::bind(&path).unwrap();
        assert!(matches!(occupant(&path), Ok(Occupant::Server(_))));
        drop(server);
        assert!(matches!(occupant(&path), Ok(Occupant::Stale(file)) if file == id_at(&path).unwrap()));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(occupant(&path), Ok(Occupant::NotASocket)));
    }

    #[test]
    fn a_file_that_came_in_the_place_of_a_stale_one_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        drop(UnixListener::bind(&path).unwrap());
        let Ok(Occupant::Stale(old)) = occupant(&path) else { panic!("it is stale") };
        let kept = folder.path().join("kept.sock");
        fs::rename(&path, &kept).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        assert!(!is_still_there(&path, old) && is_still_there(&kept, old));
        remove(&path, old).unwrap();
        UnixStream::connect(&path).unwrap();
        remove(&kept, old).unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn only_the_file_we_made_gets_new_rights() {
        let folder = tempfile::tempdir().unwrap();
        let (path, precious) = (folder.path().join("app.sock"), folder.path().join("precious"));
        let (_socket, file) = bind(&path, 0o600).unwrap();
        assert_eq!(mode(&path), 0o600);
        let rights = Rights { mode: 0o666, uid: None, gid: None };
        set_rights(&path, file, rights).unwrap();
        assert_eq!(mode(&path), 0o666);

        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&precious, &path).unwrap();
        set_rights(&path, file, rights).unwrap_err();
        assert_eq!(mode(&precious), 0o600);
    }
}
