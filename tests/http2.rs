//! Promise: HTTP/2 without TLS is counted, limited and drained like HTTP/1.1. The client begins with HTTP/2 at once
//! (prior knowledge).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::common::{Launch, PATIENCE, Signal, Supervisor, build_example, eventually};
use bytes::Bytes;
use h2::client::{Connection as H2, SendRequest};
use http::{Request, Response};
use tokio::{net::TcpStream as Tcp, runtime::Runtime, task::JoinHandle, time::timeout};

struct Client {
    runtime: Runtime,
    send: SendRequest<Bytes>,
    /// The task that runs the connection. The task completes when the connection ends.
    end: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    fn open(address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
        let (send, end) = runtime.block_on(async {
            let tcp = Tcp::connect(address).await.expect("a connection");
            let (send, connection): (_, H2<Tcp>) = h2::client::handshake(tcp).await.expect("a handshake");
            (send, tokio::spawn(connection))
        });
        Self { runtime, send, end }
    }

    /// Sends a request. Returns a task that waits for the answer and ends with its status and complete body.
    fn begin(&mut self, request: Request<()>, body: Option<Bytes>) -> JoinHandle<Result<Response<Vec<u8>>, h2::Error>> {
        let send = self.send.clone();
        let (response, mut stream) = self.runtime.block_on(async {
            let mut send = send.ready().await.expect("room for a stream");
            send.send_request(request, body.is_none()).expect("a stream")
        });
        if let Some(body) = body {
            // If this fails, the answer came before the client had sent the body. The test reads the answer in both
            // cases.
            let _ = stream.send_data(body, true);
        }
        self.runtime.spawn(async move {
            let (parts, mut body) = response.await?.into_parts();
            let mut whole = Vec::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                whole.extend(data);
            }
            Ok(Response::from_parts(parts, whole))
        })
    }

    fn ask(&mut self, request: Request<()>, body: Option<Bytes>) -> Result<Response<Vec<u8>>, h2::Error> {
        let answer = self.begin(request, body);
        self.finish(answer)
    }

    fn finish<T>(&self, task: JoinHandle<T>) -> T {
        self.runtime.block_on(async { timeout(PATIENCE, task).await }).expect("in time").expect("no panic")
    }

    fn get(&mut self, path: &str) -> Response<Vec<u8>> {
        self.ask(get(path), None).expect("an answer")
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://localhost{path}")).body(()).expect("a request")
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://localhost{path}")).body(()).expect("a request")
}

#[test]
fn many_streams_are_served_at_once_and_each_counts_as_a_request() {
    let supervisor = Launch::new().set("workers.count", "1").serving(1);
    let mut client = Client::open(supervisor.address());
    let asked: Vec<_> = (0..50).map(|_| client.begin(get("/debug/sleep/300"), None)).collect();
    eventually("all are in flight on one connection", PATIENCE, || {
        let worker = supervisor.status()["workers"][0].clone();
        (worker["in_flight"] == 50 && worker["connections"] == 1).then_some(())
    });
    for answer in asked {
        assert_eq!(client.finish(answer).expect("an answer").status(), 200);
    }
    let body = Bytes::from(vec![b'a'; 1 << 20]);
    let echoed = client.ask(post("/debug/echo"), Some(body.clone())).expect("an answer");
    assert_eq!(echoed.body(), &body);
    assert_eq!(supervisor.total("requests"), 51);
}

#[test]
fn http2_can_be_turned_off() {
    let supervisor = Launch::new().set("http.http2", "false").serving(2);
    let mut stream = TcpStream::connect(supervisor.address()).expect("a connection");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and its end");
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 505 "), "{answer}");
}

#[test]
fn http2_requests_are_refused_like_those_of_http1() {
    let supervisor = Launch::new()
        .set("http.limit_request_body", "1000")
        .set("http.limit_request_line", "100")
        .set("http.limit_request_fields", "5")
        .set("http.limit_request_field_size", "200")
        .serving(2);
    let mut client = Client::open(supervisor.address());
    let with = |name: &str, value: &str| {
        let mut request = get("/health");
        request
            .headers_mut()
            .insert(http::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        request
    };
    let mut too_many = get("/health");
    for n in 0..6 {
        too_many.headers_mut().append("x-field", n.into());
    }
    let mut announced = post("/debug/echo");
    announced.headers_mut().insert("content-length", 1001.into());
    let long = Bytes::from(vec![b'a'; 1001]);
    let cases = [
        (with("host", "elsewhere"), None, 400),
        (with("x-long", &"a".repeat(200)), None, 431),
        (with("expect", "more"), None, 417),
        (too_many, None, 431),
        (get(&format!("/{}", "a".repeat(100))), None, 414),
        (announced, Some(long.clone()), 413),
        (post("/debug/echo"), Some(long), 413),
    ];
    let refusals = cases.len() as u64;
    for (request, body, status) in cases {
        let shown = format!("{request:?}");
        let answer = client.ask(request, body).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(answer.status(), status, "{shown}");
        let error: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert!(error["error"].is_string() && error["type"].is_string(), "{error}");
    }
    assert_eq!(client.get("/health").status(), 200, "the connection continues");
    // Two requests reached the app. One is `/health`. The other is the request whose body became too long only while
    // the app read the body.
    assert_eq!((supervisor.total("refused"), supervisor.total("requests")), (refusals, 2));
}

/// If the answer to HEAD had a body, the client would believe that the connection is broken.
#[test]
fn an_answer_to_head_has_the_length_of_a_body_and_no_body() {
    let lengths = |supervisor: Supervisor, asked: &[(u16, &str)]| {
        let mut client = Client::open(supervisor.address());
        for &(status, path) in asked {
            let mut head = get(path);
            *head.method_mut() = http::Method::HEAD;
            let answer = client.ask(head, None).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!((answer.status().as_u16(), answer.body().len()), (status, 0), "{path}");
            let whole = client.get(path).body().len();
            assert!(whole > 0, "{path}");
            let told: usize = answer.headers()["content-length"].to_str().expect("text").parse().expect("a number");
            // The test does not compare the metrics page, because the length of this page differs at each request.
            assert!(told == whole || path == "/metrics", "{path}: {told} of {whole}");
        }
    };
    let long = format!("/{}", "a".repeat(100));
    let ours = Launch::new()
        .set("http.metrics_path", r#""/metrics""#)
        .set("http.health_path", r#""/alive""#)
        .set("http.ready_path", r#""/prepared""#)
        .set("http.limit_request_line", "90");
    let pages = [(200, "/metrics"), (200, "/alive"), (200, "/prepared")];
    let of_the_app = [(414, long.as_str()), (200, "/health"), (404, "/nowhere")];
    lengths(ours.serving(2), &[&pages[..], &of_the_app[..]].concat());
    // The app of this program answers HEAD exactly as GET, so the worker must leave out the body.
    lengths(Launch::of(build_example("plain")).serving(2), &[(200, "/10k")]);
}

/// A server may send its whole answer before the request's body has arrived. Then it resets the stream with NO_ERROR,
/// which asks the client to send no more (RFC 9113, section 8.1). Some bodies of this test are larger than the window
/// of flow control. The server must give the bytes that it discards back to the connection's window, because later
/// streams need the room.
#[test]
fn an_early_answer_is_followed_by_a_reset_without_error() {
    let supervisor = Launch::misbehave().set("workers.count", "1").serving(1);
    let mut client = Client::open(supervisor.address());
    for (path, status) in [("/early/200", 200), ("/early/413", 413), ("/nowhere", 404), ("/panic", 500)] {
        for sent in [0, 10, 20_000, 10_000_000] {
            let reason = client.runtime.block_on(async {
                let mut send = client.send.clone().ready().await.expect("room");
                let (response, mut stream) = send.send_request(post(path), false).expect("a stream");
                // If this fails, the reset has come before the client had sent the body.
                let _ = stream.send_data(vec![b'a'; sent].into(), false);
                let mut body = timeout(PATIENCE, response).await.expect("in time").expect("an answer");
                assert_eq!(body.status(), status, "{path}, {sent} bytes");
                while let Some(data) = body.body_mut().data().await {
                    data.unwrap_or_else(|error| panic!("{path}, {sent} bytes: {error}"));
                }
                timeout(PATIENCE, std::future::poll_fn(|cx| stream.poll_reset(cx))).await.expect("in time")
            });
            assert_eq!(reason.expect("a reset"), h2::Reason::NO_ERROR, "{path}, {sent} bytes");
        }
    }
    let body = Bytes::from(vec![b'a'; 3 << 20]);
    let echoed = client.ask(post("/echo"), Some(body.clone())).expect("the next stream is served");
    assert_eq!(echoed.body().len(), body.len());
}

#[test]
fn a_body_that_stops_is_answered_408() {
    let supervisor = Launch::new().set("http.body_timeout", r#""500ms""#).serving(2);
    let client = Client::open(supervisor.address());
    let status = client.runtime.block_on(async {
        let mut send = client.send.clone().ready().await.expect("room");
        let (response, mut stream) = send.send_request(post("/debug/echo"), false).expect("a stream");
        stream.send_data(Bytes::from_static(b"half"), false).expect("sent");
        timeout(PATIENCE, response).await.expect("in time").expect("an answer").status()
    });
    assert_eq!(status, 408);
}

#[test]
fn an_idle_connection_is_ended_with_goaway() {
    let supervisor = Launch::new().set("http.keep_alive", r#""500ms""#).serving(2);
    let mut client = Client::open(supervisor.address());
    assert_eq!(client.get("/health").status(), 200);
    let Client { runtime, send: _send, end } = client;
    let ended = runtime.block_on(async { timeout(PATIENCE, end).await.expect("in time").expect("no panic") });
    assert!(ended.is_ok(), "{ended:?}");
}

#[test]
fn a_client_that_never_opens_its_window_is_dropped() {
    let supervisor = Launch::misbehave()
        .set("workers.count", "1")
        .set("http.keep_alive", r#""1h""#)
        .set("http.write_timeout", r#""500ms""#)
        .serving(1);
    let client = Client::open(supervisor.address());
    client.runtime.block_on(async {
        let mut send = client.send.clone().ready().await.expect("room");
        let (response, _) = send.send_request(get("/endless"), true).expect("a stream");
        let mut body = response.await.expect("an answer").into_body();
        // The client reads the data but never releases the bytes, so the flow-control window stays closed.
        while let Ok(Some(Ok(_))) = timeout(PATIENCE, body.data()).await {}
    });
    eventually("the connection is dropped", PATIENCE, || {
        (supervisor.status()["workers"][0]["connections"] == 0).then_some(())
    });
    assert_eq!(supervisor.log().count("client_stalled"), 1);
}

#[test]
fn a_drain_loses_no_stream() {
    let supervisor = Launch::new().serving(2);
    let mut client = Client::open(supervisor.address());
    let under_way: Vec<_> = (0..20).map(|_| client.begin(get("/debug/sleep/1500"), None)).collect();
    eventually("all are in flight", PATIENCE, || {
        let workers = supervisor.status()["workers"].clone();
        workers.as_array()?.iter().any(|worker| worker["in_flight"] == 20).then_some(())
    });
    supervisor.signal(Signal::SIGHUP);
    for answer in under_way {
        assert_eq!(client.finish(answer).expect("a stream in flight is answered").status(), 200);
    }
    let Client { runtime, send: _send, end } = client;
    let ended = runtime.block_on(async { timeout(PATIENCE, end).await.expect("in time").expect("no panic") });
    assert!(ended.is_ok(), "GOAWAY without an error: {ended:?}");
    let lines = eventually("the old workers are gone", PATIENCE, || {
        let log = supervisor.log();
        (log.count("worker_drained") == 2)
            .then(|| log.lines_of("worker_drained").map(str::to_owned).collect::<Vec<_>>())
    });
    assert!(lines.iter().all(|line| line.contains("cut=0")), "{lines:?}");
}

/// Clients ask without a pause while the service reloads again and again. A GOAWAY says which requests the worker has
/// not begun, and the client may send these again. Any other missing answer is a loss.
#[test]
#[expect(clippy::disallowed_methods, reason = "the ban is the master's; each client is a thread")]
fn reloads_under_load_lose_no_stream() {
    // The clients are never idle, so even a short `drain_idle` cuts no connection.
    let supervisor = Launch::new().set("workers.drain_idle", r#""100ms""#).serving(2);
    let address = supervisor.address();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut ok, mut moved, mut client) = (0, 0, Client::open(address));
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let send = client.send.clone();
                    let asked = client.runtime.block_on(async {
                        let mut send = send.ready().await?;
                        send.send_request(get("/debug/sleep/5"), true)?.0.await
                    });
                    match asked {
                        Ok(response) => {
                            assert_eq!(response.status(), 200);
                            ok += 1;
                        }
                        Err(error)
                            if error.is_go_away()
                                && error.is_remote()
                                && error.reason() == Some(h2::Reason::NO_ERROR) =>
                        {
                            moved += 1;
                            client = Client::open(address);
                        }
                        Err(error) => panic!("lost after {ok}: {error:?}"),
                    }
                }
                (ok, moved)
            })
        })
        .collect();
    for times in 1..=3 {
        let done = supervisor.ctl(&["reload"]);
        assert!(done.status.success(), "reload {times}: {}", String::from_utf8_lossy(&done.stderr));
        supervisor.wait_log("worker_drained", 2 * times, PATIENCE);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        let (ok, moved) = client.join().expect("nothing is lost");
        assert!(ok > 20 && moved >= 3, "{ok} answered, {moved} times told to go elsewhere");
    }
}
