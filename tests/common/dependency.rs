//! A server, other than the database, that a service depends on. The server runs in a thread of the test.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

/// A dependency that counts the requests, reads some bytes of each, and then sends a fixed answer.
pub struct Dependency {
    pub address: SocketAddr,
    pub asked: Arc<AtomicU32>,
}

impl Dependency {
    /// Starts the dependency. If `answer` is `None`, it keeps each connection open and sends nothing.
    pub fn start(answer: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, asked) = (listener.local_addr().expect("bound"), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&asked);
        thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                match answer {
                    Some(answer) => {
                        let _ = stream.read(&mut [0; 1024]);
                        let _ = stream.write_all(answer.as_bytes());
                    }
                    None => kept.push(stream),
                }
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}/status?deep=1", self.address)
    }
}
