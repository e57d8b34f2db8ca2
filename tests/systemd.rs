//! Promise: systemd learns the true state of the service. The service answers on the sockets that systemd passes, and
//! these sockets stay open after the service has stopped.
//!
//! The tests play systemd: they receive the service's messages on a datagram socket and pass a listener as descriptor
//! 3.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram},
    },
    process::Command,
    time::Duration,
};

use crate::common::{
    Connection, Launch, Load, Mode, PATIENCE, Process, Signal, events, eventually, field, free_port, get, now,
    observe_for, request,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The messages that the service sent to systemd, in order.
struct Told {
    socket: UnixDatagram,
    messages: Vec<String>,
}

impl Told {
    /// Makes a socket for the messages, and gives its path to `launch` as NOTIFY_SOCKET.
    fn at_path(launch: Launch) -> (Launch, Self) {
        let socket = UnixDatagram::bind(launch.path("notify")).expect("a socket in our own folder");
        (launch.env("NOTIFY_SOCKET", "{dir}/notify"), Self::of(socket))
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_nonblocking(true).expect("a socket of ours");
        Self { socket, messages: Vec::new() }
    }

    fn all(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => self.messages.push(String::from_utf8_lossy(&buffer[..len]).into_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return &self.messages,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn count(&mut self, message: &str) -> usize {
        self.all().iter().filter(|told| *told == message).count()
    }

    #[track_caller]
    fn wait(&mut self, message: &str, times: usize) {
        eventually(&format!("{message:?} is told {times} times"), PATIENCE, || {
            (self.count(message) >= times).then_some(())
        });
    }

    fn place_of(&mut self, message: &str) -> usize {
        let place = self.all().iter().position(|told| told == message);
        place.unwrap_or_else(|| panic!("{message:?} was never told: {:?}", self.messages))
    }
}

#[test]
fn systemd_hears_ready_with_the_first_serving_worker_and_stopping_with_the_stop() {
    let (launch, mut told) = Told::at_path(Launch::new());
    let mut supervisor = launch.start();
    told.wait("READY=1", 1);
    assert!(supervisor.log().count(events::READY) >= 1, "{}", supervisor.log().0);
    supervisor.wait_listening();
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    told.wait("STATUS=2 of 2 workers serve, generation 1", 1);
    supervisor.signal(Signal::SIGTTIN);
    told.wait("STATUS=3 of 3 workers serve, generation 1", 1);
    supervisor.stop();
    assert_eq!((told.count("READY=1"), told.count("STOPPING=1")), (1, 1));
    assert_eq!(told.place_of("STATUS=0 of 2 workers serve, generation 1"), 0);
    assert!(told.place_of("READY=1") < told.place_of("STOPPING=1"));
    assert!(told.all().iter().any(|told| told.starts_with("STATUS=draining: ")), "{:?}", told.messages);
}

#[test]
fn a_service_that_never_serves_is_never_ready() {
    let (launch, mut told) = Told::at_path(Launch::misbehave().set("misbehave.boot", r#""hang""#));
    let mut supervisor = launch.start();
    supervisor.wait_listening();
    // The workers of this service never become ready, so a reload must not make systemd believe that the service is
    // ready.
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log("trial_started", 1, PATIENCE);
    supervisor.signal(Signal::SIGINT);
    supervisor.wait_exit(PATIENCE);
    assert_eq!((told.count("READY=1"), told.count("STOPPING=1")), (0, 1));

    let (launch, mut told) = Told::at_path(Launch::misbehave().set("misbehave.boot", r#""error""#));
    assert_eq!(launch.start().wait_exit(PATIENCE), 3);
    assert_eq!((told.count("READY=1"), told.count("STOPPING=1")), (0, 1));
}

#[test]
fn ready_waits_for_a_slow_boot() {
    let launch = Launch::misbehave().set("misbehave.fail_while", r#""{dir}/in-the-way""#);
    let path = launch.path("in-the-way");
    std::fs::write(&path, "").expect("a file in our own folder");
    let (launch, mut told) = Told::at_path(launch);
    let mut supervisor = launch.start();
    supervisor.wait_listening();
    supervisor.wait_log(events::BOOT_FAILED, 2, PATIENCE);
    assert_eq!(told.count("READY=1"), 0);
    std::fs::remove_file(&path).expect("our own file");
    told.wait("READY=1", 1);
    assert_eq!(get(supervisor.address(), "/pid").status, 200);
    supervisor.stop();
}

/// For a `Type=notify-reload` unit, `systemctl reload` waits for RELOADING and then READY, and checks the time in
/// RELOADING.
#[test]
fn a_reload_is_announced_with_its_time_and_its_end() {
    let (launch, mut told) = Told::at_path(Launch::new());
    let mut supervisor = launch.serving(2);
    told.wait("READY=1", 1);
    let monotonic = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
        time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000
    };
    let before = monotonic();
    supervisor.signal(Signal::SIGHUP);
    told.wait("READY=1", 2);
    let reloading = told.all().iter().find_map(|told| told.strip_prefix("RELOADING=1\nMONOTONIC_USEC="));
    let at: i64 = reloading.and_then(|usec| usec.parse().ok()).expect("RELOADING with its time");
    assert!((before..=monotonic()).contains(&at), "{before} <= {at}");

    // The service must announce the end of a refused reload too. Otherwise systemctl would wait for this end, and
    // systemd would believe that the service is stuck.
    std::fs::write(supervisor.path("supervisor.toml"), "no = = settings").expect("our own file");
    supervisor.signal(Signal::SIGHUP);
    told.wait("READY=1", 3);
    assert_eq!(supervisor.log().count(events::RELOAD_REFUSED), 1);
    let order: Vec<_> = told.all().iter().map(|told| told.split('=').next().unwrap_or_default()).collect();
    let order: Vec<_> = order.into_iter().filter(|name| ["READY", "RELOADING"].contains(name)).collect();
    assert_eq!(order, ["READY", "RELOADING", "READY", "RELOADING", "READY"]);
    supervisor.stop();
}

#[test]
fn the_watchdog_is_fed_twice_a_period_and_not_by_workers() {
    let name = format!("oxicorn-test-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).expect("a short name");
    let mut told = Told::of(UnixDatagram::bind_addr(&address).expect("a name of our own"));
    let launch = Launch::misbehave().env("NOTIFY_SOCKET", &format!("@{name}")).env("WATCHDOG_USEC", "400000");
    let mut supervisor = launch.env("LISTEN_FDNAMES", "http").serving(2);
    told.wait("WATCHDOG=1", 1);
    let (started, before) = (now(), told.count("WATCHDOG=1"));
    observe_for(Duration::from_secs(2));
    let heard = told.count("WATCHDOG=1") - before;
    let expected = started.elapsed().as_millis() as usize / 200;
    assert!(heard <= expected + 1, "{heard}, more than each 200 ms");
    // Half of the expected messages are enough, because the machine may be busy. systemd would kill the service only
    // after a whole period without a message.
    assert!(heard * 2 >= expected, "{heard} of {expected}");

    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDNAMES"] {
        assert_eq!(get(supervisor.address(), &format!("/env/{name}")).json()["set"], false, "{name}");
    }
    assert_eq!(get(supervisor.address(), "/env/PATH").json()["set"], true, "the route tells");
    supervisor.stop();
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let (launch, mut told) = Told::at_path(Launch::new().env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1"));
    let mut supervisor = launch.serving(2);
    told.wait("READY=1", 1);
    supervisor.stop();
    assert_eq!(told.count("WATCHDOG=1"), 0);
}

#[test]
fn a_missing_notify_socket_is_reported_once() {
    let mut supervisor = Launch::new().env("NOTIFY_SOCKET", "{dir}/nobody").serving(2);
    supervisor.signal(Signal::SIGTTIN);
    supervisor.wait_serving(3);
    supervisor.stop();
    assert_eq!(supervisor.log().count("notify_failed"), 1);
}

/// Launches the program through a shell that first runs `script` and then becomes the program.
fn after(script: &str, launch: Launch) -> Launch {
    launch.through(&["bash", "-c", &format!("{script} exec \"$0\" \"$@\"")])
}

/// Launches the program with `listener` as descriptor 3, as systemd would.
fn passing(launch: Launch, listener: &impl AsRawFd) -> Launch {
    after(&format!("exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1", listener.as_raw_fd()), launch)
}

/// Returns a listener that the programs started by this test inherit, and its address.
fn systemds() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("a socket of ours");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

#[test]
fn a_passed_socket_replaces_bind_and_stays_open_after_the_service() {
    let (listener, address) = systemds();
    for round in 0..2 {
        // A client that comes while no service runs waits in the socket's queue. The service must answer this client
        // after its next start.
        let mut early = Connection::open(address).expect("systemd listens");
        early.send(&request("GET", "/health", &[], b"")).expect("the kernel takes it");
        let mut supervisor = passing(Launch::new(), &listener).serving(2);
        assert_eq!(supervisor.addresses(), [address.to_string()], "server.bind is replaced");
        assert_eq!(supervisor.log().count("sockets_passed"), 1);
        assert_eq!(early.answer().expect("an answer").status, 200, "round {round}");
        for _ in 0..20 {
            assert_eq!(get(address, "/health").status, 200);
        }
        supervisor.stop();
    }
    Connection::open(address).expect("it still listens");
}

/// An upgrade keeps the pid, so the sockets that systemd passed still belong to the process. The process must still
/// feed the watchdog.
#[test]
fn an_upgrade_keeps_the_passed_socket_and_its_duties_to_systemd() {
    let (listener, address) = systemds();
    let (launch, mut told) = Told::at_path(Launch::new().env("WATCHDOG_USEC", "400000"));
    let mut supervisor = passing(launch, &listener).serving(2);
    told.wait("READY=1", 1);
    let load = Load::start(address, "/debug/connections", 4, Mode::PerRequest { think_ms: 1 });
    for round in 1..=2 {
        supervisor.signal(Signal::SIGUSR2);
        supervisor.wait_log(events::UPGRADED, round, PATIENCE);
        // The service announces an upgrade to systemd as it announces a reload: with RELOADING when the upgrade begins,
        // and with READY when it is over.
        told.wait("READY=1", 1 + round);
        let fed = told.count("WATCHDOG=1");
        told.wait("WATCHDOG=1", fed + 2);
    }
    let reloading = told.all().iter().filter(|told| told.starts_with("RELOADING=1\n")).count();
    assert_eq!((reloading, told.count("READY=1"), told.count("STOPPING=1")), (2, 3, 0));
    load.finish().assert_nothing_lost();
    // After the upgrades, a reload must still find the passed socket at its descriptor number.
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_log(events::RELOADED, 1, PATIENCE);
    assert_eq!((supervisor.log().count("settings_warning"), supervisor.pid()), (0, supervisor.master().0));
    supervisor.stop();
    Connection::open(address).expect("it still listens");
}

/// Uses the real systemd-socket-activate from Debian's package systemd. systemd itself need not run.
#[test]
fn sockets_from_systemd_socket_activate_are_served() {
    let installed = Command::new("systemd-socket-activate").arg("--version").output();
    assert!(installed.is_ok(), "there is no systemd-socket-activate here: apt-get install systemd");
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let activated = ["systemd-socket-activate", "--fdname=http", "--listen", &address.to_string()];
    let mut supervisor = Launch::new().through(&activated).start();
    // systemd-socket-activate starts the program only when the first client connects.
    let mut first = eventually("systemd listens", PATIENCE, || Connection::open(address).ok());
    assert_eq!(first.ask(&request("GET", "/health", &[], b"")).expect("an answer").status, 200);
    supervisor.wait_listening();
    assert_eq!(supervisor.addresses(), [address.to_string()]);
    let log = supervisor.log();
    let passed = log.lines_of("sockets_passed").next().expect("it is said");
    assert_eq!((field(passed, "sockets"), field(passed, "names")), (Some("1"), Some("http")));
    supervisor.stop();
}

/// The test does what a socket unit does. It passes the socket, keeps running, and starts the service again each time
/// the service has stopped.
#[test]
fn restarts_under_load_lose_nothing_while_systemd_keeps_the_socket() {
    const STARTS: usize = 4;
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let keeper = format!("for start in {{1..{STARTS}}}; do (LISTEN_PID=$BASHPID exec \"$0\" \"$@\"); done");
    let activated = ["systemd-socket-activate", "--listen", &address.to_string(), "bash", "-c", &keeper];
    let mut supervisor = Launch::new().through(&activated).start();
    let probe = eventually("systemd listens", PATIENCE, || Connection::open(address).ok());
    supervisor.wait_listening();
    drop(probe);
    let loads = [Mode::PerRequest { think_ms: 5 }, Mode::KeepAlive { think_ms: 20 }]
        .map(|mode| Load::start(address, "/debug/connections", 4, mode));
    let keeper = supervisor.master().parent().map(Process).expect("the shell that stays");
    for start in 1..STARTS {
        let answered = loads[0].answered();
        eventually("requests are answered between two restarts", PATIENCE, || {
            (loads[0].answered() >= answered + 100).then_some(())
        });
        let master = *keeper.children().first().expect("the service runs");
        supervisor.signal_worker(master.0, Signal::SIGTERM);
        supervisor.wait_log(events::STOPPED, start, 2 * PATIENCE);
    }
    supervisor.wait_log("sockets_passed", STARTS, PATIENCE);
    for load in loads {
        let tally = load.finish();
        tally.assert_nothing_lost();
        assert!(tally.pids.len() > 2, "only {} workers answered", tally.pids.len());
    }
    assert_eq!(supervisor.log().count("sockets_passed"), STARTS);
}

#[test]
fn replacements_share_a_passed_socket() {
    let (listener, address) = systemds();
    let mut supervisor = passing(Launch::new(), &listener).serving(2);
    for victim in supervisor.wait_serving(2) {
        supervisor.signal_worker(victim, Signal::SIGTERM);
        supervisor.wait_gone(victim);
        assert_eq!(get(address, "/health").status, 200);
    }
    supervisor.wait_serving(2);
    supervisor.stop();
}

#[test]
fn a_passed_descriptor_can_be_named_in_bind() {
    let (listener, address) = systemds();
    let launch = Launch::new().set("server.bind", r#"["fd://3", "127.0.0.1:0"]"#);
    let mut supervisor = after(&format!("exec 3<&{};", listener.as_raw_fd()), launch).serving(2);
    assert_eq!(supervisor.addresses().len(), 2);
    for address in supervisor.addresses() {
        assert_eq!(get(address.parse().expect("a TCP address"), "/health").status, 200);
    }
    supervisor.stop();
    Connection::open(address).expect("it still listens");
}

#[test]
fn sockets_of_another_process_are_left_alone() {
    let launch = Launch::new().env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let mut supervisor = launch.serving(2);
    let log = supervisor.log();
    assert_eq!((log.count("sockets_passed"), log.count("settings_warning")), (0, 1), "{}", log.0);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    supervisor.stop();
}

#[test]
fn a_descriptor_that_is_no_listener_is_refused_with_a_sentence() {
    for script in ["exec 3</dev/null;", "exec 3<&-;"] {
        let output = after(script, Launch::new().set("server.bind", r#"["fd://3"]"#)).run();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{script}: {text}");
        let sentence = "server.bind: fd://3 is not a listening TCP or unix socket";
        assert!(text.contains(sentence) && !text.contains("worker_forked"), "{script}: {text}");
    }
}
