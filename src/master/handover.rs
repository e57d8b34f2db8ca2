//! The state that one program passes to the next over an exec. The state is JSON in memory, together with the open
//! descriptors that the JSON names.
//!
//! Owns: the format of the state, the search for the state at the start of a program, and the return to the old program
//! as long as the new one has not taken over. Until the takeover, nothing that was passed is closed or used up, so the
//! old program gets all of it back unchanged. Refuses: to decide whether to return. This decision belongs to `core`, or
//! to the part of the master that cannot continue.
//!
//! Old and new programs may differ in their version. A field that a later version adds has a default, because older
//! programs do not send it. A program ignores a field that it does not know. If it has to return the service to the old
//! program, it hands back this field and the version number as it received them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    os::fd::{AsFd, OwnedFd, RawFd},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    control,
    core::{CoreSnapshot, Millis, Pid},
    crash_suspect::Deaths,
    history::History,
    notify::ServiceState,
};
use crate::{
    app::AppInfo,
    channel::ToMaster,
    error_chain, listener,
    listener::Listeners,
    log,
    protocol::LastReload,
    scoreboard::Scoreboard,
    settings::{self, Fixed, LISTEN_PID, Resolved, Sources, StartFolder},
    sys::{clock, exec, process, signals::Blocked},
    worker::WorkerSeed,
};

/// The environment variable that tells a program for which purpose it was executed, and which descriptors hold the
/// state.
pub(super) const MARKER: &str = "OXICORN_UPGRADE";
/// The version of the format. A new field does not need a new version.
pub(super) const VERSION: u32 = 1;
/// The exit code of a new program that could not take over the service, and could not execute the old program again
/// either.
const EXIT_FAILURE: u8 = 1;
/// The exit code of a preflight that fails. The old program continues to serve.
const EXIT_REFUSED: u8 = 2;

/// Everything that one program passes to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HandoverState {
    pub(super) version: u32,
    /// The program whose workers serve. It is the program that wrote this state, or the old program if the state
    /// returns to it.
    pub(super) of: Program,
    /// `path` is the path of the program that reads this state. The next upgrade executes this path. `cwd` is the
    /// folder in which the service was first started. Symbolic links in both paths are kept.
    pub(super) path: PathBuf,
    pub(super) cwd: PathBuf,
    /// Why the new program has failed. It is set only if the old program reads this state.
    pub(super) failed: Option<String>,
    /// Why the old program cannot be executed again if the new one fails. `None` if it can.
    #[serde(default)]
    pub(super) no_way_back: Option<String>,
    /// All descriptors that this state names.
    pub(super) fds: Vec<RawFd>,
    pub(super) core: CoreSnapshot,
    pub(super) children: Vec<PassedChild>,
    /// The descriptor of the scoreboard's memory, and the largest number of rows.
    pub(super) scoreboard: (RawFd, u32),
    pub(super) listeners: listener::PassedListeners,
    pub(super) control: Option<control::PassedControl>,
    pub(super) pidfile: Option<PathBuf>,
    /// The open pid file, with the lock that shows that its master lives.
    #[serde(default)]
    pub(super) pidfile_lock: Option<RawFd>,
    pub(super) log: Option<RawFd>,
    #[serde(default)]
    pub(super) access_log: Option<RawFd>,
    pub(super) notify: Option<(ServiceState, bool)>,
    pub(super) history: History,
    #[serde(default)]
    pub(super) deaths: Deaths,
    pub(super) boot_failure: Option<String>,
    pub(super) started: Millis,
    /// Signals that came before the exec and are not handled yet, each with how often it came.
    pub(super) signals: Vec<(String, u32)>,
    pub(super) last_reload: Option<LastReload>,
    pub(super) last_upgrade: Option<LastReload>,
    /// How many workers the service has forked.
    #[serde(default)]
    pub(super) forks: u32,
}

/// Everything that is needed to run a program again as it runs now, even if its files change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    /// The version of oxicorn that the program was built with.
    pub(super) build: String,
    pub(super) executable: RawFd,
    pub(super) path: PathBuf,
    /// The arguments of the program. The first one is the program's own name. The list is empty if the program that
    /// reads this state has the same arguments, or if they are not UTF-8.
    #[serde(default)]
    pub(super) arguments: Vec<String>,
    /// The folder in which the program was started, by the path that the operator used.
    pub(super) folder: PathBuf,
    /// The folder to which the path in `folder` led, through any symbolic links, when the program was started.
    #[serde(default)]
    pub(super) real_folder: Option<PathBuf>,
    /// The folder that relative paths are resolved against in the program's workers.
    #[serde(default)]
    pub(super) workers_folder: Option<PathBuf>,
    /// True if `sources` include a settings file.
    #[serde(default)]
    pub(super) has_file: bool,
    pub(super) sources: Texts,
    pub(super) fixed: Fixed,
    /// The value of `workers.count` in the program's settings.
    pub(super) count: u32,
}

/// Returns the arguments of this process, or an empty list if they are not UTF-8.
fn own_arguments() -> Vec<String> {
    std::env::args_os().map(OsString::into_string).collect::<Result<_, _>>().unwrap_or_default()
}

/// Returns the recorded arguments, with which the old program is executed again. If none are recorded, returns the
/// arguments of this process.
fn arguments_or_own(recorded: Vec<String>) -> Vec<OsString> {
    match recorded.is_empty() {
        true => std::env::args_os().collect(),
        false => recorded.into_iter().map(Into::into).collect(),
    }
}

/// The texts from which the settings were read. The key of a text is its path.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Texts(BTreeMap<PathBuf, String>);

impl std::fmt::Debug for Texts {
    /// Lists only the paths, because the texts contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PassedChild {
    pub(super) pid: Pid,
    /// The index of this child's row in the scoreboard; it is the same in both programs.
    pub(super) row: usize,
    pub(super) channel: Option<RawFd>,
    pub(super) due: u64,
    pub(super) boot_failure: Option<String>,
    /// The descriptor of the file in which the worker writes where it hangs.
    #[serde(default)]
    pub(super) report: Option<RawFd>,
    pub(super) started: Millis,
    /// The number of the worker's fork.
    #[serde(default)]
    pub(super) age: u32,
}

impl Program {
    /// Describes the running program, so that it can be executed again.
    pub(super) fn own(executable: RawFd, path: PathBuf, resolved: &Resolved) -> Self {
        Self {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            executable,
            path,
            arguments: own_arguments(),
            folder: resolved.start.path().to_owned(),
            real_folder: resolved.start.real().map(Into::into),
            workers_folder: Some(resolved.settings.folder.clone()),
            has_file: resolved.file.is_some(),
            sources: Texts(resolved.sources.texts().clone()),
            fixed: resolved.fixed(),
            count: resolved.settings.workers.count,
        }
    }

    /// Returns the arguments with which to execute this program again.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        arguments_or_own(self.arguments.clone())
    }
}

/// The purpose for which this program was executed.
#[derive(Debug)]
pub(super) enum HandoverKind {
    /// The program shows the master at the other end of `channel` that it could take over.
    Preflight { channel: OwnedFd },
    /// The new program takes over from the old one.
    TakeOver,
    /// The old program takes over again, because the new one has failed.
    Return,
}

/// The state of a service that this program takes over, and the data with which this program can return the service to
/// the old program.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(super) purpose: HandoverKind,
    pub(super) state: HandoverState,
    /// The state as it was received, with the fields that this version does not know.
    pub(super) received: Map<String, Value>,
}

impl Handover {
    /// Reads the state that this program was executed with. Returns `None` at an ordinary start, and an exit code if
    /// the state cannot be read.
    pub(crate) fn receive() -> Option<Result<Self, u8>> {
        let marker = std::env::var(MARKER).ok()?;
        process::remove_from_environment(&[MARKER]);
        let mut words = marker.split(' ');
        let purpose = words.next();
        let mut number = || words.next().and_then(|word| word.parse::<RawFd>().ok());
        let memory = number()?;
        let purpose = match purpose {
            Some("preflight") => HandoverKind::Preflight { channel: exec::received(number()?).ok()? },
            Some("takeover") => HandoverKind::TakeOver,
            Some("return") => HandoverKind::Return,
            Some(_) | None => return None,
        };
        let content = exec::received(memory).and_then(|memory| exec::content(&mut File::from(memory)));
        exec::close(&[memory]);
        let received = content.ok().and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default();
        Some(match read(&received) {
            Ok(state) => Ok(Self { purpose, state, received }),
            Err(reason) => Err(refuse(&purpose, received, &reason)),
        })
    }

    pub(crate) fn is_preflight(&self) -> bool {
        matches!(self.purpose, HandoverKind::Preflight { .. })
    }

    /// Returns true if this is the old program, which takes over again.
    pub(crate) fn is_return(&self) -> bool {
        matches!(self.purpose, HandoverKind::Return)
    }

    /// Returns true if the settings of the running program let two workers of one slot exist at once.
    pub(crate) fn overlaps(&self) -> bool {
        self.state.core.overlap()
    }

    /// Returns the folder in which this program looks for settings. A new program takes the path of the folder in which
    /// the service was first started, and follows the symbolic links in it. The old program uses the folder that it had
    /// before.
    pub(crate) fn start_folder(&self) -> StartFolder {
        if self.is_return() { self.running().1 } else { StartFolder::at(&self.state.cwd) }
    }

    /// Returns the sources of the settings in effect, and the folder in which they were read.
    pub(crate) fn running(&self) -> (Sources, StartFolder) {
        let Program { folder, real_folder, sources, .. } = &self.state.of;
        (Sources::recorded(sources.0.clone()), StartFolder::known(folder.clone(), real_folder.clone()))
    }

    /// Corrects the folders in `resolved`, which are settings that were resolved again from [`running`](Self::running).
    /// The result has the folders that the settings had when they were first read.
    pub(crate) fn pinned(&self, mut resolved: Resolved) -> Resolved {
        if let Some(folder) = &self.state.of.workers_folder {
            let settings = &mut resolved.settings;
            if settings.state_folder == settings.folder {
                folder.clone_into(&mut settings.state_folder);
            }
            folder.clone_into(&mut settings.folder);
        }
        resolved
    }

    pub(crate) fn sources(&self) -> Sources {
        match self.purpose {
            HandoverKind::Return => self.running().0,
            HandoverKind::Preflight { .. } | HandoverKind::TakeOver => {
                Sources::after(self.state.of.has_file, &self.state.of.sources.0)
            }
        }
    }

    /// Returns the environment variables. `LISTEN_PID` holds the pid of the process that the sockets were passed to,
    /// which is the master. A preflight has another pid, so it replaces the value by its own pid.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = settings::environment();
        if self.is_preflight()
            && let Some(pid) = environment.get_mut(LISTEN_PID)
            && *pid == process::parent_pid().to_string()
        {
            *pid = std::process::id().to_string();
        }
        environment
    }

    /// Keeps the old values of the settings that only a restart can change. Returns the keys of those that would have
    /// changed.
    pub(crate) fn fix(&self, resolved: &mut Resolved) -> Vec<&'static str> {
        resolved.keep_until_restart(&self.state.of.fixed)
    }

    /// Returns the open log of the old program, for a program that cannot open its own log.
    pub(crate) fn log(&self) -> Option<OwnedFd> {
        exec::received(self.state.log?).ok()
    }

    /// Returns the open access log of the old program, for a program that cannot open its own access log.
    pub(crate) fn access_log(&self) -> Option<OwnedFd> {
        exec::received(self.state.access_log?).ok()
    }

    /// Executes the old program again, or, in a preflight, tells the master the reason. Returns the exit code of a
    /// preflight, or of a program that could not execute the old one.
    pub(crate) fn refuse(self, reason: &str) -> u8 {
        refuse(&self.purpose, self.received, reason)
    }

    /// Checks everything that a takeover needs, and changes nothing. Returns the seed of the worker that the preflight
    /// boots.
    ///
    /// # Errors
    /// The reason why this program cannot take over, as a sentence for [`refuse`](Self::refuse).
    pub(crate) fn try_on(&self, resolved: Resolved, app: Rc<AppInfo>) -> Result<WorkerSeed, String> {
        let HandoverKind::Preflight { channel } = &self.purpose else {
            return Err("this is not a preflight".to_owned());
        };
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let listeners = Listeners::adopt(&self.state.listeners).map_err(failed("a listening socket was not passed"))?;
        listeners.probe(&resolved.settings.server).map_err(|error| error_chain(&error))?;
        let (memory, rows_max) = self.state.scoreboard;
        let memory = exec::received(memory).map_err(failed("the scoreboard was not passed"))?;
        Scoreboard::adopt(memory, rows_max).map_err(|error| error_chain(&error))?;
        // The worker of a preflight gets a scoreboard of its own, because its counts do not belong to the service.
        let scoreboard = Scoreboard::create(1, 1).map_err(failed("no memory for a scoreboard"))?;
        let generation = self.state.core.next_generation().0;
        let row = scoreboard.claim(0, generation, 0, clock::now()).ok_or("a new scoreboard has no row")?;
        Ok(WorkerSeed {
            slot: 0,
            generation,
            row,
            scoreboard,
            channel: channel.try_clone().map_err(failed("the channel cannot be copied"))?,
            report: None,
            blocked: Blocked::over_exec(),
            master: process::parent_pid(),
            resolved: Arc::new(resolved),
            app,
            listeners,
            hook_panicked: None,
        })
    }
}

fn read(received: &Map<String, Value>) -> Result<HandoverState, String> {
    let unread = |error: serde_json::Error| format!("the state of the running service cannot be read: {error}");
    match received.get("version").and_then(Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => Err(format!(
            "the state of the running service has version {version}, and this program reads {VERSION} at most"
        )),
        Some(_) | None => serde_json::from_value(Value::Object(received.clone())).map_err(unread),
    }
}

fn refuse(purpose: &HandoverKind, mut received: Map<String, Value>, reason: &str) -> u8 {
    match purpose {
        HandoverKind::Preflight { channel } => {
            // If the message cannot be sent, the master has stopped meanwhile, and no longer needs the reason.
            let _ = ToMaster::BootFailed(reason.to_owned()).send(channel.as_fd());
            EXIT_REFUSED
        }
        HandoverKind::TakeOver => {
            received.insert("failed".to_owned(), reason.into());
            let of = received.get("of");
            let executable = of.and_then(|of| of.get("executable")?.as_i64());
            let recorded = of.and_then(|of| serde_json::from_value(of.get("arguments")?.clone()).ok());
            let arguments = arguments_or_own(recorded.unwrap_or_default());
            let error = executable
                .and_then(|number| exec::received(i32::try_from(number).ok()?).ok())
                .ok_or_else(|| std::io::ErrorKind::NotFound.into())
                .and_then(|program| Ok((program, exec::memory(&serde_json::to_vec(&received)?)?)))
                .map(|(program, memory)| {
                    let mut transfer = exec::FdTransfer::default();
                    let number = transfer.add(memory.as_fd());
                    exec::clear_cloexec(transfer.numbers());
                    exec::replace(program.as_fd(), &arguments, MARKER, &format!("return {number}"))
                });
            let error = error.unwrap_or_else(|error| error);
            log::last_words(&format!("{reason}; and the old program cannot be executed again: {error}"));
            EXIT_FAILURE
        }
        HandoverKind::Return => {
            log::last_words(&format!("the old program cannot continue either: {reason}"));
            EXIT_FAILURE
        }
    }
}
