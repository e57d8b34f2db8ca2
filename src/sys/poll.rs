//! Waits for descriptors with poll(2). This is the only place where the master waits. Workers wait in tokio. They call
//! this module only with a timeout of 0, to see without waiting which descriptors are ready.
//!
//! Owns: poll(2). Refuses: to know what the descriptors are for.

use std::{io, os::fd::BorrowedFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

/// What to wait for on a descriptor. In addition, a hangup or an error always ends the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    Hangup,
}

/// Waits until one of `fds` is ready, hung up or in error, or until `timeout` is over (`None`: no limit). Returns one
/// value for each of `fds`, in their order: true if it is ready. After a timeout, and after a signal, all values are
/// false. Without a signal it never returns early.
///
/// # Errors
/// The kernel's errors, such as ENOMEM.
pub(crate) fn wait(fds: &[(BorrowedFd<'_>, Interest)], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|(fd, interest)| PollFd::new(*fd, interest.flags())).collect();
    match ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None) {
        Ok(_) => Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

impl Interest {
    fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::POLLIN,
            Self::Write => PollFlags::POLLOUT,
            Self::Hangup => PollFlags::empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::{fd::AsFd, unix::net::UnixStream},
        time::Duration,
    };

    use super::{
        super::clock,
        Interest::{Hangup, Read},
        *,
    };

    #[test]
    fn wait_returns_which_descriptors_are_ready() {
        let (silent, _silent_writer) = std::io::pipe().unwrap();
        let (ready, mut ready_writer) = std::io::pipe().unwrap();
        let (closed, _) = std::io::pipe().unwrap();
        ready_writer.write_all(b"x").unwrap();
        let fds = [(silent.as_fd(), Read), (ready.as_fd(), Read), (closed.as_fd(), Read)];
        assert_eq!(wait(&fds, None).unwrap(), [false, true, true]);
    }

    #[test]
    fn each_interest_is_reported_by_itself() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"x").unwrap();
        let three = |fd: &UnixStream| {
            let fds = [(fd.as_fd(), Read), (fd.as_fd(), Interest::Write), (fd.as_fd(), Hangup)];
            wait(&fds, Some(Duration::ZERO)).unwrap()
        };
        assert_eq!(three(&ours), [false, true, false]);
        assert_eq!(three(&theirs), [true, true, false]);
        drop(theirs);
        assert_eq!(three(&ours), [true, true, true]);
    }

    #[test]
    fn wait_never_returns_early() {
        let (silent, _writer) = std::io::pipe().unwrap();
        let before = clock::now();
        assert_eq!(wait(&[(silent.as_fd(), Read)], Some(Duration::from_micros(20_300))).unwrap(), [false]);
        assert!(clock::now() - before >= 20);
    }
}
