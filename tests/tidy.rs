//! Promise to ourselves: no module imports a module or crate that it must not import. This test checks the imports
//! inside each crate. Cargo checks the imports between the crates.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::common::root;

mod modules;

/// One source file, in which blanks replace the comments and strings.
struct Source {
    /// The name of the module: `master::core` for src/master/core.rs, `service::facts` for service/src/facts.rs.
    module: String,
    text: String,
    /// The same text without the items that are compiled only for tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut folders = vec![root().join("src"), root().join("service/src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let text = bare(&text);
                sources.push(Source { module: module_of(&path), code: without_tests(&text), text });
            }
        }
    }
    sources.sort_by(|a, b| a.module.cmp(&b.module));
    assert!(!sources.is_empty());
    sources
}

fn module_of(path: &Path) -> String {
    let inside: PathBuf = path.strip_prefix(root()).expect("a file of ours").with_extension("");
    let parts = inside.iter().map(|part| part.to_string_lossy());
    parts.filter(|part| part != "src").collect::<Vec<_>>().join("::")
}

/// Replaces comments and the contents of strings and characters by blanks. The line numbers stay the same.
fn bare(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    let skip_to = |from: usize, end: usize, out: &mut String| {
        out.extend(text[from..end].chars().map(|sign| if sign == '\n' { '\n' } else { ' ' }));
        end
    };
    while at < bytes.len() {
        let rest = &text[at..];
        let before = out.chars().next_back().unwrap_or(' ');
        let starts_a_word = !(before.is_alphanumeric() || before == '_') || matches!(before, 'b' | 'c');
        if rest.starts_with("//") {
            let end = rest.find('\n').map_or(text.len(), |length| at + length);
            at = skip_to(at, end, &mut out);
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(text.len(), |length| at + length + 2);
            at = skip_to(at, end, &mut out);
        } else if let Some(hashes) = raw_string(rest).filter(|_| starts_a_word) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = 2 + hashes;
            let end = rest[open..].find(&close).map_or(text.len(), |length| at + open + length + close.len());
            at = skip_to(at, end, &mut out);
        } else if rest.starts_with('"') {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            at = skip_to(at, (end + 1).min(text.len()), &mut out);
        } else if let Some(length) = character(rest) {
            at = skip_to(at, at + length, &mut out);
        } else {
            let sign = rest.chars().next().expect("not at the end");
            out.push(sign);
            at += sign.len_utf8();
        }
    }
    out
}

/// If `rest` begins with a raw string, returns how many `#` stand before its first quote.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// If `rest` begins with a character literal, returns its length. A Rust lifetime such as `'a` also begins with a
/// quote, but is not a character literal.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if let Some(escaped) = inside.strip_prefix('\\') {
        let skipped = escaped.chars().next()?.len_utf8();
        return escaped[skipped..].find('\'').map(|length| length + 3 + skipped);
    }
    let first = inside.chars().next()?;
    inside[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

/// The attributes that mark items which are compiled only for tests or fuzzing.
const TESTS: [&str; 3] = ["#[cfg(test)]", "#[cfg(fuzzing)]", "#[cfg(any(test, fuzzing))]"];

/// Removes each item that has one of the attributes in `TESTS`. An item ends with its closing brace or its semicolon.
fn without_tests(code: &str) -> String {
    let (mut kept, mut rest) = (String::new(), code);
    while let Some(at) = TESTS.iter().filter_map(|mark| rest.find(mark)).min() {
        kept += &rest[..at];
        let (mut depth, mut end) = (0, rest.len());
        for (place, sign) in rest[at..].char_indices() {
            match sign {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(sign, '}' | ';') {
                end = at + place + 1;
                break;
            }
        }
        rest = &rest[end..];
    }
    kept + rest
}

/// Returns the first name after each `crate::` in the code. For the group `crate::{a::b, c}`, returns `a` and `c`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, mark) in code.match_indices("crate::") {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let after = &code[at + mark.len()..];
        match after.strip_prefix('{') {
            Some(group) => names.extend(members(group)),
            None => names.extend(path(after)),
        }
    }
    names
}

/// Returns the Rust path at the start of the text, cut to its first two names. For `settings::service::Store;`, returns
/// `settings::service`.
fn path(text: &str) -> Option<String> {
    let leading: String = text.chars().take_while(|sign| sign.is_alphanumeric() || matches!(sign, '_' | ':')).collect();
    let names: Vec<_> = leading.split("::").filter(|name| !name.is_empty()).take(2).collect();
    (!names.is_empty()).then(|| names.join("::"))
}

fn members(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, sign) in group.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.extend(path(group[start..at].trim()));
                start = at + 1;
                if sign == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

fn is_in(module: &str, of: &str) -> bool {
    module == of || module.strip_prefix(of).is_some_and(|rest| rest.starts_with("::"))
}

/// Returns true if a Rust path in the code begins with `name`.
fn uses(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        let after = &code[at + name.len()..];
        let a_word = !(before.is_alphanumeric() || before == '_' || before == ':' || before == '.');
        a_word && (after.starts_with("::") || (code[..at].trim_end().ends_with("use") && after.starts_with([';', ' '])))
    })
}

/// What each module may import from its crate. The first entry that fits a module counts. A module without an entry may
/// import anything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("master::core", &[]),
    ("sys", &["sys"]),
    ("protocol", &[]),
    ("ctl", &["ctl", "log::terminal", "protocol", "settings", "cli", "sys::clock", "sys::file", "sys::host"]),
    ("metrics", &["scoreboard", "listener", "sys"]),
    (
        "master",
        &[
            "master",
            "listener",
            "metrics",
            "scoreboard",
            "channel",
            "protocol",
            "settings",
            "sys",
            "log",
            "app",
            "hook",
            "worker",
            "error_chain",
        ],
    ),
    (
        "worker",
        &[
            "worker",
            "channel",
            "client_gone",
            "client_info",
            "BoxError",
            "error_chain",
            "hook",
            "metrics",
            "scoreboard",
            "settings",
            "sys",
            "listener",
            "log",
            "app",
            "master::WorkerSeed",
            "WorkerContext",
            "Body",
            "Lifespan",
            "IntoLifespan",
            "ClientCertificate",
        ],
    ),
    ("channel", &["sys"]),
];

/// Crates and modules that the code of a module must not use.
const NEVER: &[(&str, &[&str])] = &[
    ("master", &["tokio", "hyper", "mongodb", "rusqlite", "axum"]),
    ("master::core", &["tracing", "libc", "nix", "rand", "std::fs", "std::net", "std::os"]),
    ("service", &["libc", "nix"]),
    ("settings", &["tokio", "hyper", "libc"]),
];

fn import_faults(module: &str, code: &str) -> Vec<String> {
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(of, _)| is_in(module, of)) else { return Vec::new() };
    imports(code)
        .into_iter()
        .filter(|import| !allowed.iter().any(|name| is_in(import, name)))
        .map(|import| format!("{module} imports crate::{import}"))
        .collect()
}

fn never_faults(module: &str, code: &str) -> Vec<String> {
    let mut faults: Vec<_> = NEVER
        .iter()
        .filter(|(of, _)| is_in(module, of))
        .flat_map(|(_, names)| names.iter().filter(|name| uses(code, name)))
        .map(|name| format!("{module} uses {name}"))
        .collect();
    let near_the_kernel = ["sys", "listener", "master::perform"].iter().any(|of| is_in(module, of));
    if !near_the_kernel {
        let names = ["libc", "nix"].iter().filter(|name| uses(code, name));
        faults.extend(names.map(|name| format!("{module} uses {name}")));
    }
    faults
}

#[test]
fn modules_import_only_what_their_rules_allow() {
    let faults: Vec<_> = sources()
        .iter()
        .flat_map(|source| [import_faults(&source.module, &source.code), never_faults(&source.module, &source.code)])
        .flatten()
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for source in sources().iter().filter(|source| !is_in(&source.module, "sys")) {
        let words = source.code.split(|sign: char| !(sign.is_alphanumeric() || sign == '_'));
        assert!(!words.into_iter().any(|word| word == "unsafe"), "{}", source.module);
    }
}

#[test]
fn every_match_of_the_core_names_every_case() {
    let sources = sources();
    let core: Vec<_> = sources.iter().filter(|source| is_in(&source.module, "master::core")).collect();
    assert!(core.len() > 1, "src/master/core.rs and what is below it");
    for source in core {
        for (number, line) in source.code.lines().enumerate() {
            let (module, line) = (&source.module, line.trim());
            assert!(!line.starts_with("_ =>"), "{module}, line {}: {line}", number + 1);
        }
    }
}

#[test]
fn every_file_opens_with_a_module_comment() {
    let mut folders: Vec<_> = ["src", "service/src", "testkit/src", "tests"].map(|name| root().join(name)).into();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("our own folder").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("our own file");
                assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
            }
        }
    }
}

/// No file of the repository may choose the mirror of a package registry. Each machine sets its mirrors in apt's
/// sources and in the settings files of cargo and pip.
#[test]
fn no_file_names_the_host_of_a_package_registry() {
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            let made = [".git", "data", "target"].iter().any(|name| path == root().join(name));
            if path.is_dir() && !made {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                for host in ["crates", "deb", "files", "index", "pypi", "registry", "static"] {
                    assert!(!text.contains(&format!("://{host}.")), "{} names {host}.…", path.display());
                }
            }
        }
    }
}

/// Tests the functions that read code with two kinds of text. They must report code that breaks a rule. They must not
/// report code that only looks as if it broke a rule.
#[test]
fn the_reader_sees_each_kind_of_fault() {
    let seen = |module: &str, text: &str| {
        let code = without_tests(&bare(text));
        [import_faults(module, &code), never_faults(module, &code)].concat()
    };
    assert_eq!(seen("master::core", "use crate::sys::clock;"), ["master::core imports crate::sys::clock"]);
    assert_eq!(
        seen("sys::fork", "use crate::{settings::{Settings, Tables}, sys::fd};"),
        ["sys::fork imports crate::settings"]
    );
    assert_eq!(seen("worker", "fn f(_: crate::master::WorkerSeed, _: crate::master::core::Pid) {}").len(), 1);
    assert_eq!(seen("service::facts", "fn f() { libc::getpid() }").len(), 2, "twice: of the service, and far from sys");
    assert_eq!(seen("master::control", "use tokio::sync::watch;"), ["master::control uses tokio"]);
    assert_eq!(seen("worker::drain", "fn f() { nix::unistd::getpid(); }"), ["worker::drain uses nix"]);
    assert_eq!(seen("master", "// crate::client is not ours\nconst A: &str = \"crate::client::x tokio::x\";"), [""; 0]);
    assert_eq!(seen("master::core", "#[cfg(test)]\nmod sim { use crate::sys::clock; }\nfn f() {}"), [""; 0]);
    assert_eq!(seen("master::core", "#[cfg(test)]\nmod sim;\nuse crate::sys::a;").len(), 1, "only the item is cut");
    assert_eq!(seen("sys", "const Q: char = '\"'; use crate::settings::A; const R: char = '\\'';").len(), 1);
    assert_eq!(seen("sys", "fn f<'a>(_: &'a str) { r#\"crate::settings \" \"#; }"), [""; 0]);
}
