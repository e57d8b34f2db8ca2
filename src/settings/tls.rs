//! The table `[tls]`.
//!
//! Owns: its keys, and the problems of their files. Refuses: certificates (`material`), which the feature `tls` brings;
//! without that feature every key is refused (`check`).

#[cfg(feature = "tls")]
mod material;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod material;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;

use super::{Origin, Problem, show};

pub(crate) use material::{Material, ServerConfig};
pub(super) use material::{aged, read};

/// TLS and its files: `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tls {
    /// File with the certificate chain, in PEM. Empty: no TLS.
    #[serde(serialize_with = "show::path")]
    pub certfile: Option<PathBuf>,
    /// File with the private key of the certificate, in PEM. The master reads it; the workers need no right to read it.
    #[serde(serialize_with = "show::path")]
    pub keyfile: Option<PathBuf>,
    /// File with the certificates of authorities, in PEM: each client must show a certificate that one of them issued.
    /// Empty: clients need no certificate.
    #[serde(serialize_with = "show::path")]
    pub client_ca: Option<PathBuf>,
    /// The contents of the files when the settings were resolved; `None` without TLS.
    #[serde(skip)]
    pub(crate) material: Option<Arc<Material>>,
}

impl Tls {
    /// Whether the file of `key` holds something else than it did for `before`.
    pub(in crate::settings) fn is_rewritten(&self, before: &Self, key: &str) -> bool {
        let (Some(new), Some(old)) = (&self.material, &before.material) else { return false };
        new.is_rewritten(old, key)
    }
}

/// What is to be said of the files.
#[derive(Debug, Default)]
pub(in crate::settings) struct Findings {
    pub(in crate::settings) problems: Vec<Problem>,
    pub(in crate::settings) warnings: Vec<Problem>,
}

impl Findings {
    fn warn(&mut self, key: &str, message: String) {
        self.warnings.push(Problem::at(Origin::Default, key, message));
    }

    fn refuse(&mut self, key: &str, message: String) {
        self.problems.push(Problem::at(Origin::Default, key, message));
    }

    fn take<T>(&mut self, key: &str, read: Result<T, String>) -> Option<T> {
        read.map_err(|message| self.refuse(key, message)).ok()
    }
}
