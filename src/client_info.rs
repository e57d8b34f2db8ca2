//! The client of a request, as a handler of the app sees it.
//!
//! Owns: the content of [`ClientInfo`], an extension of every request. Refuses: to decide which headers are trusted
//! (`worker::forwarded`).

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use http::{HeaderValue, uri::Authority};

use crate::client_gone::{ClientGone, RequestLink};

/// The client of a request, with the scheme and the host that the client asked for. Every request has this value as an
/// extension.
///
/// If the other end of the connection is a proxy in `http.forwarded_allow_ips`, the values are those that the proxy
/// sends. They come from a PROXY header at the start of the connection, and then from the headers of the request. These
/// are `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`, or `Forwarded` (RFC 7239) if the request has none of these
/// four. A peer on a unix socket is trusted too. No other peer is trusted.
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
/// The default value describes a client about which nothing is known. It is for unit tests of a service.
#[derive(Clone, Debug, Default)]
pub struct ClientInfo {
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) local: Local,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) tls: bool,
    pub(crate) https: bool,
    pub(crate) host: Host,
    pub(crate) request: RequestLink,
}

/// This end of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) enum Local {
    #[default]
    Unknown,
    Tcp(SocketAddr),
    Unix(Arc<Path>),
}

/// The host that the client asked for. The variant says which part of the request names the host. `Header` and
/// `Authority` share the memory of the request, so they copy no text.
#[derive(Clone, Debug, Default)]
pub(crate) enum Host {
    #[default]
    Unknown,
    Header(HeaderValue),
    Authority(Authority),
}

impl ClientInfo {
    #[cfg(test)]
    pub(crate) fn of_peer(peer: Option<SocketAddr>) -> Self {
        Self::of_connection(peer, Local::Unknown)
    }

    pub(crate) fn of_connection(peer: Option<SocketAddr>, local: Local) -> Self {
        let mut client = Self { peer, local, ..Self::default() };
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

    /// Returns the client's address. The worker looks at the hops between itself and the client one by one, the nearest
    /// first. The address is that of the first hop that is not a trusted proxy, or of the farthest hop if all hops are
    /// trusted proxies. An IPv4 address stays an IPv4 address, also on a socket that serves IPv4 and IPv6. The result
    /// is `None` if the client came over a unix socket and no trusted proxy names its address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Returns the client's port; `None` if it is not known. Proxies that forward requests seldom name the port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the scheme that the client used, `"https"` or `"http"`, even if a trusted proxy ended the TLS connection
    /// of the client.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Returns the host that the client asked for, with its port if the client named one: `example.org`,
    /// `[2001:db8::7]:8443`. The client may write any text here, so compare it with the hosts that you serve before you
    /// build URLs from it.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.host {
            Host::Unknown => None,
            Host::Header(value) => value.to_str().ok(),
            Host::Authority(authority) => Some(authority.as_str()),
        }
    }

    /// Returns the address of the other end of this connection: the client itself, or the last proxy. The result is
    /// `None` for a unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Returns the address of this end of the connection, at which the worker has accepted it. The result is `None` for
    /// a unix socket.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self.local {
            Local::Tcp(address) => Some(address),
            Local::Unix(_) | Local::Unknown => None,
        }
    }

    /// Returns the path of the unix socket on which the worker has accepted the connection. The result is `None` for
    /// TCP.
    #[must_use]
    pub fn socket_path(&self) -> Option<&Path> {
        match &self.local {
            Local::Unix(path) => Some(path),
            Local::Tcp(_) | Local::Unknown => None,
        }
    }

    /// Returns a future that completes when the client no longer waits for the response: see [`ClientGone`].
    #[must_use]
    pub fn gone(&self) -> ClientGone {
        self.request.gone()
    }

    /// Returns true if this connection itself uses TLS. If the connection comes from a proxy, the client may have used
    /// another scheme to reach that proxy.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

/// Builds a [`ClientInfo`] for unit tests of a handler. [`ClientInfo::builder`] makes this builder. Both need the
/// feature `test-util`.
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
    /// Returns a builder for a unit test. The builder begins with a client about which nothing is known. This method
    /// needs the feature `test-util`.
    pub fn builder() -> ClientInfoBuilder {
        ClientInfoBuilder::default()
    }
}

#[cfg(feature = "test-util")]
impl ClientInfoBuilder {
    /// Sets the address of the other end of the connection. The client's address and port are set to it too, because a
    /// client without a proxy is itself the other end.
    pub fn peer(mut self, peer: SocketAddr) -> Self {
        self.0.peer = Some(peer);
        self.0.comes_from(Some(peer));
        self
    }

    /// Sets the client's address, as if a trusted proxy had told it.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.0.address = Some(address);
        self
    }

    /// Sets the client's port, as if a trusted proxy had told it.
    pub fn port(mut self, port: u16) -> Self {
        self.0.port = Some(port);
        self
    }

    /// Makes the connection a TLS connection, and the scheme `https`.
    pub fn tls(mut self) -> Self {
        self.0.comes_by_tls();
        self
    }

    /// Makes the scheme `https`, as if a trusted proxy had told it.
    pub fn https(mut self) -> Self {
        self.0.https = true;
        self
    }

    /// Sets the host that the client asked for, with a port if the client named one.
    ///
    /// # Panics
    /// If the text is not an authority of a URI, such as `example.org:8443`.
    pub fn host(mut self, host: &str) -> Self {
        self.0.host = Host::Authority(host.parse().expect("the host is an authority, such as example.org:8443"));
        self
    }

    /// Returns the client that was built.
    #[must_use]
    pub fn build(self) -> ClientInfo {
        self.0
    }
}
