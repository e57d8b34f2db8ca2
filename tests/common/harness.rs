//! The supervisor as a child process: its settings, its log, its signals and its end.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Connection, PATIENCE, assert_told_all, proc::Process};

/// The names of events and fields in the supervisor's log.
pub mod events {
    pub const LISTENING: &str = "listening";
    pub const FORKED: &str = "worker_forked";
    pub const READY: &str = "worker_ready";
    pub const SERVING: &str = "worker_serving";
    pub const EXITED: &str = "worker_exited";
    pub const HUNG: &str = "worker_hung";
    pub const KILLED: &str = "worker_killed";
    pub const DRAINING: &str = "worker_draining";
    pub const DRAINED: &str = "worker_drained";
    pub const BOOT_FAILED: &str = "worker_boot_failed";
    pub const RECYCLE_REQUESTED: &str = "recycle_requested";
    pub const BACKOFF: &str = "backoff";
    pub const CRASH_SUSPECT: &str = "crash_suspect";
    pub const QUARANTINE_STARTED: &str = "quarantine_started";
    pub const REQUEST_QUARANTINED: &str = "request_quarantined";
    pub const SCALED: &str = "scaled";
    pub const RELOADED: &str = "reloaded";
    pub const RELOAD_REFUSED: &str = "reload_refused";
    pub const RELOAD_ROLLED_BACK: &str = "reload_rolled_back";
    pub const UPGRADED: &str = "upgraded";
    pub const UPGRADE_REFUSED: &str = "upgrade_refused";
    pub const UPGRADE_ROLLED_BACK: &str = "upgrade_rolled_back";
    pub const MASTER_STALLED: &str = "master_stalled";
    pub const STOPPING: &str = "stopping";
    pub const STOPPED: &str = "stopped";
    pub const SERVICE_BOOT_FAILED: &str = "boot_failed";
    pub const SIGNAL_IGNORED: &str = "signal_ignored";
    pub const LOGS_REOPENED: &str = "logs_reopened";
    pub const ACCESS_LINES_DROPPED: &str = "access_lines_dropped";

    /// A field of the event `listening`: the address that was bound.
    pub const ADDRESS_FIELD: &str = "address";
    /// A field of the event `worker_drained`: the number of requests or connections that the worker cut when the
    /// graceful timeout ended.
    pub const CUT_FIELD: &str = "cut";
    /// A field of the event `scaled`: the number of workers that the service should now have.
    pub const TARGET_FIELD: &str = "target";
}

/// Calls `probe` again and again until it returns a value, and returns that value. Panics with `what` if this takes
/// longer than `within`.
pub fn eventually<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns a port on which nothing listens at the moment. Tests use it if they must name a port before they start the
/// service.
pub fn free_port() -> u16 {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a free port");
    // If another test starts a process at this moment, that process has a copy of the probe until its exec.
    eventually("nothing listens on the free port", PATIENCE, || TcpStream::connect(address).is_err().then_some(()));
    address.port()
}

/// Returns the value of the field `name` in a log line, written as `name=value` or `name="value"`.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = line;
    loop {
        let at = rest.find(name)?;
        let starts_a_word = rest[..at].chars().next_back().is_none_or(|before| before == ' ');
        let after = &rest[at + name.len()..];
        match after.strip_prefix('=') {
            Some(value) if starts_a_word => {
                return match value.strip_prefix('"') {
                    Some(quoted) => quoted.split('"').next(),
                    None => value.split_whitespace().next(),
                };
            }
            _ => rest = after,
        }
    }
}

/// Returns the value of a metric that has no labels, read from the text of a metrics page.
pub fn metric(page: &str, name: &str) -> Option<u64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Asserts that a service accepts on this unix socket and answers `/health` with 200.
#[track_caller]
pub fn assert_serves_unix(path: &Path) {
    let mut connection = Connection::open_unix(path).expect("the unix socket accepts");
    assert_eq!(connection.get("/health").expect("an answer").status, 200);
}

/// The whole text of the log at one moment.
pub struct Log(pub String);

impl Log {
    pub fn lines_of<'a>(&'a self, event: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter(move |line| field(line, "event") == Some(event))
    }

    pub fn count(&self, event: &str) -> usize {
        self.lines_of(event).count()
    }

    /// Returns the pid of each log line with the event `event`, in the order of the log.
    pub fn pids(&self, event: &str) -> Vec<u32> {
        self.lines_of(event).filter_map(|line| field(line, "pid")?.parse().ok()).collect()
    }

    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<_> = self.0.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Returns the root folder of the repository. The tests' own package is a folder in it.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository")
}

/// Returns the path of the binary under test. If `OXICORN_TEST_BINARY` is set, it names the binary; the Makefile sets
/// it to the release build. Otherwise, cargo has built the binary in the tests' profile.
pub fn binary() -> PathBuf {
    given_binary().unwrap_or_else(|| env!("CARGO_BIN_EXE_oxicorn").into())
}

/// Returns true if the binary under test must keep the promises about time and memory that hold for the release build.
pub fn is_release() -> bool {
    given_binary().is_some() || !cfg!(debug_assertions)
}

fn given_binary() -> Option<PathBuf> {
    std::env::var_os("OXICORN_TEST_BINARY").map(PathBuf::from)
}

/// Builds the example `name`, a program that uses the library, in the profile of the tests. Returns its path.
pub fn build_example(name: &str) -> PathBuf {
    build(name, if cfg!(debug_assertions) { "dev" } else { "release" })
}

/// Builds the example `name` in the release profile, as users run it, for tests that measure time or memory. Returns
/// its path.
pub fn build_release_example(name: &str) -> PathBuf {
    build(name, "release")
}

fn build(name: &str, profile: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_oxicorn")).parent().expect("the binary lies in a folder");
    let target = folder.parent().expect("the profile's folder lies in target/");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--profile", profile, "--example", name]).current_dir(root());
    cargo.env("CARGO_TARGET_DIR", target);
    // Cargo sets variables for the package under test. They must not reach the cargo that is started here. Otherwise
    // the build scripts that read these variables, such as ring's, would run again in every test run. Cargo would then
    // also compile every crate again that depends on such a crate.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR" {
            cargo.env_remove(&*name);
        }
    }
    let built = cargo.output().expect("cargo can be run");
    assert!(built.status.success(), "the example {name} does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    target.join(if profile == "dev" { "debug" } else { profile }).join("examples").join(name)
}

/// A supervisor that has not been started yet: its program, settings, flags and environment.
pub struct Launch {
    program: PathBuf,
    wrapper: Vec<String>,
    settings: BTreeMap<String, String>,
    raw_settings: Option<String>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    log_file: Option<String>,
    dir: TempDir,
}

impl Launch {
    /// Prepares the binary with its reference service: two workers, a free port and the `/debug` routes.
    pub fn new() -> Self {
        Self::of(binary()).set("service.sqlite_path", r#""{dir}/facts.db""#).set("service.debug", "true")
    }

    /// Prepares the test program `tests/programs/misbehave.rs`, whose settings choose its faults.
    pub fn misbehave() -> Self {
        Self::of(build_example("misbehave"))
    }

    /// Prepares the program at the path `program`, which must use the library.
    pub fn of(program: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("oxicorn-test-").tempdir().expect("a temporary folder");
        // Workers that run as another user must be able to enter this folder.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod of our own folder");
        let launch = Self {
            program,
            wrapper: Vec::new(),
            settings: BTreeMap::new(),
            raw_settings: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            log_file: None,
            dir,
        };
        launch
            .set("server.bind", r#"["127.0.0.1:0"]"#)
            .set("workers.count", "2")
            .set("workers.graceful_timeout", r#""10s""#)
            .set("control.socket", r#""{dir}/control.sock""#)
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "{dir}")
            .env("RUNTIME_DIRECTORY", "{dir}")
    }

    /// Sets the key `key`, written as `section.key`, to `toml`, which is a value in TOML. In the value, `{dir}` stands
    /// for the temporary folder.
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.settings.insert(key.to_owned(), toml.to_owned());
        self
    }

    /// Removes a key from the settings, so that the supervisor uses its own default.
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// Uses the text `toml` as the whole settings file, instead of the keys that were set one by one.
    pub fn raw(mut self, toml: &str) -> Self {
        self.raw_settings = Some(toml.to_owned());
        self
    }

    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn args(self, arguments: &[&str]) -> Self {
        arguments.iter().fold(self, |launch, argument| launch.arg(argument))
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Makes a wrapper, such as `unshare`, start the program. The wrapper gets the program's command line as its last
    /// arguments.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Makes the kernel refuse steering for the program. The wrapper becomes the program by exec, so the started
    /// process is the master itself and not its parent.
    pub fn without_steering(self) -> Self {
        let wrapper = build_example("no_steering");
        self.through(&[wrapper.to_str().expect("a path in UTF-8")])
    }

    /// Makes the supervisor log to the file `name` in the temporary folder. The harness reads the log from this file.
    pub fn log_to(mut self, name: &str) -> Self {
        self.log_file = Some(name.to_owned());
        self.set("log.file", &format!(r#""{{dir}}/{name}""#))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings_text(&self) -> String {
        if let Some(raw) = &self.raw_settings {
            return raw.clone();
        }
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in &self.settings {
            let (section, key) = name.split_once('.').unwrap_or_else(|| panic!("{name} is not section.key"));
            *sections.entry(section).or_default() += &format!("{key} = {value}\n");
        }
        sections.iter().map(|(section, keys)| format!("[{section}]\n{keys}\n")).collect()
    }

    fn command(&self, arguments: &[String]) -> Command {
        let fill = |text: &str| text.replace("{dir}", &self.dir.path().to_string_lossy());
        fs::write(self.path("supervisor.toml"), fill(&self.settings_text())).expect("the settings are written");
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(arguments.iter().map(|argument| fill(argument)))
            .current_dir(self.dir.path())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, fill(value))))
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts the program and returns at once, before it listens.
    pub fn start(self) -> Supervisor {
        let create = |name: &str| File::create(self.path(name)).expect("a file in our own folder");
        let mut command = self.command(&self.arguments);
        command.stdout(create("stdout.log")).stderr(create("stderr.log"));
        let child = command.spawn().expect("the program starts");
        let log = self.path(self.log_file.as_deref().unwrap_or("stderr.log"));
        let group = child.id();
        Supervisor {
            program: self.program,
            child,
            group,
            master: (self.wrapper.is_empty()).then_some(group),
            log,
            addresses: Vec::new(),
            dir: self.dir,
        }
    }

    /// Starts the program and waits until `workers` workers serve.
    pub fn serving(self, workers: usize) -> Supervisor {
        let mut supervisor = self.start();
        supervisor.wait_listening();
        supervisor.wait_serving(workers);
        supervisor
    }

    /// Runs a command that should end by itself. Returns its exit code and its output.
    pub fn run(&self) -> Output {
        self.run_with(&[])
    }

    /// Does the same as [`run`](Self::run), with these additional arguments.
    pub fn run_with(&self, arguments: &[&str]) -> Output {
        let arguments: Vec<_> =
            self.arguments.iter().cloned().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        let create = |name: &str| File::create(self.path(name)).expect("a file in our own folder");
        let mut command = self.command(&arguments);
        let mut child =
            command.stdout(create("run.out")).stderr(create("run.err")).spawn().expect("the program starts");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("our own child can be waited for") {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        let read = |name: &str| fs::read(self.path(name)).unwrap_or_default();
        let (stdout, stderr) = (read("run.out"), read("run.err"));
        let Some(status) = status else {
            let _ = child.wait();
            panic!("{arguments:?} did not end within {PATIENCE:?}:\n{}", String::from_utf8_lossy(&stderr));
        };
        Output { status, stdout, stderr }
    }
}

/// A running supervisor. Dropping it kills its whole process group. If the test has failed, dropping it also prints the
/// end of its log.
pub struct Supervisor {
    program: PathBuf,
    child: Child,
    group: u32,
    master: Option<u32>,
    log: PathBuf,
    addresses: Vec<String>,
    dir: TempDir,
}

impl Supervisor {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the master process. If a wrapper started the program, the master is the wrapper's child, or the process
    /// that the wrapper became by exec.
    pub fn master(&self) -> Process {
        Process(self.master.expect("the master's pid is known once wait_listening has returned"))
    }

    pub fn pid(&self) -> u32 {
        self.master().0
    }

    pub fn log(&self) -> Log {
        Log(fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Returns every address that was bound, in the order of the log.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Returns the first TCP address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.addresses
            .iter()
            .find_map(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no TCP address among {:?}", self.addresses))
    }

    /// Waits until the log names every bound address, and remembers these addresses and the master's pid.
    pub fn wait_listening(&mut self) {
        eventually("the log names the address that is listened on", PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the supervisor ended with {status} before it listened");
            }
            let log = self.log();
            // All addresses are in the log before the first fork, so the first fork shows that the list is complete.
            (log.count(events::FORKED) > 0).then_some(())?;
            self.addresses = log
                .lines_of(events::LISTENING)
                .filter_map(|line| field(line, events::ADDRESS_FIELD))
                .map(str::to_owned)
                .collect();
            (!self.addresses.is_empty()).then_some(())
        });
        if self.master.is_none() {
            // Some wrappers become the program by exec, and others start the program as a child.
            let group = Process(self.group);
            let became = group.comm().starts_with("oxicorn");
            let master = if became { group } else { *group.children().first().expect("the wrapper has a child") };
            self.master = Some(master.0);
        }
    }

    /// Returns the pids of the living workers, including those that drain.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.master().children().into_iter().filter(|child| child.is_alive()).map(|child| child.0).collect()
    }

    /// Returns the pids of the workers that live, serve, and were not asked to drain.
    pub fn serving_pids(&self) -> Vec<u32> {
        let log = self.log();
        let (serving, draining) = (log.pids(events::SERVING), log.pids(events::DRAINING));
        let living = self.worker_pids();
        living.into_iter().filter(|pid| serving.contains(pid) && !draining.contains(pid)).collect()
    }

    pub fn wait_serving(&self, workers: usize) -> Vec<u32> {
        eventually(&format!("{workers} workers serve"), PATIENCE, || {
            let serving = self.serving_pids();
            (serving.len() == workers).then_some(serving)
        })
    }

    /// Waits until at least `workers` workers serve. There may be more for a moment, while workers are being replaced.
    pub fn wait_serving_at_least(&self, workers: usize) {
        eventually(&format!("at least {workers} workers serve"), PATIENCE, || {
            (self.serving_pids().len() >= workers).then_some(())
        });
    }

    /// Waits until the log has at least `times` lines with the event `event`, and returns all these lines.
    pub fn wait_log(&self, event: &str, times: usize, within: Duration) -> Vec<String> {
        eventually(&format!("{times} log lines of event={event}"), within, || {
            let log = self.log();
            let lines: Vec<_> = log.lines_of(event).map(str::to_owned).collect();
            (lines.len() >= times).then_some(lines)
        })
    }

    /// Waits until the worker has ended and the master has reaped it.
    pub fn wait_gone(&self, pid: u32) {
        eventually(&format!("process {pid} is gone"), PATIENCE, || Process(pid).state().is_none().then_some(()));
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("the master can be signalled");
    }

    /// Signals the process that the test itself started: the master, or the wrapper that started the master.
    pub fn signal_group_leader(&self, signal: Signal) {
        kill(Pid::from_raw(self.group.cast_signed()), signal).expect("the leader can be signalled");
    }

    pub fn signal_worker(&self, pid: u32, signal: Signal) {
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("the worker can be signalled");
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the master has exited, and returns its exit code.
    pub fn wait_exit(&mut self, within: Duration) -> i32 {
        let status = eventually("the supervisor exits", within, || {
            self.child.try_wait().expect("our own child can be waited for")
        });
        status.code().unwrap_or_else(|| panic!("the master died: {status}"))
    }

    /// Runs a command of the service's own program, in the service's folder and with the service's settings. Exit code
    /// 124 means that the command did not end in time.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.ctl_in(arguments, &[])
    }

    pub fn ctl_in(&self, arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
        self.run_ctl(&self.program, arguments, environment)
    }

    /// Does the same as [`ctl`](Self::ctl), but with the given program. A test needs this if the service's own program
    /// is gone.
    pub fn ctl_of(&self, program: &Path, arguments: &[&str]) -> Output {
        self.run_ctl(program, arguments, &[])
    }

    fn run_ctl(&self, program: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
        let mut command = self.ctl_command(program, arguments, &[]);
        command.env("RUNTIME_DIRECTORY", self.dir.path()).envs(environment.iter().copied());
        command.current_dir(self.dir.path()).output().expect("timeout(1) can be run")
    }

    fn ctl_command(&self, program: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the service's own program in another folder. The environment of the command is `environment`
    /// and PATH, and nothing else.
    pub fn ctl_elsewhere(&self, folder: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
        let mut command = self.ctl_command(&self.program, arguments, environment);
        command.current_dir(folder).output().expect("timeout(1) can be run")
    }

    /// Returns the output of `status --json`, which must not fail. Exit code 1 is allowed, because it only means that
    /// not all workers serve.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let output = self.ctl(&["status", "--json"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{told}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no JSON object: {error}; {told}"))
    }

    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("a number")
    }

    /// Returns the total `name` of `status --json`, counted since the start of the service: `requests`, for example.
    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        self.status()["totals"][name].as_u64().unwrap_or_else(|| panic!("totals.{name}"))
    }

    /// Replaces the text `from` by the text `to` in the settings file. The file must contain `from`.
    #[track_caller]
    pub fn edit_settings(&self, from: &str, to: &str) {
        let path = self.path("supervisor.toml");
        let text = fs::read_to_string(&path).expect("the settings file");
        assert!(text.contains(from), "{from:?} is not in:\n{text}");
        fs::write(&path, text.replacen(from, to, 1)).expect("our own file");
    }

    /// Runs a command with the path of the control socket. Tests use this if their settings file does not name the
    /// socket.
    pub fn ctl_by_socket(&self, words: &[&str]) -> Output {
        let socket = self.path("control.sock");
        self.ctl(&[words, &["--socket", socket.to_str().expect("a path in UTF-8")]].concat())
    }

    /// Runs `reload`. Asserts that its exit code is `code`, and that its output contains every fragment.
    #[track_caller]
    pub fn assert_reload(&self, code: i32, fragments: &[&str]) {
        assert_told_all(&self.ctl(&["reload"]), code, fragments);
    }

    /// Stops the service gracefully. Asserts exit code 0 and that no process is left.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait_exit(PATIENCE), 0, "a stop that was asked for exits with 0");
        assert_eq!(self.leftovers(), [], "no process outlives a stop");
    }

    /// Returns the processes of the supervisor's process group that still live.
    pub fn leftovers(&self) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process))
            .filter(|process| process.is_alive() && process.group() == Some(self.group))
            .collect()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if thread::panicking() {
            for name in ["stdout.log", "stderr.log"] {
                let text = Log(fs::read_to_string(self.path(name)).unwrap_or_default());
                eprintln!("--- {name}, its end ---\n{}", text.tail(60));
            }
            if !self.log.ends_with("stderr.log") {
                eprintln!("--- {} ---\n{}", self.log.display(), self.log().tail(60));
            }
        }
        let group = Pid::from_raw(self.group.cast_signed());
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(group, Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_millis(if thread::panicking() { 0 } else { 2500 });
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // The whole group gets this signal, so that stopped workers and the orphans of a killed master die too. If the
        // signal cannot be sent, the group is already empty (ESRCH).
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
