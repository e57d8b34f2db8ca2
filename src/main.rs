//! The `oxicorn` program: the reference service, supervised. The library's first user, with no privilege over others.

use std::process::ExitCode;

use oxicorn::{App, TableSpec, service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let table = TableSpec::new::<service::Settings>("service")
        .file("mongodb_uri_file", "mongodb_uri")
        .env("MONGODB_URI_FILE", "mongodb_uri_file")
        .env("MONGODB_URI", "mongodb_uri")
        .env("MONGODB_DATABASE", "mongodb_database");
    App::new(service::build).table_spec(table).prepare(service::prepare).migrate(service::migrate).run()
}
