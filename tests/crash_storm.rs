//! Promise: one crashing request a second takes no slot away from the other requests. No more health checks fail than
//! with Gunicorn, and some slot serves or is about to serve. The long form is `make soak-storm`.

use crate::storm::{Way, run};

const SECONDS: u64 = 8;

/// The kinds of crash run one after the other: six servers at a time are enough for a small machine.
#[test]
fn one_crash_a_second_leaves_the_service_serving() {
    for way in [Way::Abort, Way::Kill, Way::Oom] {
        for outcome in run(way, SECONDS) {
            eprintln!("{outcome}");
            assert_eq!(outcome.broken(), Vec::<String>::new());
        }
    }
}
