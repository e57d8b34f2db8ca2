//! The table `[python]` of the settings file.
//!
//! Owns: the keys of the table, their forms and their defaults. Refuses: to act on them (`runtime`, `boot`, `bridge`).

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use oxicorn::settings::{duration, size};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The app, and how it is imported and served.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Python {
    /// The app, if the command line does not name one: `pkg.module:attr`, `pkg.module`, `pkg.module:factory()` or
    /// `path/to/main.py`.
    pub(crate) app: String,
    /// The interface of the app.
    pub(crate) interface: Interface,
    /// The number of threads that run the requests of a WSGI app.
    pub(crate) threads: NonZeroUsize,
    /// How much of the body of a request is read before a thread of a WSGI app gets the request.
    #[serde(with = "size")]
    pub(crate) wsgi_body_buffer: u64,
    /// The folder that the worker enters before it imports the app. It is also the first entry of `sys.path`. Empty
    /// means the folder in which the command was given.
    pub(crate) chdir: PathBuf,
    /// More entries of `sys.path`, after the first one.
    pub(crate) pythonpath: Vec<PathBuf>,
    /// The `root_path` of each scope: the prefix that a proxy has removed from the path.
    #[serde(deserialize_with = "root_path")]
    pub(crate) root_path: String,
    /// Whether the app has a lifespan.
    pub(crate) lifespan: Lifespan,
    /// The event loop.
    pub(crate) r#loop: Loop,
    /// The version of the ASGI specification that the scopes of HTTP requests name.
    pub(crate) asgi_spec: AsgiSpec,
    /// The part of `workers.graceful_timeout` that is kept for the end of the lifespan.
    #[serde(with = "duration")]
    pub(crate) shutdown_grace: Duration,
    /// Variables of the environment, each as `KEY=value`.
    #[serde(deserialize_with = "variables", serialize_with = "pairs")]
    pub(crate) raw_env: Vec<(String, String)>,
    /// The size limit of a message that a web socket receives.
    #[serde(with = "size")]
    pub(crate) ws_max_size: u64,
    /// How often the worker sends a ping to a web socket; zero means never.
    #[serde(with = "duration")]
    pub(crate) ws_ping_interval: Duration,
    /// How long the worker waits for the answer to a ping before it closes the web socket; zero means for ever.
    #[serde(with = "duration")]
    pub(crate) ws_ping_timeout: Duration,
    /// Whether web sockets may compress their messages.
    pub(crate) ws_per_message_deflate: bool,
}

/// The interface of the app.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interface {
    /// The app's own arguments tell.
    Auto,
    Asgi,
    Wsgi,
}

/// Whether the app has a lifespan.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lifespan {
    /// It has one if it takes the scope. An app that raises before its first `receive()` has none.
    Auto,
    /// It must have one.
    On,
    /// It is not asked.
    Off,
}

/// The event loop.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Loop {
    /// oxicorn's own loop: a `SelectorEventLoop` whose calls and transports are tuned for it.
    Oxicorn,
    /// The standard library's `SelectorEventLoop`, on oxicorn's selector.
    Asyncio,
}

/// The version of the ASGI specification that the scopes of HTTP requests name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum AsgiSpec {
    /// `send()` is silent when the client is gone.
    #[serde(rename = "2.3")]
    V2_3,
    /// `send()` raises an `OSError` when the client is gone.
    #[serde(rename = "2.5")]
    V2_5,
}

impl Default for Python {
    fn default() -> Self {
        Self {
            app: String::new(),
            interface: Interface::Auto,
            threads: NonZeroUsize::MIN,
            wsgi_body_buffer: 64 << 10,
            chdir: PathBuf::new(),
            pythonpath: Vec::new(),
            root_path: String::new(),
            lifespan: Lifespan::Auto,
            r#loop: Loop::Oxicorn,
            asgi_spec: AsgiSpec::V2_3,
            shutdown_grace: Duration::from_secs(5),
            raw_env: Vec::new(),
            ws_max_size: 16 << 20,
            ws_ping_interval: Duration::from_secs(20),
            ws_ping_timeout: Duration::from_secs(20),
            ws_per_message_deflate: true,
        }
    }
}

impl Python {
    /// Returns the name of the app: that of the command line, or else that of the settings. Empty if there is none.
    pub(crate) fn app_of<'a>(&'a self, arguments: &'a [String]) -> &'a str {
        arguments.first().unwrap_or(&self.app)
    }
}

impl Interface {
    /// Returns the word that the settings have for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Asgi => "asgi",
            Self::Wsgi => "wsgi",
        }
    }
}

impl AsgiSpec {
    /// Returns the version as the scopes name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V2_3 => "2.3",
            Self::V2_5 => "2.5",
        }
    }
}

/// Reads a prefix of a path: it begins with a slash and does not end with one.
fn root_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    let path = path.trim_end_matches('/');
    if path.is_empty() || path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(D::Error::custom(format!("a path that begins with a slash is wanted, such as \"/{path}\"")))
    }
}

/// Reads variables of the environment in the form `KEY=value`.
fn variables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let split = |text: String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(D::Error::custom(format!("{text:?} has not the form \"KEY=value\""))),
    };
    Vec::<String>::deserialize(deserializer)?.into_iter().map(split).collect()
}

/// Writes variables of the environment in the form `KEY=value`.
fn pairs<S: Serializer>(variables: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(variables.iter().map(|(name, value)| format!("{name}={value}")))
}
