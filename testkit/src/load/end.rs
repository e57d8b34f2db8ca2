//! How a request ended, in exactly one way.

use std::{borrow::Cow, io};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Ok,
    Refused,
    ConnectTimeout,
    /// Neither refused nor silent: the client's own limits, for example.
    NoConnection,
    /// A connection without TLS on it.
    NoTls,
    /// Reset before the first byte of the answer.
    Reset,
    /// Closed before the first byte of the answer.
    Closed,
    /// A part of the answer came, the rest did not.
    Cut,
    Status(u16),
    Timeout,
    /// Not HTTP, or longer than announced.
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

    /// Classifies an error on a connection, with or without a part of the answer read.
    pub fn of_error(error: &io::Error, some_came: bool) -> Self {
        let closed = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero);
        match (some_came, closed) {
            (true, _) => Self::Cut,
            (false, true) => Self::Closed,
            (false, false) => Self::Reset,
        }
    }
}
