//! The differences between the settings in effect and new settings, and what is needed to apply each of them.
//!
//! Owns: the lists of keys that apply at once, with new workers, or after a restart. Refuses: to apply a change.

use std::fmt;

use super::resolved::Resolved;

/// The keys that a reload applies at once, because only the master or its sockets use them.
const AT_ONCE: &[&str] =
    &["log.level", "server.backlog", "server.bind", "server.unix_mode", "server.unix_owner", "workers.count"];

/// The keys whose effective values differ, in three sorted lists: one for each way to apply a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) at_once: Vec<String>,
    /// The keys that apply when new workers replace the old ones.
    pub(crate) roll: Vec<String>,
    pub(crate) restart: Vec<String>,
}

impl Changes {
    pub(crate) fn between(running: &Resolved, new: &Resolved) -> Self {
        let needs_restart = new.clone().keep_until_restart(&running.fixed());
        let (old_keys, new_keys) = (running.flat(), new.flat());
        let mut differs: Vec<String> = old_keys.keys().chain(new_keys.keys()).cloned().collect();
        differs.sort();
        differs.dedup();
        differs.retain(|key| {
            old_keys.get(key) != new_keys.get(key)
                // The value of this key is the path of a file. The file may have changed although its path is the same,
                // so compare the variables that were read from it.
                || (key == "process.env_file" && running.settings.process.env != new.settings.process.env)
                || new.settings.tls.is_rewritten(&running.settings.tls, key)
        });
        let mut changes = Self::default();
        for key in differs {
            let list = match key.as_str() {
                key if needs_restart.contains(&key) => &mut changes.restart,
                key if AT_ONCE.contains(&key) => &mut changes.at_once,
                _ => &mut changes.roll,
            };
            list.push(key);
        }
        changes
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("applies at once: ", &self.at_once),
            ("with the new workers: ", &self.roll),
            ("as before until a restart: ", &self.restart),
        ];
        let parts: Vec<_> = parts
            .iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(what, keys)| [*what, &keys.join(", ")].concat())
            .collect();
        match parts.is_empty() {
            true => f.write_str("no setting has changed"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}
