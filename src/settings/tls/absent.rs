//! Takes the place of `material` in a build without the feature `tls`.
//!
//! Owns: types that have no value, so that the compiler knows that code for TLS never runs. Refuses: to write messages
//! about keys of `[tls]` (`check` does).

use std::sync::Arc;

use super::{Findings, Tls};
use crate::settings::{problem::Problem, sources::Sources};

/// The contents of the files of `[tls]`. Without the feature `tls` no value of this type exists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Material {}

/// The TLS configuration. Without the feature `tls` no value of this type exists.
#[derive(Debug)]
pub(crate) enum ServerConfig {}

impl Material {
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        match *self {}
    }

    pub(super) fn is_rewritten(&self, _: &Self, _: &str) -> bool {
        match *self {}
    }
}

pub(in crate::settings) fn read(_: &Tls, _: bool, _: &mut Sources, _: &mut Findings) -> Option<Material> {
    None
}

pub(in crate::settings) fn aged(_: &Tls) -> Vec<Problem> {
    Vec::new()
}
