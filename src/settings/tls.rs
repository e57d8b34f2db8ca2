//! The table `[tls]`.
//!
//! Owns: its keys, and what is found wrong with their files. Refuses: certificates (`material`), which the feature `tls`
//! brings; without it every key is refused (`check`).

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

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tls {
    #[serde(serialize_with = "show::path")]
    pub certfile: Option<PathBuf>,
    #[serde(serialize_with = "show::path")]
    pub keyfile: Option<PathBuf>,
    #[serde(serialize_with = "show::path")]
    pub client_ca: Option<PathBuf>,
    /// What the files held when the settings were resolved; `None` without TLS.
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
