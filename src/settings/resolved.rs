//! The result of reading all sources: the settings, and the origin of each value.
//!
//! Owns: the values in effect, and the list of keys that only a restart can change. Refuses: to read sources.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use super::{
    foreign::ForeignNote,
    model::{ControlSocket, Group, Settings, User},
    origin::{GivenValue, Origin},
    problem::Problem,
    sources::Sources,
    start::StartFolder,
    table::Tables,
    tls,
};

/// The settings that [`resolve`] determined, with all data to show the settings, to compare them and to read them
/// again.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) settings: Settings,
    pub(crate) tables: Tables,
    /// The value of each key of the app's tables that can be written, by `section.key`.
    pub(crate) shown: BTreeMap<String, Value>,
    /// The absolute path of the settings file; `None` if there is no such file.
    pub(crate) file: Option<PathBuf>,
    pub(crate) start: StartFolder,
    /// The warnings, as sentences for the log.
    pub(crate) warnings: Vec<String>,
    /// What the runtime has to say about sources of its own.
    pub(crate) notes: Vec<ForeignNote>,
    /// The file of the runtime's own that stands in the place of the settings file, as the runtime names it.
    pub(crate) foreign_file: Option<PathBuf>,
    /// The value in effect of each key that was given, by `section.key`. A key that is not here has its default.
    pub(crate) entries: BTreeMap<String, GivenValue>,
    /// The texts of the files from which these settings were read.
    pub(crate) sources: Sources,
}

/// The values of the keys that only a restart can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    reuse_port: bool,
    user: Option<User>,
    group: Option<Group>,
    pidfile: Option<PathBuf>,
    name: String,
    control: ControlSocket,
}

impl Resolved {
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// Returns the same settings with `count` workers. The command `scale` and the signals TTIN and TTOU set `count`.
    pub(crate) fn with_count(&self, count: u32) -> Self {
        let mut resolved = self.clone();
        if resolved.settings.workers.count != count {
            resolved.settings.workers.count = count;
            let entry = GivenValue { value: Value::Integer(count.into()), origin: Origin::Flag("scale, TTIN or TTOU") };
            resolved.entries.insert("workers.count".to_owned(), entry);
        }
        resolved
    }

    /// Returns the text that the runtime has recorded with these settings.
    pub(crate) fn foreign(&self) -> Option<&str> {
        self.sources.texts().get(self.foreign_file.as_ref()?).map(String::as_str)
    }

    pub(crate) fn fixed(&self) -> Fixed {
        let Settings { server, process, control, .. } = &self.settings;
        Fixed {
            reuse_port: server.reuse_port,
            user: process.user.clone(),
            group: process.group.clone(),
            pidfile: process.pidfile.clone(),
            name: process.name.clone(),
            control: control.socket.clone(),
        }
    }

    /// Returns today's warnings about the certificate that is in use, for example that it expires soon.
    pub(crate) fn certificate_warnings(&self) -> Vec<String> {
        let placed = |problem: Problem| Problem { place: self.origin(&problem.key), ..problem };
        tls::aged(&self.settings.tls).into_iter().map(|problem| placed(problem).to_string()).collect()
    }

    /// Replaces the values that only a restart can change by those of the running service. Returns the keys whose
    /// values differed.
    pub(crate) fn keep_until_restart(&mut self, running: &Fixed) -> Vec<&'static str> {
        let wanted = self.fixed();
        let Settings { server, process, control, .. } = &mut self.settings;
        let Fixed { reuse_port, user, group, pidfile, name, control: socket } = running.clone();
        let differs = [
            ("server.reuse_port", wanted.reuse_port != reuse_port),
            ("process.user", wanted.user != user),
            ("process.group", wanted.group != group),
            ("process.pidfile", wanted.pidfile != pidfile),
            ("process.name", wanted.name != name),
            ("control.socket", wanted.control != socket),
        ];
        server.reuse_port = reuse_port;
        (process.user, process.group, process.pidfile, process.name) = (user, group, pidfile, name);
        control.socket = socket;
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Logs warnings about the settings. An operator should act on each of them.
pub(crate) fn say_warnings(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(event = "settings_warning", "{warning}");
    }
}
