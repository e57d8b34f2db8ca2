//! The program `oxicorn` for Python.
//!
//! Owns: what this program declares to the supervisor: its argument, its table and its hooks. Refuses: to start a
//! process, which `oxicorn/__main__.py` does.

use std::{ffi::OsString, path::PathBuf};

use oxicorn::{App, SetupContext, TableSpec};
use pyo3::prelude::*;

use crate::{
    boot::{self, Preparation},
    compat::Compat,
    helper::Overlay,
    runtime::Interpreter,
    settings::Python as Settings,
    upgrade::{Files, Start},
};

/// Runs the command of a command line, and returns the exit code of the process. Returns in the master, and in each
/// worker that it forks. `path` is the path by which the program was started: that of the command if `is_script`, or
/// else that of the interpreter. `options` are the interpreter's own. `files` are the files without which it cannot run
/// again; the first is the interpreter. `compat` is what `__main__.py` has made of the words of other servers.
#[pyfunction]
pub(crate) fn main(
    command_line: Vec<OsString>,
    is_script: bool,
    path: PathBuf,
    options: Vec<OsString>,
    files: Vec<PathBuf>,
    compat: String,
) -> u8 {
    let compat = Compat::new(compat, files.first().cloned().unwrap_or_default(), options.clone());
    let start = if is_script { Start::Script(path) } else { Start::Module { interpreter: path, options } };
    App::new(boot::factory)
        .version(env!("CARGO_PKG_VERSION"))
        .positional("APP", "The ASGI or WSGI app: pkg.module:attr, pkg.module, pkg.module:factory() or path/to/main.py")
        .command("import", "Write a supervisor.toml from a configuration or a command line of another server")
        .table_spec(TableSpec::shown::<Settings>("python"))
        .prepare(has_app)
        .check(check)
        .runtime(Interpreter::new(start, Files::at_the_start(files), compat))
        .exit_code_from(command_line)
}

/// Checks that the operator has named an app.
fn has_app(setup: &SetupContext<'_>) -> Result<(), &'static str> {
    let settings = setup.table::<Settings>();
    if settings.app_of(setup.arguments()).is_empty() {
        return Err("no app is named: write `oxicorn app.main:app`, or set `app` in the table [python]");
    }
    Ok(())
}

/// Imports the app in a child process, for the command `check`.
fn check(setup: &SetupContext<'_>) -> Result<Vec<String>, String> {
    has_app(setup)?;
    let settings = setup.table::<Settings>();
    let process = &setup.settings().process;
    let boot_timeout = setup.settings().workers.boot_timeout;
    let timeout = (!boot_timeout.is_zero()).then_some(boot_timeout.as_secs_f64());
    let told = Python::attach(|py| {
        let preparation = Preparation::new(py, &settings, &process.env, Overlay::new(), |path| setup.path(path))?;
        let check = py.import("oxicorn._check")?.getattr("check")?;
        check
            .call1((settings.app_of(setup.arguments()), settings.interface.name(), preparation, timeout))?
            .extract::<(Option<String>, Option<String>)>()
    });
    match told {
        Ok((line, None)) => Ok(line.into_iter().collect()),
        Ok((_, Some(reason))) => Err(reason),
        Err(error) => Err(format!("the app cannot be checked: {error}")),
    }
}
