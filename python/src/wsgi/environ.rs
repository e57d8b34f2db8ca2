//! The environ of a request.
//!
//! Owns: the content of the environ, and what is kept of it from one request to the next. Refuses: the trust in
//! forwarding headers, which is the library's.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use http::{HeaderName, HeaderValue, Version, header, request::Parts};
use oxicorn::{ClientInfo, WorkerContext};
use pyo3::{
    intern,
    prelude::*,
    types::{PyDict, PyString},
};

use super::{exchange::WsgiExchange, input::Input};
use crate::{
    bridge::{lock, percent_decoded_bytes, request_id},
    settings,
};

/// The number of clients and of names of headers whose Python objects are kept.
const KEPT: usize = 128;

/// By this header a proxy in `http.forwarded_allow_ips` names the prefix of the app's paths. The library removes it from
/// the requests of other peers.
static SCRIPT_NAME: HeaderName = HeaderName::from_static("script_name");

/// Python objects that are kept, each with what it was made from.
type Kept<K, V> = Mutex<Vec<Option<(K, Py<V>)>>>;

/// Makes the environs of one app.
pub(super) struct Environs {
    context: WorkerContext,
    root_path: String,
    /// What all environs have in common.
    base: Py<PyDict>,
    /// What the requests of one client have in common, at the place that the client's port gives.
    templates: Kept<Sender, PyDict>,
    /// The keys of headers, at the place that their name gives.
    keys: Kept<HeaderName, PyString>,
}

/// What the requests of one client have in common.
#[derive(PartialEq, Eq)]
struct Sender {
    address: Option<IpAddr>,
    port: Option<u16>,
    is_https: bool,
    local: Option<SocketAddr>,
    socket_path: Option<PathBuf>,
}

impl Environs {
    pub(super) fn new(py: Python<'_>, context: WorkerContext, settings: &settings::Python) -> PyResult<Self> {
        let base = PyDict::new(py);
        base.set_item("wsgi.version", (1, 0))?;
        base.set_item("wsgi.errors", py.import("sys")?.getattr("stderr")?)?;
        base.set_item("wsgi.multithread", settings.threads.get() > 1)?;
        base.set_item("wsgi.multiprocess", context.settings().workers.count > 1)?;
        base.set_item("wsgi.run_once", false)?;
        base.set_item("wsgi.file_wrapper", py.import("oxicorn._wsgi")?.getattr("FileWrapper")?)?;
        base.set_item("wsgi.input_terminated", true)?;
        base.set_item("SERVER_SOFTWARE", concat!("oxicorn/", env!("CARGO_PKG_VERSION")))?;
        base.set_item("SCRIPT_NAME", &settings.root_path)?;
        base.set_item("REQUEST_METHOD", "GET")?;
        base.set_item("SERVER_PROTOCOL", "HTTP/1.1")?;
        base.set_item("QUERY_STRING", "")?;
        base.set_item("oxicorn.slot", context.slot())?;
        base.set_item("oxicorn.generation", context.generation())?;
        Ok(Self {
            context,
            root_path: settings.root_path.clone(),
            base: base.unbind(),
            templates: Mutex::new((0..KEPT).map(|_| None).collect()),
            keys: Mutex::new((0..KEPT).map(|_| None).collect()),
        })
    }

    /// Makes the environ of a request.
    pub(super) fn environ<'py>(&self, py: Python<'py>, exchange: &Arc<WsgiExchange>) -> PyResult<Bound<'py, PyDict>> {
        let request = &exchange.request;
        let client = request.extensions.get::<ClientInfo>();
        let environ = self.template(py, client)?.copy()?;
        match request.version {
            Version::HTTP_11 => {}
            Version::HTTP_10 | Version::HTTP_09 => {
                environ.set_item(intern!(py, "SERVER_PROTOCOL"), intern!(py, "HTTP/1.0"))?;
            }
            _ => environ.set_item(intern!(py, "SERVER_PROTOCOL"), intern!(py, "HTTP/2.0"))?,
        }
        match request.method.as_str() {
            "GET" => {}
            "POST" => environ.set_item(intern!(py, "REQUEST_METHOD"), intern!(py, "POST"))?,
            method => environ.set_item(intern!(py, "REQUEST_METHOD"), method)?,
        }
        self.set_path(&environ, request)?;
        self.set_headers(&environ, request)?;
        if client.is_none_or(|client| client.local().is_none()) {
            set_server_of_host(&environ, client)?;
        }
        environ.set_item(intern!(py, "oxicorn.request_id"), request_id(&request.headers))?;
        environ.set_item(intern!(py, "wsgi.input"), Bound::new(py, Input::new(exchange))?)?;
        Ok(environ)
    }

    /// Returns what the environs of one client have in common.
    fn template<'py>(&self, py: Python<'py>, client: Option<&ClientInfo>) -> PyResult<Bound<'py, PyDict>> {
        let sender = Sender {
            address: client.and_then(ClientInfo::address),
            port: client.and_then(ClientInfo::port),
            is_https: client.is_some_and(|client| client.scheme() == "https"),
            local: client.and_then(ClientInfo::local),
            socket_path: client.and_then(ClientInfo::socket_path).map(Into::into),
        };
        let place = usize::from(sender.port.unwrap_or_default()) % KEPT;
        if let Some(Some((known, template))) = lock(&self.templates).get(place)
            && *known == sender
        {
            return Ok(template.bind(py).clone());
        }
        let template = self.base.bind(py).copy()?;
        template.set_item("wsgi.url_scheme", if sender.is_https { "https" } else { "http" })?;
        // A key that is missing would break apps, and a client of a unix socket has no address.
        template.set_item("REMOTE_ADDR", sender.address.map(|address| address.to_string()).unwrap_or_default())?;
        if let Some(port) = sender.port {
            template.set_item("REMOTE_PORT", port.to_string())?;
        }
        if let Some(local) = sender.local {
            template.set_item("SERVER_NAME", local.ip().to_canonical().to_string())?;
            template.set_item("SERVER_PORT", local.port().to_string())?;
        }
        let known = (sender, template.clone().unbind());
        let old = lock(&self.templates).get_mut(place).and_then(|slot| slot.replace(known));
        drop(old);
        Ok(template)
    }

    /// Sets the path. The root path, or what a trusted proxy calls the script's name, is taken from its beginning, unless
    /// a proxy has done that already.
    fn set_path(&self, environ: &Bound<'_, PyDict>, request: &Parts) -> PyResult<()> {
        let (py, uri) = (environ.py(), &request.uri);
        let (raw, query) = (uri.path(), uri.query());
        let told = request.headers.get(&SCRIPT_NAME).map(HeaderValue::as_bytes);
        if let Some(told) = told {
            environ.set_item(intern!(py, "SCRIPT_NAME"), latin1(py, told))?;
        }
        let path = match told.unwrap_or(self.root_path.as_bytes()) {
            b"" => percent_decoded_bytes(raw),
            root => {
                let decoded = percent_decoded_bytes(raw);
                let rest = decoded.strip_prefix(root).filter(|rest| matches!(rest.first(), None | Some(b'/')));
                match rest {
                    Some(rest) => Cow::Owned(rest.to_vec()),
                    None => decoded,
                }
            }
        };
        environ.set_item(intern!(py, "PATH_INFO"), latin1(py, &path))?;
        if let Some(query) = query {
            environ.set_item(intern!(py, "QUERY_STRING"), latin1(py, query.as_bytes()))?;
        }
        let target = if uri.scheme().is_none() {
            latin1(py, uri.path_and_query().map_or(raw, |target| target.as_str()).as_bytes())
        } else {
            latin1(py, uri.to_string().as_bytes())
        };
        environ.set_item(intern!(py, "RAW_URI"), target)
    }

    /// Sets the headers. Values of one name are joined. A name with an underscore is left out, because in the environ it
    /// would look like another one with a hyphen, which a proxy may have checked.
    fn set_headers(&self, environ: &Bound<'_, PyDict>, request: &Parts) -> PyResult<()> {
        let py = environ.py();
        let mut headers = request.headers.iter().peekable();
        while let Some((name, value)) = headers.next() {
            let more = headers.peek().is_some_and(|(next, _)| *next == name);
            let joined = if more {
                let mut values = vec![value.as_bytes()];
                while let Some((_, value)) = headers.next_if(|(next, _)| *next == name) {
                    values.push(value.as_bytes());
                }
                Some(values.join(if *name == header::COOKIE { &b"; "[..] } else { &b","[..] }))
            } else {
                None
            };
            if name.as_str().contains('_') {
                continue;
            }
            let value = latin1(py, joined.as_deref().unwrap_or(value.as_bytes()));
            environ.set_item(self.key(py, name), value)?;
        }
        // With HTTP/2 the target names the host.
        if request.version >= Version::HTTP_2
            && let Some(authority) = request.uri.authority()
        {
            environ.set_item(intern!(py, "HTTP_HOST"), authority.as_str())?;
        }
        Ok(())
    }

    fn key<'py>(&self, py: Python<'py>, name: &HeaderName) -> Bound<'py, PyString> {
        let text = name.as_str();
        let sign = |at: Option<&u8>| usize::from(at.copied().unwrap_or_default());
        let place = (text.len() * 31 + sign(text.as_bytes().first()) * 7 + sign(text.as_bytes().last())) % KEPT;
        if let Some(Some((known, key))) = lock(&self.keys).get(place)
            && known == name
        {
            return key.bind(py).clone();
        }
        let key = match *name {
            header::CONTENT_TYPE => "CONTENT_TYPE".to_owned(),
            header::CONTENT_LENGTH => "CONTENT_LENGTH".to_owned(),
            _ => format!("HTTP_{}", text.to_ascii_uppercase().replace('-', "_")),
        };
        let key = PyString::intern(py, &key);
        let known = (name.clone(), key.clone().unbind());
        let old = lock(&self.keys).get_mut(place).and_then(|slot| slot.replace(known));
        drop(old);
        key
    }

    pub(super) fn context(&self) -> &WorkerContext {
        &self.context
    }
}

/// Sets the name of the server for a connection over a unix socket, which has none: the host that the client asked for.
fn set_server_of_host(environ: &Bound<'_, PyDict>, client: Option<&ClientInfo>) -> PyResult<()> {
    let py = environ.py();
    let host = client.and_then(ClientInfo::host).unwrap_or_default();
    let is_https = client.is_some_and(|client| client.scheme() == "https");
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
        _ if host.is_empty() => ("localhost", if is_https { "443" } else { "80" }),
        _ => (host, if is_https { "443" } else { "80" }),
    };
    environ.set_item(intern!(py, "SERVER_NAME"), name)?;
    environ.set_item(intern!(py, "SERVER_PORT"), port)
}

/// Returns bytes as PEP 3333 wants them: as a text with one character for each byte.
fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => PyString::new(py, text),
        _ => PyString::new(py, &bytes.iter().map(|byte| char::from(*byte)).collect::<String>()),
    }
}
