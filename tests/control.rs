//! Promise: a caller with the right to ask the master gets one answer, and no caller can disturb the service.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Duration,
};

use crate::common::{
    Canary, Connection, Launch, Load, Mode, PATIENCE, Supervisor, assert_told, events, eventually, get, now,
    observe_for, request,
};

fn warning(supervisor: &Supervisor) -> String {
    let log = supervisor.log();
    log.0.lines().find(|line| line.contains("control.socket:")).unwrap_or_default().to_owned()
}

#[test]
fn scale_answers_when_the_workers_serve() {
    let mut supervisor = Launch::new().serving(2);
    for (change, expected) in [("4", 4), ("+2", 6), ("-5", 1), ("1", 1), ("3", 3)] {
        let workers =
            if expected == 1 { "1 worker serves\n".to_owned() } else { format!("{expected} workers serve\n") };
        assert_told(&supervisor.ctl(&["scale", change]), 0, &workers);
        assert_eq!(supervisor.serving_pids().len(), expected, "after scale {change}");
    }
    let output = supervisor.ctl(&["scale", "--json", "2"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let service = serde_json::json!({
        "name": "oxicorn",
        "pid": supervisor.pid(),
        "addresses": [supervisor.address().to_string()],
        "file": supervisor.path("supervisor.toml"),
        "folder": supervisor.path("").to_str().map(|folder| folder.trim_end_matches('/')),
    });
    assert_eq!(answer, serde_json::json!({ "ok": true, "reason": "2 workers serve", "service": service }));
    for impossible in ["0", "257", "-2", "+1000"] {
        assert_told(&supervisor.ctl(&["scale", impossible]), 1, "not possible, only 1 to 256; nothing was changed");
    }
    for wrong in ["x", "1.5"] {
        assert_told(&supervisor.ctl(&["scale", wrong]), 2, "is not a number of workers");
    }
    assert_eq!(supervisor.serving_pids().len(), 2);
    supervisor.stop();
}

#[test]
fn a_scale_whose_workers_cannot_boot_says_why() {
    let supervisor = Launch::misbehave().set("misbehave.fail_while", r#""{dir}/trouble""#).serving(2);
    std::fs::write(supervisor.path("trouble"), "").expect("a file in our own folder");
    assert_told(&supervisor.ctl(&["scale", "3"]), 1, "is in the way; the target stays 3, and the slot is tried again");
    std::fs::remove_file(supervisor.path("trouble")).expect("it was there");
    assert_told(&supervisor.ctl(&["scale", "3"]), 0, "3 workers serve");
    assert_eq!(supervisor.serving_pids().len(), 3);
}

#[test]
fn stop_answers_when_the_stop_is_over() {
    let mut supervisor = Launch::new().serving(2);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    let socket = supervisor.path("control.sock");
    assert_eq!(socket.metadata().expect("the socket is there").permissions().mode() & 0o777, 0o600);
    assert_told(&supervisor.ctl(&["stop"]), 0, "stopped; of 1 requests since the start, 0 were cut");
    assert!(!socket.exists(), "the socket was not removed");
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert_eq!(supervisor.leftovers(), []);
    assert_told(&supervisor.ctl(&["stop"]), 1, "no running service answers at");
}

#[test]
fn stop_now_cuts_the_requests_in_flight() {
    let mut supervisor = Launch::new().set("workers.graceful_timeout", r#""30s""#).serving(2);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/debug/sleep/25000", &[], b"")).expect("a request is taken");
    eventually("the request is being handled", PATIENCE, || {
        let status = supervisor.status();
        status["workers"].as_array()?.iter().any(|worker| worker["in_flight"] == 1).then_some(())
    });
    let started = now();
    assert_told(&supervisor.ctl(&["stop", "--now"]), 0, "requests since the start, 1 were cut");
    assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
}

#[test]
fn a_master_never_takes_the_socket_of_another() {
    let mut first = Launch::new().serving(2);
    let socket = first.path("control.sock");
    let mut second = Launch::new().set("control.socket", &format!("{socket:?}")).serving(2);
    assert!(warning(&second).contains("another master answers on"), "{}", warning(&second));
    for supervisor in [&first, &second] {
        assert_eq!(get(supervisor.address(), "/health").status, 200);
    }
    assert_eq!(first.status()["pid"].as_u64(), Some(first.pid().into()));
    assert_told(&second.ctl(&["status"]), 1, &format!("another service answers: oxicorn (pid {}", first.pid()));
    second.stop();
    assert!(socket.exists(), "the second master removed the first one's socket");
    first.stop();
    assert!(!socket.exists());
}

#[test]
fn a_dead_masters_socket_is_replaced() {
    let launch = Launch::new();
    let socket = launch.path("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket in our own folder"));
    // If another test starts a process at this moment, that process has a copy of the listener until its exec.
    eventually("nobody listens on it", PATIENCE, || UnixStream::connect(&socket).is_err().then_some(()));
    let supervisor = launch.serving(2);
    assert_eq!(supervisor.status()["pid"].as_u64(), Some(supervisor.pid().into()));
}

#[test]
fn without_a_control_socket_the_service_serves() {
    // Sockets cannot be made in /proc, not even by root, so the master cannot listen there.
    let mut supervisor = Launch::new().set("control.socket", r#""/proc/oxicorn.sock""#).serving(2);
    assert!(warning(&supervisor).contains("cannot listen on /proc/oxicorn.sock"), "{}", warning(&supervisor));
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    assert_told(&supervisor.ctl(&["status"]), 1, "no running service answers at /proc/oxicorn.sock");
    supervisor.stop();

    let mut supervisor = Launch::new().set("control.socket", r#""off""#).serving(2);
    assert_eq!(warning(&supervisor), "");
    assert_told(&supervisor.ctl(&["status"]), 1, "control.socket is off");
    supervisor.stop();
}

/// A thousand hostile clients of four kinds come, and most of them stay connected. Correct clients notice nothing.
#[test]
fn hostile_clients_change_nothing_for_others() {
    let mut supervisor = Launch::new().serving(2);
    let socket = supervisor.path("control.sock");
    let load = Load::start(supervisor.address(), "/health", 4, Mode::PerRequest { think_ms: 2 });
    let canary = Canary::start();
    let open = || UnixStream::connect(&socket).expect("the master takes connections");
    let huge = vec![b'x'; 10 << 20];
    let mut slowest = Duration::ZERO;
    let mut kept = Vec::new();
    for round in 0..1_000 {
        let mut client = open();
        match round % 4 {
            0 => client.write_all(b"\x00\xff{]\n").map(|()| kept.push(client)).unwrap_or_default(),
            1 => client.write_all(b"{\"version\":1,\"comm").map(|()| kept.push(client)).unwrap_or_default(),
            2 if round % 40 == 2 => {
                // The write may fail, because the master may refuse the request before it is complete.
                let _ = client.write_all(&huge);
            }
            2 => client.write_all(&[b'x'; 5_000]).map(|()| kept.push(client)).unwrap_or_default(),
            _ => kept.push(client),
        }
        if round % 50 == 0 {
            let started = now();
            let status = supervisor.status();
            slowest = slowest.max(started.elapsed());
            assert_eq!(status["state"], "running");
        }
    }
    assert_told(&supervisor.ctl(&["scale", "3"]), 0, "3 workers serve");
    let tally = load.finish();
    tally.assert_nothing_lost();
    let stall = canary.longest();
    eprintln!("slowest status {slowest:?}, slowest health {:?}, machine {stall:?}", tally.max_wait());
    assert!(tally.max_wait() < Duration::from_secs(1) + 4 * stall, "{:?}, machine {stall:?}", tally.max_wait());
    assert!(slowest < Duration::from_secs(2) + 4 * stall, "{slowest:?}, machine {stall:?}");
    // The master has already dropped all but the last few hostile clients. It drops each of the last few when this
    // client's five seconds are over.
    for mut client in kept {
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        let ended = client.read_to_end(&mut Vec::new());
        let late = ended.is_err_and(|error| matches!(error.kind(), std::io::ErrorKind::WouldBlock));
        assert!(!late, "the master keeps a hostile client");
    }
    assert_eq!(supervisor.log().count(events::EXITED), 0);
    supervisor.stop();
}

#[test]
fn a_caller_that_leaves_does_not_keep_the_master_busy() {
    let mut supervisor = Launch::new().serving(2);
    let mut client = UnixStream::connect(supervisor.path("control.sock")).expect("the master takes connections");
    client.write_all(b"{\"version\":1,\"command\":{\"scale\":{\"to\":4}}}\n").expect("a line");
    drop(client);
    supervisor.wait_serving(4);
    let before = supervisor.master().context_switches();
    observe_for(Duration::from_millis(500));
    let woken = supervisor.master().context_switches() - before;
    assert!(woken < 50, "the master woke {woken} times in half a second");
    supervisor.stop();
}
