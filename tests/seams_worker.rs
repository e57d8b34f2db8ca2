//! Promise: a runtime for another language than Rust gets from the worker what it needs. The runtime can run its own
//! outer loop, learn when clients leave, and continue to work after a response. It can fail a boot with a long text,
//! and it has a shutdown hook with a time limit of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use crate::common::{
    Connection, Launch, PATIENCE, Signal, Supervisor, build_example, events, eventually, field, get, now, observe_for,
    request, text,
};
use crate::https::{Authority, PLAIN, WithTls, try_connect};

fn seams() -> Launch {
    Launch::of(build_example("seams_worker")).set("seams.notes", r#""{dir}/notes""#)
}

fn with_outer_loop() -> Launch {
    seams().env("SEAMS_LOOP", "own")
}

/// Returns the notes that the program has written so far. Each note names something that has ended, in the order of the
/// ends.
fn notes(supervisor: &Supervisor) -> Vec<String> {
    fs::read_to_string(supervisor.path("notes")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn wait_note(supervisor: &Supervisor, line: &str) -> Vec<String> {
    eventually(line, PATIENCE, || {
        let notes = notes(supervisor);
        notes.iter().any(|note| note == line).then_some(notes)
    })
}

/// Asserts that the request `name` has exactly the notes `expected`, in this order. The note `gone` means that the app
/// learnt that the client has gone, and `answered` means that the handler ended.
#[track_caller]
fn assert_order(notes: &[String], name: &str, expected: &[&str]) {
    let prefix = format!("{name} ");
    let seen: Vec<_> = notes.iter().filter_map(|note| note.strip_prefix(&prefix)).collect();
    assert_eq!(seen, expected, "{name}: {notes:?}");
}

/// The app has no path `/health`, so it answers 404 there.
#[test]
fn any_answer_is_alive_for_such_a_runtime_unless_a_path_is_named() {
    let health = |supervisor: &Supervisor, arguments: &[&str]| {
        let output = supervisor.ctl(&[&["health"], arguments].concat());
        (output.status.code(), text(&output))
    };
    let supervisor = with_outer_loop().serving(2);
    assert_eq!(health(&supervisor, &[]), (Some(0), String::new()));
    let (code, told) = health(&supervisor, &["/health"]);
    assert!(code == Some(1) && told.contains("/health answers 404"), "{told}");

    let supervisor = seams().serving(2);
    let (code, told) = health(&supervisor, &[]);
    assert!(code == Some(1) && told.contains("/health answers 404"), "{told}");
    let supervisor = seams().set("http.health_path", r#""/alive""#).serving(2);
    assert_eq!(health(&supervisor, &[]), (Some(0), String::new()));
}

#[test]
fn an_outer_loop_serves_requests_does_not_spin_and_ends_with_the_drain() {
    let mut supervisor = with_outer_loop().set("workers.count", "1").serving(1);
    let drives = || get(supervisor.address(), "/drives").text().parse::<u64>().expect("a number");
    let before = drives();
    observe_for(Duration::from_secs(2));
    let idle = drives() - before;
    assert!(idle <= 1, "{idle} drives in two idle seconds");
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/sleep/700", &[], b"")).expect("sent");
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(connection.answer().expect("the request in flight is answered").status, 200);
    assert_eq!(supervisor.wait_exit(PATIENCE), 0);
    assert_eq!(notes(&supervisor), ["hook ended"]);
}

#[test]
fn a_handler_and_a_thread_reach_the_outer_loop_at_once() {
    let supervisor = with_outer_loop().set("workers.count", "1").serving(1);
    let begun = now();
    for (path, expected) in [("/outer", "from the outer loop"), ("/outer/thread", "from a thread")] {
        assert_eq!(get(supervisor.address(), path).text(), expected);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "a drive ends when it is woken, not after its ten seconds");
    assert_eq!(get(supervisor.address(), "/nested").text(), "Err(Nested)", "a drive within a drive is an error");
    assert_eq!(get(supervisor.address(), "/pid").status, 200);
}

#[test]
fn an_outer_loop_that_hangs_is_a_worker_that_hangs() {
    let supervisor = with_outer_loop().set("workers.count", "1").set("workers.timeout", r#""1s""#).serving(1);
    let worker = supervisor.worker_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/outer/hang", &[], b"")).expect("sent");
    let hung = supervisor.wait_log(events::HUNG, 1, PATIENCE);
    assert_eq!(field(&hung[0], "pid"), Some(worker.to_string().as_str()));
    supervisor.wait_gone(worker);
    assert_ne!(supervisor.wait_serving(1), [worker]);
}

#[test]
fn an_outer_loop_that_returns_early_is_a_failure_with_a_reason() {
    let supervisor = with_outer_loop().set("workers.count", "1").serving(1);
    let worker = supervisor.worker_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/outer/return", &[], b"")).expect("sent");
    let failed = supervisor.wait_log("outer_loop_failed", 1, PATIENCE);
    assert!(failed[0].contains("the app's loop has ended"), "{}", failed[0]);
    supervisor.wait_gone(worker);
    let exited = supervisor.wait_log(events::EXITED, 1, PATIENCE);
    assert!(exited[0].contains("code 1") || exited[0].contains("code=1"), "{}", exited[0]);
    supervisor.wait_serving(1);

    let output = seams().env("SEAMS_LOOP", "returns").run();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("it returned before the driver was done"), "{}", text(&output));
}

#[test]
fn what_an_outer_loop_cuts_by_its_early_end_is_counted() {
    for (end, reason) in [("return", "the app's loop has ended"), ("panic", "it panicked: the app's loop has a fault")]
    {
        let mut supervisor = with_outer_loop().set("workers.count", "1").serving(1);
        assert_eq!(get(supervisor.address(), "/background/60000").text(), "begun");
        let mut slow = Connection::open(supervisor.address()).expect("a connection");
        slow.send(&request("GET", "/sleep/60000", &[], b"")).expect("sent");
        eventually("it is in flight", PATIENCE, || (supervisor.status()["workers"][0]["in_flight"] == 1).then_some(()));
        // The request that ends the loop gets no answer before the loop ends. The worker therefore cuts two requests,
        // this request and the slow request.
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        connection.send(&request("GET", &format!("/outer/{end}"), &[], b"")).expect("sent");
        let failed = supervisor.wait_log("outer_loop_failed", 1, PATIENCE);
        assert!(failed[0].contains(reason), "{}", failed[0]);
        let cut = ["cut", "background_cut"].map(|name| field(&failed[0], name));
        assert_eq!(cut, [Some("2"), Some("1")], "{}", failed[0]);
        let exited = supervisor.wait_log(events::EXITED, 1, PATIENCE);
        assert!(!exited[0].contains("a panic left main"), "{}", exited[0]);
        supervisor.wait_serving(1);
        supervisor.stop();
        let totals = supervisor.wait_log("totals", 1, PATIENCE);
        assert_eq!(field(&totals[0], "cut"), Some("2"), "{}", totals[0]);
    }
}

#[test]
fn a_shutdown_hook_that_panics_counts_as_ended_and_the_next_one_runs() {
    let mut supervisor = seams().set("workers.count", "1").set("seams.hook_panics", "true").serving(1);
    supervisor.stop();
    assert_eq!(notes(&supervisor), ["first hook", "hook ended"]);
    let log = supervisor.log();
    assert_eq!((log.count("panic"), log.count(events::DRAINED)), (1, 1), "{}", log.0);
    assert!(log.0.contains("the hook has a fault") && !log.0.contains("a panic left main"), "{}", log.0);
    assert!(log.0.contains("drained and ended"), "{}", log.0);
}

#[test]
fn the_reason_of_a_failed_boot_cannot_control_the_terminal() {
    const REASON: &str = r#""red \u001B[31m\r\u0000\u202E\u2066""#;
    let assert_plain = |what: &str, output: &std::process::Output| {
        let told = text(output);
        assert!(told.contains(r"red \u{1b}[31m\r\u{0}\u{202e}\u{2066}"), "{what}: {told:?}");
        let obeyed = |c: char| c.is_control() && c != '\n' || matches!(c, '\u{202e}' | '\u{2066}');
        assert!(!told.contains(obeyed), "{what}: {told:?}");
    };
    assert_plain("run", &seams().set("seams.reason", REASON).run());
    assert_plain("check --deep", &seams().set("seams.reason", REASON).args(&["check", "--deep"]).run());

    let mut supervisor = seams().set("workers.count", "1").serving(1);
    let path = supervisor.path("supervisor.toml");
    let settings = fs::read_to_string(&path).expect("the settings file");
    fs::write(&path, settings.replace("[seams]", &format!("[seams]\nreason = {REASON}"))).expect("our own file");
    for command in ["reload", "upgrade"] {
        assert_plain(command, &supervisor.ctl(&[command]));
    }
    supervisor.stop();
}

/// Sends a request, waits until the app has the request, and then calls `end` to end the client's connection.
fn leave(address: SocketAddr, name: &str, end: impl FnOnce(&TcpStream)) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(&request("GET", &format!("/watch/{name}/1500"), &[], b"")).expect("sent");
    // Waits until the app has the request, so that the client does not leave earlier.
    observe_for(Duration::from_millis(300));
    end(&stream);
    stream
}

#[test]
fn an_app_learns_of_a_client_that_leaves_during_its_request() {
    let supervisor = seams().set("server.bind", r#"["127.0.0.1:0", "unix:{dir}/socket"]"#).serving(2);
    let address = supervisor.address();

    let mut half = leave(address, "half", |stream| stream.shutdown(Shutdown::Write).expect("an open socket"));
    drop(leave(address, "closed", |_| {}));
    drop(leave(address, "reset", |stream| {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("an open socket");
    }));
    drop(leave(address, "pipelined", |mut stream| {
        // The worker does not read this second request while the app works on the first one. The unread request must
        // not hide that the client has gone.
        stream.write_all(&request("GET", "/pid", &[], b"")).expect("sent");
    }));
    let mut unix = UnixStream::connect(supervisor.path("socket")).expect("a connection");
    unix.write_all(&request("GET", "/watch/unix/1500", &[], b"")).expect("sent");
    observe_for(Duration::from_millis(300));
    drop(unix);

    for name in ["half", "closed", "reset", "pipelined", "unix"] {
        assert_order(&wait_note(&supervisor, &format!("{name} answered")), name, &["gone", "answered"]);
    }
    let mut answer = String::new();
    half.read_to_string(&mut answer).expect("a client that has only ended its side gets its response");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
}

#[test]
fn a_request_that_is_over_ends_the_wait_for_its_client() {
    let supervisor = seams().set("workers.count", "1").serving(1);
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    for name in ["first", "second"] {
        let answer = connection.ask(&request("POST", &format!("/watch/{name}/50"), &[], b"a body")).expect("an answer");
        assert_eq!(answer.status, 200);
        assert_order(&wait_note(&supervisor, &format!("{name} gone")), name, &["answered", "gone"]);
    }
}

#[test]
fn an_app_learns_of_a_tls_client_that_leaves() {
    let authority = Authority::new();
    let pair = authority.issue(|_| {});
    let supervisor = seams().tls(&pair).set("workers.count", "1").serving(1);
    let config = PLAIN.trusting(&authority);
    let mut connection = try_connect(supervisor.address(), &config).expect("a handshake");
    connection.send(&request("GET", "/watch/tls/1500", &[], b"")).expect("sent");
    observe_for(Duration::from_millis(300));
    drop(connection);
    assert_order(&wait_note(&supervisor, "tls answered"), "tls", &["gone", "answered"]);
}

#[test]
fn an_app_learns_of_an_http2_stream_that_is_reset_and_of_a_connection_that_ends() {
    let supervisor = seams().set("workers.count", "1").serving(1);
    let address = supervisor.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let (send, connection) = h2::client::handshake(tcp).await.expect("a handshake");
        let connection = tokio::spawn(connection);
        let begin = async |name: &str| {
            let request =
                http::Request::get(format!("http://localhost/watch/{name}/1500")).body(()).expect("a request");
            let mut send = send.clone().ready().await.expect("room for a stream");
            send.send_request(request, true).expect("a stream").1
        };
        let (mut reset, _ended) = (begin("reset").await, begin("ended").await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        reset.send_reset(h2::Reason::CANCEL);
        tokio::task::spawn_blocking({
            let path = supervisor.path("notes");
            move || {
                eventually("the reset is seen", PATIENCE, || {
                    fs::read_to_string(&path).is_ok_and(|notes| notes.contains("reset gone")).then_some(())
                });
            }
        })
        .await
        .expect("no panic");
        assert_order(&notes(&supervisor), "ended", &[]);
        connection.abort();
        let _ = connection.await;
    });
    // Neither of the two handlers has noted an answer, because hyper drops a handler whose client has gone.
    let notes = wait_note(&supervisor, "ended gone");
    assert_order(&notes, "reset", &["gone"]);
    assert_order(&notes, "ended", &["gone"]);
}

#[test]
fn a_drain_waits_for_background_work_and_counts_what_it_cuts() {
    let mut supervisor = seams().set("workers.count", "1").serving(1);
    assert_eq!(get(supervisor.address(), "/background/1500").text(), "begun");
    supervisor.stop();
    assert_eq!(notes(&supervisor), ["background 1500", "hook ended"]);
    let drained = supervisor.log().lines_of(events::DRAINED).next().map(str::to_owned).expect("one drain");
    assert_eq!(field(&drained, "background_cut"), Some("0"), "{drained}");

    let mut supervisor = seams().set("workers.count", "1").set("workers.graceful_timeout", r#""1s""#).serving(1);
    assert_eq!(get(supervisor.address(), "/background/60000").text(), "begun");
    supervisor.stop();
    let drained = supervisor.log().lines_of(events::DRAINED).next().map(str::to_owned).expect("one drain");
    let cut = [events::CUT_FIELD, "background_cut"].map(|name| field(&drained, name));
    assert_eq!(cut, [Some("0"), Some("1")], "{drained}");
}

#[test]
fn a_long_boot_failure_is_a_sentence_for_the_master_and_lines_for_the_log() {
    let output = seams().set("seams.details", "600").run();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    let boot_failed: Vec<_> = told.lines().filter(|line| line.contains("event=boot_failed")).collect();
    assert!(boot_failed.len() == 1 && boot_failed[0].contains("app.py, line 3: no such name"), "{boot_failed:?}");
    assert!(!boot_failed[0].contains("frame"), "{}", boot_failed[0]);
    let first = told.lines().find(|line| line.contains("event=boot_failure_details")).unwrap_or_default();
    assert!(first.contains("  frame 1 of the traceback"), "{first}");
    assert!(told.contains("frame 500 of the traceback") && !told.contains("frame 501"), "the text is bounded");
    assert!(told.contains("and 100 lines more"));

    let checked = seams().set("seams.details", "2").args(&["check", "--deep"]).run();
    let told = text(&checked);
    assert_eq!(checked.status.code(), Some(3), "{told}");
    for fragment in ["app.py, line 3: no such name", "frame 2 of the traceback"] {
        assert!(told.contains(fragment), "{told}");
    }
}

#[test]
fn a_preflight_that_fails_has_the_long_text_in_the_log() {
    let mut supervisor = seams().set("workers.count", "1").serving(1);
    let path = supervisor.path("supervisor.toml");
    let settings = fs::read_to_string(&path).expect("the settings file");
    fs::write(&path, settings.replace("[seams]", "[seams]\ndetails = 3")).expect("our own file");
    assert_ne!(supervisor.ctl(&["upgrade"]).status.code(), Some(0));
    let refused = supervisor.wait_log("upgrade_refused", 1, PATIENCE);
    assert!(refused[0].contains("app.py, line 3: no such name"), "{}", refused[0]);
    let output = supervisor.wait_log("preflight_output", 3, PATIENCE);
    assert!(output[2].contains("  frame 3 of the traceback"), "{output:?}");
    assert_eq!(get(supervisor.address(), "/pid").status, 200);
    supervisor.stop();
}

#[test]
fn a_shutdown_hook_has_the_time_that_is_kept_for_it() {
    let launch = || seams().set("workers.count", "1").set("workers.graceful_timeout", r#""4s""#);
    for (grace, ends) in [("0", false), ("1500", true)] {
        let mut supervisor = launch().set("seams.hook_ms", "1200").set("seams.shutdown_grace_ms", grace).serving(1);
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        connection.send(&request("GET", "/sleep/60000", &[], b"")).expect("sent");
        eventually("it is in flight", PATIENCE, || (supervisor.status()["workers"][0]["in_flight"] == 1).then_some(()));
        supervisor.stop();
        assert_eq!(notes(&supervisor) == ["hook ended"], ends, "shutdown_grace = {grace} ms");
        assert_eq!(supervisor.log().count("shutdown_hook_timeout"), usize::from(!ends));
    }
}
