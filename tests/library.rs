//! Promise: users can build their own services on the library. The library brings few crates. Cargo can resolve its
//! dependencies together with the database crates that services use.
//!
//! Owns: what cargo finds out about the library without compiling. Refuses: to test how a service that is built on the
//! library behaves (`user_service` and `examples` do). Needs the crates' registry, as `cargo build` in a fresh clone
//! does.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use crate::common::{root, text};

/// The maximum number of crates that the library may bring without optional features. The program with its reference
/// service brings more than twice this number.
const CRATES_MAX: usize = 150;

/// Runs cargo as a user would. Removes the variables that the cargo of this test has set.
fn cargo(arguments: &[&str], folder: &std::path::Path) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME") {
        cargo.env_remove(name);
    }
    cargo.args(arguments).current_dir(folder).output().expect("cargo can be run")
}

/// Returns how many crates are compiled for a user of the library with these features.
fn crates(features: &[&str]) -> usize {
    let tree = ["tree", "--package", "oxicorn", "--edges", "normal", "--prefix", "none"];
    let output = cargo(&[&tree, features].concat(), root());
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).lines().collect::<BTreeSet<_>>().len()
}

#[test]
fn the_library_brings_few_crates() {
    let alone = crates(&["--no-default-features"]);
    println!("crates of the library alone: {alone}");
    for feature in ["tls", "test-util"] {
        println!("with {feature}: {}", crates(&["--no-default-features", "--features", feature]));
    }
    let usual = crates(&[]);
    println!("with the default features: {usual}");
    println!("with all features: {}", crates(&["--all-features"]));
    assert!(alone <= CRATES_MAX && usual <= CRATES_MAX, "{alone} alone and {usual} with the default features");
}

/// Makes a package that depends on the library and on `dependencies`. Lets cargo choose the versions of all crates that
/// the package needs.
fn resolve(dependencies: &str) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = root().display();
    let manifest = format!(
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         oxicorn = {{ path = \"{library}\" }}\n{dependencies}\n"
    );
    fs::write(folder.path().join("Cargo.toml"), manifest).expect("our own file");
    fs::create_dir(folder.path().join("src")).expect("our own folder");
    fs::write(folder.path().join("src/main.rs"), "fn main() {}\n").expect("our own file");
    cargo(&["generate-lockfile"], folder.path())
}

/// Cargo allows only one package to link a given C library. When the reference service was a part of the library's
/// package, it brought the package that links SQLite. Users could then not add another package that links SQLite.
#[test]
fn the_library_resolves_beside_other_databases() {
    for dependencies in [
        r#"sqlx = { version = "0.8", features = ["postgres", "runtime-tokio", "sqlite"] }"#,
        r#"sqlx = { version = "0.9", features = ["postgres", "runtime-tokio", "sqlite"] }"#,
        r#"sea-orm = { version = "1", features = ["runtime-tokio-rustls", "sqlx-postgres", "sqlx-sqlite"] }"#,
        r#"diesel = { version = "2", features = ["sqlite"] }"#,
    ] {
        let output = resolve(dependencies);
        assert!(output.status.success(), "{dependencies}\n{}", text(&output));
    }
    let output = resolve("diesel = { version = \"2\", features = [\"sqlite\"] }\nrusqlite = \"0.41\"");
    assert!(
        text(&output).contains("links to the native library `sqlite3`"),
        "the test sees a clash: {}",
        text(&output)
    );
}

/// Lists the files that `cargo publish` would pack, as the manifest names them.
#[test]
fn the_package_holds_what_a_user_needs_and_no_more() {
    let output = cargo(&["package", "--package", "oxicorn", "--list", "--allow-dirty"], root());
    assert!(output.status.success(), "{}", text(&output));
    let listed = String::from_utf8_lossy(&output.stdout);
    let listed: BTreeSet<_> = listed.lines().collect();
    let texts = ["CHANGELOG.md", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "README.md", "supervisor.toml"];
    for name in texts.iter().chain(&["Cargo.toml", "src/lib.rs", "examples/hello.rs"]) {
        assert!(listed.contains(name), "{name} is not in {listed:?}");
    }
    let by_cargo = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml", "Cargo.toml.orig"];
    let others = listed.iter().filter(|name| !by_cargo.contains(name) && !texts.contains(name));
    for name in others {
        assert!(name.starts_with("src/") || name.starts_with("examples/"), "{name} is packed");
    }
}
