//! Promise: connections that stay open are spread evenly over the workers.

use std::{thread, time::Duration};

use crate::common::{Connection, Launch, PATIENCE, eventually};

const CONNECTIONS: usize = 100;
/// The time between two new connections. The connections come one by one, 400 a second.
const APART: Duration = Duration::from_micros(2_500);

/// Starts the service five times and returns the median of five factors. A factor is the number of connections of the
/// fullest worker, divided by the mean over all workers.
fn fullest(workers: usize) -> f64 {
    let mut fullest = [0.0; 5].map(|_: f64| {
        let mut supervisor = Launch::new().set("workers.count", &workers.to_string()).serving(workers);
        let held: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                thread::sleep(APART);
                let mut connection = Connection::open(supervisor.address()).expect("a connection");
                assert_eq!(connection.get("/health").expect("an answer").status, 200);
                connection
            })
            .collect();
        let counts = || -> Vec<u64> {
            let status = supervisor.status();
            let workers = status["workers"].as_array().expect("workers");
            workers.iter().map(|worker| worker["connections"].as_u64().expect("a number")).collect()
        };
        eventually("all connections are counted", PATIENCE, || {
            let counts = counts();
            (counts.iter().sum::<u64>() == CONNECTIONS as u64).then_some(())
        });
        let most = counts().into_iter().max().expect("workers");
        drop(held);
        supervisor.stop();
        most as f64 * workers as f64 / CONNECTIONS as f64
    });
    fullest.sort_by(f64::total_cmp);
    eprintln!("{workers} workers: {fullest:?} times the mean");
    fullest[2]
}

/// If connections were assigned to workers at random, the factor would be 1.21 with four workers and 1.42 with eight.
#[test]
fn connections_that_stay_open_are_spread_evenly() {
    assert!(fullest(4) <= 1.15);
    assert!(fullest(8) <= 1.25);
}
