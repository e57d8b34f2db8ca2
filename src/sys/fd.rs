//! File descriptors: the channel between master and worker, the state of sockets, and descriptors that another process
//! has opened.
//!
//! Owns: the system calls on descriptors. Refuses: to block; each call returns at once.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, SigmaskHow, Signal},
        socket::{
            self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, socketpair,
            sockopt::PeerCredentials,
        },
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// Makes a pair of connected, non-blocking, close-on-exec sockets. The sockets keep the boundaries of messages
/// (AF_UNIX, SOCK_SEQPACKET): one receive returns exactly one message.
///
/// # Errors
/// The kernel's errors, such as EMFILE, ENFILE and ENOMEM.
pub(crate) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends what this process writes to its stdout to its stderr from now on.
///
/// # Errors
/// The kernel's errors, such as EBADF if stderr is closed.
pub(crate) fn stdout_to_stderr() -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(io::stderr())?)
}

/// Sends one whole message on a socket, without blocking and without SIGPIPE. Returns `false` if the socket has no room
/// for the message now. Do not send an empty message: the receiver would take it for a closed channel.
///
/// # Errors
/// The kernel's errors, such as EPIPE if the other end is closed. WriteZero: a stream socket took only a part of the
/// message.
pub(crate) fn send(fd: BorrowedFd<'_>, message: &[u8]) -> io::Result<bool> {
    match socket::send(fd.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Ok(sent) if sent == message.len() => Ok(true),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends one message like [`send`], and passes a copy of the descriptor `passed` to the other end.
///
/// # Errors
/// The same as those of [`send`].
pub(crate) fn send_with(fd: BorrowedFd<'_>, message: &[u8], passed: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let passed = [passed.as_raw_fd()];
    let passed = [ControlMessage::ScmRights(&passed)];
    match socket::sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(message)], &passed, flags, None) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The outcome of [`recv`].
#[derive(Debug)]
pub(crate) enum Recv {
    /// A message of this many bytes, and the descriptor that came with it, if any.
    Message(usize, Option<OwnedFd>),
    /// No message waits now.
    Empty,
    /// The other end is closed.
    Closed,
}

/// Receives one message from a [`channel`], without blocking.
///
/// # Errors
/// InvalidData: the message was longer than `buffer`, and its end is lost.
pub(crate) fn recv(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Recv> {
    let size = buffer.len();
    let mut parts = [IoSliceMut::new(buffer)];
    let mut rights = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC | MsgFlags::MSG_CMSG_CLOEXEC;
    match socket::recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut rights), flags) {
        Ok(message) => {
            let mut passed = None;
            for part in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = part {
                    // SAFETY: the kernel has just made these descriptors for us; no other code knows their numbers.
                    passed = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
                }
            }
            match message.bytes {
                0 => Ok(Recv::Closed),
                len if len > size => Err(io::ErrorKind::InvalidData.into()),
                len => Ok(Recv::Message(len, passed)),
            }
        }
        // ECONNRESET means that the other end was closed before it read all our messages.
        Err(Errno::ECONNRESET) => Ok(Recv::Closed),
        Err(Errno::EAGAIN) => Ok(Recv::Empty),
        Err(error) => Err(error.into()),
    }
}

/// Returns pid and uid of the process at the other end of a unix socket. The kernel recorded them when the socket was
/// connected.
///
/// # Errors
/// The kernel's errors, such as ENOTSOCK.
pub(crate) fn peer(fd: BorrowedFd<'_>) -> io::Result<(i32, u32)> {
    let peer = socket::getsockopt(&fd, PeerCredentials)?;
    Ok((peer.pid(), peer.uid()))
}

/// Returns the accept queue of a listening TCP socket as `(queued, max)`: the number of connections that wait to be
/// accepted, and the largest number that may wait. Returns `None` for any other socket, because the kernel reports the
/// queue for TCP only.
pub(crate) fn accept_queue(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    const TCP_LISTEN: u8 = 10;
    // On a listening socket the kernel stores length and limit of the accept queue in these two fields (tcp_get_info in
    // net/ipv4/tcp.c).
    let info = tcp_info(fd.as_raw_fd()).filter(|info| info.tcpi_state == TCP_LISTEN)?;
    Some((info.tcpi_unacked, info.tcpi_sacked))
}

/// If a client's FIN comes this many milliseconds or more after its last byte, the client gave up. A client that only
/// closes its sending side, and still waits for the answer, sends the FIN within 4 ms of the request.
pub(crate) const GAVE_UP_AFTER: u32 = 500;

/// Returns true if a connected stream socket holds unread bytes. Returns false if the number is not a socket.
pub(crate) fn has_unread(socket: RawFd) -> bool {
    socket::recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|len| len > 0)
}

/// Returns true if the client of a connected stream socket has left before its answer began. A TCP client has left if
/// it reset the connection, or if its FIN came at least [`GAVE_UP_AFTER`] milliseconds after its last byte. A client on
/// a unix socket has left if it closed the whole socket and not only its sending side. Returns false if the number is
/// not a socket.
pub(crate) fn has_left(socket: RawFd) -> bool {
    match tcp_info(socket) {
        Some(info) => has_left_tcp(&info),
        None => {
            let mut polled = libc::pollfd { fd: socket, events: 0, revents: 0 };
            // SAFETY: `polled` is one entry and outlives the call. For a number that is not open, the kernel only sets
            // POLLNVAL in the entry.
            let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
            ready == 1 && polled.revents & (libc::POLLHUP | libc::POLLERR) != 0
        }
    }
}

/// Returns true if a TCP client has left. The kernel does not tell when the FIN came, only when the last data and the
/// last acknowledgment came. A FIN carries an acknowledgment, so the time of the last acknowledgment is taken for the
/// time of the FIN.
fn has_left_tcp(info: &libc::tcp_info) -> bool {
    const TCP_CLOSE: u8 = 7;
    const TCP_CLOSE_WAIT: u8 = 8;
    // After the last data came, this side may have sent data of its own, such as the answer to an earlier request. Then
    // the last acknowledgment may belong to the sent data, and not to the FIN.
    let sent_since = info.tcpi_last_data_sent < info.tcpi_last_data_recv;
    let late = info.tcpi_last_data_recv.saturating_sub(info.tcpi_last_ack_recv) >= GAVE_UP_AFTER;
    info.tcpi_state == TCP_CLOSE || info.tcpi_state == TCP_CLOSE_WAIT && late && !sent_since
}

fn tcp_info(socket: RawFd) -> Option<libc::tcp_info> {
    // SAFETY: tcp_info consists of plain integers, so all-zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, and both outlive the call.
    let done =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len) };
    (done == 0).then_some(info)
}

/// Returns a second descriptor for the open socket `socket`. The second descriptor is close-on-exec. The caller must
/// know that `socket` is still open: the kernel may have given the number of a closed descriptor to another file.
///
/// # Errors
/// EMFILE: this process has too many open descriptors. EBADF: `socket` is not open.
pub(crate) fn duplicate(socket: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with this command copies the descriptor and touches no memory; a number that is not open is EBADF.
    let copy = unsafe { libc::fcntl(socket, libc::F_DUPFD_CLOEXEC, 3) };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC made `copy` this moment; no other code knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Registers a descriptor with tokio's poller, so that a task can wait until it is readable. Call it inside a runtime.
///
/// # Errors
/// The errors of epoll_ctl(2), such as EPERM for a file that cannot be polled.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, so the descriptor stays open, and the same, until the `AsyncFd` is
    // dropped.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Makes the kernel acknowledge at once the data that a TCP socket has received. On other sockets it has no effect.
pub(crate) fn acknowledge(socket: RawFd) {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, the size of `on`, which outlives the call.
    unsafe { libc::setsockopt(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, (&raw const on).cast(), len) };
}

/// What an error of accept(2) concerns: the listener, the resources of this process, or one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAccepted {
    /// The listener was shut down and will never accept again.
    Closed,
    /// This process or the machine has no descriptors or no memory left. The connection stays in the queue.
    Exhausted,
    /// The error concerns one connection only, for example because its client left before the connection was accepted.
    /// The listener continues to work.
    Client,
}

pub(crate) fn why_not_accepted(error: &io::Error) -> NotAccepted {
    match error.raw_os_error() {
        Some(libc::EINVAL) => NotAccepted::Closed,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => NotAccepted::Exhausted,
        _ => NotAccepted::Client,
    }
}

/// Raises the soft limit of open files to the hard limit. Returns the limit that is now in effect.
///
/// # Errors
/// It does not fail in practice: every process may raise its soft limit to the hard limit.
pub(crate) fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Returns a copy of the descriptor `number`, which the parent process left open. It makes both descriptors
/// close-on-exec.
///
/// # Errors
/// EBADF: `number` is not open.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with these commands reads or copies the descriptor and touches no memory; a number that is not
    // open is EBADF.
    let copy = unsafe {
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) == -1 {
            return Err(io::Error::last_os_error());
        }
        libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3)
    };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC made `copy` this moment; no other code knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Opens the pipe, FIFO or terminal behind `fd` a second time, for non-blocking writes. If O_NONBLOCK were set on `fd`
/// itself, it would be in effect for every process that shares `fd`, such as the shell that started the service.
///
/// # Errors
/// EACCES: this process has dropped its privileges and may not open the file again. ENXIO: no process has the FIFO open
/// for reading. ENOENT: `/proc` is not mounted.
pub(crate) fn reopen_nonblocking(fd: BorrowedFd<'_>) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Opens a file for appending, and makes it with mode 0640 if it is missing. If the file is a FIFO, neither the open
/// nor a write waits for a reader.
///
/// # Errors
/// The errors that the kernel reports.
pub(crate) fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.open(path) {
        // ENXIO means a FIFO without a reader. The FIFO can be opened if this process opens the reading end too. Then
        // the FIFO keeps the bytes that fit into it.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => options.read(true).open(path),
        opened => opened,
    }
}

fn is_fifo(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_fifo())
}

/// Sends as much as a socket accepts now, without blocking and without SIGPIPE.
///
/// # Errors
/// WouldBlock: the socket accepts nothing now. The kernel's errors, such as EPIPE if the other end is closed.
pub(crate) fn send_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
}

/// Writes to a terminal with SIGTTOU blocked, so that the write succeeds even in a background process under `stty
/// tostop`. Without the block the kernel would stop the process, or send SIGTTOU again and again if a handler catches
/// it.
///
/// # Errors
/// The kernel's errors, such as EIO once the terminal is gone.
pub(crate) fn write_terminal(mut terminal: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let written = terminal.write(bytes);
    before.thread_set_mask()?;
    written
}

/// Opens a file for reading. If the file is a FIFO, this does not wait for a writer.
///
/// # Errors
/// The errors that the kernel reports.
pub(crate) fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Returns true if a pipe has room for PIPE_BUF (4096) bytes now.
pub(crate) fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].any().unwrap_or(false)
}

/// Returns true if a socket was shut down in both directions, or if its other end was closed.
pub(crate) fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].any().unwrap_or(false)
}

/// Returns the error that accept(2) reports for a TCP listener that was shut down.
pub(crate) fn closed() -> io::Error {
    Errno::EINVAL.into()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn a_channel_keeps_messages_apart_and_reports_its_end() {
        let (ours, theirs) = channel().unwrap();
        let mut buffer = [0; 4];
        assert!(matches!(recv(ours.as_fd(), &mut buffer).unwrap(), Recv::Empty));
        assert!(send(theirs.as_fd(), b"one").unwrap());
        assert!(send(theirs.as_fd(), b"four").unwrap());
        assert!(send(theirs.as_fd(), b"longer").unwrap());
        assert!(matches!(recv(ours.as_fd(), &mut buffer).unwrap(), Recv::Message(3, None)));
        assert!(matches!(recv(ours.as_fd(), &mut buffer).unwrap(), Recv::Message(4, None)));
        assert_eq!(recv(ours.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert!(matches!(recv(ours.as_fd(), &mut buffer).unwrap(), Recv::Closed));
        assert_eq!(send(ours.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_channel_does_not_block() {
        let (ours, _theirs) = channel().unwrap();
        let sent = (0..100_000).take_while(|_| send(ours.as_fd(), &[0; 64]).unwrap()).count();
        assert!((1..100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_channel_is_closed_if_its_peer_left_messages_unread() {
        let (ours, theirs) = channel().unwrap();
        assert!(send(ours.as_fd(), b"x").unwrap());
        drop(theirs);
        assert!(matches!(recv(ours.as_fd(), &mut [0; 4]).unwrap(), Recv::Closed));
    }

    #[test]
    fn the_peer_is_the_process_that_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (pid, uid) = peer(ours.as_fd()).unwrap();
        assert_eq!((pid.unsigned_abs(), uid), (std::process::id(), nix::unistd::geteuid().as_raw()));
    }

    #[test]
    fn the_accept_queue_counts_connections_that_are_not_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (queued, max) = accept_queue(listener.as_fd()).unwrap();
        assert_eq!(queued, 0);
        assert!(max > 0);
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        assert_eq!(accept_queue(listener.as_fd()), Some((3, max)));
        assert_eq!(accept_queue(clients[0].as_fd()), None);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(accept_queue(ours.as_fd()), None);
    }

    #[test]
    fn a_reopened_pipe_does_not_block_and_the_first_still_does() {
        let (reader, writer) = io::pipe().unwrap();
        let mut again = reopen_nonblocking(writer.as_fd()).unwrap();
        let full = (0..10_000).find_map(|_| again.write(&[0; 4096]).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(!has_room(writer.as_fd()));
        io::Read::read_exact(&mut &reader, &mut [0; 4096]).unwrap();
        assert!(has_room(writer.as_fd()));
        let flags = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn only_open_descriptors_are_inherited() {
        let (reader, mut writer) = io::pipe().unwrap();
        let copy = inherited(reader.as_raw_fd()).unwrap();
        drop(reader);
        writer.write_all(b"x").unwrap();
        io::Read::read_exact(&mut File::from(copy), &mut [0]).unwrap();
        assert_eq!(inherited(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn the_file_limit_is_raised_to_the_hard_one() {
        let limit = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
    }
}
