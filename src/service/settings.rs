//! The `[service]` table of supervisor.toml.
//!
//! Owns: the keys, their defaults, what two of them mean together, and which of them do nothing yet. Refuses: reading
//! files or the environment (the supervisor hands the table over, checked).

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, de};

use super::{auth, cors::Origin};

/// The reference service's own table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Settings {
    /// Where facts are kept. Default `auto`: MongoDB when `mongodb_uri` is set, else SQLite.
    pub store: StoreKind,
    /// The SQLite file; its folder is made when absent. Default `data/facts.db`.
    pub sqlite_path: PathBuf,
    /// Also `MONGODB_URI`. Default empty: none.
    pub mongodb_uri: Secret,
    /// Also `MONGODB_DATABASE`. Default `r3nd`.
    pub mongodb_database: String,
    /// Serve `/docs` and `/openapi.json`. Default true.
    pub docs: bool,
    /// Serve the `/debug/*` routes that make a worker hang, crash or leak. Default false.
    pub debug: bool,
    /// When set, writes need `Authorization: Bearer …`. Default empty: open to all.
    pub bearer_token: Secret,
    /// A file that holds the bearer token, read by each worker when it starts. Default empty: none.
    pub bearer_token_file: PathBuf,
    /// Origins of web pages that may call; `*` is every one. Default none.
    pub cors_origins: Vec<Origin>,
    /// Further dependencies that `/ready` asks. Default none.
    pub check: Vec<Check>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store: StoreKind::Auto,
            sqlite_path: "data/facts.db".into(),
            mongodb_uri: Secret::default(),
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

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Derived, as an inherent function: this is what `remote = "Self"` is for.
        let settings = Self::deserialize(deserializer)?;
        if settings.bearer_token.is_empty() {
            return Ok(settings);
        }
        if !settings.bearer_token_file.as_os_str().is_empty() {
            return Err(de::Error::custom("bearer_token and bearer_token_file are both set: which one is it?"));
        }
        if !auth::is_sendable(settings.bearer_token.expose()) {
            return Err(de::Error::custom(format!("bearer_token {}", auth::UNSENDABLE)));
        }
        Ok(settings)
    }
}

/// `service.store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    Auto,
    Sqlite,
    Mongodb,
}

/// One `[[service.check]]`: a name, and either `tcp = "host:port"` or `http = "http://…"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub name: String,
    pub tcp: Option<String>,
    pub http: Option<String>,
}

/// A string that never shows up in a log by way of `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Whether it was left unset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The plain text.
    #[must_use]
    pub fn expose(&self) -> &str {
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

impl Settings {
    pub(super) fn wants_sqlite(&self) -> bool {
        match self.store {
            StoreKind::Sqlite => true,
            StoreKind::Mongodb => false,
            StoreKind::Auto => self.mongodb_uri.is_empty(),
        }
    }

    /// One sentence for each key that was changed from its default and does nothing yet.
    #[must_use]
    pub fn not_yet(&self) -> Vec<&'static str> {
        [(!self.check.is_empty(), "service.check has no effect yet: /ready asks the database only")]
            .into_iter()
            .filter_map(|(changed, sentence)| changed.then_some(sentence))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default_and_says_nothing() {
        let settings: Settings = toml::from_str("").unwrap();
        assert_eq!(settings, Settings::default());
        assert!(settings.not_yet().is_empty());
    }

    #[test]
    fn every_key_is_read() {
        let settings: Settings = toml::from_str(
            r#"
            store = "sqlite"
            sqlite_path = "/var/lib/facts.db"
            mongodb_uri = "mongodb://u:pw@db"
            mongodb_database = "other"
            docs = false
            debug = true
            bearer_token_file = "/run/secrets/token"
            cors_origins = ["https://example.org"]
            [[check]]
            name = "redis"
            tcp = "redis:6379"
            "#,
        )
        .unwrap();
        let redis = Check { name: "redis".into(), tcp: Some("redis:6379".into()), http: None };
        assert_eq!(
            settings,
            Settings {
                store: StoreKind::Sqlite,
                sqlite_path: "/var/lib/facts.db".into(),
                mongodb_uri: "mongodb://u:pw@db".into(),
                mongodb_database: "other".into(),
                docs: false,
                debug: true,
                bearer_token: Secret::default(),
                bearer_token_file: "/run/secrets/token".into(),
                cors_origins: vec!["https://example.org".parse().unwrap()],
                check: vec![redis],
            }
        );
        let keys: Vec<&str> = settings.not_yet().iter().filter_map(|sentence| sentence.split(' ').next()).collect();
        assert_eq!(keys, ["service.check"]);
    }

    #[test]
    fn a_token_is_said_once_and_can_be_sent() {
        for (table, sentence) in [
            ("bearer_token = \"a\"\nbearer_token_file = \"b\"", "both set"),
            ("bearer_token = \"two words\"", "no client can send"),
            ("cors_origins = [\"https://a.example/\"]", "\"https://a.example/\" is not an origin"),
        ] {
            let error = toml::from_str::<Settings>(table).unwrap_err().to_string();
            assert!(error.contains(sentence) && !error.contains("two words\" is"), "{error}");
        }
        assert!(toml::from_str::<Settings>("bearer_token = \"hunter2\"").is_ok());
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = toml::from_str::<Settings>("sqlite_pth = \"x\"").unwrap_err();
        assert!(error.to_string().contains("sqlite_pth"), "{error}");
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let settings =
            Settings { bearer_token: "hunter2".into(), mongodb_uri: "mongodb://u:pw@db".into(), ..Settings::default() };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("pw@"), "{shown}");
    }
}
