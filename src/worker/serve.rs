//! What the worker asks of the app's service and of its bodies.
//!
//! Owns: the bounds, once for the whole worker. Refuses: calling the service (`connection::exchange`).

use http::{Request, Response};
use tower_service::Service;

use super::Body;
pub(super) use super::peer::Peer;
pub(crate) use crate::BoxError;

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
