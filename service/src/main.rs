//! The program `oxicorn`: the reference service under the supervisor.
//!
//! Owns: the command, the allocator, and the list of the service's modules. Refuses: to do anything that a user's own
//! program could not do. The program sees only the public API of the library.

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

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    App::new(factory::build).table_spec(factory::table()).prepare(factory::prepare).migrate(factory::migrate).run()
}
