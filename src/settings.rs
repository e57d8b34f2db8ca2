//! The settings of a service, as one typed struct that is resolved once from all sources.
//!
//! Owns: the list of items that the rest of the program may use. Refuses: to do any other work; the submodules do it.
//! The submodules own the types and defaults (`model`), the precedence of the sources (`resolve`), the settings with
//! the origin of each value (`resolved`), the syntax of files (`file`), the reading of one value (`value`), and the
//! checks that need two keys at once (`check`).

mod access_format;
mod changes;
mod check;
mod cpus;
pub mod duration;
#[cfg(test)]
mod field_docs;
mod file;
mod flags;
mod folders;
mod foreign;
mod keys;
mod model;
mod origin;
mod passed;
mod problem;
mod resolve;
mod resolved;
mod secrets;
mod show;
pub mod size;
mod sources;
mod start;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod tls;
mod value;
mod written;

pub use self::{
    access_format::AccessFormat,
    duration::ParseDurationError,
    foreign::{ForeignContext, ForeignSettings, Strength},
    model::{
        AllowIp, Bind, Control, ControlSocket, Group, Http, Level, Log, LogFormat, LogTarget, Owner, Process,
        ProxyProtocol, Server, Settings, TargetLevel, User, Workers,
    },
    size::ParseSizeError,
    tls::Tls,
};
pub(crate) use self::{
    access_format::{Form, Part, headers},
    changes::Changes,
    cpus::WORKERS_MAX,
    file::DEFAULT_FILE,
    flags::{Flags, Given},
    foreign::say_notes,
    keys::SERVES_NO_PYTHON,
    origin::Origin,
    passed::{LISTEN_FDS, LISTEN_PID},
    problem::{Problem, Problems},
    resolve::{Declared, Partial, Purpose, environment, resolve, resolve_partly},
    resolved::{Fixed, Resolved, say_warnings},
    sources::Sources,
    start::{StartFolder, is_same},
    table::TableSpec,
    tls::ServerConfig,
};

#[cfg(test)]
pub(crate) fn is_key(path: &str) -> bool {
    keys::find(path).is_some()
}
