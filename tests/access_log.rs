//! Promise: each request has one complete line in the access log, and no client can forge a line. A line is lost only
//! when the reader of the log does not read, and lost lines are counted. Each answer has an `X-Request-Id`, and the
//! line can show this id.
//!
//! Needs root, because one test sets `process.user`.

use std::{
    collections::HashSet,
    fs,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use crate::common::{
    Canary, Connection, Launch, Load, Mode, PATIENCE, Signal, Supervisor, events, eventually, field, get, metric, now,
    observe_for, request,
};
use nix::{sys::stat::Mode as Permissions, unistd::mkfifo};

fn launch(format: &str) -> Launch {
    Launch::new().set("log.access", r#""{dir}/access.log""#).set("log.access_format", &format!("'''{format}'''"))
}

fn lines_in(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is cut: {text:?}");
    text.lines().map(str::to_owned).collect()
}

/// Waits for `many` lines in the access log and returns the lines. Fails if the log has more lines.
#[track_caller]
fn lines(supervisor: &Supervisor, many: usize) -> Vec<String> {
    let path = supervisor.path("access.log");
    let lines = eventually(&format!("{many} lines"), PATIENCE, || {
        let lines = lines_in(&path);
        (lines.len() >= many).then_some(lines)
    });
    assert_eq!(lines.len(), many, "{lines:#?}");
    lines
}

fn open(supervisor: &Supervisor) -> Connection {
    Connection::open(supervisor.address()).expect("a connection")
}

/// Reads a log line that holds only a number of seconds.
fn seconds(line: &str) -> Duration {
    Duration::from_secs_f64(line.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
}

fn dropped(supervisor: &Supervisor) -> u64 {
    metric(&get(supervisor.address(), "/metrics").text(), "oxicorn_access_lines_dropped_total").expect("the counter")
}

#[test]
fn each_request_has_its_line_in_the_combined_format() {
    let supervisor = launch("combined").set("http.metrics_path", r#""/metrics""#).serving(2);
    let mut connection = open(&supervisor);
    let agent = [("User-Agent", "test/1"), ("Referer", "http://a/"), ("Authorization", "Basic YTpi")];
    let length = connection.ask(&request("GET", "/health?a=b", &agent, b"")).expect("an answer").body.len();
    let echo = [("Content-Type", "text/plain")];
    assert_eq!(connection.ask(&request("POST", "/debug/echo", &echo, b"seven b")).expect("an answer").body, b"seven b");
    let missing = connection.get("/nowhere").expect("an answer").body.len();
    // An answer to HEAD has the length of a body and no body. This client waits for the body until the connection ends.
    open(&supervisor).ask(&request("HEAD", "/health", &[("Connection", "close")], b"")).expect_err("no body");
    let page = get(supervisor.address(), "/metrics").body.len();
    let refuse = |request: &[u8]| {
        let answer = open(&supervisor).ask(request).expect("a refusal");
        (answer.status, answer.body.len())
    };
    let (shown, known) = refuse(b"GET /a?b HTTP/1.1\r\nnonsense\r\n\r\n");
    let (unshown, unknown) = refuse(b"nonsense\r\n\r\n");

    let lines = lines(&supervisor, 7);
    let (heads, rests): (HashSet<_>, Vec<_>) =
        lines.iter().map(|line| (&line[..line.find('[').unwrap()], line.split_once("] ").unwrap().1)).unzip();
    assert_eq!(heads, HashSet::from(["127.0.0.1 - a ", "127.0.0.1 - - "]));
    // The two workers may write their lines in any order, so the test compares sets.
    let rests: HashSet<_> = rests.into_iter().map(str::to_owned).collect();
    let expected = [
        format!(r#""GET /health?a=b HTTP/1.1" 200 {length} "http://a/" "test/1""#),
        r#""POST /debug/echo HTTP/1.1" 200 7 "-" "-""#.to_owned(),
        format!(r#""GET /nowhere HTTP/1.1" 404 {missing} "-" "-""#),
        r#""HEAD /health HTTP/1.1" 200 0 "-" "-""#.to_owned(),
        format!(r#""GET /metrics HTTP/1.1" 200 {page} "-" "-""#),
        format!(r#""GET /a?b HTTP/1.1" {shown} {known} "-" "-""#),
        format!(r#""-" {unshown} {unknown} "-" "-""#),
    ];
    assert_eq!((rests, shown, unshown), (HashSet::from(expected), 400, 400));
    let time = lines[0].split(['[', ']']).nth(1).unwrap();
    assert!(jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).is_ok(), "{time}");
}

#[test]
fn json_lines_go_to_stdout_and_excluded_paths_have_no_line() {
    let supervisor = Launch::new()
        .args(&["--access-logfile", "-"])
        .set("log.access_format", r#""json""#)
        .set("log.access_exclude", r#"["/health"]"#)
        .serving(2);
    for path in ["/health", "/health?a", "/health/live?b=c"] {
        get(supervisor.address(), path);
    }
    let lines = eventually("a line", PATIENCE, || {
        let lines = lines_in(&supervisor.path("stdout.log"));
        (!lines.is_empty()).then_some(lines)
    });
    let read: serde_json::Value = serde_json::from_str(&lines[0]).expect("an object");
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/health/live"),
        ("query", "b=c"),
        ("protocol", "HTTP/1.1"),
        ("host", "localhost"),
    ] {
        assert_eq!(read[key], value, "{key}");
    }
    assert_eq!((&read["status"], &read["user_agent"]), (&200.into(), &().into()));
    assert!(supervisor.worker_pids().contains(&(read["pid"].as_u64().expect("a pid") as u32)), "{read}");
    assert_eq!(lines.len(), 1);
}

#[test]
fn an_unknown_atom_of_the_format_is_refused_by_name() {
    let output = launch("%(h)s %(S)s").arg("check").run();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("log.access_format: %(S)s is not an atom; did you mean %(s)s?"), "{told}");
    let output = launch("json").set("log.access", r#""/dev/null/x""#).run();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("log.access: "), "{told}");
}

#[test]
fn an_id_is_taken_or_made_and_the_app_the_client_and_the_log_see_it() {
    let format = "%({x-request-id}i)s %({x-request-id}o)s";
    let supervisor = Launch::misbehave()
        .set("log.access", r#""{dir}/access.log""#)
        .set("log.access_format", &format!("'''{format}'''"))
        .set("workers.count", "1")
        .serving(1);
    let mut connection = open(&supervisor);
    let mut made = HashSet::new();
    let given: [&[(&str, &str)]; 5] = [
        &[],
        &[("X-Request-Id", "mine-1")],
        &[("X-Request-Id", "forged\" 200")],
        &[("X-Request-Id", "a"), ("x-request-id", "b")],
        &[],
    ];
    for headers in given {
        let answer = connection.ask(&request("GET", "/request_id", headers, b"")).expect("an answer");
        let id = answer.header("X-Request-Id").expect("each answer has one").to_owned();
        assert_eq!(answer.text(), format!("Some({id:?})"), "the app sees the same");
        assert!(headers != given[1] || id == "mine-1", "{id}");
        assert!(id == "mine-1" || id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        made.insert(format!("{id} {id}"));
    }
    assert_eq!(made.len(), 5);
    assert_eq!(lines(&supervisor, 5).into_iter().collect::<HashSet<_>>(), made);
}

#[test]
fn a_client_cannot_forge_a_line() {
    let supervisor = launch("\"%(r)s\" \"%(a)s\" \"%({x-a}i)s\"").serving(2);
    let mut connection = open(&supervisor);
    let head = b"GET /x HTTP/1.1\r\nHost: x\r\nUser-Agent: a\" \"b\\\r\nX-A: \xff\xc3\xa9\t\x80\"\r\n\r\n";
    connection.ask(head).expect("an answer");
    let line = r#""GET /x HTTP/1.1" "a\" \"b\\" "\xff\xc3\xa9\x09\x80\"""#;
    assert_eq!(lines(&supervisor, 1), [line]);
}

/// The request of a client that leaves, and a request that the worker cuts, also have a line. This line shows the time
/// that the request took and the number of bytes that the worker sent.
#[test]
fn requests_that_were_cut_have_lines_too() {
    let format = "%(U)s %(s)s %(B)s %(L)s";
    let mut supervisor = Launch::misbehave()
        .set("log.access", r#""{dir}/access.log""#)
        .set("log.access_format", &format!("'''{format}'''"))
        .set("workers.graceful_timeout", r#""2s""#)
        .serving(2);
    // The worker cannot know whether this client has left or has only closed its sending side, so the worker still
    // answers.
    let begun = now();
    let mut leaver = open(&supervisor);
    leaver.send(&request("GET", "/sleep/400", &[], b"")).expect("sent");
    drop(leaver);
    let line = lines(&supervisor, 1).remove(0);
    let took = seconds(line.strip_prefix("/sleep/400 200 5 ").expect(&line));
    assert!((Duration::from_millis(400)..begun.elapsed()).contains(&took), "{line}");

    let mut half = open(&supervisor);
    half.send(&request("GET", "/drip", &[], b"")).expect("sent");
    observe_for(Duration::from_millis(300));
    drop(half);
    let line = lines(&supervisor, 2).remove(1);
    let [path, status, bytes, took] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let bytes: usize = bytes.parse().expect("a number");
    assert!((path, status) == ("/drip", "200") && bytes >= 25 && bytes.is_multiple_of(5), "{line}");
    assert!(seconds(took) >= Duration::from_millis(100), "{line}");

    let failed = get(supervisor.address(), "/panic");
    let line = lines(&supervisor, 3).remove(2);
    assert!(line.starts_with(&format!("/panic 500 {} ", failed.body.len())) && failed.status == 500, "{line}");

    let mut late = open(&supervisor);
    late.send(&request("GET", "/sleep/30000", &[], b"")).expect("sent");
    // Both workers answer some of these requests, and a worker first begins the requests that came earlier. The worker
    // with the long request has therefore begun this request before the stop comes.
    (0..20).for_each(|_| drop(get(supervisor.address(), "/pid")));
    supervisor.stop();
    let lines = lines(&supervisor, 24);
    let cut = lines.iter().find_map(|line| line.strip_prefix("/sleep/30000 499 0 "));
    assert!((Duration::from_millis(500)..Duration::from_secs(25)).contains(&seconds(cut.expect("a line"))), "{cut:?}");
}

#[test]
fn a_line_is_written_within_a_second() {
    let supervisor = launch("%(U)s").set("workers.count", "1").serving(1);
    // After this pause the worker is parked, so its next heartbeat is as far away as possible. At a heartbeat, the
    // worker would write a waiting line anyway.
    observe_for(Duration::from_millis(600));
    let canary = Canary::start();
    for many in 1..=5 {
        get(supervisor.address(), "/health");
        let answered = now();
        lines(&supervisor, many);
        let waited = answered.elapsed();
        assert!(waited < Duration::from_secs(1) + canary_slack(), "{waited:?}");
    }
    let stalled = canary.longest();
    assert!(stalled < Duration::from_secs(5), "the machine stood still for {stalled:?}");
}

/// How much later than the limit a line may appear. The test reads the file every few milliseconds, and a busy machine
/// delays these reads.
fn canary_slack() -> Duration {
    Duration::from_millis(500)
}

/// A line that waits to be written must not keep an idle worker awake and must not wake it.
#[test]
fn an_access_log_adds_no_wakeups_to_an_idle_worker() {
    let supervisor = launch("%(U)s").set("workers.count", "1").serving(1);
    get(supervisor.address(), "/health");
    lines(&supervisor, 1);
    observe_for(Duration::from_secs(1));
    let worker = crate::common::Process(supervisor.worker_pids()[0]);
    let before = worker.context_switches();
    observe_for(Duration::from_secs(3));
    let woken = worker.context_switches() - before;
    assert!(woken <= 3 * 4 + 6, "woken {woken} times in 3 s; the heartbeat comes four times a second");
}

/// Checks the lines of all files together: each line is complete, and each belongs to a request of its own.
#[track_caller]
fn assert_each_once(files: &[&Path], answered: u64) {
    let lines: Vec<_> = files.iter().flat_map(|path| lines_in(path)).collect();
    let mut ids = HashSet::new();
    for line in &lines {
        let rest = line.strip_prefix("127.0.0.1 \"GET /debug/connections HTTP/1.1\" 200 ").expect(line);
        let id = rest.strip_suffix(" end").expect(line);
        assert!(id.len() == 24 && ids.insert(id), "{line}");
    }
    assert_eq!(ids.len() as u64, answered);
}

const FORMAT: &str = "%(h)s \"%(r)s\" %(s)s %({x-request-id}i)s end";

#[test]
fn four_workers_write_complete_lines_into_one_file_and_their_last_lines_before_they_end() {
    let mut supervisor = launch(FORMAT).set("workers.count", "4").serving(4);
    let address = supervisor.address();
    let loads = [Mode::KeepAlive { think_ms: 0 }, Mode::PerRequest { think_ms: 0 }]
        .map(|mode| Load::start(address, "/debug/connections", 6, mode));
    eventually("many requests", 4 * PATIENCE, || {
        (loads.iter().map(Load::answered).sum::<u64>() >= 8_000).then_some(())
    });
    let mut answered = 0;
    for load in loads {
        let tally = load.finish();
        tally.assert_nothing_lost();
        assert!(tally.pids.len() >= 2, "one worker did it all");
        answered += tally.ok;
    }
    // The stop follows the last answer at once, so the worker drains before the next heartbeat. It must write the
    // waiting lines during the drain.
    supervisor.stop();
    assert_each_once(&[&supervisor.path("access.log")], answered);
}

#[test]
fn rotation_under_load_loses_no_line() {
    let supervisor = launch(FORMAT).set("workers.max_requests", "400").serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 8, Mode::KeepAlive { think_ms: 0 });
    let current = supervisor.path("access.log");
    let mut files = vec![current.clone()];
    for round in 1..=6 {
        let answered = load.answered();
        eventually("the load continues", PATIENCE, || (load.answered() >= answered + 300).then_some(()));
        let rotated = supervisor.path(&format!("access.log.{round}"));
        fs::rename(&current, &rotated).expect("our own file");
        supervisor.signal(Signal::SIGUSR1);
        supervisor.wait_log(events::LOGS_REOPENED, round, PATIENCE);
        eventually("lines in the new file", PATIENCE, || {
            fs::metadata(&current).is_ok_and(|new| new.len() > 0).then_some(())
        });
        files.push(rotated);
    }
    let tally = load.finish();
    tally.assert_nothing_lost();
    let mut supervisor = supervisor;
    supervisor.stop();
    assert_each_once(&files.iter().map(|file| file.as_path()).collect::<Vec<_>>(), tally.ok);
}

/// Only root may open the log file. The workers run as `nobody`, so they could not open the file themselves.
#[test]
fn workers_without_rights_write_to_the_file_that_the_master_opened() {
    let launch = launch("%(U)s")
        .set("process.user", r#""nobody""#)
        .set("service.sqlite_path", r#""{dir}/data/facts.db""#)
        .set("log.access", r#""{dir}/logs/access.log""#);
    let folder = launch.path("logs");
    fs::create_dir(&folder).expect("a folder in our own");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("our own folder");
    let mut supervisor = launch.serving(2);
    let (current, rotated) = (folder.join("access.log"), folder.join("access.log.1"));
    get(supervisor.address(), "/health");
    eventually("a line", PATIENCE, || (lines_in(&current) == ["/health"]).then_some(()));
    fs::rename(&current, &rotated).expect("our own file");
    supervisor.signal(Signal::SIGUSR1);
    supervisor.wait_log(events::LOGS_REOPENED, 1, PATIENCE);
    eventually("both workers write to the new file", PATIENCE, || {
        get(supervisor.address(), "/ready");
        (fs::metadata(&current).ok()?.len() > 100).then_some(())
    });
    supervisor.stop();
}

#[test]
fn a_reload_changes_the_file_and_the_format_of_the_lines() {
    let supervisor = launch("old %(U)s").serving(2);
    get(supervisor.address(), "/health");
    lines(&supervisor, 1);
    let settings = supervisor.path("supervisor.toml");
    let text = fs::read_to_string(&settings).expect("the settings");
    let edited = text.replace("access.log", "other.log").replace("old %(U)s", "new %(U)s");
    fs::write(&settings, edited).expect("our own file");
    let output = supervisor.ctl(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    get(supervisor.address(), "/ready");
    eventually("a line in the other file", PATIENCE, || {
        (lines_in(&supervisor.path("other.log")) == ["new /ready"]).then_some(())
    });
    assert_eq!(lines(&supervisor, 1), ["old /health"]);
}

/// Sends requests with long log lines until at least `most` lines were dropped. Checks that each request is answered,
/// and returns how many were sent.
fn ask_until_dropped(supervisor: &Supervisor, most: u64) -> u64 {
    let mut connection = open(supervisor);
    let agent = "x".repeat(2_000);
    let long = request("GET", "/health", &[("User-Agent", &agent)], b"");
    let mut asked = 0;
    while dropped(supervisor) < most {
        for _ in 0..20 {
            assert_eq!(connection.ask(&long).expect("an answer").status, 200);
            asked += 1;
        }
        assert!(asked < 5_000, "nothing is dropped");
    }
    asked
}

fn told(supervisor: &Supervisor) -> Vec<String> {
    supervisor.log().lines_of(events::ACCESS_LINES_DROPPED).map(str::to_owned).collect()
}

fn counted(told: &[String]) -> u64 {
    told.iter().map(|line| field(line, "lines").and_then(|lines| lines.parse::<u64>().ok()).expect("a count")).sum()
}

/// Starts one worker with a metrics page. Requests for this page have no line in the access log. All other requests
/// have one.
fn single(access: &str) -> Launch {
    launch("%(a)s %(U)s")
        .set("log.access", &format!("{access:?}"))
        .set("log.access_exclude", r#"["/metrics"]"#)
        .set("http.metrics_path", r#""/metrics""#)
        .set("workers.count", "1")
}

#[test]
fn a_stalled_reader_costs_lines_and_no_request() {
    let launch = single("{dir}/fifo");
    let path = launch.path("fifo");
    mkfifo(&path, Permissions::S_IRWXU).expect("a FIFO in our own folder");
    let mut reader =
        fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).expect("the FIFO opens");
    let mut supervisor = launch.serving(1);
    let asked = ask_until_dropped(&supervisor, 40);
    let lost = dropped(&supervisor);
    eventually("the log says so", PATIENCE, || (counted(&told(&supervisor)) == lost).then_some(()));
    assert!(told(&supervisor)[0].contains("its reader is slow or stopped"), "{:?}", told(&supervisor));

    // The reader now continues to read. Every line that was not counted as lost must arrive complete.
    let mut text = Vec::new();
    let kept = asked - lost;
    eventually("all that was kept", PATIENCE, || {
        let mut page = [0; 8192];
        while let Ok(read @ 1..) = reader.read(&mut page) {
            text.extend_from_slice(&page[..read]);
        }
        (text.iter().filter(|byte| **byte == b'\n').count() as u64 >= kept).then_some(())
    });
    let text = String::from_utf8(text).expect("ASCII");
    let whole = format!("{} /health", "x".repeat(2_000));
    assert!(text.lines().all(|line| line == whole), "a line is cut");
    assert_eq!((text.lines().count() as u64, dropped(&supervisor)), (kept, lost));
    supervisor.stop();
}

#[test]
fn a_full_disk_costs_lines_and_no_request() {
    let mut supervisor = single("/dev/full").serving(1);
    let begun = now();
    let mut asked = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        let next = dropped(&supervisor) + 1;
        asked += ask_until_dropped(&supervisor, next);
    }
    let seconds = begun.elapsed().as_secs() + 2;
    let lines = told(&supervisor);
    assert!((2..=seconds).contains(&(lines.len() as u64)), "once a second: {lines:#?}");
    assert!(lines[0].contains("no storage space"), "{lines:?}");
    supervisor.stop();
    // The lines that still waited for room when the service ended are lost, and are counted as lost.
    assert_eq!(counted(&told(&supervisor)), asked);
}
