//! Promise: the generated parts of the reference say what the program says about itself. `make docs` sets `REWRITE` and
//! runs the same test, which then writes these parts instead of comparing them.
//!
//! The test reads the settings from supervisor.toml. It asks the program which flag and which variables set each
//! setting, and when a change of the setting takes effect. It takes the description of the command line from the
//! `--help` of every command.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{keys, read, root};
use crate::{
    common::{Launch, binary},
    https::Authority,
};

const SETTINGS: &str = "docs/reference/settings.md";
const COMMAND_LINE: &str = "docs/reference/command-line.md";

/// The environment variables that set a key, each with a valid value. Every key also has the variable
/// `OXICORN_<SECTION>__<KEY>`, which is not listed here.
const VARIABLES: [(&str, &str); 8] = [
    ("PORT", "9001"),
    ("WEB_CONCURRENCY", "3"),
    ("FORWARDED_ALLOW_IPS", "*"),
    ("LOG_LEVEL", "debug"),
    ("DEBUG", "true"),
    ("MONGODB_URI", "mongodb://127.0.0.1"),
    ("MONGODB_URI_FILE", "uri"),
    ("MONGODB_DATABASE", "other"),
];

/// A file that gives every key a value other than its default. A new key needs a line in this file.
const CHANGED: &str = "tests/docs/changed.toml";

// ---- settings -------------------------------------------------------------------------------------------------------

/// One key in supervisor.toml.
struct Key {
    /// The default value, as the file writes it.
    default: String,
    /// The comment of the key, from the same line or from the lines above.
    comment: String,
}

/// Returns each section of supervisor.toml with its keys, in the order of the file.
fn sections() -> Vec<(String, Vec<(String, Key)>)> {
    let mut sections: Vec<(String, Vec<(String, Key)>)> = Vec::new();
    let mut above = Vec::new();
    for line in read("supervisor.toml").lines() {
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.split(']').next().unwrap_or_default();
            sections.push((name.to_owned(), Vec::new()));
            above.clear();
        } else if let Some(comment) = line.strip_prefix('#') {
            above.push(comment.trim().to_owned());
        } else if let Some((name, rest)) = line.split_once('=') {
            let (default, comment) = value_and_comment(rest);
            let comments = above.drain(..).chain(comment.map(str::to_owned)).collect::<Vec<_>>();
            let key = Key { default: default.to_owned(), comment: comments.join(" ") };
            let section = sections.last_mut().expect("a key has a section");
            section.1.push((format!("{}.{}", section.0, name.trim()), key));
        } else {
            above.clear();
        }
    }
    sections
}

/// Splits a line such as `"value"  # comment` into value and comment. A `#` inside quotes belongs to the value.
fn value_and_comment(text: &str) -> (&str, Option<&str>) {
    let mut quoted = false;
    for (at, sign) in text.char_indices() {
        match sign {
            '"' => quoted = !quoted,
            '#' if !quoted => return (text[..at].trim(), Some(text[at + 1..].trim())),
            _ => {}
        }
    }
    (text.trim(), None)
}

/// Returns a comment as the text of a table cell. It escapes three characters. `<` would begin a tag, `|` would end the
/// cell, and `*` would begin emphasis.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}

fn run_in(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).current_dir(folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // Fixes the width at which the program wraps the text of `--help`, so that the page does not depend on the
    // terminal.
    command.env("COLUMNS", "100").envs(environment.iter().copied());
    command.output().expect("the program can be run")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Runs the program with these arguments and this environment. Returns the keys whose values come from `origin` in this
/// run.
fn set_by(origin: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let folder = folder_with_files();
    let arguments = [&["config", "--json"], arguments].concat();
    let output = run_in(folder.path(), &arguments, environment);
    let settings: BTreeMap<String, Value> = serde_json::from_str(&stdout(&output)).expect("JSON");
    let set = settings.into_iter().filter(|(_, value)| value["origin"].as_str() == Some(origin));
    set.map(|(key, _)| key).collect()
}

/// Returns a new folder with the files that the values of the keys name.
fn folder_with_files() -> TempDir {
    let folder = tempfile::Builder::new().prefix("oxicorn-docs-").tempdir().expect("a temporary folder");
    let authority = Authority::new();
    let pair = authority.issue(|_| {});
    let files = [
        ("chain.pem", pair.chain.as_str()),
        ("key.pem", &pair.key),
        ("ca.pem", &authority.0.pem()),
        ("env", "A=1\n"),
        ("uri", "mongodb://127.0.0.1\n"),
        ("token", "secret\n"),
    ];
    for (name, content) in files {
        fs::write(folder.path().join(name), content).expect("our own folder");
    }
    folder
}

/// A flag of the command `run`, as its help shows it.
struct Flag {
    /// The short form, such as `-w`, if the flag has one.
    short: Option<String>,
    long: String,
    /// The name of the flag's value, such as `N` or `DUR`. A flag without a value has none.
    value: Option<String>,
}

impl Flag {
    fn shown(&self) -> String {
        let names = self.short.iter().chain([&self.long]).cloned().collect::<Vec<_>>().join(", ");
        let value = self.value.as_deref().map(|value| format!(" {value}")).unwrap_or_default();
        format!("`{names}{value}`")
    }

    /// Returns a valid value for the flag, or `None` if the flag takes no value.
    fn example(&self) -> Option<&'static str> {
        Some(match (self.long.as_str(), self.value.as_deref()?) {
            ("--certfile", _) => "chain.pem",
            ("--keyfile", _) => "key.pem",
            ("--env-file", _) => "env",
            (_, "ADDR") => "127.0.0.1:9001",
            (_, "N") => "4",
            (_, "DUR") => "7s",
            (_, "LIST") => "*",
            (_, "LEVEL") => "debug",
            (_, "FORMAT") => "json",
            (_, "USER" | "GROUP") => "root",
            (_, "MASK") => "027",
            (_, "FILE" | "NAME") => "other",
            (flag, value) => panic!("the test has no value for {flag} {value}"),
        })
    }
}

/// Returns the flags of the command `run`, in the order of its help.
fn flags() -> Vec<Flag> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let help = stdout(&run_in(folder.path(), &["run", "--help"], &[]));
    let flags = help.lines().filter(|line| line.trim_start().starts_with('-')).map(|line| {
        let mut words = line.split_whitespace().map(|word| word.trim_end_matches(',')).peekable();
        let short = words.next_if(|word| !word.starts_with("--")).map(str::to_owned);
        let long = words.next().expect("a long name").to_owned();
        let value = words.next().and_then(|word| word.strip_prefix('<')?.strip_suffix('>')).map(str::to_owned);
        Flag { short, long, value }
    });
    let flags: Vec<_> = flags.filter(|flag| !["--help", "--config"].contains(&flag.long.as_str())).collect();
    assert!(flags.len() > 20, "{}", flags.len());
    flags
}

/// Returns each flag with the key that it sets.
fn keys_of_flags() -> Vec<(Flag, String)> {
    let keyed = flags().into_iter().map(|flag| {
        let mut arguments = vec![flag.long.as_str()];
        arguments.extend(flag.example());
        // `--certfile` and `--keyfile` are valid only together, so the test tries each of these flags together with the
        // other one.
        match flag.long.as_str() {
            "--certfile" => arguments.extend(["--keyfile", "key.pem"]),
            "--keyfile" => arguments.extend(["--certfile", "chain.pem"]),
            _ => {}
        }
        let keys = set_by(&flag.long, &arguments, &[]);
        let [key] = &keys[..] else { panic!("{} sets {keys:?}", flag.long) };
        let key = key.clone();
        (flag, key)
    });
    keyed.collect()
}

/// Returns for each key the variables from `VARIABLES` that set the key.
fn variables_of_keys() -> BTreeMap<String, Vec<&'static str>> {
    let mut variables: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for (name, value) in VARIABLES {
        let mut keys = set_by(&format!("env {name}"), &[], &[(name, value)]);
        // A variable that names a file sets two keys: the key with `_file`, and the key whose value is in the file.
        // Only the key with `_file` counts here.
        let all = keys.clone();
        keys.retain(|key| !all.contains(&format!("{key}_file")));
        assert_eq!(keys.len(), 1, "{name} sets {keys:?}");
        variables.entry(keys[0].clone()).or_default().push(name);
    }
    variables
}

/// Returns for each key when a change of its value takes effect. The answer is `at once`, `new workers` or `restart`,
/// and comes from a running service.
fn changes() -> BTreeMap<String, &'static str> {
    let launch = Launch::of(binary()).set("workers.count", "1").set("control.socket", r#""control.sock""#);
    let supervisor = launch.serving(1);
    let files = folder_with_files();
    for entry in fs::read_dir(files.path()).expect("our own folder").flatten() {
        fs::copy(entry.path(), supervisor.path(&entry.file_name().to_string_lossy())).expect("our own folder");
    }
    let mut changes = BTreeMap::new();
    // `process.name` and `control.socket` decide where `check` looks for the master. If the test changed them, `check`
    // would not find the master. A key and its `_file` key exclude each other, so the test asks about them in two
    // calls.
    let apart = ["process.name", "control.socket"];
    let [all, secrets] = [
        |key: &str| !key.ends_with("_file") || key == "process.env_file",
        |key: &str| !["service.mongodb_uri", "service.bearer_token"].contains(&key),
    ]
    .map(|wanted| {
        let mut file: toml::Table = read(CHANGED).parse().expect("changed.toml is TOML");
        for (section, keys) in &mut file {
            let keys = keys.as_table_mut().expect("a section");
            keys.retain(|key, _| wanted(&format!("{section}.{key}")) && !apart.contains(&&*format!("{section}.{key}")));
        }
        file.entry("control")
            .or_insert_with(|| toml::Table::new().into())
            .as_table_mut()
            .expect("a section")
            .insert("socket".to_owned(), "control.sock".into());
        file.to_string()
    });
    for settings in [all, secrets] {
        let file = supervisor.path("supervisor.toml");
        fs::write(&file, settings).expect("our own folder");
        let output = run_in(file.parent().expect("a folder"), &["check", "--json"], &[]);
        let checked: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let sentence = checked["running"].as_str().unwrap_or_else(|| panic!("check found no service: {checked}"));
        for (words, class) in [
            ("applies at once: ", "at once"),
            ("with the new workers: ", "new workers"),
            ("as before until a restart: ", "restart"),
        ] {
            let (_, keys) = sentence.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {sentence}"));
            let keys = keys.split(';').next().unwrap_or_default();
            changes.extend(keys.split(", ").map(|key| (key.to_owned(), class)));
        }
    }
    changes.extend(apart.map(|key| (key.to_owned(), "restart")));
    changes
}

#[test]
fn the_settings_page_is_what_the_program_says() {
    let changed: toml::Table = read(CHANGED).parse().expect("changed.toml is TOML");
    let changed = changed.iter().flat_map(|(section, keys)| {
        keys.as_table().expect("a section").keys().map(move |key| format!("{section}.{key}"))
    });
    assert_eq!(changed.collect::<BTreeSet<_>>(), keys(), "tests/docs/changed.toml has every key and no other");

    let (changes, flags, variables) = (changes(), keys_of_flags(), variables_of_keys());
    let mut text = String::new();
    for (section, keys) in sections() {
        writeln!(text, "\n### [{section}]\n").expect("a string");
        writeln!(text, "| key | default | what it is | flag | also set by | a change needs |").expect("a string");
        writeln!(text, "|---|---|---|---|---|---|").expect("a string");
        for (key, Key { default, comment }) in keys {
            let flags = flags.iter().filter(|(_, of)| *of == key).map(|(flag, _)| flag.shown());
            let flags = flags.collect::<Vec<_>>().join(", ");
            let variable = format!("`OXICORN_{}`", key.replace('.', "__").to_ascii_uppercase());
            let short = variables.get(&key).into_iter().flatten().map(|name| format!("`{name}`"));
            let variables = [variable].into_iter().chain(short).collect::<Vec<_>>().join(", ");
            let change = changes.get(&key).unwrap_or_else(|| panic!("check says nothing of {key}"));
            writeln!(text, "| `{key}` | `{default}` | {} | {flags} | {variables} | {change} |", cell(&comment))
                .expect("a string");
        }
    }
    generated(SETTINGS, "settings", &text);
}

// ---- the command line -----------------------------------------------------------------------------------------------

/// Returns every command of the program. Most of the commands come from the program's help.
pub(super) fn commands() -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let help = stdout(&run_in(folder.path(), &["--help"], &[]));
    let (_, list) = help.split_once("\nCommands:\n").expect("the help names the commands");
    let list = list.split("\n\n").next().unwrap_or_default();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut names: Vec<_> = names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.retain(|name| name != "help");
    // The help does not list `completions` and `man`, because only a packager or a service manager runs them, and only
    // once.
    names.extend(["completions", "man"].map(str::to_owned));
    names.sort();
    names.dedup();
    assert!(names.len() > 10, "{names:?}");
    names
}

#[test]
fn the_command_line_page_is_what_the_program_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let help = |command: &[&str]| {
        let text = stdout(&run_in(folder.path(), &[command, &["--help"]].concat(), &[]));
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    };
    let mut text = "\n### Flags and their keys\n\n| flag | key |\n|---|---|\n".to_owned();
    for (flag, key) in keys_of_flags() {
        writeln!(text, "| {} | `{key}` |", flag.shown()).expect("a string");
    }
    // Several commands have the same flags as `run`, so the page shows these flags only once.
    let run = help(&["run"]);
    let (_, shared) = run.split_once("\n\nSockets:").expect("run has flags");
    writeln!(text, "\n### oxicorn\n\n```text\n{}\n```", help(&[])).expect("a string");
    for command in commands() {
        let help = help(&[&command]);
        let help = match help.split_once("\n\nSockets:") {
            Some((own, rest)) if rest == shared => {
                format!("{own}\n\n… and the flags above: Sockets, Workers, HTTP, Logs, Process")
            }
            _ => help,
        };
        writeln!(text, "\n### oxicorn {command}\n\n```text\n{help}\n```").expect("a string");
    }
    generated(COMMAND_LINE, "command line", &text);
}

// ---- other servers --------------------------------------------------------------------------------------------------

/// Returns the table of another server's settings, which the Python package uses to read them.
fn table_of(server: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-m", "oxicorn._compat.docs", server]).env("PYTHONPATH", root().join("python"));
    let output = python.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("python3 can be run");
    stdout(&output).trim_end().to_owned()
}

#[test]
fn the_tables_of_other_servers_are_those_that_the_program_uses() {
    generated("docs/reference/gunicorn-settings.md", "settings of Gunicorn", &table_of("gunicorn"));
    generated("docs/reference/uvicorn-options.md", "options of Uvicorn", &table_of("uvicorn"));
}

// ---- pages ----------------------------------------------------------------------------------------------------------

/// Asserts that the generated part of a page equals `text`. If `REWRITE` is set in the environment, writes `text` into
/// the page instead.
#[track_caller]
fn generated(page: &str, name: &str, text: &str) {
    let (begin, end) = (format!("<!-- {name}: written by make docs -->\n"), format!("<!-- end of {name} -->\n"));
    let whole = read(page);
    let (before, rest) = whole.split_once(&begin).unwrap_or_else(|| panic!("{page} has no line {begin}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no line {end}"));
    let wanted = format!("{text}\n");
    if std::env::var_os("REWRITE").is_some() {
        let whole = [before, &begin, &wanted, &end, after].concat();
        fs::write(root().join(page), whole).expect("our own page");
        return;
    }
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "{page} is older than the program: run `make docs`");
    }
    assert_eq!(found, wanted, "{page} is older than the program: run `make docs`");
}
