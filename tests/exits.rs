//! Promise: the log tells correctly why each worker ended. It says what killed the worker, which process sent the
//! signal, and which requests were in flight.

use nix::{sys::signal::kill, unistd::Pid};

use crate::common::{
    Cgroup, Connection, Launch, PATIENCE, Signal, Supervisor, events, eventually, field, get, request,
};

fn one_worker() -> Launch {
    Launch::new().set("workers.count", "1")
}

/// Returns the reason in the log line of the first worker that ended. Asserts that the log does not name a lack of
/// memory as the reason, because it may name this reason only after a kill by the kernel itself.
#[track_caller]
fn first_end(supervisor: &Supervisor, pid: u32) -> String {
    let line = supervisor.wait_log(events::EXITED, 1, PATIENCE).swap_remove(0);
    assert_eq!(field(&line, "pid"), Some(pid.to_string().as_str()), "{line}");
    let reason = field(&line, "reason").unwrap_or_else(|| panic!("no reason: {line}")).to_owned();
    assert!(!reason.contains("OOM killer"), "{reason}");
    assert!(!line.to_lowercase().contains("out of memory"), "{line}");
    reason
}

/// Sends a request and waits until its worker has it.
fn begin(supervisor: &Supervisor, path: &str, headers: &[(&str, &str)]) -> Connection {
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", path, headers, b"")).expect("sent");
    eventually("the request is in flight", PATIENCE, || {
        (get(supervisor.address(), "/debug/connections").json()["active_requests"] == 2).then_some(())
    });
    connection
}

/// Sends SIGSEGV to the worker until the worker is gone. Rust's handler for stack overflows swallows the first SIGSEGV
/// if another process sent it. After a real fault, the kernel would send the signal again.
fn segfault(pid: u32) {
    eventually("the worker is gone", PATIENCE, || {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSEGV).is_err().then_some(())
    });
}

#[test]
fn a_crash_is_reported_with_the_request_in_flight() {
    let supervisor = one_worker().serving(1);
    let victim = supervisor.serving_pids()[0];
    let id = [("X-Request-Id", "abc-1"), ("Authorization", "Bearer hush")];
    let _waiting = begin(&supervisor, "/debug/sleep/60000?token=hush", &id);
    segfault(victim);
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("killed by SIGSEGV"), "{reason}");
    assert!(reason.contains("in flight: GET /debug/sleep/60000 for "), "{reason}");
    assert!(reason.contains("s [id abc-1]"), "{reason}");
    assert!(!supervisor.log().0.contains("hush"), "queries and other headers may hold secrets");
}

#[test]
fn an_answered_request_is_not_reported_as_in_flight() {
    let supervisor = one_worker().serving(1);
    let victim = supervisor.serving_pids()[0];
    for _ in 0..20 {
        assert_eq!(get(supervisor.address(), "/health").status, 200);
    }
    eventually("the last connection is closed", PATIENCE, || {
        (get(supervisor.address(), "/debug/connections").json()["connections"] == 1).then_some(())
    });
    segfault(victim);
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("killed by SIGSEGV") && !reason.contains("GET"), "{reason}");
}

#[test]
fn an_operators_sigkill_is_not_reported_as_the_masters() {
    let supervisor = one_worker().serving(1);
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGKILL);
    let reason = first_end(&supervisor, victim);
    let told =
        ["killed by SIGKILL from outside: the master did not send it", "killed by SIGKILL, not sent by the master"];
    assert!(told.iter().any(|told| reason.starts_with(told)), "{reason}");
}

#[test]
fn a_hang_is_reported_as_the_masters_kill_with_the_request_in_flight() {
    let supervisor = one_worker().set("workers.timeout", r#""500ms""#).serving(1);
    let victim = supervisor.serving_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/debug/block/60000", &[("X-Request-Id", "abc-2")], b"")).expect("sent");
    let hung = supervisor.wait_log(events::HUNG, 1, PATIENCE).swap_remove(0);
    assert!(hung.contains("GET /debug/block/60000 for ") && hung.contains("[id abc-2]"), "{hung}");
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("killed by SIGABRT"), "{reason}");
    assert!(reason.contains(", sent by the master: hung"), "{reason}");
    assert!(reason.contains("its heartbeat was ") && reason.contains("in flight: GET /debug/block/60000"), "{reason}");
}

#[test]
fn a_stopped_worker_is_ended_by_the_masters_sigkill() {
    let supervisor = one_worker().set("workers.timeout", r#""500ms""#).serving(1);
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGSTOP);
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("killed by SIGKILL, sent by the master: hung, and SIGABRT did not end it"), "{reason}");
}

#[test]
fn a_drain_that_takes_too_long_is_ended_by_the_masters_sigkill() {
    let supervisor = one_worker().set("workers.graceful_timeout", r#""1s""#).serving(1);
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGSTOP);
    supervisor.signal(Signal::SIGTERM);
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("killed by SIGKILL, sent by the master: not drained in time"), "{reason}");
}

#[test]
fn an_exit_code_is_reported() {
    let supervisor = Launch::misbehave().set("workers.count", "1").serving(1);
    let victim = supervisor.serving_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.get("/exit/7").expect_err("no answer comes");
    let reason = first_end(&supervisor, victim);
    assert!(reason.starts_with("exited with code 7; in flight: GET /exit/7 for "), "{reason}");
    supervisor.wait_serving(1);
    let forked = supervisor.wait_log(events::FORKED, 2, PATIENCE);
    assert_eq!(field(&forked[1], "restarts"), Some("1"), "{}", forked[1]);
}

#[test]
fn a_drained_worker_is_reported_as_drained() {
    let supervisor = one_worker().serving(1);
    let victim = supervisor.serving_pids()[0];
    supervisor.signal_worker(victim, Signal::SIGTERM);
    assert_eq!(first_end(&supervisor, victim), "drained and ended");
}

#[test]
fn a_kill_by_the_kernels_oom_killer_is_reported_as_such() {
    let cgroup = Cgroup::make(128 << 20);
    let wrapper = cgroup.wrapper();
    let supervisor = one_worker().through(&wrapper.each_ref().map(String::as_str)).serving(1);
    let victim = supervisor.serving_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.get("/debug/allocate/512").expect_err("no answer comes");
    let line = supervisor.wait_log(events::EXITED, 1, PATIENCE).swap_remove(0);
    assert_eq!(field(&line, "pid"), Some(victim.to_string().as_str()), "{line}");
    let reason = field(&line, "reason").expect("a reason");
    assert!(reason.starts_with("killed by the kernel's OOM killer (memory."), "{reason}");
    assert!(reason.contains(": oom_kill 0 → 1)"), "{reason}");
    assert!(reason.contains("in flight: GET /debug/allocate/512 for "), "{reason}");

    let heir = supervisor.wait_serving(1)[0];
    supervisor.signal_worker(heir, Signal::SIGKILL);
    let line = supervisor.wait_log(events::EXITED, 2, PATIENCE).swap_remove(1);
    let reason = field(&line, "reason").expect("a reason");
    assert!(reason.starts_with("killed by SIGKILL from outside:"), "{reason}");
}
