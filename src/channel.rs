//! The messages between the master and a worker. They go over the socketpair that the master makes for each worker
//! before the fork.
//!
//! Owns: the messages and their encoding as bytes. Refuses: to wait. If the socket has no room for a message now, the
//! caller learns that the message was not sent.
//!
//! After an upgrade, the master and an old worker run different programs, and each may know messages that the other
//! does not know. So a receiver ignores unknown tags.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::sys::fd::{self, Recv};

/// The maximum length of a message in bytes. The reason of a [`ToMaster::BootFailed`] is cut to fit.
const MESSAGE_MAX: usize = 2048;

#[derive(Debug)]
pub(crate) enum ToWorker {
    /// Tells the worker to begin to accept connections.
    Go,
    /// Tells the worker that the whole service will stop: it must report "not ready" and continue to serve.
    AnnounceStop,
    /// Tells the worker to drain within `grace_ms`. `last` is true at the final stop of the service. At that stop no
    /// other worker will accept connections later, so this worker closes the listeners too.
    Drain { grace_ms: u64, last: bool },
    /// Passes the file to which the worker writes its log from now on.
    TakeLog(OwnedFd),
    /// Passes the file to which the worker writes its access log from now on.
    TakeAccessLog(OwnedFd),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToMaster {
    /// The worker has built its app, and waits for [`ToWorker::Go`].
    Ready,
    /// The worker accepts connections of its slot from now on.
    Accepting,
    RecycleRequested,
    /// The worker itself got a SIGTERM, and begins to drain without an order of the master.
    DrainBegun,
    /// The worker has accepted all connections that waited in the listeners, and has shut the listeners down.
    AllAccepted,
    /// The worker has become full, or has room again. Its row in the scoreboard says which of the two.
    RoomChanged,
    /// New connections have come to the worker. `stay` is true if connections seem to stay open: at least as many are
    /// open now as have come since the last `Arrivals` message.
    Arrivals {
        stay: bool,
    },
    /// The worker has asked the client of a busy HTTP/2 connection to connect again. The client's next connection
    /// should go to the slot `slot`.
    SentTo {
        slot: u32,
    },
    /// The worker that sends this message has seen that the worker of the slot `slot` is late with its heartbeat.
    Silent {
        slot: u32,
    },
    BootFailed(String),
}

impl ToWorker {
    /// Adds the message `later` to `waiting`, the list of the messages that the master sends once the worker reads
    /// again. If `waiting` has a message of the same kind already, `later` replaces it.
    pub(crate) fn queue(waiting: &mut Vec<Self>, later: Self) {
        let later = match later {
            // If the `Drain` that waits has `last` set, the new `Drain` gets `last` too, because a final stop is never
            // taken back.
            Self::Drain { grace_ms, last } => {
                let was_last = waiting.iter().any(|message| matches!(message, Self::Drain { last: true, .. }));
                Self::Drain { grace_ms, last: last || was_last }
            }
            other => other,
        };
        waiting.retain(|message| std::mem::discriminant(message) != std::mem::discriminant(&later));
        waiting.push(later);
    }
}

/// The result of one attempt to receive a message.
#[derive(Debug)]
pub(crate) enum Received<M> {
    Message(M),
    Nothing,
    /// The other end of the channel is closed, so no message will come any more.
    Closed,
}

impl ToWorker {
    pub(crate) fn send(&self, channel: BorrowedFd<'_>) -> io::Result<bool> {
        match self {
            Self::Go => fd::send(channel, b"g"),
            Self::AnnounceStop => fd::send(channel, b"s"),
            Self::Drain { grace_ms, last } => {
                let mut bytes = vec![if *last { b'D' } else { b'd' }];
                bytes.extend(grace_ms.to_le_bytes());
                fd::send(channel, &bytes)
            }
            Self::TakeLog(file) => fd::send_with(channel, b"l", file.as_fd()),
            Self::TakeAccessLog(file) => fd::send_with(channel, b"L", file.as_fd()),
        }
    }

    pub(crate) fn recv(channel: BorrowedFd<'_>) -> io::Result<Received<Self>> {
        recv(channel, |tag, rest, passed| {
            Some(match tag {
                b'g' => Self::Go,
                b's' => Self::AnnounceStop,
                b'd' | b'D' => Self::Drain { grace_ms: u64::from_le_bytes(rest.try_into().ok()?), last: tag == b'D' },
                b'l' => Self::TakeLog(passed?),
                b'L' => Self::TakeAccessLog(passed?),
                _ => return None,
            })
        })
    }
}

impl ToMaster {
    pub(crate) fn send(&self, channel: BorrowedFd<'_>) -> io::Result<bool> {
        match self {
            Self::Ready => fd::send(channel, b"r"),
            Self::Accepting => fd::send(channel, b"a"),
            Self::RecycleRequested => fd::send(channel, b"c"),
            Self::DrainBegun => fd::send(channel, b"d"),
            Self::AllAccepted => fd::send(channel, b"q"),
            Self::RoomChanged => fd::send(channel, b"o"),
            Self::Arrivals { stay } => fd::send(channel, if *stay { b"N" } else { b"n" }),
            Self::SentTo { slot } => fd::send(channel, &[&b"t"[..], &slot.to_le_bytes()].concat()),
            Self::Silent { slot } => fd::send(channel, &[&b"s"[..], &slot.to_le_bytes()].concat()),
            Self::BootFailed(reason) => {
                let mut bytes = vec![b'f'];
                bytes.extend(&reason.as_bytes()[..reason.floor_char_boundary(MESSAGE_MAX - 1)]);
                fd::send(channel, &bytes)
            }
        }
    }

    pub(crate) fn recv(channel: BorrowedFd<'_>) -> io::Result<Received<Self>> {
        recv(channel, |tag, rest, _| {
            Some(match tag {
                b'r' => Self::Ready,
                b'a' => Self::Accepting,
                b'c' => Self::RecycleRequested,
                b'd' => Self::DrainBegun,
                b'q' => Self::AllAccepted,
                b'o' => Self::RoomChanged,
                b'n' | b'N' => Self::Arrivals { stay: tag == b'N' },
                b't' => Self::SentTo { slot: u32::from_le_bytes(rest.try_into().ok()?) },
                b's' => Self::Silent { slot: u32::from_le_bytes(rest.try_into().ok()?) },
                b'f' => Self::BootFailed(String::from_utf8_lossy(rest).into_owned()),
                _ => return None,
            })
        })
    }
}

fn recv<M>(channel: BorrowedFd<'_>, read: impl Fn(u8, &[u8], Option<OwnedFd>) -> Option<M>) -> io::Result<Received<M>> {
    let mut buffer = [0; MESSAGE_MAX];
    loop {
        match fd::recv(channel, &mut buffer)? {
            Recv::Empty => return Ok(Received::Nothing),
            Recv::Closed => return Ok(Received::Closed),
            Recv::Message(len, passed) => {
                if let Some((tag, rest)) = buffer[..len].split_first()
                    && let Some(message) = read(*tag, rest, passed)
                {
                    return Ok(Received::Message(message));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Asserts that the message `said` was received. This function compares the debug output, which shows every field,
    /// because [`ToWorker`] has no `PartialEq`.
    #[track_caller]
    fn same<M: std::fmt::Debug>(heard: io::Result<Received<M>>, said: &M) {
        assert_eq!(format!("{:?}", heard.unwrap()), format!("Message({said:?})"));
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (a, b) = fd::channel().unwrap();
        let down = [ToWorker::Go, ToWorker::AnnounceStop, ToWorker::Drain { grace_ms: 30_000, last: true }];
        for message in down.into_iter().chain([ToWorker::Drain { grace_ms: 0, last: false }]) {
            assert!(message.send(a.as_fd()).unwrap());
            same(ToWorker::recv(b.as_fd()), &message);
        }
        let long = "é".repeat(MESSAGE_MAX);
        let up = [ToMaster::Ready, ToMaster::Accepting, ToMaster::RecycleRequested, ToMaster::DrainBegun];
        let told = [
            ToMaster::AllAccepted,
            ToMaster::RoomChanged,
            ToMaster::Arrivals { stay: true },
            ToMaster::Arrivals { stay: false },
            ToMaster::SentTo { slot: 7 },
        ];
        for message in up.into_iter().chain(told).chain([ToMaster::Silent { slot: 300 }]) {
            assert!(message.send(b.as_fd()).unwrap());
            same(ToMaster::recv(a.as_fd()), &message);
        }
        assert!(ToMaster::BootFailed(long.clone()).send(b.as_fd()).unwrap());
        let Received::Message(ToMaster::BootFailed(heard)) = ToMaster::recv(a.as_fd()).unwrap() else { panic!() };
        assert!(long.starts_with(&heard) && heard.len() > MESSAGE_MAX - 4);
        assert!(fd::send(a.as_fd(), b"?from a later version").unwrap());
        assert!(matches!(ToWorker::recv(b.as_fd()).unwrap(), Received::Nothing));
        drop(a);
        assert!(matches!(ToWorker::recv(b.as_fd()).unwrap(), Received::Closed));
    }

    #[test]
    fn a_full_channel_keeps_the_latest_message_of_each_kind() {
        let mut waiting = Vec::new();
        let file = || ToWorker::TakeLog(tempfile::tempfile().unwrap().into());
        for message in [ToWorker::Go, file(), ToWorker::Drain { grace_ms: 9, last: true }, file(), ToWorker::Go] {
            ToWorker::queue(&mut waiting, message);
        }
        ToWorker::queue(&mut waiting, ToWorker::Drain { grace_ms: 5, last: false });
        let [ToWorker::TakeLog(_), ToWorker::Go, ToWorker::Drain { grace_ms: 5, last: true }] = waiting[..] else {
            panic!("{waiting:?}");
        };
    }

    #[test]
    fn a_file_arrives_with_its_message() {
        let (a, b) = fd::channel().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        assert!(ToWorker::TakeLog(file.try_clone().unwrap().into()).send(a.as_fd()).unwrap());
        assert!(ToWorker::TakeAccessLog(file.try_clone().unwrap().into()).send(a.as_fd()).unwrap());
        let Received::Message(ToWorker::TakeLog(passed)) = ToWorker::recv(b.as_fd()).unwrap() else { panic!() };
        std::fs::File::from(passed).write_all(b"through the passed fd").unwrap();
        let Received::Message(ToWorker::TakeAccessLog(passed)) = ToWorker::recv(b.as_fd()).unwrap() else { panic!() };
        std::fs::File::from(passed).write_all(b", both").unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the passed fd, both");
    }
}
