//! Promise: the clients and load generators that people use get every answer, over every HTTP version that they speak.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use crate::common::{Launch, PATIENCE, Supervisor, build_example, observe_for, root};

/// Runs a program and returns its output. The program must end without an error within a minute.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let packages = root().join("target/clients");
    let output = Command::new("timeout")
        .args(["60", program])
        .args(arguments)
        .env("PYTHONPATH", packages)
        .current_dir(root().join("tests/clients"))
        .output()
        .expect("timeout(1) can be run");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?} ended with {}:\n{said}\n{complained}", output.status);
    said.into_owned()
}

fn requests(supervisor: &Supervisor) -> u64 {
    supervisor.status()["totals"]["requests"].as_u64().expect("a count")
}

/// Returns the number that stands directly before `words` in the text.
#[track_caller]
fn number_before(text: &str, words: &str) -> u64 {
    let (before, _) = text.split_once(words).unwrap_or_else(|| panic!("{words:?} is not in: {text}"));
    let digits = before.trim_end().rsplit(|sign: char| !sign.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no number before {words:?}: {text}"))
}

fn url(supervisor: &Supervisor, path: &str) -> String {
    format!("http://{}{path}", supervisor.address())
}

#[test]
fn curl_gets_every_answer() {
    let supervisor = Launch::new().serving(2);
    // curl reports HTTP/1.0 as 1. With --http2 curl offers the upgrade to h2c, which RFC 9113 removed, so the answer
    // comes over HTTP/1.1. With prior knowledge the test lets curl make only one request a run. Debian's curl 7.88
    // breaks with every server when it uses such a connection twice.
    for (flag, version, each, times) in [
        ("--http1.0", "1", 50, 1),
        ("--http1.1", "1.1", 50, 1),
        ("--http2", "1.1", 50, 1),
        ("--http2-prior-knowledge", "2", 1, 10),
    ] {
        let asked = requests(&supervisor);
        let many = url(&supervisor, &format!("/health?[1-{each}]"));
        for _ in 0..times {
            let said = run("curl", &["-sS", flag, "-o", "/dev/null", "-w", "%{http_code} %{http_version}\n", &many]);
            assert_eq!(said, format!("200 {version}\n").repeat(each), "{flag}");
        }
        assert_eq!(requests(&supervisor) - asked, (each * times) as u64, "{flag}");
    }
    let body = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(body.path(), "abcdefgh".repeat(250_000)).expect("written");
    let file = format!("@{}", body.path().display());
    for flag in ["--http1.1", "--http2-prior-knowledge"] {
        for more in [["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]] {
            if flag != "--http1.1" && more[1].starts_with("Transfer") {
                continue; // HTTP/2 has no chunked transfer coding
            }
            let echo = url(&supervisor, "/debug/echo");
            let echoed = run("curl", &[&["-sS", flag, "--data-binary", &file], &more[..], &[&echo]].concat());
            assert_eq!(echoed, "abcdefgh".repeat(250_000), "{flag} {more:?}");
        }
    }
}

#[test]
fn h2load_gets_every_answer() {
    let supervisor = Launch::new().serving(2);
    for flags in [&["--h1"][..], &["-m", "10"]] {
        let asked = requests(&supervisor);
        let fixed = ["-n", "2000", "-c", "20", "-t", "1"];
        let said = run("h2load", &[flags, &fixed, &[&url(&supervisor, "/health")]].concat());
        assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
        assert!(said.contains("2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{said}");
        assert_eq!(requests(&supervisor) - asked, 2000, "{flags:?}");
    }
}

#[test]
fn wrk_gets_every_answer() {
    let supervisor = Launch::new().serving(2);
    let said = run("wrk", &["-t", "1", "-c", "16", "-d", "2s", &url(&supervisor, "/health")]);
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    let (told, counted) = (number_before(&said, "requests in"), requests(&supervisor));
    // wrk ends in the middle of a request on each of its 16 connections, so oxicorn may have counted up to 16 requests
    // more than wrk.
    assert!((told..=told + 16).contains(&counted), "wrk says {told}, oxicorn counted {counted}");
    assert!(told > 100, "{said}");
}

#[test]
fn ab_gets_every_answer() {
    let supervisor = Launch::new().serving(2);
    for flags in [&["-k"][..], &[]] {
        let asked = requests(&supervisor);
        let said = run("ab", &[flags, &["-q", "-n", "1000", "-c", "10", &url(&supervisor, "/health")]].concat());
        let told = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        assert_eq!((told("Complete requests:"), told("Failed requests:")), (Some(1000), Some(0)), "{said}");
        assert!(!said.contains("Non-2xx"), "{said}");
        // ab may open one connection more than it needs. ab sends nothing on this connection, so no request is counted
        // for it.
        assert_eq!(requests(&supervisor) - asked, 1000, "{flags:?}");
    }
}

#[test]
fn httpx_gets_every_answer() {
    let supervisor = Launch::new().serving(2);
    for version in ["1", "2"] {
        let asked = requests(&supervisor);
        let said = run("python3", &["httpx_client.py", &url(&supervisor, ""), version]);
        assert_eq!(said.trim(), "110", "HTTP/{version}");
        assert_eq!(requests(&supervisor) - asked, 110, "HTTP/{version}");
    }
}

/// An idle httpx reads nothing from its connection. When httpx sends the next request, it treats any frame that has
/// come in the meantime as an error. The only exception is a GOAWAY with the last stream.
#[test]
fn httpx_over_http2_loses_nothing_to_drains_and_idle_ends() {
    let supervisor = Launch::new().set("http.keep_alive", r#""300ms""#).serving(2);
    let packages = root().join("target/clients");
    let mut client = Command::new("timeout")
        .args(["60", "python3", "httpx_over_drains.py", &url(&supervisor, ""), "8"])
        .env("PYTHONPATH", packages)
        .current_dir(root().join("tests/clients"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout(1) can be run");
    let mut ask = client.stdin.take().expect("piped");
    let told = BufReader::new(client.stdout.take().expect("piped"));
    let mut drained = 0;
    for line in told.lines() {
        let line = line.expect("text");
        if let Some(failed) = line.strip_prefix("failed ") {
            assert!(failed.starts_with("0 "), "{line}");
            break;
        }
        if drained < 8 {
            let done = supervisor.ctl(&["reload"]);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            drained += 2;
            supervisor.wait_log("worker_draining", drained, PATIENCE);
        }
        // After this pause, a GOAWAY has reached the client. The reason for the GOAWAY is the drain, or the end of
        // `http.keep_alive`.
        observe_for(Duration::from_millis(600));
        ask.write_all(b"\n").expect("told");
    }
    assert!(client.wait().expect("our own child").success());
    assert_eq!(requests(&supervisor), 8);
}

#[test]
fn websockets_gets_every_message() {
    let supervisor = Launch::of(build_example("websocket")).serving(2);
    let said = run("python3", &["websockets_client.py", &format!("ws://{}/echo", supervisor.address())]);
    assert_eq!(said.trim(), (8 * 51).to_string());
    assert_eq!(requests(&supervisor), 8);
}
