//! `oxicorn config` for a running service: it shows the values that are in effect in the service. It also tells which
//! of these values differ from the settings files.
//!
//! Owns: asking the service for its values, and comparing them. Refuses: to read settings; `settings` does.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::{
    ControlEndpoint,
    conversation::{Failed, PATIENCE, ask_text, converse},
};
use crate::protocol::{ControlCommand, Service};

/// A running service whose values differ from those of the settings file, the environment and the flags.
#[derive(Debug)]
pub(crate) struct Differs {
    pub(crate) service: Service,
    /// The keys whose values differ, as `section.key`, sorted.
    pub(crate) keys: Vec<String>,
}

/// Prints the settings that are in effect in the running service.
pub(crate) fn print_running(endpoint: &ControlEndpoint, json: bool) -> Result<(), Failed> {
    let text = ask_text(&endpoint.connect(PATIENCE)?, ControlCommand::Config { json }).map_err(Failed::Refused)?;
    // If the write fails, the reader of the pipe, such as `head`, has closed the pipe. Then there is nothing more to
    // do.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Compares `settings`, in the form that `config --json` prints, with the values of the running service. Returns `None`
/// if nothing differs or no service answers.
pub(crate) fn differs(endpoint: &ControlEndpoint, settings: &Map<String, Value>) -> Option<Differs> {
    let reached = endpoint.connect(PATIENCE).ok()?;
    let answer = converse(&reached, ControlCommand::Config { json: true }, Some(PATIENCE), &mut |_| {}).ok()?;
    let (service, running) = (answer.service.filter(|_| answer.ok)?, serde_json::from_str(&answer.reason).ok()?);
    let keys = different(settings, &running);
    (!keys.is_empty()).then_some(Differs { service, keys })
}

fn different(one: &Map<String, Value>, other: &Map<String, Value>) -> Vec<String> {
    let value = |of: &Map<String, Value>, key: &str| of.get(key).and_then(|entry| entry.get("value")).cloned();
    let mut keys: Vec<_> = one.keys().chain(other.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    // Do not compare an entry without a section, such as `state_folder`. It is not a setting: its value comes from the
    // environment of the process that prints it.
    keys.retain(|key| key.contains('.') && value(one, key) != value(other, key));
    keys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_and_origins_are_not() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let one = map(json!({"a.b": {"value": 1, "origin": "default"}, "a.c": {"value": 1}, "x.y": {"value": "z"}}));
        let mut other = map(json!({"a.b": {"value": 1, "origin": "--b"}, "a.c": {"value": 2}, "x.z": {"value": "z"}}));
        other.insert("state_folder".to_owned(), json!({"value": "/var/lib/a"}));
        assert_eq!(different(&one, &other), ["a.c", "x.y", "x.z"]);
        assert_eq!(different(&one, &one), [""; 0]);
    }
}
