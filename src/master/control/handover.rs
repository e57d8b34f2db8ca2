//! The control socket as one program hands it to the next: who asks, and who waits, does not notice.

use std::{
    io,
    os::{
        fd::{AsFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Caller, Client, Control, Door, Turn};
use crate::sys::{
    exec::{self, Crossing},
    file::FileId,
};

/// All of [`Control`], for another program to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Passed {
    listener: RawFd,
    path: PathBuf,
    file: FileId,
    uid: u32,
    next: u64,
    clients: Vec<PassedClient>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PassedClient {
    id: Caller,
    stream: RawFd,
    turn: Turn,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Control {
    pub(in super::super) fn hand_over(&self, crossing: &mut Crossing) -> Passed {
        let clients = self.clients.iter().map(|client| PassedClient {
            id: client.id,
            stream: crossing.takes(client.stream.as_fd()),
            turn: client.turn,
            input: client.input.clone(),
            output: client.output.clone(),
        });
        Passed {
            clients: clients.collect(),
            listener: crossing.takes(self.door.listener.as_fd()),
            path: self.door.path.clone(),
            file: self.door.file,
            uid: self.uid,
            next: self.next,
        }
    }

    /// # Errors
    /// A descriptor that was promised is not there.
    pub(in super::super) fn adopt(passed: &Passed) -> io::Result<Self> {
        let clients = passed.clients.iter().map(|client| {
            Ok(Client {
                id: client.id,
                stream: UnixStream::from(exec::received(client.stream)?),
                turn: client.turn,
                input: client.input.clone(),
                output: client.output.clone(),
            })
        });
        Ok(Self {
            clients: clients.collect::<io::Result<_>>()?,
            door: Door {
                listener: UnixListener::from(exec::received(passed.listener)?),
                path: passed.path.clone(),
                file: passed.file,
            },
            uid: passed.uid,
            next: passed.next,
            deaf_until: None,
            progress: String::new(),
            lost: false,
        })
    }
}
