//! Promise: `make install` and the commands of docs/guides/systemd.md install a service that runs without any other
//! file. The completions and the manual page know every command. The Debian package holds what `make install` installs.
//!
//! The test plays systemd: it runs the unit's own commands in new namespaces, as systemd would. It needs root, and the
//! programs systemd-sysusers and systemd-tmpfiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        net::UnixDatagram,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use crate::common::{
    Connection, Launch, PATIENCE, Process, Response, Signal, eventually, json_request, request, root, text,
};
use nix::{
    sched::{CloneFlags, setns},
    unistd::Uid,
};
use tempfile::TempDir;

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn make(arguments: &[&str]) {
    let made = Command::new("make").args(arguments).current_dir(root()).output().expect("make can be run");
    assert!(made.status.success(), "make {arguments:?}: {}", text(&made));
}

/// Returns the path of every file below `root`, relative to `root`.
fn files(root: &Path) -> BTreeSet<String> {
    let (mut folders, mut files) = (vec![root.to_owned()], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("our own folder").flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => drop(files.insert(path.strip_prefix(root).expect("below it").display().to_string())),
            }
        }
    }
    files
}

const BIN: &str = concat!("BIN=", env!("CARGO_BIN_EXE_oxicorn"));

const INSTALLED: [&str; 11] = [
    "bin/oxicorn",
    "lib/systemd/system/oxicorn.service",
    "lib/systemd/system/oxicorn.socket",
    "lib/sysusers.d/oxicorn.conf",
    "lib/tmpfiles.d/oxicorn.conf",
    "share/man/man1/oxicorn.1",
    "share/bash-completion/completions/oxicorn",
    "share/zsh/site-functions/_oxicorn",
    "share/fish/vendor_completions.d/oxicorn.fish",
    "../etc/oxicorn/supervisor.toml",
    "../etc/logrotate.d/oxicorn",
];

fn installed(prefix: &str) -> BTreeSet<String> {
    let below = |name: &&str| match name.strip_prefix("../") {
        Some(rest) => rest.to_owned(),
        None => format!("{prefix}/{name}"),
    };
    INSTALLED.iter().map(below).collect()
}

#[test]
fn make_install_and_uninstall_are_complete_and_settings_are_never_overwritten() {
    let root = tempfile::tempdir().expect("a folder");
    let destination = format!("DESTDIR={}", root.path().display());
    let settings = root.path().join("etc/oxicorn/supervisor.toml");
    make(&["install", &destination, "PREFIX=/usr", BIN]);
    assert_eq!(files(root.path()), installed("usr"));
    assert_eq!(fs::read_to_string(&settings).expect("it is there"), read("supervisor.toml"));
    let unit = fs::read_to_string(root.path().join("usr/lib/systemd/system/oxicorn.service")).expect("it is there");
    assert!(unit.contains("\nExecStart=/usr/bin/oxicorn --config ") && !unit.contains("/usr/local"), "{unit}");
    for name in files(root.path()) {
        let mode = fs::metadata(root.path().join(&name)).expect("it is there").mode() & 0o777;
        assert_eq!(mode, if name.ends_with("bin/oxicorn") { 0o755 } else { 0o644 }, "{name}");
    }

    fs::write(&settings, "# mine\n").expect("our own file");
    make(&["install", &destination, "PREFIX=/usr", BIN]);
    assert_eq!(fs::read_to_string(&settings).expect("it is there"), "# mine\n");
    make(&["uninstall", &destination, "PREFIX=/usr"]);
    assert_eq!(files(root.path()), BTreeSet::from(["etc/oxicorn/supervisor.toml".to_owned()]));
}

/// cargo-deb takes minutes to build, so developers run `make deb` by hand. The test only reads the list of files in the
/// manifest.
#[test]
fn the_debian_package_holds_what_make_install_installs() {
    let manifest: toml::Table = read("service/Cargo.toml").parse().expect("TOML");
    let package = &manifest["package"]["metadata"]["deb"];
    let mut packed = BTreeSet::new();
    let assets = package["assets"].as_array().expect("a list");
    for asset in assets {
        let [source, place, mode] = [0, 1, 2].map(|at| asset[at].as_str().expect("a text"));
        let folder = source
            .strip_prefix("../target/deb/")
            .and_then(|source| source.strip_suffix('*'))
            .expect("a folder of `make deb`");
        let expected = if folder == "usr/bin/" { "755" } else { "644" };
        assert_eq!(mode, expected, "{source}");
        // Debian keeps the zsh completions of packages in the folder `vendor-completions`.
        assert!(place == folder || place == "usr/share/zsh/vendor-completions/", "{source} → {place}");
        packed.extend(
            installed("usr")
                .into_iter()
                .filter(|name| name.rsplit_once('/').is_some_and(|(of, _)| folder == format!("{of}/"))),
        );
    }
    assert_eq!(packed, installed("usr"), "of what `make install` puts there");
    assert_eq!(assets.len(), 10);
    for name in package["conf-files"].as_array().expect("a list") {
        let name = name.as_str().and_then(|name| name.strip_prefix('/')).expect("an absolute path");
        assert!(packed.contains(name), "{name} is not in the package");
    }
    let scripts = root().join("service").join(package["maintainer-scripts"].as_str().expect("a folder"));
    for name in ["postinst", "prerm", "postrm"] {
        let script = scripts.join(name);
        let parsed = Command::new("sh").arg("-n").arg(&script).output().expect("sh can be run");
        assert!(parsed.status.success(), "{}", text(&parsed));
        assert_eq!(fs::metadata(&script).expect("it is there").mode() & 0o111, 0o111, "{name} cannot be run");
    }
}

// ---- from the binary to a running service ---------------------------------------------------------------------------

/// Returns the commands that the page tells the operator to run as root.
fn documented() -> Vec<String> {
    let page = read("docs/guides/systemd.md");
    let (_, section) = page.split_once("## From the program to a running service\n").expect("the page has it");
    let block = section.split("```").nth(1).expect("commands");
    block.lines().filter_map(|line| line.strip_prefix("# ").map(str::to_owned)).collect()
}

/// A root folder that holds only the documented files and the C library. A program that runs in it sees nothing else.
struct Root {
    folder: TempDir,
    unit: BTreeMap<String, String>,
    uid: u32,
    gid: u32,
}

impl Root {
    /// Makes the folders that a system with systemd has before the service is installed.
    fn new() -> Self {
        assert!(Uid::effective().is_root(), "only root can play systemd: run the tests as root");
        let folder = tempfile::Builder::new().prefix("oxicorn-root-").tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
        for name in ["etc", "proc", "dev", "run/systemd", "tmp", "var/lib", "var/log"] {
            fs::create_dir_all(folder.path().join(name)).expect("our own folder");
        }
        let libraries = Command::new("ldd").arg(env!("CARGO_BIN_EXE_oxicorn")).output().expect("ldd can be run");
        for library in text(&libraries).split_whitespace().filter(|word| word.starts_with('/')) {
            let copy = folder.path().join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().expect("a folder")).expect("our own folder");
            fs::copy(library, copy).expect("the C library is there");
        }
        fs::write(folder.path().join("etc/nsswitch.conf"), "passwd: files\ngroup: files\n").expect("our own file");
        Self { folder, unit: BTreeMap::new(), uid: 0, gid: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name.trim_start_matches('/'))
    }

    /// Runs the commands of the page. Leaves out the commands that call systemd, because the test plays systemd.
    fn install(&mut self) {
        let destination = format!("DESTDIR={}", self.folder.path().display());
        for command in documented() {
            let words: Vec<_> = command.split(' ').collect();
            match words[..] {
                ["make", "install"] => make(&["install", &destination, BIN]),
                [tool @ ("systemd-sysusers" | "systemd-tmpfiles"), ref rest @ ..] => {
                    let done = Command::new(tool).arg("--root").arg(self.folder.path()).args(rest).output();
                    let done = done.unwrap_or_else(|error| panic!("{tool} (make needs): {error}"));
                    assert!(done.status.success(), "{command}: {}", text(&done));
                }
                ["runuser", ..] | ["systemctl", ..] => {}
                _ => panic!("the page has a command that this test does not know: {command}"),
            }
        }
        let accounts = fs::read_to_string(self.path("etc/passwd")).expect("systemd-sysusers writes it");
        let account = accounts.lines().find(|line| line.starts_with("oxicorn:")).expect("the user is made");
        let [uid, gid] = [2, 3].map(|at| account.split(':').nth(at).and_then(|id| id.parse().ok()).expect("an id"));
        let unit = fs::read_to_string(self.path("usr/local/lib/systemd/system/oxicorn.service")).expect("it is there");
        let keys = unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        self.unit = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        (self.uid, self.gid) = (uid, gid);
        assert_eq!([&self.unit["User"], &self.unit["Group"]], ["oxicorn", "oxicorn"]);
        assert!(uid > 0 && gid > 0, "{account}");
    }

    /// Makes the unit's folders as systemd would. Returns the environment variables that name them.
    fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".to_owned()),
            ("NOTIFY_SOCKET".to_owned(), "/run/systemd/notify".to_owned()),
        ]);
        for (kind, place) in
            [("Runtime", "/run"), ("State", "/var/lib"), ("Logs", "/var/log"), ("Configuration", "/etc")]
        {
            let folder = format!("{place}/{}", self.unit[&format!("{kind}Directory")]);
            fs::create_dir_all(self.path(&folder)).expect("our own folder");
            if kind != "Configuration" {
                let mode = u32::from_str_radix(&self.unit[&format!("{kind}DirectoryMode")], 8).expect("a mode");
                fs::set_permissions(self.path(&folder), fs::Permissions::from_mode(mode)).expect("our own folder");
                chown(self.path(&folder), Some(self.uid), Some(self.gid)).expect("our own folder");
            }
            environment.insert(format!("{}_DIRECTORY", kind.to_uppercase()), folder);
        }
        environment
    }

    /// Runs a command as under `ProtectSystem=strict`, which makes everything read-only except the unit's folders. The
    /// namespaces of the command end with it.
    fn command(&self, command: &str, environment: &BTreeMap<String, String>) -> Command {
        const SCRIPT: &str = "set -e; root=$1 ids=$2; shift 2\n\
            ip link set lo up\n\
            mount --make-rprivate /\n\
            mount --bind $root $root\n\
            mount --bind /proc $root/proc\n\
            mount --rbind /dev $root/dev\n\
            for folder in run tmp var/lib/oxicorn var/log/oxicorn; do\n\
                mount --bind $root/$folder $root/$folder\n\
            done\n\
            mount -o remount,bind,ro $root\n\
            exec setpriv --no-new-privs chroot --userspec=$ids --groups= $root \"$@\"";
        let mut process = Command::new("unshare");
        process.args(["--net", "--mount", "bash", "-c", SCRIPT, "bash"]).arg(self.folder.path());
        process.arg(format!("{}:{}", self.uid, self.gid)).args(command.split(' '));
        process.env_clear().envs(environment).stdin(Stdio::null()).process_group(0);
        process
    }

    fn run(&self, command: &str, environment: &BTreeMap<String, String>) -> Output {
        self.command(command, environment).output().expect("unshare can be run")
    }
}

/// The running service, started by the unit's `ExecStart=`.
struct Unit<'a> {
    root: &'a Root,
    child: Child,
    told: UnixDatagram,
    messages: Vec<String>,
}

impl<'a> Unit<'a> {
    fn start(root: &'a Root, environment: &BTreeMap<String, String>) -> Self {
        let socket = root.path("/run/systemd/notify");
        let told = UnixDatagram::bind(&socket).expect("our own folder");
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).expect("our own socket");
        told.set_nonblocking(true).expect("a socket of ours");
        let log = fs::File::create(root.path("journal")).expect("our own folder");
        let child = root.command(&root.unit["ExecStart"], environment).stderr(log).spawn().expect("unshare can be run");
        Self { root, child, told, messages: Vec::new() }
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.root.path("journal")).unwrap_or_default()
    }

    fn wait_told(&mut self, message: &str) {
        let found = eventually(&format!("systemd is told {message:?}"), PATIENCE, || {
            let mut buffer = [0; 4096];
            while let Ok(len) = self.told.recv(&mut buffer) {
                self.messages.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
            }
            let told = self.messages.iter().any(|told| told == message);
            (told || !matches!(self.child.try_wait(), Ok(None))).then_some(told)
        });
        assert!(found, "it ended before:\n{}", self.journal());
    }

    /// Sends a request from inside the service's network namespace and returns the answer.
    fn ask(&self, bytes: Vec<u8>) -> Response {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.child.id())).expect("it runs");
        let visit = || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            let address = SocketAddr::from(([127, 0, 0, 1], 8000));
            Connection::open(address).and_then(|mut connection| connection.ask(&bytes)).expect("an answer")
        };
        // Uses a new thread, because a thread that has entered the namespace cannot leave it again.
        thread::scope(|scope| scope.spawn(visit).join().expect("the visitor returns"))
    }

    /// Runs a command as root would type it on the machine where the service runs.
    fn as_root(&self, command: &str) -> Output {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg("--target").arg(self.child.id().to_string()).args(["--mount", "--net", "chroot"]);
        nsenter
            .arg(self.root.folder.path())
            .args(command.split(' '))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin");
        nsenter.output().expect("nsenter can be run")
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // If this fails, the process group is empty (ESRCH) and nothing is left to kill.
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[test]
fn the_documented_commands_lead_to_a_service_that_serves() {
    let mut root = Root::new();
    let before = files(root.folder.path());
    root.install();
    let added: BTreeSet<_> = files(root.folder.path()).difference(&before).cloned().collect();
    let accounts = ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"].map(str::to_owned);
    let expected: BTreeSet<_> = installed("usr/local").into_iter().chain(accounts).collect();
    let surplus: Vec<_> =
        added.difference(&expected).filter(|name| !name.starts_with("etc/.pwd") && !name.ends_with('-')).collect();
    assert_eq!(surplus, [""; 0], "no other file is needed");
    // The check above leaves out lock files (`etc/.pwd…`) and old accounts (`etc/passwd-` and the like), because no
    // program in this root reads them.
    let environment = root.environment();

    // Runs the check that the page recommends, as the service's user, before the start.
    let check =
        documented().into_iter().find(|command| command.starts_with("runuser -u oxicorn -- ")).expect("a check");
    let check = check.trim_start_matches("runuser -u oxicorn -- env ").to_owned();
    let (variable, check) = check.split_once(' ').expect("a variable and a command");
    let (name, value) = variable.split_once('=').expect("a variable");
    assert_eq!((name, Some(value)), ("STATE_DIRECTORY", environment.get(name).map(String::as_str)));
    let check = check.replacen("oxicorn", "/usr/local/bin/oxicorn", 1);
    let sound = root.run(&check, &environment);
    assert!(sound.status.success() && text(&sound).contains("would succeed"), "{}", text(&sound));
    // Without its state folder the service cannot start. `check --deep` finds this fault, and a check of the settings
    // alone does not find it.
    let mut poorer = environment.clone();
    poorer.remove("STATE_DIRECTORY");
    let found = root.run(&check, &poorer);
    assert_eq!(found.status.code(), Some(3), "{}", text(&found));
    assert!(
        text(&found).contains("cannot make the folder /etc/oxicorn/data of service.sqlite_path"),
        "{}",
        text(&found)
    );
    assert!(root.run(&check.replace(" --deep", ""), &poorer).status.success());

    let mut unit = Unit::start(&root, &environment);
    unit.wait_told("READY=1");
    let fact = json_request("POST", "/facts", &serde_json::json!({ "text": "It was installed" }));
    assert_eq!(unit.ask(fact).status, 201);
    let facts = root.path("/var/lib/oxicorn/data/facts.db");
    assert_eq!(fs::metadata(&facts).expect("it is there").uid(), root.uid);
    let master = Process(unit.child.id());
    assert_eq!(master.ids("Uid"), [root.uid; 4]);

    // Both commands must find the control socket in $RUNTIME_DIRECTORY, although root's own environment does not have
    // this variable.
    for reload in ["/usr/local/bin/oxicorn reload", &*root.unit["ExecReload"]] {
        let reloaded = unit.as_root(reload);
        assert!(reloaded.status.success(), "{reload}: {}{}", text(&reloaded), unit.journal());
    }
    let upgraded = unit.as_root("/usr/local/bin/oxicorn upgrade");
    assert!(upgraded.status.success(), "{}{}", text(&upgraded), unit.journal());
    let listed = unit.ask(request("GET", "/facts", &[], b""));
    assert!(listed.text().contains("It was installed"), "reload and upgrade find the same facts: {}", listed.text());

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(unit.child.id().cast_signed()), Signal::SIGTERM)
        .expect("it runs");
    unit.wait_told("STOPPING=1");
    let ended = eventually("it stops", PATIENCE, || unit.child.try_wait().expect("our own child"));
    assert_eq!(ended.code(), Some(0), "{}", unit.journal());
    assert!(!root.path("/run/oxicorn/oxicorn.sock").exists(), "the control socket is gone");
    assert!(!unit.journal().contains("ERROR"), "{}", unit.journal());
}

// ---- completions and manual -----------------------------------------------------------------------------------------

/// Runs a real bash with the completion script of `program`. Returns what bash offers after these words.
fn offered(program: &Path, words: &[&str]) -> BTreeSet<String> {
    const SCRIPT: &str = "source <(\"$0\" completions bash)\n\
        COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); name=${0##*/}\n\
        $(complete -p \"$name\" | sed 's/.*-F \\([^ ]*\\).*/\\1/') \"$name\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"\n\
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let name = program.file_name().expect("a name");
    let told =
        Command::new("bash").args(["-c", SCRIPT]).arg(program).arg(name).args(words).output().expect("bash can be run");
    assert!(told.status.success(), "{}", text(&told));
    text(&told).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_flags_under_any_name_of_the_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let shop = folder.path().join("shop");
    symlink(env!("CARGO_BIN_EXE_oxicorn"), &shop).expect("our own folder");
    for program in [Path::new(env!("CARGO_BIN_EXE_oxicorn")), &shop] {
        assert_eq!(offered(program, &["rel"]), BTreeSet::from(["reload".to_owned()]));
        assert!(offered(program, &["check", "--"]).contains("--deep"));
        assert!(offered(program, &["--work"]).contains("--workers"));
    }
    for shell in ["zsh", "fish"] {
        let script = Command::new(&shop).args(["completions", shell]).output().expect("it runs");
        let script = text(&script);
        assert!(
            script.contains("shop") && script.contains("graceful-timeout") && !script.contains("oxicorn,"),
            "{shell}"
        );
    }
    let wrong = Launch::new().run_with(&["completions", "tcsh"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn the_manual_page_names_every_command_and_flag_of_the_help() {
    let run = |arguments: &[&str]| text(&Launch::new().run_with(arguments));
    let page = run(&["man"]);
    assert!(page.contains(".TH oxicorn 1") && page.contains(".SH COMMANDS"), "{page}");
    let plain = page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\fI", "");
    let help = run(&["--help"]);
    let flags: BTreeSet<_> =
        help.split([' ', ',', '\n']).filter(|word| word.starts_with("--") && word.len() > 3).collect();
    assert!(flags.len() > 25, "{help}");
    for flag in flags {
        assert!(plain.contains(flag), "{flag} is not in the manual page:\n{plain}");
    }
    let (_, commands) = help.split_once("Commands:\n").expect("the help lists them");
    let commands = commands.split("\n\n").next().unwrap_or_default();
    let commands = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: Vec<_> =
        commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(commands.len() >= 10 && !commands.contains(&"man"), "{commands:?}");
    for command in commands {
        assert!(
            plain.lines().any(|line| line.split(' ').next() == Some(command)),
            "{command} is not in the manual page"
        );
    }
    for flag in ["--deep", "--watch", "--program", "--now"] {
        assert!(plain.contains(flag), "{flag}, of one command, is not in the manual page");
    }
}
