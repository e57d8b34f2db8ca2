//! What the worker asks of the app's service and of its bodies, and what it knows of a peer.
//!
//! Owns: the bounds, once for the whole worker. Refuses: calling the service (`connection::exchange`).

use std::{error::Error, fmt, net::SocketAddr};

use http::{Request, Response};
use tower_service::Service;

use super::Body;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A service with everything that the worker needs.
pub(crate) trait Serve<B>:
    Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + 'static
{
}

impl<B, S> Serve<B> for S where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// A body with everything that the worker needs.
pub(crate) trait AppBody: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}

impl<B> AppBody for B where B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}

/// The other end of a connection, as the kernel knows it. `None` for a unix socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) remote: Option<SocketAddr>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote {
            Some(remote) => remote.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
