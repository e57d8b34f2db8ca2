//! The ways in which a request can end. Every request ends in exactly one of them.

use std::{borrow::Cow, io};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Ok,
    Refused,
    ConnectTimeout,
    /// No connection was made, and the cause is neither a refusal nor a timeout. For example, the client has no free
    /// port.
    NoConnection,
    /// The TCP connection was made, but the TLS handshake on it failed.
    NoTls,
    /// The connection was reset before the first byte of the answer.
    Reset,
    /// The connection was closed before the first byte of the answer.
    Closed,
    /// The connection ended after a part of the answer had come.
    Cut,
    Status(u16),
    Timeout,
    /// The answer is not HTTP, does not announce its length, or is longer than announced.
    Malformed,
}

impl End {
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Ok => "ok",
            Self::Refused => "refused connect",
            Self::ConnectTimeout => "connect timeout",
            Self::NoConnection => "no connection",
            Self::NoTls => "no TLS",
            Self::Reset => "reset before answer",
            Self::Closed => "closed before answer",
            Self::Cut => "cut answer",
            Self::Status(status) => return Cow::Owned(format!("status {status}")),
            Self::Timeout => "timeout",
            Self::Malformed => "malformed answer",
        })
    }

    /// Classifies an error on a connection. `some_came` is true if a part of the answer was read before.
    pub fn of_error(error: &io::Error, some_came: bool) -> Self {
        let closed = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero);
        match (some_came, closed) {
            (true, _) => Self::Cut,
            (false, true) => Self::Closed,
            (false, false) => Self::Reset,
        }
    }
}
