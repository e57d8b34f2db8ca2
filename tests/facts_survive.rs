//! Promise: each fact that was answered with 201 is stored once, whatever happens to the workers meanwhile.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::common::{
    Connection, Launch, Mongod, PATIENCE, Signal, assert_each_stored_once, events, eventually, json_request,
};
use serde_json::json;

const WORKERS: usize = 4;
const CLIENTS: usize = 32;
const FACTS: usize = 10_000;
const RELOADS: usize = 3;

#[test]
fn facts_on_sqlite_survive_reloads_and_a_kill() {
    survive(Launch::new());
}

#[test]
fn facts_on_mongodb_survive_reloads_and_a_kill() {
    let mongod = Mongod::start();
    survive(Launch::new().env("MONGODB_URI", &mongod.uri()));
}

/// The accepted facts by id, and the number of requests that were not answered.
#[derive(Default)]
struct Written {
    accepted: BTreeMap<String, String>,
    lost: usize,
}

fn survive(launch: Launch) {
    let mut supervisor = launch.set("workers.count", "4").serving(WORKERS);
    let address = supervisor.address();
    let (accepted, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let client = |client: usize| {
        let mut written = Written::default();
        for number in 0.. {
            if enough.load(Ordering::Relaxed) {
                break;
            }
            let text = format!("{client} {number}");
            let request = json_request("POST", "/facts", &json!({"text": text}));
            match Connection::open(address).and_then(|mut connection| connection.ask(&request)) {
                Ok(answer) => {
                    assert_eq!(answer.status, 201, "{}", answer.text());
                    let id = answer.json()["id"].as_str().expect("an id").to_owned();
                    assert_eq!(written.accepted.insert(id, text), None, "no id is given twice");
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => written.lost += 1,
            }
        }
        written
    };
    let mut written = Written::default();
    let reloads = || {
        for reload in 1..=RELOADS {
            supervisor.signal(Signal::SIGHUP);
            supervisor.wait_log(events::RELOADED, reload, 4 * PATIENCE);
            if reload == 2 {
                let killed = supervisor.serving_pids()[1];
                supervisor.signal_worker(killed, Signal::SIGKILL);
                eventually("the log names the killed one", PATIENCE, || {
                    supervisor.log().pids(events::EXITED).contains(&killed).then_some(())
                });
            }
        }
        eventually("all facts are written", 8 * PATIENCE, || (accepted.load(Ordering::Relaxed) >= FACTS).then_some(()));
    };
    thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(reloads));
        enough.store(true, Ordering::Relaxed);
        for client in clients {
            let Written { accepted, lost } = client.join().expect("a client does not panic");
            written.accepted.extend(accepted);
            written.lost += lost;
        }
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    let Written { accepted, lost } = written;
    eprintln!("{} accepted, {lost} lost to the kill", accepted.len());
    assert!(lost <= CLIENTS, "one kill costs each client one request at most: {lost}");

    assert_each_stored_once(&supervisor, &accepted, lost);
    supervisor.stop();
}
