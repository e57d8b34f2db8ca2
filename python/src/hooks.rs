//! The hooks of a configuration file that run beside the master.
//!
//! Owns: the events for them, what they answer, and what they have changed in the environment. Refuses: to run them,
//! which the process of the file does (`helper`), and to wait for them, except at the start and at the end of the
//! service.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use oxicorn::{ForkedWorker, SupervisorEvent};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::helper::{self, Helper, Overlay};

/// The hooks that run beside the master. The others run in the workers.
const OF_THE_MASTER: [&str; 8] =
    ["on_starting", "when_ready", "pre_fork", "child_exit", "on_reload", "nworkers_changed", "pre_exec", "on_exit"];

/// How long a start waits for `on_starting`.
const START_TIME: Duration = Duration::from_secs(10);

/// How long the end waits for `on_exit`.
const END_TIME: Duration = Duration::from_secs(2);

/// How long the hooks of an event may run before a line tells it.
const LATE_TIME: Duration = Duration::from_secs(10);

/// How long nothing is logged after a line about an event that was dropped.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// The hooks of one configuration file.
#[derive(Debug)]
pub(crate) struct Hooks {
    helper: Helper,
    overlay: Overlay,
    /// How many events were sent, and how many of them are done.
    sent: u64,
    done: u64,
    /// Since when an event waits for its answer; `None` if all are answered.
    waiting: Option<Unanswered>,
    /// When it was logged that an event was dropped.
    dropped: Option<Instant>,
}

#[derive(Debug)]
struct Unanswered {
    since: Instant,
    is_told: bool,
}

/// What the process says when the hooks of an event are done.
#[derive(Debug, Deserialize)]
struct Done {
    #[serde(default)]
    environ: Changed,
    error: Option<String>,
    traceback: Option<String>,
    /// The exit code, if a hook has asked for the end of the process.
    exit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct Changed {
    set: BTreeMap<String, String>,
    unset: Vec<String>,
}

/// Returns true if one of these hooks runs beside the master.
pub(crate) fn any_of_the_master(names: &[String]) -> bool {
    names.iter().any(|name| OF_THE_MASTER.contains(&name.as_str()))
}

impl Hooks {
    /// `helper` is the process of the file, which has answered. `overlay` is what the hooks before have changed in the
    /// environment: it began with that.
    pub(crate) fn new(helper: Helper, overlay: Overlay) -> Self {
        Self { helper, overlay, sent: 0, done: 0, waiting: None, dropped: None }
    }

    pub(crate) fn helper(&self) -> &Helper {
        &self.helper
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Tells the hooks an event.
    ///
    /// # Errors
    /// The service must not start: `on_starting` has asked for its end.
    pub(crate) fn tell(&mut self, event: &SupervisorEvent<'_>) -> Result<(), String> {
        let Some(line) = line_of(event) else { return Ok(()) };
        let now = helper::now();
        let waiting = self.waiting.get_or_insert(Unanswered { since: now, is_told: false });
        let waited = now.duration_since(waiting.since);
        if waited >= LATE_TIME && !std::mem::replace(&mut waiting.is_told, true) {
            tracing::warn!(
                event = "hooks_late",
                behind = self.sent.saturating_sub(self.done),
                "a hook of the configuration file has run for {} s; the hooks of later events wait for it, and the \
                 service does not",
                waited.as_secs()
            );
        }
        if !self.helper.send(&line) {
            if self.dropped.is_none_or(|at| now.duration_since(at) >= QUIET_TIME) {
                self.dropped = Some(now);
                tracing::warn!(
                    event = "hooks_late",
                    behind = self.sent.saturating_sub(self.done),
                    "the hooks of the configuration file are behind; they are not called for this event"
                );
            }
            return Ok(());
        }
        self.sent += 1;
        match event {
            SupervisorEvent::Starting { alive: [], .. } => self.wait(START_TIME, "on_starting"),
            SupervisorEvent::Stopped => {
                // The service has ended already, so there is nothing to stop.
                let _ = self.wait(END_TIME, "on_exit");
                if self.done < self.sent {
                    // A hook that hangs must not stay behind the service. `wait` has told it.
                    let _ = self.helper.give_up(END_TIME);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Waits until the hooks of all events are done.
    fn wait(&mut self, time: Duration, hook: &str) -> Result<(), String> {
        let until = helper::now() + time;
        while self.done < self.sent && !self.helper.has_ended() {
            match self.helper.wait(until) {
                Some(line) => self.take(&line)?,
                None if self.helper.has_ended() => return Ok(()),
                None => {
                    let seconds = time.as_secs();
                    let reason = format!("{hook} did not end within {seconds} s");
                    tracing::error!(
                        event = "hook_failed",
                        reason,
                        "the service does not wait for this hook any longer"
                    );
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads what the hooks have answered. Returns false if their process has ended.
    pub(crate) fn attend(&mut self) -> bool {
        while let Some(line) = self.helper.line() {
            // A hook that asks for the end of its process later has a line in the log, as any that fails.
            let _ = self.take(&line);
        }
        !self.helper.has_ended()
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        self.done += 1;
        let is_told = self.waiting.as_ref().is_some_and(|waiting| waiting.is_told);
        self.waiting = (self.done < self.sent).then(|| Unanswered { since: helper::now(), is_told });
        let Done { environ: Changed { set, unset }, error, traceback, exit } = match serde_json::from_str(line) {
            Ok(done) => done,
            Err(error) => {
                let reason = format!("its answer cannot be read: {error}");
                tracing::error!(event = "hook_failed", reason, "a hook of the configuration file failed");
                return Ok(());
            }
        };
        self.overlay.extend(set.into_iter().map(|(name, value)| (name, Some(value))));
        self.overlay.extend(unset.into_iter().map(|name| (name, None)));
        let Some(reason) = error else { return Ok(()) };
        tracing::error!(
            event = "hook_failed",
            reason,
            traceback,
            "a hook of the configuration file failed; the service goes on"
        );
        if exit.is_some() { Err(reason) } else { Ok(()) }
    }
}

/// Returns the line for an event; `None` if no hook is for it.
fn line_of(event: &SupervisorEvent<'_>) -> Option<String> {
    let pid = std::process::id();
    let all = |workers: &[ForkedWorker]| workers.iter().map(worker).collect::<Vec<_>>();
    let named = |name: &str, worker: Value| {
        let mut line = worker;
        line["event"] = name.into();
        line
    };
    let line = match event {
        SupervisorEvent::Starting { workers, alive } => {
            json!({ "event": "starting", "pid": pid, "workers": workers, "alive": all(alive) })
        }
        SupervisorEvent::Listening { addresses } => json!({ "event": "listening", "addresses": addresses }),
        SupervisorEvent::Forking(forked) => named("forking", worker(forked)),
        SupervisorEvent::Forked(forked) => named("forked", worker(forked)),
        SupervisorEvent::Exited(forked) => named("exited", worker(forked)),
        SupervisorEvent::Reloading { workers, before, addresses, alive } => json!({
            "event": "reloading", "pid": pid, "workers": workers, "before": before,
            "addresses": addresses, "alive": all(alive),
        }),
        SupervisorEvent::WorkersChanged { workers, before } => {
            json!({ "event": "workers_changed", "workers": workers, "before": before })
        }
        SupervisorEvent::Executing => json!({ "event": "executing" }),
        SupervisorEvent::Stopped => json!({ "event": "stopped" }),
        _ => return None,
    };
    Some(line.to_string())
}

fn worker(forked: &ForkedWorker) -> Value {
    json!({ "slot": forked.slot, "age": forked.age, "generation": forked.generation, "pid": forked.pid })
}
