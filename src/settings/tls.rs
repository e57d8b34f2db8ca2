//! The table `[tls]`.
//!
//! Owns: the keys of the table, and the list of problems with their files. Refuses: to read certificates; `material`
//! does, with the feature `tls`. Without that feature `check` refuses every key of the table.

#[cfg(feature = "tls")]
mod material;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod material;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;

use super::{origin::Origin, problem::Problem, written};

pub(crate) use material::{Material, ServerConfig};
pub(super) use material::{aged, read};

/// TLS and its files: `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tls {
    /// The path of the file with the certificate chain, in PEM. If it is set, the service speaks TLS and needs
    /// `tls.keyfile` too. If it is empty, there is no TLS.
    #[serde(serialize_with = "written::path")]
    pub certfile: Option<PathBuf>,
    /// The path of the file with the private key of the certificate in `tls.certfile`, in PEM. The master reads the
    /// file; the workers need no right to read it. It is empty if there is no TLS.
    #[serde(serialize_with = "written::path")]
    pub keyfile: Option<PathBuf>,
    /// The path of a file with the certificates of authorities, in PEM. Each client must show a certificate that one of
    /// these authorities issued. If the path is empty, clients need no certificate.
    #[serde(serialize_with = "written::path")]
    pub client_ca: Option<PathBuf>,
    /// The contents of the files when the settings were resolved; `None` without TLS.
    #[serde(skip)]
    pub(crate) material: Option<Arc<Material>>,
}

impl Tls {
    /// Returns true if the file that `key` names had other contents for `before` than it has for `self`.
    pub(in crate::settings) fn is_rewritten(&self, before: &Self, key: &str) -> bool {
        let (Some(new), Some(old)) = (&self.material, &before.material) else { return false };
        new.is_rewritten(old, key)
    }
}

/// The problems and warnings about the files of `[tls]`.
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
