//! Promise: an upgrade to another version and back loses no request, and all counters keep their values. The master
//! refuses a program that cannot read the scoreboard's layout.
//!
//! The other version is built from a copy of this tree with a few lines changed, so that it has one more counter.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{Launch, Load, Mode, Supervisor, get, metric, root};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const NEXT: &str = "0.0.1-next";

/// The changes that turn this version into the next one. Each change has a file, the old text and the new text.
const CHANGES: [(&str, &str, &str); 7] = [
    ("Cargo.toml", concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""), "version = \"0.0.1-next\""),
    ("service/Cargo.toml", "[[bin]]\nname = \"oxicorn\"", "[[bin]]\nname = \"oxicorn-next\""),
    ("src/scoreboard.rs", "mod word {\n", "mod word {\n    pub(super) const NEXT: usize = super::ROW_WORDS - 1;\n"),
    (
        "src/scoreboard.rs",
        "    pub(crate) fn totals(&self) -> Totals {\n",
        "    pub(crate) fn next(&self) -> u64 {\n        self.rows().map(|row| row.get(word::NEXT)).sum()\n    }\n\n    \
         pub(crate) fn totals(&self) -> Totals {\n",
    ),
    (
        "src/scoreboard.rs",
        "    pub(crate) fn responded(&self, status: http::StatusCode) {\n",
        "    pub(crate) fn responded(&self, status: http::StatusCode) {\n        self.add(word::NEXT, 1);\n",
    ),
    // If the environment variable NEXT_LAYOUT is set, the next version does not recognize the scoreboard's layout.
    (
        "src/scoreboard.rs",
        "match u64::from_ne_bytes(first) {\n",
        "match u64::from_ne_bytes(first) + u64::from(std::env::var_os(\"NEXT_LAYOUT\").is_some()) {\n",
    ),
    (
        "src/metrics.rs",
        "    Snapshot::take(scoreboard, listeners).to_string()\n",
        "    format!(\"oxicorn_next_total {}\\n\", scoreboard.next()) + &Snapshot::take(scoreboard, \
         listeners).to_string()\n",
    ),
];

fn build_next() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_oxicorn")).ancestors().nth(2).expect("target/<profile>/oxicorn");
    let tree = target.join("upgrade-version");
    let root = root();
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).expect("a folder below target");
    let copied = Command::new("cp")
        .args(["-R", "Cargo.toml", "Cargo.lock", "src", "service", "testkit", "fuzz", "tests", "benches", "examples"])
        .args(["python", "supervisor.toml", "README.md"])
        .arg(&tree)
        .current_dir(root)
        .status()
        .expect("cp can be run");
    assert!(copied.success());
    for (file, from, to) in CHANGES {
        let path = tree.join(file);
        let text = fs::read_to_string(&path).expect("a file of the copy");
        assert!(text.contains(from), "{file} does not hold {from:?} any more: the next version needs another change");
        fs::write(&path, text.replacen(from, to, 1)).expect("a file of the copy");
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--bin", "oxicorn-next"]).current_dir(&tree);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME") {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", target);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.output().expect("cargo can be run");
    assert!(built.status.success(), "the next version does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    Path::new(env!("CARGO_BIN_EXE_oxicorn")).with_file_name("oxicorn-next")
}

/// Returns the value of a counter on the metrics page.
fn counter(supervisor: &Supervisor, name: &str) -> Option<u64> {
    metric(&get(supervisor.address(), "/metrics").text(), name)
}

#[track_caller]
fn upgrade(supervisor: &Supervisor, program: &Path, version: &str, before: &str) {
    let output = supervisor.ctl(&["upgrade", "--program", program.to_str().expect("a path in UTF-8")]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("(oxicorn {version}, before {before})")), "{text}");
    assert_eq!(supervisor.status()["version"], version);
}

#[test]
fn an_upgrade_to_another_version_and_back_keeps_every_count() {
    let next = build_next();
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_oxicorn"));
    let mut supervisor = Launch::new().set("http.metrics_path", r#""/metrics""#).serving(2);
    let load = Load::start(supervisor.address(), "/debug/connections", 4, Mode::KeepAlive { think_ms: 1 });
    let requests = || counter(&supervisor, "oxicorn_requests_total").expect("a total");
    let mut total = requests();
    let mut further = |what: &str| {
        let (before, now) = (total, requests());
        total = now;
        assert!(now > before, "{what}: {before} requests and then {now}");
    };
    assert_eq!(counter(&supervisor, "oxicorn_next_total"), None);
    upgrade(&supervisor, &next, NEXT, VERSION);
    further("after the upgrade");
    let counted = counter(&supervisor, "oxicorn_next_total").expect("the next version's counter");
    upgrade(&supervisor, &ours, VERSION, NEXT);
    further("back again");
    assert_eq!(counter(&supervisor, "oxicorn_next_total"), None);
    upgrade(&supervisor, &next, NEXT, VERSION);
    further("after the second upgrade");
    let kept = counter(&supervisor, "oxicorn_next_total").expect("the next version's counter");
    assert!(counted > 0 && kept > counted, "{counted} and then {kept}");
    load.finish().assert_nothing_lost();
    supervisor.stop();

    let mut supervisor = Launch::new().env("NEXT_LAYOUT", "1").serving(2);
    let output = supervisor.ctl(&["upgrade", "--program", next.to_str().expect("a path in UTF-8")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("its scoreboard has layout 2, and this program reads 1 only"), "{text}");
    assert_eq!(supervisor.status()["version"], VERSION);
    supervisor.stop();
}
