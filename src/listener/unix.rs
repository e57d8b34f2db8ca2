//! The file of a unix socket: made with its mode, given to its owner, taken over from the dead, removed if still ours.
//!
//! Owns: what stands at a path, and whose it is. Refuses: to put anything in the place of a server that lives.

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

use super::{Address, BindError, holder};
use crate::{
    settings::Server,
    sys::{
        file::{FileId, id, id_at, id_behind},
        process,
    },
};

/// Whose a socket's file is, and who may connect to it. A uid or gid of `None` stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rights {
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Rights {
    pub(super) fn of(server: &Server) -> Self {
        Self { mode: server.unix_mode, uid: server.unix_owner.uid, gid: server.unix_owner.gid }
    }
}

/// A bound socket that does not listen yet; its file has its mode from the first moment.
pub(super) fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, FileId)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let before = process::umask(!mode & 0o777);
    let bound = socket.bind(&address);
    process::umask(before);
    bound?;
    Ok((socket.into(), id_at(path)?))
}

/// The file of a socket that was left behind by a process that is gone; `None` when there is no file.
///
/// # Errors
/// Somebody listens there, or it is no socket.
pub(super) fn stale(path: &Path) -> Result<Option<FileId>, BindError> {
    let address = Address::Unix(path.to_owned());
    let file = match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(found) => id(&found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(address.refused(error)),
    };
    let visitor = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)
        .and_then(|socket| Ok((socket.connect(&SockAddr::unix(path)?), socket)));
    let (answer, visitor) = visitor.map_err(|error| address.refused(error))?;
    match answer.map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => Ok(Some(file)),
        Err(io::ErrorKind::NotFound) => Ok(None),
        Err(io::ErrorKind::PermissionDenied) => Err(address.refused(io::ErrorKind::PermissionDenied.into())),
        // Its queue may be full; or it is a datagram socket. Somebody lives there.
        Ok(()) | Err(_) => Err(BindError::InUse { address: address.to_string(), holder: holder::of_peer(&visitor) }),
    }
}

/// Removes `file`, and nothing that another process has put in its place since.
pub(super) fn remove(path: &Path, file: FileId) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if id(&found) == file => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives `file` its owner and mode. By inode and not by path, and never through a link: in a folder of another user's,
/// who could put one there, a chown by root would give that user whatever it points at.
pub(super) fn hand_over(path: &Path, file: FileId, rights: Rights) -> io::Result<()> {
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

    use super::{
        super::{Listeners, tests::server},
        *,
    };
    use crate::settings::Bind;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_unix_socket_takes_over_what_the_dead_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let server = server(&[Bind::Unix(path.clone())]);
        drop(UnixListener::bind(&path).unwrap());

        let listeners = Listeners::bind(&server, 2).unwrap();
        assert_eq!(listeners.addresses(), [format!("unix:{}", path.display())]);
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        let error = Listeners::bind(&server, 2).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");

        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        listeners.unlink();
        UnixStream::connect(&path).unwrap();
        drop(theirs);

        let listeners = Listeners::bind(&server, 2).unwrap();
        listeners.unlink();
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        let error = Listeners::bind(&server, 2).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn what_came_in_the_place_of_a_stale_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        drop(UnixListener::bind(&path).unwrap());
        let old = stale(&path).unwrap().unwrap();
        let kept = folder.path().join("kept.sock");
        fs::rename(&path, &kept).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        remove(&path, old).unwrap();
        UnixStream::connect(&path).unwrap();
        remove(&kept, old).unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn only_the_file_we_made_is_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, precious) = (folder.path().join("app.sock"), folder.path().join("precious"));
        let (_socket, file) = bind(&path, 0o600).unwrap();
        assert_eq!(mode(&path), 0o600);
        let rights = Rights::of(&Server { unix_mode: 0o666, ..server(&[]) });
        hand_over(&path, file, rights).unwrap();
        assert_eq!(mode(&path), 0o666);

        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&precious, &path).unwrap();
        hand_over(&path, file, rights).unwrap_err();
        assert_eq!(mode(&precious), 0o600);
    }
}
