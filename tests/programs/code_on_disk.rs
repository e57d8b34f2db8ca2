//! A service whose workers load their code from the disk, and of which two workers in one slot cannot exist. Only
//! `tests/overlap.rs` and `tests/refused_code.rs` start it.
//!
//! Owns: a factory that reads a file as its code, and holds a lock on the file of its slot as long as the process
//! lives. Refuses: to be an example for users (see `examples/`).
//!
//! `CODE` names the file with the code. The app answers each request with its first line. If the code says `cannot
//! start`, the factory fails; if it says `dies`, the worker dies as soon as it has started. `LOCKS` names the folder of
//! the locks; without it there are none. `COMPILED` makes the code count as a part of the program.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: this service ends its own process")]

use std::{
    env,
    fs::{self, File},
    io::{Seek, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use axum::{Json, Router, extract::Path as InPath, routing::get};
use oxicorn::{App, BootFailure, Runtime, WorkerContext};

struct Interpreter;

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "script"
    }

    fn code_on_disk(&self) -> bool {
        env::var_os("COMPILED").is_none()
    }
}

/// Locks the file of this slot. The lock belongs to the process and ends with it.
fn lock(slot: u32) -> Result<(), BootFailure> {
    let Some(folder) = env::var_os("LOCKS") else { return Ok(()) };
    let failed = |what: &str| BootFailure::new(format!("the lock of slot {slot} {what}"));
    let path = Path::new(&folder).join(format!("slot-{slot}"));
    let mut file = File::options().create(true).read(true).write(true).truncate(false).open(path).expect("our folder");
    if file.try_lock().is_err() {
        return Err(failed("is held by another worker"));
    }
    file.set_len(0).and_then(|()| file.rewind()).expect("our own file");
    write!(file, "{}", std::process::id()).expect("our own file");
    std::mem::forget(file);
    Ok(())
}

async fn factory(worker: WorkerContext) -> Result<Router, BootFailure> {
    lock(worker.slot())?;
    let path = env::var("CODE").expect("CODE names a file");
    let code = fs::read_to_string(&path).map_err(|error| BootFailure::new(format!("{path}: {error}")))?;
    let code = code.lines().next().unwrap_or_default().to_owned();
    if code == "cannot start" {
        return Err(BootFailure::new(format!("{path}, line 1: it cannot start")));
    }
    if code == "dies" {
        tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::process::exit(7);
        });
    }
    let answer = get(async move || Json(serde_json::json!({ "pid": worker.pid(), "code": code })));
    let keep = get(async |InPath(mib): InPath<usize>| {
        std::mem::forget(vec![1_u8; mib << 20]);
        "kept"
    });
    Ok(Router::new().route("/", answer).route("/allocate/{mib}", keep))
}

fn main() -> ExitCode {
    App::new(factory).runtime(Interpreter).run()
}
