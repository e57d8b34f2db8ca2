//! How the values of some fields are written, for serde.
//!
//! Owns: the text of permission bits, paths and accounts. Refuses: the types of the settings, which name these
//! functions (`model`, `tls`).

use std::path::PathBuf;

use serde::Serializer;

pub(super) fn octal<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

pub(super) fn umask<S: Serializer>(mask: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    match mask {
        Some(mask) => octal(mask, serializer),
        None => serializer.serialize_str(""),
    }
}

pub(super) fn path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        // A path may not be UTF-8; what is shown need not be exact.
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_str(""),
    }
}

pub(super) trait Named {
    fn named(&self) -> &str;
}

pub(super) fn name<T: Named, S: Serializer>(account: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(account.as_ref().map_or("", Named::named))
}
