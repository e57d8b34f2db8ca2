//! Functions that serde calls to write the values of some fields.
//!
//! Owns: the text of permission bits, paths and accounts. Refuses: to define the types of these fields (`model` and
//! `tls` do).

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
        // If the path is not UTF-8, the text is only similar to it. That is enough, because the text is only shown.
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
