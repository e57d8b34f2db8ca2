//! The `oxicorn` program: the reference service, supervised. The library's first user, with no privilege over others.
//!
//! Owns: the command `oxicorn`, its allocator, and the list of the service's modules. Refuses: anything that a user's own
//! program could not do; it sees the library's public API only.

mod auth;
mod cors;
mod debug;
mod dependency;
mod docs;
mod error;
mod factory;
mod facts;
mod health;
mod settings;
mod store;
mod token;

use std::process::ExitCode;

use oxicorn::App;

// Huge pages would double the resident size of the master and of each worker: see the feature `no_thp` in Cargo.toml.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    App::new(factory::build).table_spec(factory::table()).prepare(factory::prepare).migrate(factory::migrate).run()
}
