//! The client of a request, as the app may know it.
//!
//! Owns: what every request's extension [`ClientInfo`] says. Refuses: which headers are trusted (`worker::forwarded`).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderValue, uri::Authority};

use crate::client_gone::{ClientGone, RequestLink};

/// The client of a request, and what it asked for: an extension of every request.
///
/// Behind proxies in `http.forwarded_allow_ips` it is what they say: in a PROXY header, then in `X-Forwarded-For`,
/// `-Proto`, `-Host` and `-Port`, or else in `Forwarded` (RFC 7239). No other peer is trusted.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use oxicorn::ClientInfo;
///
/// async fn hello(Extension(client): Extension<ClientInfo>) -> String {
///     match client.address() {
///         Some(address) => format!("hello {address}\n"),
///         None => "hello, client of the unix socket\n".to_owned(),
///     }
/// }
/// # let _: Router = Router::new().route("/", get(hello));
/// ```
///
/// The default is a client of which nothing is known, for tests of services.
#[derive(Clone, Debug, Default)]
pub struct ClientInfo {
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) tls: bool,
    pub(crate) https: bool,
    pub(crate) host: Host,
    pub(crate) request: RequestLink,
}

/// Where the request names the host. Both forms share the request's memory.
#[derive(Clone, Debug, Default)]
pub(crate) enum Host {
    #[default]
    Unknown,
    Header(HeaderValue),
    Authority(Authority),
}

impl ClientInfo {
    pub(crate) fn of_peer(peer: Option<SocketAddr>) -> Self {
        let mut client = Self { peer, ..Self::default() };
        client.comes_from(peer);
        client
    }

    pub(crate) fn comes_from(&mut self, source: Option<SocketAddr>) {
        if let Some(source) = source {
            (self.address, self.port) = (Some(source.ip().to_canonical()), Some(source.port()));
        }
    }

    pub(crate) fn comes_by_tls(&mut self) {
        (self.tls, self.https) = (true, true);
    }

    /// Returns the client's address: of the hops that led here, the nearest one that is not a trusted proxy; if all
    /// are, the first of them. An IPv4 address is one, also on a socket of both families. `None` for a client of a unix
    /// socket when no trusted proxy names it.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Returns the client's port, if it is known: proxies that forward requests seldom name it.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns `"https"` or `"http"`: how the client asked, also if a proxy ended its TLS.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Returns the host that the client asked for, with its port if it named one: `example.org`, `[2001:db8::7]:8443`.
    /// The client may write anything here: compare it with the hosts you serve before you build links from it.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.host {
            Host::Unknown => None,
            Host::Header(value) => value.to_str().ok(),
            Host::Authority(authority) => Some(authority.as_str()),
        }
    }

    /// Returns the other end of this connection: the client itself, or the last proxy. `None` for a unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Completes when the client no longer waits for the response: see [`ClientGone`].
    #[must_use]
    pub fn gone(&self) -> ClientGone {
        self.request.gone()
    }

    /// Returns whether this connection is TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

/// Builds a [`ClientInfo`] for unit tests of a handler, from [`ClientInfo::builder`]. It needs the feature `test-util`.
///
/// ```
/// let client = oxicorn::ClientInfo::builder().address("203.0.113.7".parse().unwrap()).https().host("example.org").build();
/// assert_eq!((client.scheme(), client.host()), ("https", Some("example.org")));
/// ```
#[cfg(feature = "test-util")]
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct ClientInfoBuilder(ClientInfo);

#[cfg(feature = "test-util")]
impl ClientInfo {
    /// Begins a client of which nothing is known, for a unit test. It needs the feature `test-util`.
    pub fn builder() -> ClientInfoBuilder {
        ClientInfoBuilder::default()
    }
}

#[cfg(feature = "test-util")]
impl ClientInfoBuilder {
    /// Sets the other end of the connection; also the client's address and port, as of a client without a proxy.
    pub fn peer(mut self, peer: SocketAddr) -> Self {
        self.0.peer = Some(peer);
        self.0.comes_from(Some(peer));
        self
    }

    /// Sets the client's address, as a trusted proxy has told it.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.0.address = Some(address);
        self
    }

    /// Sets the client's port, as a trusted proxy has told it.
    pub fn port(mut self, port: u16) -> Self {
        self.0.port = Some(port);
        self
    }

    /// Makes the connection one of TLS.
    pub fn tls(mut self) -> Self {
        self.0.comes_by_tls();
        self
    }

    /// Makes the scheme `https`, as a trusted proxy has told it.
    pub fn https(mut self) -> Self {
        self.0.https = true;
        self
    }

    /// Sets the host that the client asked for, with its port if it named one.
    ///
    /// # Panics
    /// When it is not an authority of a URI, such as `example.org:8443`.
    pub fn host(mut self, host: &str) -> Self {
        self.0.host = Host::Authority(host.parse().expect("the host is an authority, such as example.org:8443"));
        self
    }

    /// Builds the client.
    #[must_use]
    pub fn build(self) -> ClientInfo {
        self.0
    }
}
