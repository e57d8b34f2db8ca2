//! Promise: a runtime for another language than Rust gets from the master what it needs. The master offers hooks around
//! each fork, a signal for a worker that hangs, and a command of the runtime's own for upgrades. A hook of the app that
//! panics or leaves a thread behind does not end the master.

use std::{fs, path::PathBuf};

use crate::common::{
    Connection, Launch, PATIENCE, Signal, Supervisor, assert_told_all, build_example, events, eventually, field, get,
    request, text,
};

/// Returns the launch of the example program, and the file in which the program notes each call of a hook.
fn seams() -> (Launch, PathBuf) {
    let launch = Launch::of(build_example("seams_master"));
    let notes = launch.path("notes");
    let launch = launch.env("SEAMS_NOTES", notes.to_str().expect("UTF-8")).set("workers.count", "1");
    (launch, notes)
}

fn notes(path: &PathBuf) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Asserts that the master with the pid `master` and the worker with the pid `worker` have noted the three hooks of one
/// fork, beginning with `before fork`.
#[track_caller]
fn assert_forked(notes: &[String], master: u32, worker: u32) {
    let lines = [format!("{master} before fork"), format!("{master} after fork in master")];
    assert_eq!(notes.first(), Some(&lines[0]), "{notes:?}");
    for line in lines.iter().chain([&format!("{worker} after fork in worker")]) {
        assert_eq!(notes.iter().filter(|note| *note == line).count(), 1, "{line}: {notes:?}");
    }
    assert_eq!(notes.len(), 3, "{notes:?}");
}

#[test]
fn hooks_run_before_and_after_each_fork_of_a_worker() {
    let (launch, path) = seams();
    let mut supervisor = launch.serving(1);
    let first = supervisor.serving_pids()[0];
    let seen = notes(&path);
    assert_forked(&seen, supervisor.pid(), first);
    supervisor.assert_reload(0, &["generation 2 serves"]);
    let second = supervisor.wait_serving(1)[0];
    assert_forked(&notes(&path)[seen.len()..], supervisor.pid(), second);
    supervisor.stop();
}

#[test]
fn hooks_run_around_the_fork_of_check_deep() {
    let (launch, path) = seams();
    let output = launch.run_with(&["check", "--deep"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let notes = notes(&path);
    let of = |line: &str| notes.iter().filter(|note| note.ends_with(line)).count();
    assert_eq!([of("before fork"), of("after fork in master"), of("after fork in worker")], [1; 3], "{notes:?}");
}

#[test]
fn a_worker_that_hangs_writes_what_it_does_and_is_ended_a_second_later() {
    let (launch, path) = seams();
    let mut supervisor = launch.set("workers.timeout", r#""1s""#).serving(1);
    let hung = supervisor.serving_pids()[0];
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/hang", &[], b"")).expect("sent");
    supervisor.wait_log(events::HUNG, 1, PATIENCE);
    supervisor.wait_gone(hung);
    assert_ne!(supervisor.wait_serving(1)[0], hung);
    assert!(notes(&path).contains(&format!("{hung} dump")), "{:?}", notes(&path));
    let log = supervisor.log();
    let lines: Vec<_> = log.lines_of(events::HUNG).collect();
    assert!(lines.len() == 1 && lines[0].contains("SIGPROF"), "{lines:?}");
    let exited = log.lines_of(events::EXITED).next().expect("the exit is in the log");
    assert!(exited.contains("SIGABRT"), "SIGABRT lets it leave a core: {exited}");
    supervisor.stop();
}

/// The event of the lines that a worker wrote before it ended.
const STACK: &str = "worker_stack";

/// Returns the launch of the example program with this text as the stack that its workers write, and the file that
/// names the faults.
fn stacks(text: &str, faults: &str) -> (Launch, PathBuf) {
    let (launch, _, path) = faulty(faults);
    let stack = launch.path("stack");
    fs::write(&stack, text).expect("our own folder");
    (launch.env("SEAMS_STACK", stack.to_str().expect("UTF-8")), path)
}

/// Returns the lines of the log that say why a worker ended, or what it wrote before.
fn obituaries(supervisor: &Supervisor) -> Vec<String> {
    let of = |line: &&str| [Some(events::EXITED), Some(STACK)].contains(&field(line, "event"));
    supervisor.log().0.lines().filter(of).map(str::to_owned).collect()
}

/// Opens connections until one of them belongs to the worker with this pid.
fn connection_to(supervisor: &Supervisor, pid: u32) -> Connection {
    eventually("a connection to this worker", PATIENCE, || {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        let answer = connection.get("/pid").expect("an answer");
        (answer.text() == pid.to_string()).then_some(connection)
    })
}

#[test]
fn the_stacks_of_hung_workers_follow_their_ends_whole_and_never_interleave() {
    let lines: String = (0..300).map(|line| format!("PID\tline {line}\n")).collect();
    let (launch, _) = stacks(&(lines + "PID last \u{1b}[31m"), "");
    let mut supervisor = launch.set("workers.count", "2").set("workers.timeout", r#""1s""#).serving(2);
    let hung = supervisor.serving_pids();
    let mut connections: Vec<_> = hung.iter().map(|pid| connection_to(&supervisor, *pid)).collect();
    for connection in &mut connections {
        connection.send(&request("GET", "/hang", &[], b"")).expect("sent");
    }
    hung.iter().for_each(|pid| supervisor.wait_gone(*pid));
    supervisor.wait_serving(2);
    supervisor.wait_log(STACK, 602, PATIENCE);
    let lines = obituaries(&supervisor);
    let mut lines = lines.iter();
    for _ in 0..2 {
        let exited = lines.next().expect("two workers ended");
        let pid = field(exited, "pid").expect("the line names the worker").to_owned();
        assert!(exited.contains("GET /hang") && hung.iter().any(|hung| hung.to_string() == pid), "{exited}");
        for line in 0..300 {
            let said = lines.next().expect("the stack is whole");
            assert!(said.contains(&format!(r"{pid}\tline {line} event={STACK} slot=")), "{said}");
            assert_eq!(field(said, "pid"), Some(&*pid), "{said}");
        }
        let said = lines.next().expect("the stack is whole");
        assert!(said.contains(&format!(r"{pid} last \u{{1b}}[31m event=")), "{said}");
    }
    assert_eq!(lines.next(), None);
    supervisor.stop();
}

#[test]
fn a_worker_that_boots_or_drains_too_long_or_crashes_tells_its_stack_too() {
    let (launch, faults) = stacks("stack of PID\n", "");
    let launch = launch.set("workers.graceful_timeout", r#""1s""#).set("workers.boot_timeout", r#""2s""#);
    let mut supervisor = launch.serving(1);
    let told = |supervisor: &Supervisor, nth: usize, reason: &str| {
        supervisor.wait_log(STACK, nth, PATIENCE);
        let lines = obituaries(supervisor);
        let [.., exited, stack] = &lines[..] else { panic!("{lines:?}") };
        let pid = field(exited, "pid").expect("the line names the worker");
        assert!(exited.contains(reason) && stack.contains(&format!(" stack of {pid} event=")), "{lines:?}");
    };

    fs::write(&faults, "slow_boot").expect("our own folder");
    supervisor.assert_reload(1, &["not ready within workers.boot_timeout"]);
    told(&supervisor, 1, "not ready within workers.boot_timeout");

    fs::write(&faults, "slow_shutdown").expect("our own folder");
    let worker = supervisor.serving_pids()[0];
    supervisor.assert_reload(0, &["serves"]);
    supervisor.wait_gone(worker);
    told(&supervisor, 2, "not drained in time");
    fs::write(&faults, "").expect("our own folder");

    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    connection.send(&request("GET", "/crash", &[], b"")).expect("sent");
    connection.answer().expect_err("the worker crashes");
    told(&supervisor, 3, "killed by SIGILL");

    supervisor.wait_serving(1);
    supervisor.stop();
    assert_eq!(supervisor.log().count(STACK), 3, "{}", supervisor.log().0);
}

/// Returns the arguments that the master was executed with, as its only worker reports them.
fn arguments(supervisor: &Supervisor) -> Vec<String> {
    get(supervisor.address(), "/arguments").text().lines().map(str::to_owned).collect()
}

/// Returns the arguments of the present master. A worker reports the arguments of the master that forked it. The test
/// therefore kills the only worker, and asks the replacement that the present master forks.
fn arguments_now(supervisor: &Supervisor) -> Vec<String> {
    let before = supervisor.serving_pids()[0];
    supervisor.signal_worker(before, Signal::SIGKILL);
    supervisor.wait_gone(before);
    supervisor.wait_serving(1);
    arguments(supervisor)
}

#[test]
fn an_upgrade_executes_the_command_of_the_runtime_and_a_failed_one_the_command_before() {
    let (launch, _) = seams();
    let fail = launch.path("fail");
    let mut supervisor = launch.env("SEAMS_FAIL", fail.to_str().expect("UTF-8")).serving(1);
    let first = arguments(&supervisor);
    assert!(!first.contains(&"--interpreted".to_owned()), "{first:?}");
    let interpreted = || {
        let program = std::iter::once(build_example("seams_master").to_string_lossy().into_owned());
        program.chain(["--interpreted".to_owned()]).chain(first[1..].iter().cloned()).collect::<Vec<_>>()
    };

    fs::write(&fail, "").expect("our own folder");
    let failed = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert_eq!(supervisor.wait_log(events::UPGRADE_ROLLED_BACK, 1, PATIENCE).len(), 1);
    assert_eq!(arguments_now(&supervisor), first, "the way back");

    fs::remove_file(&fail).expect("it was written above");
    for _ in 0..2 {
        let output = supervisor.ctl_by_socket(&["upgrade"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(arguments_now(&supervisor), interpreted());
    }

    fs::write(&fail, "").expect("our own folder");
    let failed = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    fs::remove_file(&fail).expect("it was written above");
    assert_eq!(arguments_now(&supervisor), interpreted(), "the way back from an upgrade after others");
    supervisor.stop();
}

#[test]
fn an_upgrade_without_a_way_back_needs_force_and_then_the_new_program_stays() {
    let (launch, _, faults) = faulty("replaced");
    let fail = launch.path("fail");
    let mut supervisor = launch.env("SEAMS_FAIL", fail.to_str().expect("UTF-8")).serving(1);
    let worker = supervisor.serving_pids();
    let no_way_back = "no way back: the wheel was replaced in place";
    assert_told_all(&supervisor.ctl_by_socket(&["upgrade"]), 1, &["nothing was changed", no_way_back, "--force"]);
    assert_eq!((supervisor.log().count("upgrade_started"), supervisor.serving_pids()), (0, worker.clone()));

    fs::write(&fail, "").expect("our own folder");
    let failed = supervisor.ctl_by_socket(&["upgrade", "--force"]);
    assert_told_all(&failed, 1, &["exited with code 7", "there is no way back: the wheel was replaced", "stays"]);
    let log = supervisor.log();
    assert_eq!([log.count("upgrade_forced"), log.count(events::UPGRADE_ROLLED_BACK)], [1, 0], "{}", log.0);
    assert_eq!(supervisor.serving_pids(), worker, "the old workers serve on");
    fs::remove_file(&fail).expect("it was written above");
    assert!(arguments_now(&supervisor).contains(&"--interpreted".to_owned()), "the new program stays");

    fs::write(&faults, "").expect("our own folder");
    let output = supervisor.ctl_by_socket(&["upgrade", "--force"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(supervisor.log().count("upgrade_forced"), 1, "there is a way back, so force changes nothing");
    supervisor.stop();
}

/// The words that the log contains if the master's own code has panicked.
const OWN_PANIC: &str = "a bug in oxicorn";

/// Returns the launch of the example program, the file with its notes, and the file that names the hooks which must
/// fail.
fn faulty(faults: &str) -> (Launch, PathBuf, PathBuf) {
    let (launch, notes) = seams();
    let path = launch.path("faults");
    fs::write(&path, faults).expect("our own folder");
    (launch.env("SEAMS_FAULTS", path.to_str().expect("UTF-8")), notes, path)
}

#[test]
fn a_hook_that_panics_ends_a_command_with_its_reason_and_exit_code() {
    for (fault, command, code, reason) in [
        ("prepare", &[][..], 3, "App::prepare panicked: a fault in prepare"),
        ("thread", &[], 3, "after App::prepare the process has 2 threads"),
        ("table", &[], 2, "panicked: a fault in table"),
        ("before_fork", &[], 3, "could not be forked: Runtime::before_fork panicked: a fault in before_fork"),
        ("after_fork_in_worker", &[], 3, "Runtime::after_fork_in_worker panicked: a fault in after_fork_in_worker"),
        ("check", &["check"], 2, "App::check panicked: a fault in check"),
        ("check", &["check", "--json"], 2, r#""ok":false,"reason":"App::check panicked: a fault in check""#),
        ("migrate", &["migrate"], 5, "App::migrate panicked: a fault in migrate"),
        ("prepare", &["migrate"], 5, "App::prepare panicked: a fault in prepare"),
        ("prepare", &["check", "--deep"], 3, "App::prepare panicked: a fault in prepare"),
        ("thread", &["check", "--deep"], 3, "after App::prepare the process has 2 threads"),
        ("before_fork", &["check", "--deep"], 3, "Runtime::before_fork panicked"),
        ("after_fork_in_worker", &["check", "--deep"], 3, "Runtime::after_fork_in_worker panicked"),
        ("after_fork_in_master", &["check", "--deep"], 0, "a worker became ready"),
    ] {
        let (launch, _, _) = faulty(fault);
        let output = launch.run_with(command);
        let told = text(&output);
        assert!(output.status.code() == Some(code) && told.contains(reason), "{fault}, {command:?}: {told}");
        assert!(!told.contains(OWN_PANIC), "{fault}, {command:?}: {told}");
    }
}

#[test]
fn a_hook_that_panics_in_a_running_master_costs_what_it_was_called_for_and_no_more() {
    let (launch, path, faults) = faulty("");
    let mut supervisor = launch.serving(1);
    let (master, worker) = (supervisor.pid(), supervisor.serving_pids());
    for (fault, command, code, reason) in [
        ("prepare", "reload", 1, "App::prepare panicked: a fault in prepare"),
        ("table", "reload", 1, "panicked: a fault in table"),
        ("before_fork", "reload", 1, "could not be forked: Runtime::before_fork panicked: a fault in before_fork"),
        ("after_fork_in_worker", "reload", 1, "Runtime::after_fork_in_worker panicked"),
        ("upgrade_command", "upgrade", 1, "Runtime::upgrade_command panicked: a fault in upgrade_command"),
        ("way_back", "upgrade", 1, "no way back: Runtime::way_back panicked: a fault in way_back"),
        ("prepare", "upgrade", 1, "App::prepare panicked: a fault in prepare"),
        ("thread", "upgrade", 1, "after App::prepare the process has 2 threads"),
    ] {
        fs::write(&faults, fault).expect("our own folder");
        assert_told_all(&supervisor.ctl_by_socket(&[command]), code, &[reason]);
        assert_eq!(supervisor.serving_pids(), worker, "{fault}, {command}");
    }
    let count = |line: &str| notes(&path).iter().filter(|note| **note == format!("{master} {line}")).count();
    assert_eq!(count("before fork"), count("after fork in master"), "they stay pairs: {:?}", notes(&path));

    fs::write(&faults, "before_fork").expect("our own folder");
    supervisor.signal_worker(worker[0], Signal::SIGKILL);
    // The notes already contain earlier calls of `before_fork`, for example from the failed reload. The test waits for
    // later calls.
    let failed = || count("before fork");
    let before = failed();
    eventually("the slot is tried again", PATIENCE, || (failed() > before + 1).then_some(()));
    fs::write(&faults, "").expect("our own folder");
    supervisor.wait_serving(1);

    fs::write(&faults, "after_fork_in_master hang_signal").expect("our own folder");
    supervisor.assert_reload(0, &["serves"]);
    let log = supervisor.log();
    for event in ["fork_hook_failed", "hang_signal_failed"] {
        assert!(log.count(event) > 0, "{event} is not in\n{}", log.0);
    }
    assert!(log.count("panic") > 0 && !log.0.contains(OWN_PANIC), "{}", log.0);
    assert!(supervisor.is_running());
    supervisor.stop();
}

#[test]
fn a_prepare_that_leaves_a_thread_is_named_and_an_upgrade_helps() {
    let (launch, _, faults) = faulty("");
    let mut supervisor = launch.serving(1);
    fs::write(&faults, "thread").expect("our own folder");
    let named = ["after App::prepare the process has 2 threads", "can fork no worker", "upgrade"];
    supervisor.assert_reload(1, &named);
    fs::write(&faults, "").expect("our own folder");
    supervisor.assert_reload(1, &named);

    let worker = supervisor.serving_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGKILL);
    let failed = supervisor.wait_log("fork_failed", 1, PATIENCE);
    assert!(failed[0].contains("2 threads") && failed[0].contains("App::prepare"), "{failed:?}");
    // Without workers, the master tries to fill the slot ten times a second.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let log = supervisor.log();
    assert_eq!([log.count("fork_failed"), log.count(events::BACKOFF)], [1, 0], "{}", log.0);

    let output = supervisor.ctl_by_socket(&["upgrade"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    supervisor.wait_serving(1);
    supervisor.assert_reload(0, &["serves"]);
    supervisor.stop();
}

#[test]
fn a_worker_that_ended_during_a_slow_fork_is_not_killed_for_a_late_end() {
    let (launch, path, faults) = faulty("");
    let mut supervisor = launch.set("workers.graceful_timeout", r#""1s""#).serving(1);
    let worker = supervisor.serving_pids()[0];
    let forks = notes(&path).len();
    fs::write(&faults, "slow_fork").expect("our own folder");
    // The worker drains by itself, and the master forks the next one at once. The grace ends during this fork.
    supervisor.signal_worker(worker, Signal::SIGTERM);
    eventually("the fork has begun", PATIENCE, || (notes(&path).len() > forks).then_some(()));
    fs::write(&faults, "").expect("our own folder");
    supervisor.wait_gone(worker);
    supervisor.wait_serving(1);
    let log = supervisor.log();
    assert_eq!(log.count(events::KILLED), 0, "{}", log.0);
    assert!(log.lines_of(events::EXITED).all(|line| line.contains("drained and ended")), "{}", log.0);
    supervisor.stop();
}
