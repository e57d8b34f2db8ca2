//! The scope of an HTTP request, and that of a web socket.
//!
//! Owns: the content of the scope, and what is kept of it from one request to the next. Refuses: the trust in
//! forwarding headers, which is the library's.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Mutex,
};

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, request::Parts, uri::Uri};
use oxicorn::{ClientInfo, WorkerContext};
use pyo3::{
    intern,
    prelude::*,
    types::{PyBytes, PyDict, PyList, PyTuple},
};

use super::{exchange::takes_trailers, hub::lock, websocket::subprotocols};
use crate::settings;

/// The number of clients and of names of headers whose Python objects are kept.
const KEPT: usize = 64;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Python objects that are kept, each with what it was made from.
type Kept<K, V> = Mutex<Vec<Option<(K, Py<V>)>>>;

/// Makes the scopes of one app.
pub(super) struct Scopes {
    context: WorkerContext,
    /// The live state of the lifespan. Each request gets a shallow copy, so a key that the app adds later reaches later
    /// requests.
    state: Py<PyDict>,
    asgi: Py<PyDict>,
    /// The extensions, without the id of the request.
    extensions: Py<PyDict>,
    own_extension: Py<PyDict>,
    root_path: RootPath,
    /// What the requests of one client have in common, at the place that the client's port gives.
    templates: Kept<Origin, PyDict>,
    /// The names of headers, at the place that length and first letter give.
    names: Kept<HeaderName, PyBytes>,
}

struct RootPath {
    text: String,
    /// As it stands in a target: percent-encoded.
    raw: Vec<u8>,
}

/// What the requests of one client have in common.
#[derive(PartialEq, Eq)]
struct Origin {
    address: Option<IpAddr>,
    port: Option<u16>,
    is_https: bool,
    local: Option<SocketAddr>,
    socket_path: Option<PathBuf>,
}

impl Scopes {
    pub(super) fn new(
        py: Python<'_>,
        state: Py<PyDict>,
        context: WorkerContext,
        settings: &settings::Python,
    ) -> PyResult<Self> {
        let asgi = PyDict::new(py);
        asgi.set_item(intern!(py, "version"), intern!(py, "3.0"))?;
        asgi.set_item(intern!(py, "spec_version"), settings.asgi_spec.name())?;
        let own_extension = PyDict::new(py);
        own_extension.set_item(intern!(py, "slot"), context.slot())?;
        own_extension.set_item(intern!(py, "generation"), context.generation())?;
        own_extension.set_item(intern!(py, "request_id"), py.None())?;
        own_extension.set_item(intern!(py, "stopping"), false)?;
        let extensions = PyDict::new(py);
        extensions.set_item(intern!(py, "http.response.pathsend"), PyDict::new(py))?;
        extensions.set_item(intern!(py, "oxicorn"), py.None())?;
        Ok(Self {
            context,
            state,
            asgi: asgi.unbind(),
            extensions: extensions.unbind(),
            own_extension: own_extension.unbind(),
            root_path: RootPath { text: settings.root_path.clone(), raw: percent_encoded(&settings.root_path) },
            templates: Mutex::new((0..KEPT).map(|_| None).collect()),
            names: Mutex::new((0..KEPT).map(|_| None).collect()),
        })
    }

    /// Makes the scope of a request.
    pub(super) fn scope<'py>(&self, py: Python<'py>, request: &Parts) -> PyResult<Bound<'py, PyDict>> {
        let scope = self.template(py, request.extensions.get::<ClientInfo>())?.copy()?;
        scope.set_item(intern!(py, "asgi"), self.asgi.bind(py).copy()?)?;
        match request.version {
            Version::HTTP_11 => {}
            Version::HTTP_10 | Version::HTTP_09 => {
                scope.set_item(intern!(py, "http_version"), intern!(py, "1.0"))?;
            }
            _ => scope.set_item(intern!(py, "http_version"), intern!(py, "2"))?,
        }
        match request.method.as_str() {
            "GET" => {}
            "POST" => scope.set_item(intern!(py, "method"), intern!(py, "POST"))?,
            method => scope.set_item(intern!(py, "method"), method)?,
        }
        self.set_path(&scope, &request.uri)?;
        scope.set_item(intern!(py, "headers"), self.headers(py, request)?)?;
        scope.set_item(intern!(py, "state"), self.state.bind(py).copy()?)?;
        scope.set_item(intern!(py, "extensions"), self.extensions(py, request)?)?;
        Ok(scope)
    }

    /// Makes the scope of a web socket.
    pub(super) fn web_socket_scope<'py>(&self, py: Python<'py>, request: &Parts) -> PyResult<Bound<'py, PyDict>> {
        let scope = self.scope(py, request)?;
        scope.set_item(intern!(py, "type"), intern!(py, "websocket"))?;
        let is_https = request.extensions.get::<ClientInfo>().is_some_and(|client| client.scheme() == "https");
        scope.set_item(intern!(py, "scheme"), if is_https { "wss" } else { "ws" })?;
        scope.del_item(intern!(py, "method"))?;
        scope.set_item(intern!(py, "subprotocols"), subprotocols(&request.headers))?;
        let asgi = PyDict::new(py);
        asgi.set_item("version", "3.0")?;
        // With 2.4 the app may expect an `OSError` from `send()` when the client has gone.
        asgi.set_item("spec_version", "2.4")?;
        scope.set_item(intern!(py, "asgi"), asgi)?;
        let extensions = PyDict::new(py);
        extensions.set_item("oxicorn", self.own_extension(py, request)?)?;
        extensions.set_item("websocket.http.response", PyDict::new(py))?;
        scope.set_item(intern!(py, "extensions"), extensions)?;
        Ok(scope)
    }

    /// Returns the scope of a GET without the parts that differ between the requests of one client. The order of the
    /// keys is that of the specification. The strings are interned, as those of the app's code are: Python finds such a
    /// key by its address, and compares every other by its letters.
    fn template<'py>(&self, py: Python<'py>, client: Option<&ClientInfo>) -> PyResult<Bound<'py, PyDict>> {
        let origin = Origin {
            address: client.and_then(ClientInfo::address),
            port: client.and_then(ClientInfo::port),
            is_https: client.is_some_and(|client| client.scheme() == "https"),
            local: client.and_then(ClientInfo::local),
            socket_path: client.and_then(ClientInfo::socket_path).map(Into::into),
        };
        let place = usize::from(origin.port.unwrap_or_default()) % KEPT;
        if let Some(Some((known, template))) = lock(&self.templates).get(place)
            && *known == origin
        {
            return Ok(template.bind(py).clone());
        }
        let template = PyDict::new(py);
        template.set_item(intern!(py, "type"), intern!(py, "http"))?;
        template.set_item(intern!(py, "asgi"), py.None())?;
        template.set_item(intern!(py, "http_version"), intern!(py, "1.1"))?;
        let server = match (&origin.local, &origin.socket_path) {
            (Some(local), _) => (local.ip().to_canonical().to_string(), local.port()).into_pyobject(py)?.into_any(),
            (None, Some(path)) => (path.as_os_str(), py.None()).into_pyobject(py)?.into_any(),
            (None, None) => py.None().into_bound(py),
        };
        template.set_item(intern!(py, "server"), server)?;
        let client = match origin.address {
            Some(address) => Some((address.to_string(), origin.port.unwrap_or_default()).into_pyobject(py)?.into_any()),
            None => None,
        };
        template.set_item(intern!(py, "client"), client)?;
        template.set_item(
            intern!(py, "scheme"),
            if origin.is_https { intern!(py, "https") } else { intern!(py, "http") },
        )?;
        template.set_item(intern!(py, "root_path"), &self.root_path.text)?;
        template.set_item(intern!(py, "method"), intern!(py, "GET"))?;
        template.set_item(intern!(py, "path"), py.None())?;
        template.set_item(intern!(py, "raw_path"), py.None())?;
        template.set_item(intern!(py, "query_string"), py.None())?;
        template.set_item(intern!(py, "headers"), py.None())?;
        template.set_item(intern!(py, "state"), py.None())?;
        template.set_item(intern!(py, "extensions"), py.None())?;
        let known = (origin, template.clone().unbind());
        let old = lock(&self.templates).get_mut(place).and_then(|slot| slot.replace(known));
        drop(old);
        Ok(template)
    }

    /// Sets the path with the root path before it, unless the client's path has it already. So it is right behind a
    /// proxy that removes the prefix and behind one that does not.
    fn set_path(&self, scope: &Bound<'_, PyDict>, uri: &Uri) -> PyResult<()> {
        let py = scope.py();
        let raw = uri.path();
        let decoded = percent_decoded(raw);
        let RootPath { text: root, raw: root_raw } = &self.root_path;
        let has_root = decoded.strip_prefix(root.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if has_root || !decoded.starts_with('/') {
            scope.set_item(intern!(py, "path"), &*decoded)?;
            scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, raw.as_bytes()))?;
        } else {
            scope.set_item(intern!(py, "path"), format!("{root}{decoded}"))?;
            scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, &[root_raw, raw.as_bytes()].concat()))?;
        }
        let query = uri.query().unwrap_or_default();
        scope.set_item(intern!(py, "query_string"), PyBytes::new(py, query.as_bytes()))
    }

    /// Returns the headers. With HTTP/2 `host` comes first and is the target's authority, and the cookies are one header
    /// (RFC 9113, section 8.2.3).
    fn headers<'py>(&self, py: Python<'py>, request: &Parts) -> PyResult<Bound<'py, PyList>> {
        let is_http2 = request.version >= Version::HTTP_2;
        let authority = request.uri.authority().filter(|_| is_http2);
        let mut pairs = Vec::with_capacity(request.headers.len() + 1);
        let mut add = |name: &HeaderName, value: &[u8]| -> PyResult<()> {
            pairs.push(PyTuple::new(py, [self.name(py, name), PyBytes::new(py, value)])?);
            Ok(())
        };
        if let Some(authority) = authority {
            add(&header::HOST, authority.as_str().as_bytes())?;
        }
        if is_http2 {
            for name in request.headers.keys().filter(|name| authority.is_none() || **name != header::HOST) {
                let values = request.headers.get_all(name);
                if *name == header::COOKIE {
                    let values: Vec<_> = values.iter().map(HeaderValue::as_bytes).collect();
                    add(name, &values.join(&b"; "[..]))?;
                } else {
                    values.iter().try_for_each(|value| add(name, value.as_bytes()))?;
                }
            }
        } else {
            request.headers.iter().try_for_each(|(name, value)| add(name, value.as_bytes()))?;
        }
        PyList::new(py, pairs)
    }

    fn name<'py>(&self, py: Python<'py>, name: &HeaderName) -> Bound<'py, PyBytes> {
        let text = name.as_str().as_bytes();
        let place = (text.len() * 7 + usize::from(text.first().copied().unwrap_or_default())) % KEPT;
        if let Some(Some((known, object))) = lock(&self.names).get(place)
            && known == name
        {
            return object.bind(py).clone();
        }
        let object = PyBytes::new(py, text);
        let known = (name.clone(), object.clone().unbind());
        let old = lock(&self.names).get_mut(place).and_then(|slot| slot.replace(known));
        drop(old);
        object
    }

    /// Returns what oxicorn tells the app about the worker and the request.
    fn own_extension<'py>(&self, py: Python<'py>, request: &Parts) -> PyResult<Bound<'py, PyDict>> {
        let own = self.own_extension.bind(py).copy()?;
        own.set_item(intern!(py, "request_id"), request_id(&request.headers))?;
        if self.context.is_stopping() {
            own.set_item(intern!(py, "stopping"), true)?;
        }
        Ok(own)
    }

    /// Returns the extensions that work for this request.
    fn extensions<'py>(&self, py: Python<'py>, request: &Parts) -> PyResult<Bound<'py, PyDict>> {
        let extensions = self.extensions.bind(py).copy()?;
        extensions.set_item(intern!(py, "oxicorn"), self.own_extension(py, request)?)?;
        if takes_trailers(request) {
            extensions.set_item(intern!(py, "http.response.trailers"), PyDict::new(py))?;
        }
        Ok(extensions)
    }
}

/// Returns the id of a request, which the library has put into its headers.
pub(crate) fn request_id(headers: &HeaderMap) -> &str {
    headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}

/// Decodes a path. Bytes that are not UTF-8 become U+FFFD; `raw_path` has them unchanged.
fn percent_decoded(path: &str) -> Cow<'_, str> {
    match percent_decoded_bytes(path) {
        Cow::Borrowed(_) => path.into(),
        Cow::Owned(decoded) => String::from_utf8_lossy(&decoded).into_owned().into(),
    }
}

/// Decodes a path into bytes.
pub(crate) fn percent_decoded_bytes(path: &str) -> Cow<'_, [u8]> {
    if !path.contains('%') {
        return path.as_bytes().into();
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (bytes, mut decoded, mut at) = (path.as_bytes(), Vec::with_capacity(path.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded.into()
}

fn percent_encoded(path: &str) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            encoded.push(byte);
        } else {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    encoded
}
