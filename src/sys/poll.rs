//! The one place where the master waits. Refuses to know what it waits for.

use std::{io, os::fd::BorrowedFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

/// Waits until one of `fds` is readable, hung up or in error, or `timeout` is over (`None`: for ever). Which of them
/// are, in order; none after a timeout or a signal. Never returns before `timeout` without a cause.
///
/// # Errors
/// The kernel's, such as ENOMEM.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None) {
        Ok(_) => Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd, time::Duration};

    use super::{super::clock, wait};

    #[test]
    fn says_which_are_ready() {
        let (quiet, _quiet_writer) = std::io::pipe().unwrap();
        let (loud, mut loud_writer) = std::io::pipe().unwrap();
        let (closed, _) = std::io::pipe().unwrap();
        loud_writer.write_all(b"x").unwrap();
        assert_eq!(wait(&[quiet.as_fd(), loud.as_fd(), closed.as_fd()], None).unwrap(), [false, true, true]);
    }

    #[test]
    fn never_returns_early() {
        let (quiet, _writer) = std::io::pipe().unwrap();
        let before = clock::now();
        assert_eq!(wait(&[quiet.as_fd()], Some(Duration::from_micros(20_300))).unwrap(), [false]);
        assert!(clock::now() - before >= 20);
    }
}
