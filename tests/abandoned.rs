//! Promise: the app does not get a request whose client left earlier, wherever the request waited and however long. A
//! client that sends its request and then closes only its sending side is answered.
//!
//! Without this rule, the next worker would run the requests left in the queue of a worker that hung or died, although
//! no client reads their answers.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::common::{
    Connection, Launch, PATIENCE, Process, Signal, Supervisor, events, eventually, get, json_request, now, observe_for,
    request, server_side,
};
use crate::https::{Authority, PLAIN, WithTls, connect};

/// How long the impatient clients stay before they leave. This is twice the time that a worker needs to notice that a
/// client has left.
const CLIENTS_GAVE_UP: Duration = Duration::from_millis(1_000);

fn launch() -> Launch {
    Launch::new()
        .set("workers.count", "1")
        .set("workers.timeout", r#""1m""#)
        .set("log.access", r#""{dir}/access.log""#)
        .set("log.access_format", r#""%(m)s %(U)s %(s)s""#)
}

/// Stops the only worker with SIGSTOP, runs `clients` with the service's address, and then lets the worker continue.
fn while_it_stands_still<T>(supervisor: &Supervisor, clients: impl FnOnce(SocketAddr) -> T) -> T {
    let worker = supervisor.serving_pids()[0];
    supervisor.signal_worker(worker, Signal::SIGSTOP);
    eventually("the worker stands still", PATIENCE, || (Process(worker).state() == Some('T')).then_some(()));
    let came = clients(supervisor.address());
    supervisor.signal_worker(worker, Signal::SIGCONT);
    came
}

/// Drops the clients, which closes their connections, and waits until the server's side of each connection has the end.
///
/// Without the wait, the worker may find a request before the end of its client comes. If another test starts a process
/// at this moment, that process has a copy of every socket until its exec, and only then the kernel closes the socket.
#[track_caller]
fn leave(server: SocketAddr, clients: Vec<Connection>) {
    let addresses: Vec<_> = clients.iter().map(|client| client.stream().local_addr().expect("its address")).collect();
    drop(clients);
    wait_ended(server, &addresses);
}

#[track_caller]
fn wait_ended(server: SocketAddr, clients: &[SocketAddr]) {
    eventually("the server's side has the end of each client", PATIENCE, || {
        clients.iter().all(|client| server_side(server, *client).as_deref() != Some("01")).then_some(())
    });
}

fn fact(text: &str) -> Vec<u8> {
    json_request("POST", "/facts", &json!({ "text": text }))
}

fn texts(supervisor: &Supervisor) -> Vec<String> {
    let items = get(supervisor.address(), "/facts?limit=100").json()["items"].clone();
    let mut texts: Vec<String> = items.as_array().into_iter().flatten().map(|fact| text_of(fact).to_owned()).collect();
    texts.sort();
    texts
}

fn text_of(fact: &Value) -> &str {
    fact["text"].as_str().expect("a fact has a text")
}

#[track_caller]
fn wait_abandoned(supervisor: &Supervisor, many: u64) {
    let begun = now();
    while supervisor.total("abandoned") < many && begun.elapsed() < PATIENCE {
        observe_for(Duration::from_millis(5));
    }
    let totals = supervisor.status()["totals"].clone();
    let access = std::fs::read_to_string(supervisor.path("access.log")).unwrap_or_default();
    assert_eq!(totals["abandoned"], many, "after {:?}; {totals}; the access log:\n{access}", begun.elapsed());
}

#[test]
fn a_request_whose_client_has_left_does_not_reach_the_app() {
    let bind = r#"["127.0.0.1:0", "unix:{dir}/app.sock"]"#;
    let mut supervisor = launch().set("server.bind", bind).serving(1);
    let address = supervisor.address();
    let unix = || UnixStream::connect(supervisor.path("app.sock")).expect("a connection");
    let mut kept = Connection::open(address).expect("a connection");
    assert_eq!(kept.get("/health").expect("an answer").status, 200);

    let (mut waiting, mut half, mut half_unix) = while_it_stands_still(&supervisor, |address| {
        let open = || Connection::open(address).expect("a connection");
        let (mut gone, mut reset, mut waiting, mut half) = (open(), open(), open(), open());
        let (mut gone_unix, mut half_unix) = (Connection::over(unix()), Connection::over(unix()));
        half.send_last(&fact("half-closed")).expect("sent");
        half_unix.send(&fact("half-closed on unix")).expect("sent");
        half_unix.stream().shutdown(Shutdown::Write).expect("a connected socket");
        gone.send(&fact("gone")).expect("sent");
        gone_unix.send(&fact("gone on unix")).expect("sent");
        reset.send(&fact("reset")).expect("sent");
        waiting.send(&fact("waiting")).expect("sent");
        kept.send(&fact("gone from a kept connection")).expect("sent");
        observe_for(CLIENTS_GAVE_UP);
        SockRef::from(reset.stream()).set_linger(Some(Duration::ZERO)).expect("our own socket");
        leave(address, vec![gone, reset, kept]);
        // This takes effect at once, and the worker sees what it would see of a close.
        gone_unix.stream().shutdown(Shutdown::Both).expect("a connected socket");
        (waiting, half, half_unix)
    });
    assert_eq!(waiting.answer().expect("a client that waits is answered").status, 201);
    assert_eq!(half.answer().expect("a half-close is answered").status, 201);
    assert_eq!(half_unix.answer().expect("also on a unix socket").status, 201);
    wait_abandoned(&supervisor, 4);
    assert_eq!(texts(&supervisor), ["half-closed", "half-closed on unix", "waiting"]);
    assert!(supervisor.log().count("request_abandoned") >= 1);

    // The abandoned requests count neither as served nor as refused. The five served requests are `/health`, the three
    // answered facts, and the list of facts.
    assert_eq!((supervisor.total("requests"), supervisor.total("refused")), (5, 0));
    let log = supervisor.path("access.log");
    eventually("their lines say 499", PATIENCE, || {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        (lines.matches("POST /facts 499\n").count() == 4).then_some(())
    });
    supervisor.stop();
}

/// If a worker served requests of departed clients, the replacement of the crashed worker would find such a request in
/// the queue and crash too.
#[test]
fn a_request_that_crashes_workers_crashes_none_after_its_client_has_left() {
    let supervisor = launch().serving(1);
    while_it_stands_still(&supervisor, |address| {
        let clients = (0..6).map(|_| {
            let mut client = Connection::open(address).expect("a connection");
            client.send(&request("GET", "/debug/abort", &[], b"")).expect("sent");
            client
        });
        let clients: Vec<_> = clients.collect();
        observe_for(CLIENTS_GAVE_UP);
        leave(address, clients);
    });
    wait_abandoned(&supervisor, 6);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    assert_eq!(supervisor.log().count(events::EXITED), 0);
}

/// The worker's loop learns of all requests in one turn, and the handler of the first request blocks the loop. Before
/// the loop starts another of these requests, it must check again whether the client is still there.
#[test]
fn the_loop_checks_again_for_departed_clients_after_a_handler_blocked_it() {
    let supervisor = launch().serving(1);
    let open = || {
        let mut connection = Connection::open(supervisor.address()).expect("a connection");
        assert_eq!(connection.get("/health").expect("an answer").status, 200);
        connection
    };
    let (mut blocking, mut gone, mut half) = (open(), open(), open());
    while_it_stands_still(&supervisor, |_| {
        blocking.send(&request("GET", "/debug/block/2500", &[], b"")).expect("sent");
        gone.send(&fact("gone")).expect("sent");
        half.send_last(&fact("half-closed")).expect("sent");
    });
    observe_for(CLIENTS_GAVE_UP);
    leave(supervisor.address(), vec![gone]);
    assert_eq!(half.answer().expect("a half-close is answered").status, 201);
    assert_eq!(blocking.answer().expect("late").status, 200);
    wait_abandoned(&supervisor, 1);
    assert_eq!(texts(&supervisor), ["half-closed"]);
}

#[test]
fn a_departed_client_is_noticed_over_tls() {
    let authority = Authority::new();
    let supervisor = launch().tls(&authority.issue(|_| {})).serving(1);
    let config = PLAIN.trusting(&authority);
    let mut kept = connect(supervisor.address(), &config);
    assert_eq!(kept.get("/health").expect("an answer").status, 200);
    while_it_stands_still(&supervisor, |address| {
        kept.send(&fact("gone")).expect("sent");
        observe_for(CLIENTS_GAVE_UP);
        let client = kept.stream().sock.local_addr().expect("its address");
        drop(kept);
        wait_ended(address, &[client]);
    });
    wait_abandoned(&supervisor, 1);
    let mut other = connect(supervisor.address(), &config);
    assert_eq!(other.get("/facts").expect("an answer").json()["items"], json!([]));
}

#[test]
fn a_departed_client_is_noticed_behind_a_proxy_header() {
    let supervisor = launch().set("server.proxy_protocol", r#""v1""#).serving(1);
    let open = |address| {
        let mut client = Connection::open(address).expect("a connection");
        client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").expect("sent");
        client
    };
    let mut half = while_it_stands_still(&supervisor, |address| {
        let (mut gone, mut half) = (open(address), open(address));
        half.send_last(&fact("half-closed")).expect("sent");
        gone.send(&fact("gone")).expect("sent");
        observe_for(CLIENTS_GAVE_UP);
        leave(address, vec![gone]);
        half
    });
    assert_eq!(half.answer().expect("a half-close is answered").status, 201);
    wait_abandoned(&supervisor, 1);
    let list = request("GET", "/facts", &[("Connection", "close")], b"");
    let items = open(supervisor.address()).ask(&list).expect("an answer").json()["items"].clone();
    assert_eq!(items.as_array().expect("a list").iter().map(text_of).collect::<Vec<_>>(), ["half-closed"]);
}

/// When an HTTP/2 connection has ended, the worker starts none of its streams, because it could not answer them.
#[test]
fn streams_end_with_their_http2_connection() {
    let supervisor = launch().serving(1);
    // The client sends the preface, an empty SETTINGS frame, and the complete HEADERS of one request. The HEADERS
    // contain fields 2 and 6 of HPACK's static table, and then the names of fields 1 and 4 with other values.
    let fields = [b"\x82\x86\x01\x09localhost\x04\x0c/debug/abort".as_slice()].concat();
    let headers = [&[0, 0, u8::try_from(fields.len()).expect("it is short"), 1, 5, 0, 0, 0, 1], &fields[..]].concat();
    let ask = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice(), &headers].concat();
    while_it_stands_still(&supervisor, |address| {
        let mut gone = TcpStream::connect(address).expect("a connection");
        gone.write_all(&ask).expect("sent");
        observe_for(CLIENTS_GAVE_UP);
        leave(address, vec![Connection::over(gone)]);
    });
    eventually("its connection is over", PATIENCE, || {
        let status = supervisor.status();
        (status["totals"]["connections"] == 1 && status["workers"][0]["connections"] == 0).then_some(())
    });
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    assert_eq!(supervisor.log().count(events::EXITED), 0);

    // The same bytes reach the app of a worker that is awake and crash it. The crash proves that the bytes are a
    // correct request.
    let mut served = TcpStream::connect(supervisor.address()).expect("a connection");
    served.write_all(&ask).expect("sent");
    supervisor.wait_log(events::EXITED, 1, PATIENCE);
}
