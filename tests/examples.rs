//! Promise: the examples do what they say, so that users can start from them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::common::{
    Connection, Launch, Mongod, PATIENCE, Response, Signal, Supervisor, build_example, get, json_request,
};
use serde_json::json;

#[test]
fn the_axum_mongodb_example_keeps_notes() {
    let mut mongod = Mongod::start();
    let launch = Launch::of(build_example("axum_mongodb")).env("MONGODB_URI", &mongod.uri());
    for _ in 0..2 {
        let migrated = launch.run_with(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        assert_eq!(String::from_utf8_lossy(&migrated.stdout), "the index text_1 is there\n");
    }
    let mut supervisor = launch.serving(2);
    let write = |supervisor: &Supervisor, text: &str| -> Response {
        let request = json_request("POST", "/notes", &json!({"text": text}));
        let answer = Connection::open(supervisor.address()).and_then(|mut connection| connection.ask(&request));
        answer.expect("an answer")
    };
    for text in ["milk", "bread"] {
        assert_eq!(write(&supervisor, text).status, 201);
    }
    let listed = get(supervisor.address(), "/notes").json();
    let texts: std::collections::BTreeSet<_> =
        listed.as_array().expect("a list").iter().filter_map(|note| note["text"].as_str()).collect();
    assert_eq!(texts, ["bread", "milk"].into());
    mongod.kill();
    assert_eq!(write(&supervisor, "butter").status, 503, "within the time for a server's selection");
    supervisor.stop();
}

/// A WebSocket client (RFC 6455) that can do only what the echo test needs.
struct WebSocket(TcpStream);

impl WebSocket {
    fn connect(supervisor: &Supervisor) -> Self {
        let mut stream = TcpStream::connect(supervisor.address()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        let request = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the answer's head");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        // This is the server's answer to the key in the client's handshake. Key and answer are the example in section
        // 1.3 of RFC 6455.
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Self(stream)
    }

    /// Sends one text frame. Its mask is zero, so the payload is not changed.
    fn send(&mut self, text: &str) {
        let length = u8::try_from(text.len()).expect("a short text");
        self.0.write_all(&[&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()).expect("sent");
    }

    /// Receives one frame and returns its opcode and payload.
    fn recv(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut payload).expect("its payload");
        (head[0] & 0x0f, payload)
    }
}

#[test]
fn the_websocket_example_echoes_until_its_worker_drains() {
    let mut supervisor = Launch::of(build_example("websocket")).serving(2);
    let workers = supervisor.worker_pids();
    let mut sockets: Vec<_> = (0..8).map(|_| WebSocket::connect(&supervisor)).collect();
    for (number, socket) in sockets.iter_mut().enumerate() {
        for text in ["hello", &format!("number {number}")] {
            socket.send(text);
            assert_eq!(socket.recv(), (1, text.as_bytes().to_vec()));
        }
    }
    supervisor.signal(Signal::SIGHUP);
    for socket in &mut sockets {
        let (opcode, payload) = socket.recv();
        assert_eq!((opcode, &payload[..2]), (8, &1001_u16.to_be_bytes()[..]), "close code 1001, going away");
    }
    workers.into_iter().for_each(|pid| supervisor.wait_gone(pid));
    let mut again = WebSocket::connect(&supervisor);
    again.send("still here");
    assert_eq!(again.recv(), (1, b"still here".to_vec()));
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(again.recv().0, 8);
    assert_eq!(supervisor.wait_exit(PATIENCE + Duration::from_secs(1)), 0);
}
