//! Promise: Unix sockets have the owner that the settings name. IPv4 and IPv6 are served side by side. When another
//! process holds an address, the message names this process.
//!
//! Needs root, to give sockets to other users and to make a network namespace.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use crate::common::{Launch, PATIENCE, Signal, assert_serves_unix, eventually, get, text};
use nix::unistd::{Group, Uid, User};

/// Returns the file's owner, group and mode.
fn rights(path: &Path) -> (u32, u32, u32) {
    let found = fs::metadata(path).expect("the socket's file");
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
fn a_unix_socket_belongs_to_its_owner_and_changes_hands_with_a_reload() {
    assert!(Uid::effective().is_root(), "only root can give a socket away: run the tests as root");
    let user = User::from_name("nobody").expect("the user database").expect("the user nobody");
    let group = Group::from_name("daemon").expect("the group database").expect("the group daemon");
    let mut supervisor = Launch::new()
        .set("server.bind", r#"["unix:{dir}/app.sock", "127.0.0.1:0"]"#)
        .set("server.unix_owner", r#""nobody:daemon""#)
        .set("server.unix_mode", r#""0600""#)
        .serving(2);
    let path = supervisor.path("app.sock");
    let (uid, gid) = (user.uid.as_raw(), group.gid.as_raw());
    assert_eq!(rights(&path), (uid, gid, 0o600));
    let inode = fs::metadata(&path).expect("the socket's file").ino();

    // The master refuses the whole reload, so the socket keeps its owner and its mode.
    supervisor.edit_settings("nobody:daemon", "root:no-such-group");
    supervisor.edit_settings("0600", "0666");
    let refused = supervisor.ctl(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains(r#"server.unix_owner: there is no group "no-such-group" here"#),
        "{}",
        text(&refused)
    );
    let taken = get(supervisor.address(), "/health");
    assert_eq!((taken.status, rights(&path)), (200, (uid, gid, 0o600)));

    supervisor.edit_settings("root:no-such-group", "root:0");
    let reloaded = supervisor.ctl(&["reload"]);
    assert_eq!(reloaded.status.code(), Some(0), "{}", text(&reloaded));
    assert!(text(&reloaded).contains("applies at once: server.unix_mode, server.unix_owner"), "{}", text(&reloaded));
    assert_eq!(rights(&path), (0, 0, 0o666));
    assert_eq!(fs::metadata(&path).expect("the socket's file").ino(), inode, "it is the same socket");
    assert_serves_unix(&path);
    supervisor.stop();
    assert!(!path.exists(), "a stop removes its file");
}

/// When a living process listens on the socket file, the message names this process.
#[test]
fn a_file_of_a_dead_process_is_taken_over_and_one_of_a_living_process_is_not() {
    let mut first = Launch::new().set("server.bind", r#"["unix:{dir}/app.sock"]"#).start();
    first.wait_listening();
    first.wait_serving(2);
    let path = first.path("app.sock");
    let bind = format!(r#"["unix:{}"]"#, path.display());
    let second = Launch::new().set("server.bind", &bind).run();
    assert_eq!(second.status.code(), Some(4), "{}", text(&second));
    let named = format!("(pid {})", first.pid());
    assert!(text(&second).contains("is in use") && text(&second).contains(&named), "{}", text(&second));
    assert_serves_unix(&path);

    // The test stops the master first, so that the master cannot replace workers. It kills the workers before the
    // master. If the master died first, the workers would exit and remove the socket's file.
    first.signal(Signal::SIGSTOP);
    for worker in first.worker_pids() {
        first.signal_worker(worker, Signal::SIGKILL);
    }
    first.signal(Signal::SIGKILL);
    eventually("nothing of it is left", PATIENCE, || {
        (!first.is_running() && first.leftovers().is_empty()).then_some(())
    });
    assert!(path.exists(), "no process was left to remove it");
    let mut heir = Launch::new().set("server.bind", &bind).start();
    heir.wait_listening();
    heir.wait_serving(2);
    assert_serves_unix(&path);
    heir.stop();
}

#[test]
fn the_holder_of_a_taken_port_is_named() {
    let first = Launch::new().serving(2);
    let second = Launch::new().set("server.bind", &format!(r#"["{}"]"#, first.address())).run();
    assert_eq!(second.status.code(), Some(4), "{}", text(&second));
    let named = format!("(pid {})", first.pid());
    assert!(text(&second).contains("is in use") && text(&second).contains(&named), "{}", text(&second));
}

/// The service runs in a network namespace of its own, so that no other machine can reach the wildcard addresses.
#[test]
fn both_families_are_served_on_one_port() {
    let namespace = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""];
    for (bind, reuse_port) in [
        (r#"["[::]:8000"]"#, "true"),
        (r#"["0.0.0.0:8000", "[::]:8000"]"#, "true"),
        // Without SO_REUSEPORT, these two addresses cannot be bound together unless the second address is set to IPv6
        // only.
        (r#"["0.0.0.0:8000", "[::]:8000"]"#, "false"),
        (r#"["127.0.0.1:8000", "[::1]:8000"]"#, "true"),
    ] {
        let launch = Launch::new().set("server.bind", bind).set("server.reuse_port", reuse_port);
        let mut supervisor = launch.through(&namespace).start();
        supervisor.wait_listening();
        supervisor.wait_serving(2);
        for address in ["127.0.0.1", "[::1]"] {
            let entered = Command::new("nsenter")
                .args(["--target", &supervisor.pid().to_string(), "--net"])
                .args(["curl", "-sS", "--noproxy", "*", &format!("http://{address}:8000/health")])
                .output()
                .expect("nsenter can be run");
            assert_eq!(String::from_utf8_lossy(&entered.stdout), r#"{"status":"alive"}"#, "{bind}: {}", text(&entered));
        }
        supervisor.stop();
    }
}
