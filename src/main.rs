//! The `oxicorn` program: the reference service, supervised. The library's first user, with no privilege over others.

use std::process::ExitCode;

use oxicorn::{App, service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    App::new(service::build).table_spec(service::table()).prepare(service::prepare).migrate(service::migrate).run()
}
