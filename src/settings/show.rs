//! Shows settings as text: each effective value with its origin.
//!
//! Owns: the TOML and the JSON of `oxicorn config`. Refuses: to decide what must be masked (`secrets` does), and to
//! read the text back.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Serialize, Serializer};
use serde_json::json;
use toml::{Table, Value};

use super::{
    folders::STATE_DIRECTORY,
    keys,
    model::{AllowIp, Bind, ControlSocket, Group, Level, LogTarget, Owner, ProxyProtocol, Settings, TargetLevel, User},
    origin::{GivenValue, Origin},
    resolved::Resolved,
    secrets::redacted,
    written::Named,
};

/// Returns the value of every key of the supervisor, by `section.key`.
pub(super) fn flat(settings: &Settings) -> BTreeMap<String, Value> {
    // This cannot fail: the readers of the values accept only text and numbers within i64, and TOML can hold these.
    let table = Table::try_from(settings).expect("settings are plain values");
    let mut flat = BTreeMap::new();
    for (section, value) in table {
        if let Value::Table(keys) = value {
            flat.extend(keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
        }
    }
    flat
}

impl Resolved {
    /// Returns every key with its effective value: all keys of the supervisor, and the keys of an app's tables that were
    /// given or can be written.
    pub(super) fn flat(&self) -> BTreeMap<String, Value> {
        let ours = flat(&self.settings);
        let theirs = self.entries.iter().filter(|(path, _)| keys::find(path).is_none());
        let theirs = theirs.map(|(path, entry)| (path.clone(), entry.value.clone()));
        ours.into_iter().chain(theirs).chain(self.shown.clone()).collect()
    }

    /// Returns the text of a settings file that gives the same settings. Only secrets differ, because they are masked.
    /// A comment beside each key names its origin.
    pub(crate) fn to_toml(&self) -> String {
        let (folder, origin) = self.state_folder();
        let mut text = format!("# Relative paths of state are relative to {folder}, from {origin}.\n\n");
        let mut section = "";
        let shown = shown(self);
        for (path, value) in &shown {
            let (table, key) = path.split_once('.').unwrap_or(("", path));
            if table != section {
                if !section.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("[{}]\n", quoted(table)));
                section = table;
            }
            let origin = self.origin(path);
            let written = match self.entries.get(path) {
                Some(GivenValue { value: Value::String(text), .. })
                    if path == "workers.count" && *text != value.to_string() =>
                {
                    format!(" ({text})")
                }
                None if path == "workers.count" => " (auto)".to_owned(),
                _ => String::new(),
            };
            text.push_str(&format!("{} = {value}  # from {origin}{written}\n", quoted(key)));
        }
        text
    }

    /// Returns each key with value and origin, as in `{"workers.count": {"value": 4, "origin": "--workers"}, …}`.
    pub(crate) fn to_map(&self) -> serde_json::Map<String, serde_json::Value> {
        let entry = |(path, value): (String, Value)| {
            let entry = json!({ "value": value, "origin": self.origin(&path) });
            (path, entry)
        };
        shown(self).into_iter().map(entry).collect()
    }

    /// Returns the same as [`to_map`](Self::to_map), and in addition an entry for `state_folder`, which is not a key.
    pub(crate) fn to_object(&self) -> serde_json::Map<String, serde_json::Value> {
        let (folder, origin) = self.state_folder();
        let mut map = self.to_map();
        map.insert("state_folder".to_owned(), json!({ "value": folder, "origin": origin }));
        map
    }

    /// Returns the JSON text of [`to_object`](Self::to_object).
    pub(crate) fn to_json(&self) -> String {
        format!("{:#}", serde_json::Value::Object(self.to_object()))
    }

    fn state_folder(&self) -> (String, Origin) {
        let Settings { folder, state_folder, .. } = &self.settings;
        let named = state_folder != folder;
        let origin = if named { Origin::Env(STATE_DIRECTORY.to_owned()) } else { Origin::Default };
        (state_folder.display().to_string(), origin)
    }
}

/// Returns all values with secrets masked: first the supervisor's keys in the order of supervisor.toml, then the keys
/// of the app's tables.
fn shown(resolved: &Resolved) -> Vec<(String, Value)> {
    let mut flat = resolved.flat();
    let ours: Vec<(String, Value)> = keys::KEYS.iter().filter_map(|key| flat.remove_entry(key.path)).collect();
    ours.into_iter()
        .chain(flat)
        .map(|(path, value)| {
            let key = path.split_once('.').map_or(path.as_str(), |(_, key)| key);
            let value = redacted(key, value);
            (path, value)
        })
        .collect()
}

fn quoted(key: &str) -> Cow<'_, str> {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { Cow::Borrowed(key) } else { Cow::Owned(Value::String(key.to_owned()).to_string()) }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(fd) => write!(f, "fd://{fd}"),
        }
    }
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Auto => "auto",
        })
    }
}

impl Serialize for Bind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

impl fmt::Display for AllowIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Net { address, prefix } if *prefix == if address.is_ipv4() { 32 } else { 128 } => {
                write!(f, "{address}")
            }
            Self::Net { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

impl Serialize for AllowIp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for TargetLevel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let level = match self.level {
            None => "off",
            Some(Level::Error) => "error",
            Some(Level::Warn) => "warn",
            Some(Level::Info) => "info",
            Some(Level::Debug) => "debug",
            Some(Level::Trace) => "trace",
        };
        serializer.collect_str(&format_args!("{}={level}", self.target))
    }
}

impl Serialize for LogTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Standard => serializer.serialize_str("-"),
            Self::File(path) => serializer.collect_str(&path.display()),
        }
    }
}

impl Serialize for ControlSocket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Path(path) => serializer.collect_str(&path.display()),
        }
    }
}

/// Reads `control.socket` from the text that [`Serialize`] writes for it.
impl From<String> for ControlSocket {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "off" => Self::Off,
            _ => Self::Path(text.into()),
        }
    }
}

impl Named for User {
    fn named(&self) -> &str {
        &self.name
    }
}

impl Named for Group {
    fn named(&self) -> &str {
        &self.name
    }
}
