//! The form in which one program passes the control socket to the next, so that the clients stay connected.
//!
//! Owns: the description of the socket and its clients for the next program. Refuses: to pass the descriptors
//! themselves (`sys::exec`).

use std::{
    io,
    os::{
        fd::{AsFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Caller, ClientStage, ControlClient, ControlListener, ControlServer};
use crate::sys::{
    exec::{self, FdTransfer},
    file::FileId,
};

/// Everything that another program needs to continue a [`ControlServer`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct PassedControl {
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
    #[serde(rename = "turn")]
    stage: ClientStage,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl ControlServer {
    pub(in super::super) fn pass_on(&self, transfer: &mut FdTransfer) -> PassedControl {
        let clients = self.clients.iter().map(|client| PassedClient {
            id: client.id,
            stream: transfer.add(client.stream.as_fd()),
            stage: client.stage,
            input: client.input.clone(),
            output: client.output.clone(),
        });
        PassedControl {
            clients: clients.collect(),
            listener: transfer.add(self.listener.socket.as_fd()),
            path: self.listener.path.clone(),
            file: self.listener.file,
            uid: self.uid,
            next: self.next,
        }
    }

    /// # Errors
    /// Fails if `passed` refers to a descriptor that this process did not receive.
    pub(in super::super) fn adopt(passed: &PassedControl) -> io::Result<Self> {
        let clients = passed.clients.iter().map(|client| {
            Ok(ControlClient {
                id: client.id,
                stream: UnixStream::from(exec::received(client.stream)?),
                stage: client.stage,
                input: client.input.clone(),
                output: client.output.clone(),
            })
        });
        Ok(Self {
            clients: clients.collect::<io::Result<_>>()?,
            listener: ControlListener {
                socket: UnixListener::from(exec::received(passed.listener)?),
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
