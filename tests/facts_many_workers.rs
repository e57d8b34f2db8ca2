//! Promise: many workers share one SQLite file from the first moment, and each fact that was answered with 201 is
//! stored once.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::common::{Connection, Launch, PATIENCE, Signal, assert_each_stored_once, events, eventually, request};

const CLIENTS: usize = 32;
const FACTS_EACH: usize = 25;

#[test]
fn every_201_is_stored_exactly_once() {
    let mut supervisor = Launch::new()
        .set("workers.count", "8")
        .set("service.sqlite_path", r#""{dir}/made/at/boot/facts.db""#)
        .serving(8);
    let log = supervisor.log();
    assert_eq!((log.count(events::FORKED), log.count(events::BOOT_FAILED)), (8, 0), "eight first boots at once");

    let address = supervisor.address();
    let written = AtomicUsize::new(0);
    let client = |client: usize| {
        let (mut accepted, mut lost) = (Vec::new(), 0);
        for number in 0..FACTS_EACH {
            let text = format!("client {client} fact {number}");
            let body = serde_json::json!({ "text": text }).to_string();
            let headers = [("Content-Type", "application/json"), ("Connection", "close")];
            let answer = Connection::open(address)
                .and_then(|mut connection| connection.ask(&request("POST", "/facts", &headers, body.as_bytes())));
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.status, 201, "{}", answer.text());
                    accepted.push((answer.json()["id"].as_str().expect("an id").to_owned(), text));
                    written.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => lost += 1,
            }
        }
        (accepted, lost)
    };
    let (mut accepted, mut lost) = (BTreeMap::new(), 0);
    thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        eventually("a quarter is written", 2 * PATIENCE, || {
            (written.load(Ordering::Relaxed) >= CLIENTS * FACTS_EACH / 4).then_some(())
        });
        supervisor.signal_worker(supervisor.worker_pids()[3], Signal::SIGKILL);
        for client in clients {
            let (facts, failures) = client.join().expect("a client does not panic");
            accepted.extend(facts);
            lost += failures;
        }
    });
    eprintln!("{} accepted, {lost} lost to the kill", accepted.len());
    assert!(lost <= CLIENTS, "one kill costs each client one request at most: {lost}");
    assert_eq!(accepted.len() + lost, CLIENTS * FACTS_EACH, "no id was given twice");

    assert_each_stored_once(&supervisor, &accepted, lost);

    supervisor.wait_serving(8);
    supervisor.stop();
}
