//! The parts that all black-box tests share: the supervisor as a child process, a client that never retries, and
//! `/proc`.
//!
//! Owns: starting, watching and ending the real binary, and the database beside it. Refuses: to use anything inside the
//! crate. No test may import `oxicorn`.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "the programs of the tests use a part each")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

mod bare;
mod cgroup;
mod dependency;
mod facts;
mod harness;
mod mongod;
mod output;
mod proc;

pub use bare::Bare;
pub use cgroup::Cgroup;
pub use dependency::Dependency;
pub use facts::assert_each_stored_once;
pub use harness::{
    Launch, Log, Supervisor, assert_serves_unix, binary, build_example, build_release_example, events, eventually,
    field, free_port, is_release, metric, root,
};
pub use mongod::Mongod;
pub use nix::sys::signal::Signal;
pub use output::{assert_told, assert_told_all, text};
pub use oxicorn_testkit::{
    PATIENCE,
    client::{Canary, Connection, Failure, Load, Mode, Response, Tally, get, json_request, request},
    now,
    random::Random,
};
pub use proc::{Process, server_side};

/// Sleeps for the time `window`. Tests use this to measure what happens during a period. To wait until something
/// happens, use `eventually`.
pub fn observe_for(window: std::time::Duration) {
    std::thread::sleep(window);
}
