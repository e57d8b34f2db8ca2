//! Promise: a missing file or folder never changes a setting silently and never stops a service. This file tests each
//! row of the table in docs/operations/files-and-folders.md.
//!
//! Needs root, to become a user without rights and to mount a small disk.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::json;

use crate::common::{
    Canary, Connection, Launch, PATIENCE, Signal, Supervisor, assert_serves_unix, assert_told_all, events, eventually,
    get, json_request, text,
};
use crate::https::{Authority, PLAIN, WithTls, certificate, connect};

/// Asserts that the master refuses reload and upgrade for this reason, by signal and by command, and that they change
/// nothing.
#[track_caller]
fn refused(supervisor: &Supervisor, reason: &str) {
    let (log, before) = (supervisor.log(), supervisor.ctl_by_socket(&["status", "--json"]));
    let lines = (log.count(events::RELOAD_REFUSED), log.count(events::UPGRADE_REFUSED));
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 1, &["refused", reason]);
    assert_told_all(&supervisor.ctl_by_socket(&["upgrade"]), 1, &["refused", reason]);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log(events::RELOAD_REFUSED, lines.0 + 2, PATIENCE);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log(events::UPGRADE_REFUSED, lines.1 + 2, PATIENCE);
    let generation = |output: &Output| {
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (status["generation"].clone(), status["listeners"][0]["address"].clone())
    };
    let after = supervisor.ctl_by_socket(&["status", "--json"]);
    assert_eq!(generation(&after), generation(&before), "nothing has changed");
}

/// Posts a fact without a token and returns the status of the answer.
fn post(supervisor: &Supervisor) -> u16 {
    let fact = json_request("POST", "/facts", &json!({ "text": "a fact" }));
    Connection::open(supervisor.address()).and_then(|mut connection| connection.ask(&fact)).expect("an answer").status
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file in our own folder");
}

fn replace_link(link: &Path, to: &Path) {
    let draft = link.with_extension("draft");
    symlink(to, &draft).expect("a link in our own folder");
    fs::rename(&draft, link).expect("our own link");
}

/// Without its settings file the service would accept writes without a token, move to another port and make an empty
/// database. The master must therefore refuse a reload and an upgrade when the file is missing.
#[test]
fn a_settings_file_that_disappears_is_required_by_reload_and_upgrade() {
    let mut supervisor = Launch::new().set("service.bearer_token", r#""s3cret""#).serving(2);
    let (file, away) = (supervisor.path("supervisor.toml"), supervisor.path("away.toml"));
    assert_eq!(post(&supervisor), 401);
    for round in 0..2 {
        fs::rename(&file, &away).expect("our own file");
        refused(&supervisor, "supervisor.toml is gone");
        symlink("nowhere", &file).expect("a link in our own folder");
        refused(&supervisor, "it is a link to nowhere, and nothing is there");
        fs::remove_file(&file).expect("our own link");
        fs::create_dir(&file).expect("a folder in our own");
        refused(&supervisor, "supervisor.toml cannot be read: Is a directory");
        fs::remove_dir(&file).expect("our own folder");
        // A full disk leaves an empty file behind. `echo > FILE` and some editors do the same.
        for emptied in ["", "\n", " \n\t\r\n", "\u{feff}"] {
            write(&file, emptied);
            refused(&supervisor, "it is empty now");
        }
        fs::remove_file(&file).expect("our own file");
        assert!(Command::new("mkfifo").arg(&file).status().expect("mkfifo can be run").success());
        refused(&supervisor, "it is a pipe");
        // Puts the file back by a rename, as editors do.
        fs::rename(&away, &file).expect("our own file");
        assert_eq!(post(&supervisor), 401, "round {round}");
        // An upgrade starts a new program, and this program requires the settings file too. The next round of the loop
        // tests the new program.
        assert_told_all(&supervisor.ctl_by_socket(&[if round == 0 { "upgrade" } else { "reload" }]), 0, &["serves"]);
    }
    supervisor.stop();
}

#[test]
fn messages_name_a_file_by_its_absolute_path_in_the_root_folder_too() {
    let file = Launch::new().path("no.toml");
    let check = Command::new(env!("CARGO_BIN_EXE_oxicorn")).args(["check", "-c"]).arg(&file).current_dir("/").output();
    assert_told_all(
        &check.expect("oxicorn can be run"),
        2,
        &[&format!("the settings file {} cannot be read", file.display())],
    );
}

#[test]
fn settings_that_cannot_be_looked_at_refuse_the_start() {
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let cases = [
        ("rm {file}; ln -s nowhere {file}", false, "it is a link to nowhere, and nothing is there"),
        ("chmod 0700 {dir}", true, "cannot be seen: Permission denied"),
        ("rm {file}; mkfifo {file}", false, "it is a pipe, not a file"),
        ("chmod 0600 {file}", true, "cannot be read: Permission denied"),
    ];
    for (spoil, as_nobody, reason) in cases {
        for command in ["check", "run"] {
            let launch = Launch::new();
            let (file, dir) = (launch.path("supervisor.toml"), launch.path(""));
            let spoil = spoil.replace("{file}", &file.display().to_string());
            let spoil = spoil.replace("{dir}", &dir.display().to_string());
            let become_nobody = if as_nobody { nobody } else { "" };
            // `Launch` writes the settings file just before the command runs. The wrapper then spoils the file and runs
            // the program.
            let wrapper = format!("{spoil}; exec {become_nobody} \"$0\" \"$@\"");
            let output = launch.through(&["sh", "-c", &wrapper]).arg(command).run();
            assert_eq!(output.status.code(), Some(2), "{command}, {spoil}: {}", text(&output));
            assert!(text(&output).contains(reason), "{command}, {spoil}: {}", text(&output));
        }
    }
    // If the service never had a settings file, its absence is not an error.
    let nothing = Launch::new().raw("").arg("check");
    let remove = format!("rm {}; exec \"$0\" \"$@\"", nothing.path("supervisor.toml").display());
    assert_told_all(&nothing.through(&["sh", "-c", &remove]).run(), 0, &["settings are valid"]);
}

/// The master also refuses a reload if another file that the settings name is missing or empty.
#[test]
fn named_files_that_are_missing_or_empty_refuse_a_reload() {
    let launch = Launch::new()
        .set("process.env_file", r#""{dir}/app.env""#)
        .set("service.store", r#""sqlite""#)
        .set("service.bearer_token_file", r#""{dir}/token""#)
        .set("service.mongodb_uri_file", r#""{dir}/uri""#);
    write(&launch.path("app.env"), "OXICORN_SERVICE__DEBUG=true\n");
    write(&launch.path("token"), "s3cret\n");
    write(&launch.path("uri"), "mongodb://127.0.0.1:1\n");
    let mut supervisor = launch.serving(2);
    assert_eq!(post(&supervisor), 401);
    for (name, key) in
        [("app.env", "process.env_file"), ("token", "service.bearer_token_file"), ("uri", "service.mongodb_uri_file")]
    {
        let (file, away) = (supervisor.path(name), supervisor.path("away"));
        fs::rename(&file, &away).expect("our own file");
        refused(&supervisor, key);
        write(&file, "");
        refused(&supervisor, "empty");
        fs::rename(&away, &file).expect("our own file");
    }
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 0, &["serves"]);
    assert_eq!(post(&supervisor), 401);
    supervisor.stop();

    for key in ["service.bearer_token_file", "service.mongodb_uri_file"] {
        for command in ["check", "run"] {
            let launch = Launch::new().set(key, r#""{dir}/held""#).arg(command);
            assert_told_all(&launch.run(), 2, &[key, "No such file"]);
            write(&launch.path("held"), "\n");
            assert_told_all(&launch.run(), 2, &[key, "is empty"]);
        }
    }
}

/// Workers that start after the certificate's file disappeared get the certificate that the master had read before.
#[test]
fn a_certificate_whose_file_disappears_is_still_served() {
    let authority = Authority::new();
    let mut supervisor = Launch::new().tls(&authority.issue(|_| {})).serving(2);
    let config = PLAIN.trusting(&authority);
    let served = || certificate(&connect(supervisor.address(), &config));
    let before = served();
    for (name, key) in [("chain.pem", "tls.certfile"), ("key.pem", "tls.keyfile")] {
        let (file, away) = (supervisor.path(name), supervisor.path("away"));
        fs::rename(&file, &away).expect("our own file");
        refused(&supervisor, key);
        write(&file, "");
        refused(&supervisor, key);
        for pid in supervisor.worker_pids() {
            supervisor.signal_worker(pid, Signal::SIGKILL);
            supervisor.wait_gone(pid);
        }
        supervisor.wait_serving(2);
        assert_eq!(served(), before);
        fs::rename(&away, &file).expect("our own file");
    }
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 0, &["serves"]);
    supervisor.stop();
}

/// Starts a service in `current`, which is a symbolic link to the folder `one`. The settings in the folder `two`
/// differ.
fn deployed() -> (Supervisor, PathBuf) {
    let launch = Launch::new().env("PWD", "{dir}/current").args(&["--workers", "2"]);
    for (release, docs) in [("one", true), ("two", false), ("three", true)] {
        fs::create_dir(launch.path(release)).expect("a folder in our own");
        let dir = launch.path("");
        let dir = dir.to_str().expect("a path in UTF-8").trim_end_matches('/');
        let settings = format!(
            "[server]\nbind = ['127.0.0.1:0', 'unix:app.sock']\n[control]\nsocket = '{dir}/control.sock'\n\
             [service]\nsqlite_path = '{dir}/facts.db'\ndebug = true\ndocs = {docs}\n"
        );
        write(&launch.path(release).join("supervisor.toml"), &settings);
    }
    symlink("one", launch.path("current")).expect("a link in our own folder");
    let current = launch.path("current");
    let enter = format!("cd {} && exec \"$0\" \"$@\"", current.display());
    (launch.through(&["sh", "-c", &enter]).serving(2), current)
}

/// Reload and upgrade use the path of the folder in which the service was started. They follow the symbolic links in
/// this path again each time.
#[test]
fn reload_and_upgrade_follow_a_moved_link() {
    for command in ["reload", "upgrade"] {
        let (supervisor, current) = deployed();
        // Repeats the request until a new worker answers. An old worker may still take one last request after the
        // master has answered the command.
        let docs = |status: u16| {
            eventually("the settings of that release serve", PATIENCE, || {
                (get(supervisor.address(), "/docs").status == status).then_some(())
            });
        };
        let folder = || fs::read_link(format!("/proc/{}/cwd", supervisor.pid())).expect("the master's folder");
        docs(200);
        assert_eq!(folder(), supervisor.path("one"));
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        replace_link(&current, Path::new("two"));
        // Removes the old release at once, as deployments do.
        fs::remove_dir_all(supervisor.path("one")).expect("our own folder");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        docs(404);
        assert_eq!(folder(), supervisor.path("two"), "{command}");
        assert_serves_unix(&current.join("app.sock"));
        // Moves the symbolic link to a third release, and uses the other one of the two commands.
        replace_link(&current, Path::new("three"));
        let other = if command == "reload" { "upgrade" } else { "reload" };
        assert_told_all(&supervisor.ctl_by_socket(&[other]), 0, &["serves"]);
        docs(200);
        assert_eq!(folder(), supervisor.path("three"), "{other}");
        // The symbolic link now leads to a release without a settings file, so the master refuses the command.
        fs::create_dir(supervisor.path("four")).expect("a folder in our own");
        replace_link(&current, Path::new("four"));
        refused(&supervisor, "current/supervisor.toml is gone");
        // Without the symbolic link, the folder in which the service was started is gone, so the master refuses the
        // command.
        fs::remove_file(&current).expect("our own link");
        refused(&supervisor, "the folder that the service was started in is gone: ");
        symlink("current", &current).expect("a link in our own folder");
        refused(&supervisor, "current/supervisor.toml cannot be seen: Too many levels of symbolic links");
    }
}

#[test]
fn a_service_survives_the_removal_of_the_folder_it_was_started_in() {
    let launch = Launch::new().args(&["-c", "{dir}/supervisor.toml"]);
    fs::create_dir(launch.path("gone")).expect("a folder in our own");
    let gone = launch.path("gone");
    let enter = format!("cd {} && exec \"$0\" \"$@\"", gone.display());
    let mut supervisor = launch.through(&["sh", "-c", &enter]).serving(2);
    fs::remove_dir(&gone).expect("our own folder");
    for command in ["upgrade", "reload", "upgrade"] {
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
    }
    // Runs the command-line client in a folder that was removed.
    let asks = |words: &str| {
        let place = supervisor.path("client");
        fs::create_dir(&place).expect("a folder in our own");
        let script = format!("cd {0} && rmdir {0} && exec {1} {words}", place.display(), env!("CARGO_BIN_EXE_oxicorn"));
        Command::new("sh").args(["-c", &script]).output().expect("sh can be run")
    };
    let (socket, file) = (supervisor.path("control.sock"), supervisor.path("supervisor.toml"));
    assert_told_all(&asks(&format!("status --socket {}", socket.display())), 0, &["2 of 2 workers serve"]);
    assert_told_all(&asks(&format!("status -c {}", file.display())), 0, &["2 of 2 workers serve"]);
    assert_told_all(&asks(&format!("check -c {}", file.display())), 0, &["settings are valid"]);
    assert_told_all(&asks(&format!("reload -c {}", file.display())), 0, &["serves"]);
    assert_told_all(&asks("check -c supervisor.toml"), 2, &["supervisor.toml is a relative path", "gone", "absolute"]);
    assert_told_all(&asks("run -c supervisor.toml"), 2, &["supervisor.toml is a relative path"]);
    assert_told_all(&asks("run"), 2, &["the folder that the service was started in is gone"]);
    let relative = format!("check -c {} --pid run.pid", file.display());
    assert_told_all(&asks(&relative), 2, &["process.pidfile", "run.pid is a relative path"]);
    let relative = format!("upgrade --socket {} --program new", socket.display());
    assert_told_all(&asks(&relative), 2, &["new is a relative path"]);
    for words in ["status", "reload", "stop", "upgrade", "scale 1", "health", "config", "config --running"] {
        let relative = format!("{words} -c {} --socket c.sock", file.display());
        assert_told_all(&asks(&relative), 2, &["--socket", "c.sock is a relative path", "absolute"]);
    }
    supervisor.stop();
}

/// A cleaner of temporary files has removed the socket's file. The next reload or upgrade makes the file again and also
/// applies all other changes.
#[test]
fn a_reload_makes_the_file_of_a_unix_socket_again() {
    for command in ["reload", "upgrade"] {
        let mut supervisor = Launch::new().set("server.bind", r#"["127.0.0.1:0", "unix:{dir}/app.sock"]"#).serving(2);
        let path = supervisor.path("app.sock");
        // This client connects before the file is removed and sends its request afterwards. The workers must still
        // serve the queue of the old socket.
        let mut early = Connection::open_unix(&path).expect("the unix socket accepts");
        fs::remove_file(&path).expect("the socket's file");
        assert_told_all(
            &supervisor.ctl(&["check"]),
            0,
            &["settings are valid", "app.sock has lost its file and gets a new one"],
        );
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["generation 2 serves"]);
        assert_eq!(supervisor.log().count("socket_recreated"), 1);
        assert_eq!(fs::metadata(&path).expect("the socket's file").mode() & 0o777, 0o660);
        assert_serves_unix(&path);
        assert_eq!(early.get("/health").expect("an answer").status, 200);
        // If another program's file is now at this path, the master does not touch the file and refuses the command.
        fs::remove_file(&path).expect("the socket's file");
        write(&path, "precious");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 1, &["refused", "app.sock exists and is not a socket"]);
        assert_told_all(&supervisor.ctl(&["check"]), 0, &["would be refused", "app.sock exists and is not a socket"]);
        fs::remove_file(&path).expect("our own file");
        let theirs = std::os::unix::net::UnixListener::bind(&path).expect("a socket in our own folder");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 1, &["refused", "app.sock is in use"]);
        drop(theirs);
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["generation 3 serves"]);
        assert_serves_unix(&path);
        eventually("one socket is left", PATIENCE, || {
            (supervisor.status()["listeners"].as_array().map(Vec::len) == Some(2)).then_some(())
        });
        supervisor.stop();
        assert!(!path.exists());
    }
}

#[test]
fn a_reload_without_the_folder_of_a_unix_socket_is_refused() {
    let launch = Launch::new().set("server.bind", r#"["127.0.0.1:0", "unix:{dir}/run/app.sock"]"#);
    fs::create_dir(launch.path("run")).expect("a folder in our own");
    let mut supervisor = launch.serving(2);
    let (run, path) = (supervisor.path("run"), supervisor.path("run/app.sock"));
    for command in ["reload", "upgrade"] {
        fs::remove_dir_all(&run).expect("our own folder");
        refused(&supervisor, "server.bind: there is no folder");
        assert_eq!(get(supervisor.address(), "/health").status, 200);
        assert!(!run.exists());
        fs::create_dir(&run).expect("a folder in our own");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_serves_unix(&path);
    }
    supervisor.stop();
}

#[test]
fn rights_given_by_hand_stay_until_the_settings_change() {
    let mut supervisor = Launch::new().set("server.bind", r#"["127.0.0.1:0", "unix:{dir}/app.sock"]"#).serving(2);
    let path = supervisor.path("app.sock");
    let rights = || {
        let found = fs::metadata(&path).expect("the socket's file");
        (found.uid(), found.gid(), found.mode() & 0o777)
    };
    assert_eq!(rights(), (0, 0, 0o660));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("our own socket");
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("our own socket");
    for command in ["reload", "upgrade", "reload"] {
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!(rights(), (65534, 65534, 0o666), "{command}");
    }
    let file = supervisor.path("supervisor.toml");
    let settings = fs::read_to_string(&file).expect("the settings file");
    for (mode, command) in [("0600", "reload"), ("0640", "upgrade")] {
        write(&file, &settings.replacen("[server]", &format!("[server]\nunix_mode = \"{mode}\""), 1));
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!(rights().2, u32::from_str_radix(mode, 8).expect("octal"), "{command}");
    }
    supervisor.stop();
}

/// The number in a pid file proves nothing. Any process may have this number, and in a container a process with this
/// number is always alive.
#[test]
fn only_a_living_master_holds_a_pid_file() {
    // Finds the id of a second thread of this process. This id exists but is not the id of a process.
    let canary = Canary::start();
    let threads = fs::read_dir("/proc/self/task").expect("our own threads");
    let threads: Vec<u32> = threads.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    let thread_id = *threads.iter().find(|id| **id != std::process::id()).expect("a second thread");
    for stale in ["1\n".to_owned(), format!("{thread_id}\n"), String::new()] {
        let launch = Launch::new().set("process.pidfile", r#""{dir}/pid""#);
        write(&launch.path("pid"), &stale);
        let mut supervisor = launch.serving(2);
        assert_eq!(
            fs::read_to_string(supervisor.path("pid")).expect("the pid file"),
            format!("{}\n", supervisor.pid())
        );
        supervisor.stop();
        assert!(!supervisor.path("pid").exists());
    }
    drop(canary);

    let mut first = Launch::new().set("process.pidfile", r#""{dir}/pid""#).serving(2);
    let pid = first.path("pid");
    let second = || {
        let output = Launch::new().set("process.pidfile", &format!("{:?}", pid.display().to_string())).run();
        assert_told_all(&output, 1, &["belongs to a master that runs", &format!("(pid {})", first.pid())]);
    };
    second();
    // The master keeps its lock on the pid file through upgrades and reloads.
    for command in ["upgrade", "reload", "upgrade"] {
        assert_told_all(&first.ctl_by_socket(&[command]), 0, &["serves"]);
        second();
    }
    // The lock protects the pid file, whatever the file contains.
    write(&pid, "1\n");
    let output = Launch::new().set("process.pidfile", &format!("{:?}", pid.display().to_string())).run();
    assert_told_all(&output, 1, &["belongs to a master that runs"]);
    first.stop();
    assert!(pid.exists(), "a file that another program has written stays");
}

#[test]
fn a_pid_file_that_disappears_is_written_again() {
    let launch = Launch::new().set("process.pidfile", r#""{dir}/run/pid""#);
    fs::create_dir(launch.path("run")).expect("a folder in our own");
    let mut supervisor = launch.serving(2);
    let (run, pid) = (supervisor.path("run"), supervisor.path("run/pid"));
    let written = || fs::read_to_string(&pid).ok();
    let ours = Some(format!("{}\n", supervisor.pid()));
    for (round, command) in ["reload", "upgrade"].into_iter().enumerate() {
        fs::remove_file(&pid).expect("the pid file");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!((written(), supervisor.log().count("pidfile_recreated")), (ours.clone(), round * 3 + 1));
        // Replaces the pid file with a copy on which no living master has a lock. Reload and upgrade must write it
        // again.
        fs::rename(&pid, supervisor.path("old")).expect("the pid file");
        write(&pid, "1\n");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!((written(), supervisor.log().count("pidfile_recreated")), (ours.clone(), round * 3 + 2));
        // The pid file's folder is gone. The master must not refuse the command for this reason, because the reload may
        // bring new certificates.
        fs::rename(&run, supervisor.path("old-run")).expect("our own folder");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!(supervisor.log().count("pidfile_lost"), round + 1);
        fs::remove_dir_all(supervisor.path("old-run")).expect("our own folder");
        fs::create_dir(&run).expect("a folder in our own");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
        assert_eq!((written(), supervisor.log().count("pidfile_recreated")), (ours.clone(), round * 3 + 3));
    }
    supervisor.stop();
    assert!(!pid.exists());
}

/// When the service cannot reopen a log, it continues to write to the old file and reports the failure there.
#[test]
fn a_service_continues_without_its_log_files() {
    let launch =
        Launch::new().log_to("logs/app.log").set("log.access", r#""{dir}/logs/access.log""#).set("workers.count", "1");
    fs::create_dir(launch.path("logs")).expect("a folder in our own");
    let mut supervisor = launch.serving(1);
    let (logs, old) = (supervisor.path("logs"), supervisor.path("old"));
    let lines = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let seen = |path: &Path| {
        let before = lines(path);
        eventually("a request is in the access log", PATIENCE, || {
            assert_eq!(get(supervisor.address(), "/health").status, 200);
            (lines(path) > before).then_some(())
        });
    };
    seen(&logs.join("access.log"));
    fs::rename(&logs, &old).expect("our own folder");
    seen(&old.join("access.log"));
    let log = || crate::common::Log(fs::read_to_string(old.join("app.log")).unwrap_or_default());
    supervisor.signal(Signal::SIGUSR1);
    eventually("neither log can be reopened", PATIENCE, || (log().count("logs_reopen_failed") == 2).then_some(()));
    seen(&old.join("access.log"));
    for command in ["reload", "upgrade"] {
        assert_told_all(
            &supervisor.ctl_by_socket(&[command]),
            1,
            &["refused", "log.file: there is no folder", "log.access: there is"],
        );
    }
    fs::create_dir(&logs).expect("a folder in our own");
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 0, &["serves"]);
    seen(&logs.join("access.log"));
    supervisor.stop();
}

/// When disks are full or read-only, the service still answers requests. It never writes to its settings file, and its
/// pid file is either complete or absent.
#[test]
fn full_and_read_only_disks_stop_no_service() {
    let mut full = Launch::new().set("log.access", r#""/dev/full""#).serving(2);
    assert_eq!(get(full.address(), "/health").status, 200);
    assert_told_all(&full.ctl_by_socket(&["reload"]), 0, &["serves"]);
    full.wait_log(events::ACCESS_LINES_DROPPED, 1, PATIENCE);
    full.stop();

    let launch = Launch::new().set("process.pidfile", r#""{dir}/disk/pid""#);
    fs::create_dir(launch.path("disk")).expect("a folder in our own");
    let disk = launch.path("disk");
    let disk = disk.display();
    // Mounts the small disk in a new mount namespace, and fills the disk.
    let fill = format!("mount -t tmpfs -o size=4k tmpfs {disk} && head -c 4096 /dev/zero > {disk}/filling");
    let script = format!("{fill}; \"$0\" \"$@\"; code=$?; ls -A {disk}; exit $code");
    let output = launch.through(&["unshare", "--mount", "sh", "-c", &script]).run();
    assert_told_all(&output, 1, &["process.pidfile", "No space left on device"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "filling", "{}", text(&output));

    let launch = Launch::new().args(&["-c", "{dir}/etc/supervisor.toml"]).set("process.pidfile", r#""{dir}/run/pid""#);
    for folder in ["etc", "run"] {
        fs::create_dir(launch.path(folder)).expect("a folder in our own");
    }
    let dir = launch.path("");
    let dir = dir.to_str().expect("a path in UTF-8").trim_end_matches('/').to_owned();
    let script = format!(
        "mount -t tmpfs tmpfs {dir}/etc && mount -t tmpfs tmpfs {dir}/run && cp {dir}/supervisor.toml {dir}/etc && \
         mount -o remount,ro {dir}/etc && exec \"$0\" \"$@\""
    );
    let mut supervisor = launch.through(&["unshare", "--mount", "sh", "-c", &script]).serving(2);
    let inside = PathBuf::from(format!("/proc/{}/root{dir}/run/pid", supervisor.pid()));
    for command in ["reload", "upgrade"] {
        assert_told_all(&supervisor.ctl_by_socket(&[command]), 0, &["serves"]);
    }
    fs::rename(&inside, inside.with_extension("old")).expect("the pid file");
    let remount = format!("mount -o remount,ro {dir}/run");
    let pid = supervisor.pid().to_string();
    let entered = Command::new("nsenter").args(["--mount", "--target", &pid, "sh", "-c", &remount]).status();
    assert!(entered.expect("nsenter can be run").success());
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 0, &["serves"]);
    let lost = supervisor.wait_log("pidfile_lost", 1, PATIENCE);
    assert!(lost[0].contains("Read-only file system"), "{lost:?}");
    supervisor.stop();
}

/// When the database is missing, the reason may be a volume that is not mounted or a folder that was moved. The service
/// must not make an empty database instead.
#[test]
fn a_missing_database_is_not_created_again() {
    let launch = Launch::new().set("service.sqlite_path", r#""{dir}/data/facts.db""#);
    let mut supervisor = launch.serving(2);
    let (data, away) = (supervisor.path("data"), supervisor.path("away"));
    assert_eq!(post(&supervisor), 201);
    for _ in 0..2 {
        fs::rename(&data, &away).expect("our own folder");
        refused(&supervisor, "data/facts.db; put it back");
        assert!(!data.exists());
        fs::rename(&away, &data).expect("our own folder");
        assert_told_all(&supervisor.ctl_by_socket(&["upgrade"]), 0, &["serves"]);
    }
    // A worker that replaces a crashed one must not make the database either, whether or not the folder exists.
    for (round, makes_folder) in [false, true].into_iter().enumerate() {
        fs::rename(&data, &away).expect("our own folder");
        if makes_folder {
            fs::create_dir(&data).expect("a folder in our own");
        }
        supervisor.signal_worker(supervisor.wait_serving(2)[0], Signal::SIGKILL);
        let failed = supervisor.wait_log(events::BOOT_FAILED, round + 1, PATIENCE);
        assert!(failed[round].contains("data/facts.db; put it back"), "{failed:?}");
        if makes_folder {
            fs::remove_dir(&data).expect("our own folder, empty");
        }
        assert!(!data.exists());
        fs::rename(&away, &data).expect("our own folder");
        supervisor.wait_serving(2);
    }
    // An empty file counts as a missing database.
    let (file, away) = (data.join("facts.db"), supervisor.path("away.db"));
    fs::rename(&file, &away).expect("our own file");
    write(&file, "");
    refused(&supervisor, "data/facts.db; put it back");
    fs::rename(&away, &file).expect("our own file");
    assert!(get(supervisor.address(), "/facts").text().contains("a fact"));
    // When the settings name another path, the operator chose a new database, so the service makes it.
    let file = supervisor.path("supervisor.toml");
    let settings = fs::read_to_string(&file).expect("the settings file");
    write(&file, &settings.replace("data/facts.db", "new/facts.db"));
    assert_told_all(&supervisor.ctl_by_socket(&["reload"]), 0, &["serves"]);
    assert!(!get(supervisor.address(), "/facts").text().contains("a fact"));
    supervisor.stop();

    // A symbolic link to a missing file does not show that the operator chose a new database, so the boot fails. A
    // database that the master makes belongs to the workers' user.
    let launch = Launch::new().set("service.sqlite_path", r#""{dir}/facts.db""#);
    symlink("nowhere", launch.path("facts.db")).expect("a link in our own folder");
    assert_eq!(launch.start().wait_exit(PATIENCE), 3);
    let launch = Launch::new().set("service.sqlite_path", r#""{dir}/data/facts.db""#);
    let mut supervisor = launch.set("process.user", r#""nobody""#).serving(2);
    assert_eq!(post(&supervisor), 201);
    let made = fs::metadata(supervisor.path("data/facts.db")).expect("the database");
    assert_eq!((made.uid(), made.mode() & 0o022), (65534, 0));
    supervisor.stop();
}
