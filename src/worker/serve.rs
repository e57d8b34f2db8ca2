//! The traits that the app's service and the bodies of its responses must implement.
//!
//! Owns: the bounds on the service and the bodies, in one place. Refuses: the call of the service
//! (`connection::exchange`).

use http::{Request, Response};
use tower_service::Service;

use super::Body;
pub(super) use super::peer::Peer;
pub(crate) use crate::BoxError;

/// All bounds that the worker needs on the app's service, combined into one trait. Every service that meets these
/// bounds implements the trait.
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

/// All bounds that the worker needs on the bodies of the app's responses, combined into one trait.
pub(crate) trait AppBody: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}

impl<B> AppBody for B where B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static {}
