//! The `[service]` table of supervisor.toml.
//!
//! Owns: the keys, their defaults, and the rules between them. Refuses: to read files and the environment. The
//! supervisor reads them, and hands over the table.

use std::{collections::HashSet, fmt, path::PathBuf};

use http::Uri;
use mongodb::options::ConnectionString;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{cors::WebOrigin, token};

/// The settings of the reference service, from its own table `[service]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub(crate) struct ServiceSettings {
    /// Which database keeps the facts. Default `auto`: MongoDB when `mongodb_uri` is set, else SQLite.
    pub(crate) store: StoreKind,
    /// The path of the SQLite file, relative to the state folder. A missing folder is made. Default `data/facts.db`.
    pub(crate) sqlite_path: PathBuf,
    /// The connection string of the MongoDB; `MONGODB_URI` sets it too. Default: empty, which means no MongoDB.
    #[serde(deserialize_with = "connection_string")]
    pub(crate) mongodb_uri: Secret,
    /// The path of a file that holds `mongodb_uri`; `MONGODB_URI_FILE` sets it too. Default: empty, which means no
    /// file.
    pub(crate) mongodb_uri_file: PathBuf,
    /// The name of the database in the MongoDB; `MONGODB_DATABASE` sets it too. Default: `r3nd`.
    pub(crate) mongodb_database: String,
    /// Serve `/docs` and `/openapi.json`. Default true.
    pub(crate) docs: bool,
    /// Serve the `/debug/*` routes that make a worker hang, crash or leak. Default false.
    pub(crate) debug: bool,
    /// If this is set, a write needs the header `Authorization: Bearer …`. Default: empty, which means that every
    /// client may write.
    pub(crate) bearer_token: Secret,
    /// The path of a file that holds `bearer_token`. Default: empty, which means no file.
    pub(crate) bearer_token_file: PathBuf,
    /// The origins whose web pages may call the service; `*` means every origin. Default: none.
    pub(crate) cors_origins: Vec<WebOrigin>,
    /// Further dependencies that `/ready` asks. Default: none.
    #[serde(deserialize_with = "checks")]
    pub(crate) check: Vec<DependencyCheck>,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            store: StoreKind::Auto,
            sqlite_path: "data/facts.db".into(),
            mongodb_uri: Secret::default(),
            mongodb_uri_file: PathBuf::new(),
            mongodb_database: "r3nd".into(),
            docs: true,
            debug: false,
            bearer_token: Secret::default(),
            bearer_token_file: PathBuf::new(),
            cors_origins: Vec::new(),
            check: Vec::new(),
        }
    }
}

impl<'de> Deserialize<'de> for ServiceSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // This calls the function that serde derives. `remote = "Self"` makes it an inherent function, so this is no
        // endless recursion.
        let settings = Self::deserialize(deserializer)?;
        if settings.store == StoreKind::Mongodb && settings.mongodb_uri.is_empty() {
            return Err(D::Error::custom(
                "store is \"mongodb\", but its address is not set: set mongodb_uri, or MONGODB_URI",
            ));
        }
        if settings.bearer_token.is_empty() {
            return Ok(settings);
        }
        if !token::is_sendable(settings.bearer_token.expose()) {
            return Err(D::Error::custom(format!("bearer_token {}", token::UNSENDABLE)));
        }
        Ok(settings)
    }
}

/// The values of `service.store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoreKind {
    Auto,
    Sqlite,
    Mongodb,
}

/// Parses a connection string. A string with an `@` can hold a password. The driver's error is not shown for such a
/// string, because it may quote a part that the driver takes for a host or an option. This part can be half of the
/// password.
fn connection_string<'de, D: Deserializer<'de>>(value: D) -> Result<Secret, D::Error> {
    let uri = Secret::deserialize(value)?;
    if uri.is_empty() {
        return Ok(uri);
    }
    match ConnectionString::parse(&uri.0) {
        Ok(_) => Ok(uri),
        Err(error) if !uri.0.contains('@') => Err(D::Error::custom(format!("not a connection string: {}", error.kind))),
        Err(_) => Err(D::Error::custom(
            "not a connection string such as mongodb://user:password@host:27017/?option=value; percent-encode what user \
             and password have of : / ? # [ ] @ %",
        )),
    }
}

/// One `[[service.check]]`: a further dependency that `/ready` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DependencyCheck {
    /// The name is unique, and is not `database`, which is the name of the store.
    pub(crate) name: String,
    pub(crate) probe: ProbeTarget,
}

/// How `/ready` finds out whether a dependency works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeTarget {
    /// The dependency works if `host:port` accepts a connection.
    Tcp(String),
    /// The dependency works if it answers a GET of this `http://…` with a status below 400.
    Http(Uri),
}

/// Reads the list of checks. The error names every entry that is wrong.
fn checks<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<DependencyCheck>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        name: String,
        tcp: Option<String>,
        http: Option<String>,
    }

    let mut names = HashSet::from(["database".to_owned()]);
    let (mut checks, mut wrong) = (Vec::new(), Vec::new());
    for Written { name, tcp, http } in Vec::deserialize(list)? {
        if name.is_empty() {
            wrong.push("an entry has an empty name".to_owned());
        } else if !names.insert(name.clone()) {
            wrong.push(format!("the name \"{name}\" is taken already"));
        }
        match probe(tcp, http) {
            Ok(probe) => checks.push(DependencyCheck { name, probe }),
            Err(reason) => wrong.push(format!("\"{name}\" {reason}")),
        }
    }
    if wrong.is_empty() { Ok(checks) } else { Err(D::Error::custom(wrong.join("; "))) }
}

fn probe(tcp: Option<String>, http: Option<String>) -> Result<ProbeTarget, String> {
    match (tcp, http) {
        (Some(address), None) => match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse().is_ok_and(|port: u16| port > 0) => {
                Ok(ProbeTarget::Tcp(address))
            }
            _ => Err(format!("wants tcp = \"host:port\", not \"{address}\"")),
        },
        (None, Some(url)) => match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(ProbeTarget::Http(uri)),
            _ => Err(format!("wants http = \"http://host/path\", not \"{url}\"; TLS is not spoken")),
        },
        (Some(_), Some(_)) => Err("has both tcp and http; one of them is wanted".to_owned()),
        (None, None) => Err("has neither tcp nor http; one of them is wanted".to_owned()),
    }
}

/// A string that `Debug` does not show, so that it stays out of logs.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// Returns true if the secret is not set.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the secret as plain text.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(plain: &str) -> Self {
        Self(plain.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { "\"…\"" })
    }
}

impl ServiceSettings {
    pub(crate) fn wants_sqlite(&self) -> bool {
        match self.store {
            StoreKind::Sqlite => true,
            StoreKind::Mongodb => false,
            StoreKind::Auto => self.mongodb_uri.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default() {
        let settings: ServiceSettings = toml::from_str("").unwrap();
        assert_eq!(settings, ServiceSettings::default());
    }

    #[test]
    fn every_key_is_read() {
        let settings: ServiceSettings = toml::from_str(
            r#"
            store = "sqlite"
            sqlite_path = "/var/lib/facts.db"
            mongodb_uri = "mongodb://u:pw@db"
            mongodb_uri_file = "/run/secrets/uri"
            mongodb_database = "other"
            docs = false
            debug = true
            bearer_token_file = "/run/secrets/token"
            cors_origins = ["https://example.org"]
            [[check]]
            name = "redis"
            tcp = "redis:6379"
            [[check]]
            name = "search"
            http = "http://search:9200/_cluster/health?local=true"
            "#,
        )
        .unwrap();
        let redis = DependencyCheck { name: "redis".into(), probe: ProbeTarget::Tcp("redis:6379".into()) };
        let url = "http://search:9200/_cluster/health?local=true".parse().unwrap();
        let search = DependencyCheck { name: "search".into(), probe: ProbeTarget::Http(url) };
        assert_eq!(
            settings,
            ServiceSettings {
                store: StoreKind::Sqlite,
                sqlite_path: "/var/lib/facts.db".into(),
                mongodb_uri: "mongodb://u:pw@db".into(),
                mongodb_uri_file: "/run/secrets/uri".into(),
                mongodb_database: "other".into(),
                docs: false,
                debug: true,
                bearer_token: Secret::default(),
                bearer_token_file: "/run/secrets/token".into(),
                cors_origins: vec!["https://example.org".parse().unwrap()],
                check: vec![redis, search],
            }
        );
    }

    #[test]
    fn a_token_can_be_sent() {
        for (table, sentence) in [
            ("bearer_token = \"two words\"", "cannot be sent by a client"),
            ("cors_origins = [\"https://a.example/\"]", "\"https://a.example/\" is not an origin"),
        ] {
            let error = toml::from_str::<ServiceSettings>(table).unwrap_err().to_string();
            assert!(error.contains(sentence) && !error.contains("two words\" is"), "{error}");
        }
        assert!(toml::from_str::<ServiceSettings>("bearer_token = \"hunter2\"").is_ok());
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = toml::from_str::<ServiceSettings>("sqlite_pth = \"x\"").unwrap_err();
        assert!(error.to_string().contains("sqlite_pth"), "{error}");
    }

    fn refusal(text: &str) -> String {
        toml::from_str::<ServiceSettings>(text).unwrap_err().message().to_owned()
    }

    #[test]
    fn every_wrong_check_is_named() {
        let said = refusal(
            r#"
            check = [
                { name = "both", tcp = "a:1", http = "http://a" },
                { name = "none" },
                { name = "fine", tcp = "[::1]:1" },
                { name = "fine", http = "http://a/b" },
                { name = "database", tcp = "a:1" },
                { name = "port", tcp = "redis" },
                { name = "tls", http = "https://a" },
                { name = "", tcp = ":1" },
            ]"#,
        );
        for part in [
            "\"both\" has both tcp and http",
            "\"none\" has neither",
            "the name \"fine\" is taken already",
            "the name \"database\" is taken already",
            "\"port\" wants tcp = \"host:port\", not \"redis\"",
            "\"tls\" wants http",
            "an entry has an empty name",
            "\"\" wants tcp",
        ] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }

    #[test]
    fn a_connection_string_is_checked_and_never_quoted() {
        assert!(refusal("store = \"mongodb\"").contains("set mongodb_uri"));
        assert!(refusal("mongodb_uri = \"postgres://db\"").contains("unsupported connection string scheme: postgres"));
        for uri in ["mongodb://me:hu?sh@db", "mongodb://me:hu/sh@db", "mongodb://me:hu%sh@db", "mongodb://me:hush@db:x"]
        {
            let said = refusal(&format!("mongodb_uri = \"{uri}\""));
            assert!(said.contains("percent-encode") && !said.contains("hu") && !said.contains("sh@"), "{said}");
        }
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let settings = ServiceSettings {
            bearer_token: "hunter2".into(),
            mongodb_uri: "mongodb://u:pw@db".into(),
            ..ServiceSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("pw@"), "{shown}");
    }
}
