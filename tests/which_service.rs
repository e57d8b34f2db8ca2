//! Promise: a command acts on the intended service or on no service, and says on which service it acted.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::common::{Launch, PATIENCE, Signal, Supervisor, assert_told, eventually, get, text};

/// Every command that asks a service or reads the settings.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["scale", "3"],
    &["reload"],
    &["upgrade"],
    &["stop"],
    &["health"],
    &["config"],
    &["config", "--running"],
    &["check"],
    &["migrate"],
    &["run"],
];
/// The commands that must never reach any service but the intended one.
const ACTS: &[&[&str]] =
    &[&["scale", "3"], &["reload"], &["upgrade"], &["stop"], &["status"], &["config", "--running"]];

/// Launches a service that chooses the path of its control socket itself, as `control.socket = "auto"` says.
fn with_auto() -> Launch {
    Launch::new().unset("control.socket")
}

fn in_place(launch: Launch, place: &Path) -> Launch {
    launch.env("RUNTIME_DIRECTORY", place.to_str().expect("a path in UTF-8"))
}

#[track_caller]
fn assert_untouched(supervisor: &mut Supervisor) {
    assert!(supervisor.is_running(), "it was stopped");
    let status = supervisor.status();
    assert_eq!(
        (&status["generation"], &status["target_workers"], &status["state"]),
        (&1.into(), &2.into(), &"running".into())
    );
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn a_settings_file_that_cannot_be_read_is_an_error_of_every_command() {
    let mut victim = with_auto().serving(2);
    let place = victim.path("");
    let missing = Path::new("/no/such/supervisor.toml");
    for command in COMMANDS {
        let named = victim.ctl(&[command, &["-c", "/no/such/supervisor.toml"][..]].concat());
        assert_told(&named, 2, "/no/such/supervisor.toml cannot be read");
        assert_told(&victim.ctl_in(command, &[("OXICORN_CONFIG", missing)]), 2, "cannot be read");
        // A path to a folder must be refused too, because a folder is not a settings file.
        assert_told(&victim.ctl(&[command, &["-c", "/tmp"][..]].concat()), 2, "/tmp cannot be read");
    }
    let socket = place.join("oxicorn.sock");
    let by_socket = ["stop", "-c", "/no/such.toml", "--socket", socket.to_str().expect("UTF-8")];
    assert_told(&victim.ctl(&by_socket), 2, "cannot be read");
    assert_untouched(&mut victim);
    victim.stop();
}

#[test]
fn a_mistake_in_the_file_does_not_change_which_service_is_meant() {
    let mut victim = with_auto().serving(2);
    let place = victim.path("");
    let runtime = [("RUNTIME_DIRECTORY", place.as_path())];
    let mut own = in_place(Launch::new(), &place).serving(2);
    let socket = r#"[control]
socket = "control.sock"
"#;
    for broken in [
        format!("{socket}[workers]\ncount = = 4\n"),
        format!("[workers]\ncount = \"\n{socket}"),
        format!("[workers\ncount = 4\n{socket}"),
        format!("workers\n{socket}"),
        format!("{socket}sockte = 3\n[[[\n"),
        format!("{socket}[workers]\ncount = \"many\"\n"),
    ] {
        fs::write(own.path("supervisor.toml"), &broken).expect("our own file");
        assert_told(&own.ctl_in(&["status"], &runtime), 0, &format!("pid {}", own.pid()));
    }
    fs::write(own.path("supervisor.toml"), "[workers]\ncount = = 4\n").expect("our own file");
    let (named, name) = (own.path("control.sock"), PathBuf::from("another"));
    let by_variable = [runtime[0], ("OXICORN_CONTROL__SOCKET", named.as_path())];
    assert_told(&own.ctl_in(&["status"], &by_variable), 0, &format!("pid {}", own.pid()));
    let by_name = [runtime[0], ("OXICORN_PROCESS__NAME", name.as_path())];
    assert_told(&own.ctl_in(&["stop"], &by_name), 1, "no running service named another uses");
    assert_told(&own.ctl_in(&["stop", "--name", "another"], &runtime), 1, "no running service named another answers");

    // After this stop, the service that the command means no longer runs. The command must not act on the other service
    // instead.
    own.stop();
    for broken in [format!("{socket}[workers]\ncount = = 4\n"), "[workers]\ncount = = 4\n".to_owned()] {
        fs::write(own.path("supervisor.toml"), &broken).expect("our own file");
        for command in ACTS {
            assert_told(&own.ctl_in(command, &runtime), 1, "no running service");
        }
    }
    assert_untouched(&mut victim);
    victim.stop();
}

#[test]
fn a_command_that_names_the_file_of_another_service_does_nothing() {
    let mut victim = with_auto().serving(2);
    let place = victim.path("");
    let runtime = [("RUNTIME_DIRECTORY", place.as_path())];
    let elsewhere = folder();
    let theirs = elsewhere.path().join("supervisor.toml");
    fs::write(&theirs, "").expect("our own file");
    let (file, socket) = (victim.path("supervisor.toml"), victim.path("oxicorn.sock"));
    let told = format!(
        "--socket {}  oxicorn (pid {}, {}, {})",
        socket.display(),
        victim.pid(),
        victim.address(),
        file.display()
    );
    for command in ACTS {
        let here = victim.ctl_elsewhere(elsewhere.path(), command, &runtime);
        assert_told(&here, 1, &told);
        let by_file = [runtime[0], ("OXICORN_CONFIG", theirs.as_path())];
        assert_told(&victim.ctl_elsewhere(Path::new("/"), command, &by_file), 1, &told);
        let flag = ["-c", theirs.to_str().expect("UTF-8")];
        assert_told(&victim.ctl_elsewhere(Path::new("/"), &[command, &flag[..]].concat(), &runtime), 1, &told);
    }
    // The client's settings file now names the socket of the other service. The master of the other service refuses the
    // request, because the client means the service of its own settings file.
    fs::write(&theirs, format!("[control]\nsocket = {socket:?}\n")).expect("our own file");
    let refused = victim.ctl_elsewhere(elsewhere.path(), &["stop"], &runtime);
    assert_told(
        &refused,
        1,
        &format!("means the service of {}, and another service answers: oxicorn", theirs.display()),
    );
    assert_told(&refused, 1, &format!("Use --socket {}", socket.display()));
    let checked = victim.ctl_elsewhere(elsewhere.path(), &["check"], &runtime);
    assert!(checked.status.success() && !text(&checked).contains("reload"), "{}", text(&checked));
    assert_untouched(&mut victim);

    // A command reaches another service if its flags name the socket, the name or the settings file of this service. In
    // a folder without a settings file, a command may reach any service.
    let flag = ["--socket", socket.to_str().expect("UTF-8")];
    let pid = format!("pid {}", victim.pid());
    assert_told(&victim.ctl_elsewhere(elsewhere.path(), &["status", flag[0], flag[1]], &[]), 0, &pid);
    assert_told(&victim.ctl_elsewhere(elsewhere.path(), &["status", "--name", "oxicorn"], &runtime), 0, &pid);
    let flag = ["-c", file.to_str().expect("UTF-8")];
    assert_told(&victim.ctl_elsewhere(elsewhere.path(), &["status", flag[0], flag[1]], &runtime), 0, &pid);
    let acted = victim.ctl_elsewhere(Path::new("/"), &["stop"], &runtime);
    assert_told(&acted, 0, &format!("oxicorn ({pid}, {}, {}): stopped", victim.address(), file.display()));
    assert_eq!(victim.wait_exit(PATIENCE), 0);
}

#[test]
fn each_command_reports_the_service_it_acted_on() {
    let mut supervisor = Launch::new().serving(2);
    let who = format!(
        "oxicorn (pid {}, {}, {}): ",
        supervisor.pid(),
        supervisor.address(),
        supervisor.path("supervisor.toml").display()
    );
    for command in [&["scale", "3"][..], &["reload"], &["upgrade"], &["stop"]] {
        assert_told(&supervisor.ctl(command), 0, &who);
    }
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn two_services_with_one_name_run_side_by_side() {
    let place = folder();
    let runtime = [("RUNTIME_DIRECTORY", place.path())];
    let launch = || in_place(with_auto(), place.path());
    let (mut first, mut second) = (launch().serving(2), launch().serving(2));
    let log = second.log();
    assert!(!log.0.contains("WARN") && log.0.contains("another service named oxicorn runs"), "{}", log.tail(20));
    for supervisor in [&first, &second] {
        let pid = format!("pid {}", supervisor.pid());
        assert_told(&supervisor.ctl_in(&["status"], &runtime), 0, &pid);
        assert_told(&supervisor.ctl_in(&["status", "--name", "oxicorn"], &runtime), 0, &pid);
        let (file, flag) = (supervisor.path("supervisor.toml"), "-c");
        let by_file = ["status", flag, file.to_str().expect("UTF-8")];
        assert_told(&first.ctl_elsewhere(Path::new("/"), &by_file, &runtime), 0, &pid);
        for command in [&["stop"][..], &["stop", "--name", "oxicorn"]] {
            let output = first.ctl_elsewhere(Path::new("/"), command, &runtime);
            assert_told(&output, 2, &format!("({pid}, {}, ", supervisor.address()));
        }
    }
    // Two different paths lead to the same service, so the command knows which service to ask.
    let link = first.path("link");
    symlink(place.path(), &link).expect("a link in our own folder");
    let twice = [("RUNTIME_DIRECTORY", place.path()), ("XDG_RUNTIME_DIR", link.as_path())];
    assert_told(&first.ctl_in(&["status"], &twice), 0, &format!("pid {}", first.pid()));

    let stopped = second.ctl_in(&["stop"], &runtime);
    assert_told(&stopped, 0, &format!("(pid {}", second.pid()));
    assert_eq!(second.wait_exit(PATIENCE), 0);
    assert_untouched_in(&mut first, &runtime);
    let mut third = launch().serving(2);
    assert_told(&first.ctl_in(&["stop"], &runtime), 0, &format!("(pid {}", first.pid()));
    assert_eq!(first.wait_exit(PATIENCE), 0);
    // Only one service is left, so the command finds this service although its socket has another name.
    assert_told(&third.ctl_elsewhere(Path::new("/"), &["status"], &runtime), 0, &format!("pid {}", third.pid()));
    third.stop();
    assert_eq!(fs::read_dir(place.path()).expect("our own folder").count(), 0, "a socket was not removed");
}

#[track_caller]
fn assert_untouched_in(supervisor: &mut Supervisor, environment: &[(&str, &Path)]) {
    assert!(supervisor.is_running(), "it was stopped");
    let status = supervisor.ctl_in(&["status"], environment);
    assert_told(&status, 0, "running  2 of 2 workers serve");
}

/// Starts a service without a settings file in a new folder, as a user would do to try the program.
fn without_a_file(place: &Path) -> Supervisor {
    let launch = in_place(Launch::new(), place).through(&["sh", "-c", "cd sub && exec \"$@\"", "sh"]);
    fs::create_dir(launch.path("sub")).expect("a folder of our own");
    launch.env("OXICORN_SERVER__BIND", "127.0.0.1:0").env("OXICORN_WORKERS__COUNT", "2").serving(2)
}

#[test]
fn without_a_settings_file_a_service_is_known_by_its_folder() {
    let place = folder();
    let runtime = [("RUNTIME_DIRECTORY", place.path())];
    let (mut first, mut second) = (without_a_file(place.path()), without_a_file(place.path()));
    let in_folder = |of: &Supervisor, command: &[&str]| of.ctl_elsewhere(&of.path("sub"), command, &runtime);
    for supervisor in [&first, &second] {
        assert_told(&in_folder(supervisor, &["status"]), 0, &format!("pid {}", supervisor.pid()));
    }
    let (pid, sub) = (second.pid(), second.path("sub"));
    let stopped = in_folder(&second, &["stop"]);
    assert_told(&stopped, 0, &format!("oxicorn (pid {pid}, {}, in {}): stopped", second.address(), sub.display()));
    assert_eq!(second.wait_exit(PATIENCE), 0);
    // A settings file that appears later in the folder of a running service belongs to this service. The file in the
    // folder of the stopped service does not belong to the running service.
    fs::write(first.path("sub/supervisor.toml"), "").expect("our own file");
    assert_told(&in_folder(&first, &["status"]), 0, &format!("pid {}", first.pid()));
    fs::write(sub.join("supervisor.toml"), "").expect("our own file");
    assert_told(&in_folder(&second, &["stop"]), 1, "nothing was done");
    first.stop();
}

#[test]
fn a_command_and_the_master_follow_a_moved_current_link_alike() {
    let place = folder();
    let runtime = [("RUNTIME_DIRECTORY", place.path())];
    let launch = in_place(Launch::new(), place.path()).through(&["sh", "-c", "cd current && exec \"$@\"", "sh"]);
    for release in ["1", "2", "other"] {
        fs::create_dir(launch.path(release)).expect("a folder of our own");
        let settings = "[server]\nbind = [\"127.0.0.1:0\"]\n[workers]\ncount = 2\n";
        fs::write(launch.path(release).join("supervisor.toml"), settings).expect("our own file");
    }
    let current = launch.path("current");
    symlink("1", &current).expect("a link of our own");
    let mut supervisor = launch.serving(2);
    let pid = format!("pid {}", supervisor.pid());
    let status_in = |name: &str| supervisor.ctl_elsewhere(&supervisor.path(name), &["status"], &runtime);
    assert_told(&status_in("current"), 0, &pid);
    assert_told(&status_in("1"), 0, &pid);
    assert_told(&status_in("2"), 1, "nothing was done");
    fs::remove_file(&current).expect("it was there");
    symlink("2", &current).expect("a link of our own");
    assert_told(&status_in("current"), 0, &pid);
    assert_told(&status_in("2"), 0, &pid);
    assert_told(&status_in("other"), 1, "nothing was done");
    supervisor.stop();
}

#[test]
fn a_control_socket_that_disappears_is_made_again() {
    let launch = with_auto();
    let place = launch.path("run");
    fs::create_dir(&place).expect("a folder of our own");
    let mut supervisor = in_place(launch, &place).serving(2);
    let runtime = [("RUNTIME_DIRECTORY", place.as_path())];
    let asked = |supervisor: &Supervisor| supervisor.ctl_in(&["status"], &runtime).status.success();
    assert!(asked(&supervisor));
    fs::remove_dir_all(&place).expect("our own folder");
    assert!(!asked(&supervisor));
    fs::create_dir(&place).expect("a folder of our own");
    // The master makes the socket again by itself after a while, and at once at a reload.
    eventually("the socket is made again", PATIENCE, || asked(&supervisor).then_some(()));
    fs::remove_file(place.join("oxicorn.sock")).expect("it was made again");
    supervisor.signal(Signal::SIGHUP);
    eventually("the socket is made again", PATIENCE, || place.join("oxicorn.sock").exists().then_some(()));
    let log = supervisor.log();
    assert_eq!(
        log.0.lines().filter(|line| line.contains("the file of the control socket was gone")).count(),
        2,
        "{}",
        log.tail(20)
    );
    supervisor.wait_log("reloaded", 1, PATIENCE);
    supervisor.stop();
    assert!(!place.join("oxicorn.sock").exists(), "the socket was not removed");
}

#[test]
fn a_unit_whose_runtime_directory_has_another_name_is_found() {
    let place = tempfile::Builder::new().prefix("oxicorn-unit-").tempdir_in("/run").expect("the tests run as root");
    let mut supervisor = in_place(with_auto(), place.path()).serving(2);
    let pid = format!("pid {}", supervisor.pid());
    assert_told(&supervisor.ctl_elsewhere(&supervisor.path(""), &["status"], &[]), 0, &pid);
    let file = supervisor.path("supervisor.toml");
    let by_file = ["status", "-c", file.to_str().expect("UTF-8")];
    assert_told(&supervisor.ctl_elsewhere(Path::new("/"), &by_file, &[]), 0, &pid);
    // When other users can write to the folder, a socket in the folder may belong to one of these users. The command
    // therefore does not use the socket.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("our own folder");
    assert_told(&supervisor.ctl_elsewhere(Path::new("/"), &by_file, &[]), 1, "no running service");
    supervisor.stop();
}

/// A user started the service in a login session, and the logout removes the folder of this session. Cron, sudo or a
/// hook must find the service without the session's environment variables.
#[test]
fn a_users_service_is_found_without_the_login_and_by_root() {
    const UID: u32 = 54_321;
    let launch = with_auto();
    let login = launch.path("login");
    fs::create_dir(&login).expect("a folder of our own");
    fs::copy(env!("CARGO_BIN_EXE_oxicorn"), launch.path("oxicorn")).expect("a program that any user may run");
    for path in [launch.path(""), login.clone()] {
        chown(path, Some(UID), Some(UID)).expect("the tests run as root");
    }
    let become_user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
    let private = PathBuf::from(format!("/tmp/oxicorn-{UID}"));
    let mut supervisor = launch
        .env("RUNTIME_DIRECTORY", "")
        .env("XDG_RUNTIME_DIR", login.to_str().expect("UTF-8"))
        .set("process.name", "\"lonely\"")
        .through(&become_user)
        .serving(2);
    let pid = format!("pid {}", supervisor.pid());
    assert!(private.join("lonely.sock").exists(), "{}", supervisor.log().tail(20));
    let (here, file) = (supervisor.path(""), supervisor.path("supervisor.toml"));
    assert_told(&supervisor.ctl_elsewhere(&here, &["status"], &[]), 0, &pid);
    assert_told(
        &supervisor.ctl_elsewhere(Path::new("/"), &["reload", "-c", file.to_str().expect("UTF-8")], &[]),
        0,
        &pid,
    );
    assert_told(&supervisor.ctl_elsewhere(Path::new("/"), &["status", "--name", "lonely"], &[]), 0, &pid);
    // The command looks into a folder only if the folder belongs to its user alone. The test stops the master while the
    // rights are wrong, because the master would otherwise look for another folder.
    supervisor.signal(Signal::SIGSTOP);
    for (mode, owner) in [(0o777, UID), (0o750, UID), (0o700, UID + 1)] {
        fs::set_permissions(&private, fs::Permissions::from_mode(mode)).expect("we are root");
        chown(&private, Some(owner), Some(owner)).expect("we are root");
        let refused = supervisor.ctl_elsewhere(Path::new("/"), &["status", "--name", "lonely"], &[]);
        assert_told(&refused, 1, "no running service named lonely answers");
    }
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).expect("we are root");
    chown(&private, Some(UID), Some(UID)).expect("we are root");
    supervisor.signal(Signal::SIGCONT);
    // A cleaner of /tmp removes the folder and the socket in it. The master must make both again.
    fs::remove_dir_all(&private).expect("we are root");
    eventually("the folder is made again", PATIENCE, || {
        supervisor.ctl_elsewhere(&here, &["status"], &[]).status.success().then_some(())
    });
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    supervisor.stop();
    // If this fails, the folder is not empty or belongs to another program, and it stays.
    let _ = fs::remove_dir(&private);
}
