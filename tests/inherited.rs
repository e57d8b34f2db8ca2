//! Promise: if a program becomes oxicorn by exec, oxicorn inherits the program's signals, children and limits. They do
//! not harm the service.

use std::time::Duration;

use crate::common::{Connection, Launch, PATIENCE, Process, Signal, Supervisor, events, eventually, get, observe_for};

/// Launches through a Perl program that first runs the statement `act` and then becomes oxicorn by exec.
fn after(act: &str) -> Launch {
    Launch::new().through(&["perl", "-e", &format!("{act}; exec @ARGV or die $!")])
}

fn inherited(supervisor: &Supervisor) -> String {
    supervisor.log().lines_of("inherited_state").collect::<Vec<_>>().join("\n")
}

#[test]
fn blocked_signals_are_unblocked() {
    let block = "use POSIX; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM, SIGCHLD, SIGHUP))";
    let mut supervisor = after(block).serving(2);
    assert!(inherited(&supervisor).contains("SIGTERM"), "{}", inherited(&supervisor));
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGKILL);
    supervisor.wait_log(events::EXITED, 1, PATIENCE);
    supervisor.wait_serving(2);
    for worker in supervisor.worker_pids() {
        assert_eq!(Process(worker).status()["SigBlk"], "0000000000000000");
    }
    let worker = supervisor.worker_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGTERM);
    supervisor.wait_gone(worker);
    supervisor.wait_serving(2);
    supervisor.stop();
}

/// The previous program has blocked these signals, and they are still pending. If they took effect when oxicorn
/// unblocks them, each of them would end the start.
#[test]
fn signals_pending_behind_the_mask_do_not_end_the_start() {
    let block = "use POSIX; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE))";
    let mut supervisor = after(&format!("{block}; kill $_, $$ for qw(HUP USR1 USR2 ALRM PIPE)")).serving(2);
    assert_eq!(supervisor.log().count("reload_started"), 0);
    supervisor.stop();
}

/// The master blocks signals during the exec of an upgrade, and the new program inherits this signal mask. The new
/// program must unblock the signals.
#[test]
fn no_signal_is_blocked_after_an_upgrade() {
    let mut supervisor = after("use POSIX; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM))").serving(2);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log(events::UPGRADED, 1, 2 * PATIENCE);
    supervisor.wait_serving(2);
    assert_eq!(supervisor.master().status()["SigBlk"], "0000000000000000");
    supervisor.stop();
}

#[test]
fn an_inherited_alarm_ends_no_process() {
    let mut supervisor = after("alarm 2").serving(2);
    assert!(inherited(&supervisor).contains("SIGALRM"), "{}", inherited(&supervisor));
    observe_for(Duration::from_millis(2500));
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    supervisor.stop();
}

#[test]
fn no_socket_gets_the_number_of_a_closed_standard_stream() {
    let launch = Launch::new().through(&["sh", "-c", r#"exec "$@" <&- >&- 2>&-"#, "sh"]);
    let mut supervisor = launch.log_to("app.log").serving(2);
    for process in supervisor.worker_pids().into_iter().chain([supervisor.pid()]) {
        for number in 0..3 {
            let file = std::fs::read_link(format!("/proc/{process}/fd/{number}")).expect("it is open");
            assert_eq!(file.to_str(), Some("/dev/null"));
        }
    }
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    supervisor.stop();
}

/// The master inherits the children of the previous program. It reaps them when they end, and does not mistake them for
/// its workers.
#[test]
fn children_of_the_previous_program_do_no_harm() {
    let mut supervisor = after("for (1..3) { if (!fork) { sleep 1; exit 7 } }").serving(2);
    eventually("the strangers are reaped", PATIENCE, || (supervisor.master().children().len() == 2).then_some(()));
    let log = supervisor.log();
    assert_eq!((log.count(events::EXITED), log.count(events::FORKED)), (0, 2), "{}", log.tail(20));
    supervisor.stop();
}

/// When the log file has reached the size limit, the file cannot grow and further lines are lost. No process must end
/// for this reason.
#[test]
fn a_file_size_limit_costs_lines_and_no_worker() {
    let launch = Launch::new().through(&["sh", "-c", r#"ulimit -f 8192; exec "$@""#, "sh"]);
    let mut supervisor = launch.set("log.access", r#""{dir}/access.log""#).set("workers.count", "1").serving(1);
    assert!(inherited(&supervisor).contains("RLIMIT_FSIZE"), "{}", inherited(&supervisor));
    let worker = supervisor.worker_pids();
    let long = format!("/health?{}", "x".repeat(8_000));
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    for _ in 0..600 {
        assert_eq!(connection.get(&long).expect("an answer").status, 200);
    }
    supervisor.wait_log(events::ACCESS_LINES_DROPPED, 1, PATIENCE);
    assert_eq!(supervisor.worker_pids(), worker);
    supervisor.stop();
}
