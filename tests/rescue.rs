//! Promise: when a worker is stopped or missing, other workers accept the connections that go to this worker. The
//! clients of these connections hardly wait.

use std::{net::SocketAddr, thread, time::Duration};

use crate::common::{
    Canary, Connection, Failure, Launch, Load, Mode, PATIENCE, Process, Signal, Supervisor, events, eventually, field,
    get, now, observe_for, request,
};

const PATH: &str = "/debug/connections";
/// The longest time that a client may wait. `BUSY_WAIT` counts while the other workers have traffic, and `IDLE_WAIT`
/// counts while they are idle.
const BUSY_WAIT: Duration = Duration::from_millis(100);
const IDLE_WAIT: Duration = Duration::from_millis(400);

fn debugging(launch: Launch) -> Launch {
    launch.set("log.level", r#""debug""#).set("workers.count", "4")
}

/// Opens `count` connections, one in each period of length `every`, and does not wait for the answers on earlier
/// connections. Returns the longest wait for an answer, counted from connect().
fn arrivals(address: SocketAddr, count: u32, every: Duration) -> Duration {
    let begin = now();
    let ask = |at: Duration| -> Result<Duration, Failure> {
        thread::sleep((begin + at).saturating_duration_since(now()));
        let asked = now();
        let answer = Connection::open(address)?.ask(&request("GET", PATH, &[("Connection", "close")], b""))?;
        assert_eq!(answer.status, 200);
        Ok(asked.elapsed())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count).map(|nth| scope.spawn(move || ask(every * nth))).collect();
        let waits = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        waits.map(|wait| wait.unwrap_or_else(|failure| panic!("lost: {failure}"))).max().unwrap_or_default()
    })
}

fn stop(supervisor: &Supervisor, victim: u32) {
    supervisor.signal_worker(victim, Signal::SIGSTOP);
    eventually("the worker stands still", PATIENCE, || (Process(victim).state() == Some('T')).then_some(()));
}

/// Stops one of the workers for two seconds, five times in all. Each time, `load` measures the longest wait of a
/// client. Returns the median of these five waits, so that one stall of the machine does not fail the test.
fn median_wait(supervisor: &Supervisor, before: Duration, load: impl Fn() -> Duration) -> Duration {
    let mut waits: Vec<_> = (0..5)
        .map(|run| {
            observe_for(before);
            let victim = supervisor.serving_pids()[run % 4];
            let canary = Canary::start();
            stop(supervisor, victim);
            let stopped = now();
            let wait = load();
            let stall = canary.longest();
            observe_for(Duration::from_secs(2).saturating_sub(stopped.elapsed()));
            supervisor.signal_worker(victim, Signal::SIGCONT);
            eventually("it serves again", PATIENCE, || {
                (get(supervisor.address(), PATH).pid() == Some(victim)).then_some(())
            });
            eprintln!("longest wait {wait:?}, the machine stood still for {stall:?}");
            wait.saturating_sub(stall)
        })
        .collect();
    waits.sort();
    waits[waits.len() / 2]
}

fn rescued(supervisor: &Supervisor) -> u64 {
    supervisor.status()["totals"]["rescued"].as_u64().expect("a count")
}

#[test]
fn no_client_waits_long_for_a_stopped_worker() {
    let supervisor = debugging(Launch::new()).serving(4);
    let address = supervisor.address();
    let busy = Load::start(address, PATH, 4, Mode::PerRequest { think_ms: 10 });
    let wait =
        median_wait(&supervisor, Duration::from_millis(100), || arrivals(address, 400, Duration::from_millis(5)));
    assert!(wait < BUSY_WAIT, "a client waited {wait:?} under traffic");
    busy.finish().assert_nothing_lost();
    let before = rescued(&supervisor);
    assert!(before > 0, "no connection was rescued: the test met no queue");

    let wait = median_wait(&supervisor, Duration::from_secs(1), || arrivals(address, 16, Duration::ZERO));
    assert!(wait < IDLE_WAIT, "a client waited {wait:?} from idle");
    assert!(rescued(&supervisor) > before, "no connection was rescued from idle: the test met no queue");
    assert_eq!(supervisor.log().count(events::EXITED), 0);
}

/// An idle worker announces that its next heartbeat comes 300 ms later. If a handler then blocks the worker, the master
/// cannot notice this before these 300 ms are over. New clients must not wait all the same.
#[test]
fn a_handler_that_blocks_an_idle_worker_delays_no_new_client() {
    let supervisor = debugging(Launch::new()).serving(4);
    let canary = Canary::start();
    let mut waits: Vec<_> = (0..5)
        .map(|_| {
            observe_for(Duration::from_secs(1));
            let mut blocked = Connection::open(supervisor.address()).expect("a connection");
            blocked.send(&request("GET", "/debug/block/1500", &[], b"")).expect("sent");
            let wait = arrivals(supervisor.address(), 16, Duration::from_millis(1));
            assert_eq!(blocked.answer().expect("an answer, late").status, 200);
            wait
        })
        .collect();
    waits.sort();
    let wait = waits[2].saturating_sub(canary.longest());
    assert!(wait < IDLE_WAIT, "a client waited {wait:?}: {waits:?}");
}

/// Returns the slots to which new connections go, according to the last such report in the log.
fn steered(supervisor: &Supervisor) -> Option<String> {
    let log = supervisor.log();
    let line = log.lines_of("steering_changed").last()?;
    field(line, "live").map(str::to_owned)
}

#[test]
fn a_silent_worker_gets_no_new_connections_until_its_heartbeat_resumes() {
    let supervisor = debugging(Launch::new()).serving(4);
    let all = || eventually("all are steered to", PATIENCE, || (steered(&supervisor)? == "[0, 1, 2, 3]").then_some(()));
    all();
    let slots = supervisor.status()["workers"].clone();
    let worker = slots.as_array().and_then(|all| all.iter().find(|worker| worker["slot"] == 1)).expect("slot 1 serves");
    let victim = worker["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    stop(&supervisor, victim);
    let stopped = now();
    eventually("it is steered around", PATIENCE, || (steered(&supervisor)? == "[0, 2, 3]").then_some(()));
    eprintln!("steered around after {:?}", stopped.elapsed());
    observe_for(Duration::from_secs(1));
    supervisor.signal_worker(victim, Signal::SIGCONT);
    all();
    supervisor.wait_log("heartbeat_resumed", 1, PATIENCE);
    assert_eq!((supervisor.log().count(events::HUNG), supervisor.log().count(events::EXITED)), (0, 0));
}

#[test]
fn no_request_is_lost_when_all_workers_are_silent() {
    let supervisor = debugging(Launch::new()).serving(4);
    for victim in supervisor.serving_pids() {
        stop(&supervisor, victim);
    }
    let queued = thread::scope(|scope| {
        let clients = scope.spawn(|| arrivals(supervisor.address(), 40, Duration::from_millis(5)));
        observe_for(Duration::from_millis(700));
        for victim in supervisor.worker_pids() {
            supervisor.signal_worker(victim, Signal::SIGCONT);
        }
        clients.join().expect("no request is lost")
    });
    assert!(queued > BUSY_WAIT, "they did not stand still");
}

#[test]
fn without_steering_the_service_reports_it_once_and_no_client_waits() {
    let supervisor = debugging(Launch::new()).without_steering().serving(4);
    assert_eq!(supervisor.log().count("steering_refused"), 1);
    let busy = Load::start(supervisor.address(), PATH, 4, Mode::PerRequest { think_ms: 10 });
    let wait = median_wait(&supervisor, Duration::from_millis(100), || {
        arrivals(supervisor.address(), 400, Duration::from_millis(5))
    });
    assert!(wait < BUSY_WAIT, "a client waited {wait:?}");
    busy.finish().assert_nothing_lost();
    assert_eq!(supervisor.log().count("steering_refused"), 1);
}

#[test]
fn without_steering_scaling_loses_nothing() {
    let mut supervisor = debugging(Launch::new()).without_steering().serving(4);
    let scale = |workers: &str| supervisor.ctl(&["scale", workers]);
    // When the number of workers falls, the workers of slots 0 and 1 stay, because they started before the workers of
    // slots 4 to 7.
    for workers in ["1", "8", "2", "6", "2"] {
        let scaled = scale(workers);
        assert!(scaled.status.success(), "{}", String::from_utf8_lossy(&scaled.stderr));
        let load = Load::start(supervisor.address(), PATH, 4, Mode::PerRequest { think_ms: 10 });
        arrivals(supervisor.address(), 100, Duration::from_millis(5));
        load.finish().assert_nothing_lost();
        observe_for(Duration::from_millis(600));
        let wait = arrivals(supervisor.address(), 40, Duration::ZERO);
        eprintln!("{workers} workers: {wait:?} from idle");
    }
    let scaled = scale("9");
    assert!(!scaled.status.success(), "a slot was made that not every worker can rescue");
    assert!(supervisor.log().0.contains("room for 8 workers"), "the message gives the reason");
    arrivals(supervisor.address(), 40, Duration::ZERO);
    supervisor.stop();
}

#[test]
fn without_steering_a_recycle_and_a_kill_lose_no_waiting_connection() {
    let supervisor = debugging(Launch::new()).without_steering().set("workers.max_requests", "100").serving(4);
    let load = Load::start(supervisor.address(), PATH, 6, Mode::PerRequest { think_ms: 5 });
    supervisor.wait_log(events::RECYCLE_REQUESTED, 8, 2 * PATIENCE);
    load.finish().assert_nothing_lost();
    eventually("the worker that was to be replaced is gone", PATIENCE, || {
        let log = supervisor.log();
        (log.count(events::EXITED) == log.count(events::RECYCLE_REQUESTED)).then_some(())
    });
    let victim = supervisor.serving_pids()[0];
    stop(&supervisor, victim);
    thread::scope(|scope| {
        let clients = scope.spawn(|| arrivals(supervisor.address(), 100, Duration::from_millis(2)));
        supervisor.signal_worker(victim, Signal::SIGKILL);
        clients.join().expect("no request is lost")
    });
}
