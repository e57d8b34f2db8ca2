//! Promise: when one request a second crashes its worker, other requests still find a slot that serves or is about to
//! serve. No more health checks fail than with Gunicorn. `make soak-storm` runs this test for longer.

use crate::storm::{Way, run};

const SECONDS: u64 = 8;

/// Runs the kinds of crash one after the other, because six servers at a time are enough for a small machine.
#[test]
fn one_crash_a_second_leaves_the_service_serving() {
    for way in [Way::Abort, Way::Kill, Way::Oom] {
        for outcome in run(way, SECONDS) {
            eprintln!("{outcome}");
            assert_eq!(outcome.broken(), Vec::<String>::new());
        }
    }
}
