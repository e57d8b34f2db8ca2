//! Tests the reference service with programs that others wrote. Schemathesis sends both what the service's OpenAPI
//! document allows and what it forbids. Chromium shows /docs. `make schemathesis` and `make browser` install these
//! programs. The tests take too long for the suite. `SEED=n` chooses what Schemathesis sends, and `EXAMPLES=n` how much
//! (100 by default).

#[path = "../common/mod.rs"]
mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{Launch, Mongod, Supervisor, root};

/// Runs a Python program with the packages of a folder below `target`. Its output appears in the test's own output.
fn python(packages: &str, arguments: &[&str]) {
    let packages: PathBuf = root().join("target").join(packages);
    assert!(packages.is_dir(), "{} is missing; the Makefile makes it", packages.display());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let status = Command::new("timeout")
        .args(["180", "python3"])
        .args(arguments)
        .env("PYTHONPATH", packages)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .status()
        .expect("timeout(1) and python3 can be run");
    assert!(status.success(), "{arguments:?} ended with {status}");
}

fn schemathesis(supervisor: &Supervisor, more: &[&str]) {
    let url = format!("http://{}/openapi.json", supervisor.address());
    let given = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seed, examples) = (given("SEED", "1"), given("EXAMPLES", "100"));
    let checks = ["--checks", "all", "--max-examples", &examples, "--continue-on-failure", "--seed", &seed];
    let program = ["-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", &url];
    python("schemathesis", &[&program, &checks[..], more].concat());
    assert_eq!(supervisor.log().count(common::events::EXITED), 0, "no worker died of it");
}

#[test]
fn schemathesis_finds_no_fault() {
    let supervisor = Launch::new().set("service.debug", "false").serving(2);
    schemathesis(&supervisor, &[]);
}

#[test]
fn schemathesis_finds_no_fault_behind_a_token() {
    let supervisor = Launch::new().set("service.debug", "false").set("service.bearer_token", r#""a-token""#).serving(2);
    schemathesis(&supervisor, &["-H", "Authorization: Bearer a-token"]);
}

#[test]
fn schemathesis_finds_no_fault_on_mongodb() {
    let mongod = Mongod::start();
    let uri = format!("{:?}", mongod.uri());
    let supervisor = Launch::new().set("service.debug", "false").set("service.mongodb_uri", &uri).serving(2);
    schemathesis(&supervisor, &[]);
}

#[test]
fn docs_work_in_a_browser() {
    let supervisor = Launch::new().set("service.bearer_token", r#""a-token""#).serving(2);
    let script = root().join("tests/programs/browser.py");
    python("playwright", &[&script.to_string_lossy(), &format!("http://{}", supervisor.address()), "a-token"]);
}
