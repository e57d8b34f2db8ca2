//! Promise: the pages name exactly the keys, events, exit codes and metrics that exist. They also name every setting
//! that Gunicorn and Uvicorn list. Needs both programs in target/peers-settings.

mod generated;
mod links;

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use serde_json::Value;

use crate::common::{Launch, root};

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns every page that users read: the front page, the files beside it, and the book.
fn pages() -> Vec<String> {
    let mut pages: Vec<_> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "findings/README.md"]
        .map(str::to_owned)
        .into_iter()
        .filter(|page| root().join(page).exists())
        .collect();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("our own folder").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let page = path.strip_prefix(root()).expect("below the root");
                pages.push(page.to_string_lossy().into_owned());
            }
        }
    }
    pages.sort();
    pages
}

/// Returns the text between this heading and the next heading of the same level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    section.split("\n## ").next().unwrap_or_default()
}

/// Returns the cells of each row of a page's tables, without the heading rows.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let heads: BTreeSet<_> =
        lines.iter().enumerate().filter(|(_, line)| line.starts_with("|---")).map(|(at, _)| at).collect();
    let is_row = move |at: usize| !heads.contains(&at) && !heads.contains(&(at + 1));
    let rows = lines.into_iter().enumerate().filter(move |(at, line)| line.starts_with('|') && is_row(*at));
    // Splits at ` | `. In a cell, the page writes a bar as `\|`.
    rows.map(|(_, line)| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// Returns each text between two backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let (mut folders, mut sources) =
        (vec![root().join("src"), root().join("service/src"), root().join("python/src")], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("our own folder").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).expect("our own file");
                sources.push((path, text));
            }
        }
    }
    sources
}

/// Returns the keys of supervisor.toml, as `section.key`.
fn keys() -> BTreeSet<String> {
    let settings: toml::Table = read("supervisor.toml").parse().expect("supervisor.toml is TOML");
    let keys = settings.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)));
    let keys: BTreeSet<_> =
        keys.flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}"))).collect();
    assert!(keys.len() > 40, "supervisor.toml shows every key: {keys:?}");
    keys
}

fn events() -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    for (_, text) in sources() {
        events.extend(text.split("event = \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    assert!(events.len() > 40, "{events:?}");
    events
}

#[track_caller]
fn assert_same(said: &BTreeSet<String>, told: &BTreeSet<String>, page: &str) {
    assert_eq!(said.difference(told).collect::<Vec<_>>(), [""; 0], "{page} does not name these");
    assert_eq!(told.difference(said).collect::<Vec<_>>(), [""; 0], "{page} names these, and they do not exist");
}

#[test]
fn every_key_is_in_the_reference() {
    let page = read("docs/reference/settings.md");
    let told: BTreeSet<_> = rows(&page)
        .filter(|cells| cells.len() == 6)
        .filter_map(|cells| quoted(cells[0]).first().map(|key| (*key).to_owned()))
        .filter(|key| key.contains('.'))
        .collect();
    assert_same(&keys(), &told, "docs/reference/settings.md");
}

#[test]
fn every_event_of_the_log_is_in_the_reference() {
    let page = read("docs/reference/log-events.md");
    let table: BTreeSet<_> = rows(&page).filter_map(|cells| Some((*quoted(cells[0]).first()?).to_owned())).collect();
    assert_same(&events(), &table, "docs/reference/log-events.md");
}

/// When an event gets a new name, the pages and the tests must use the new name. Otherwise a test would wait for an
/// event that never comes.
#[test]
fn no_page_and_no_test_names_an_event_that_is_never_logged() {
    let events = events();
    let harness = read("tests/common/harness.rs");
    let (_, harness) = harness.split_once("pub mod events {").expect("the harness names events");
    let (harness, _) = harness.split_once("\n}\n").expect("and ends");
    let named: BTreeSet<_> = harness
        .lines()
        .filter(|line| !line.contains("_FIELD"))
        .filter_map(|line| line.split_once("&str = \"")?.1.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(named.len() > 20, "{named:?}");
    assert_eq!(named.difference(&events).collect::<Vec<_>>(), [""; 0], "tests/common/harness.rs");
    for page in pages().into_iter().chain(["deploy/prometheus/alerts.yml".to_owned()]) {
        let text = read(&page);
        for word in text.split("event=").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next()) {
            assert!(events.contains(word), "{page}: event={word}");
        }
    }
}

#[test]
fn every_exit_code_and_every_end_of_a_worker_is_in_the_reference() {
    let app = read("src/app.rs");
    let (_, exit) = app.split_once("\nenum ProgramExit {\n").expect("src/app.rs has the exit codes");
    let codes = exit.split('}').next().unwrap_or_default().lines();
    let mut codes: BTreeSet<_> =
        codes.filter_map(|line| Some(line.split_once(" = ")?.1.trim_end_matches(',').to_owned())).collect();
    assert!(codes.len() >= 5, "{codes:?}");
    codes.insert("0".to_owned());
    let page = read("docs/reference/exit-codes.md");
    let told: BTreeSet<_> = rows(section(&page, "Of the master")).map(|cells| cells[0].to_owned()).collect();
    assert_same(&codes, &told, "docs/reference/exit-codes.md");
    // These words occur in the reasons for a worker's end. The tests in src/master/exits.rs contain the same words.
    let exits = read("src/master/exits.rs");
    let workers = read("docs/reference/worker-exit-reasons.md");
    for words in
        ["drained and ended", "could not boot: ", "a panic left main", "not sent by the master", " from outside"]
    {
        assert!(exits.contains(words), "src/master/exits.rs does not say {words:?} any more");
        assert!(
            workers.contains(words.trim_end_matches([' '])),
            "docs/reference/worker-exit-reasons.md does not explain {words:?}"
        );
    }
}

#[test]
fn every_metric_is_in_the_reference() {
    let supervisor = Launch::new().serving(2);
    let output = supervisor.ctl(&["status", "--format", "openmetrics"]);
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let names: BTreeSet<_> = samples
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(|name| ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name))
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 15, "{names:?}");
    assert_same(&names, &named(&read("docs/reference/metrics.md")), "docs/reference/metrics.md");
}

#[test]
fn every_field_of_the_status_is_in_the_reference() {
    let supervisor = Launch::new().serving(2);
    let status = supervisor.status();
    let fields = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let page = read("docs/reference/status-json.md");
    let (whole, worker) = page.split_once("\nEach of `workers`").expect("two tables");
    assert_same(&fields(&status), &named(whole), "docs/reference/status-json.md");
    assert_same(&fields(&status["workers"][0]), &named(worker), "docs/reference/status-json.md, workers");
    let (_, totals) = page.split_once("\n`totals` has ").expect("the totals");
    let totals: BTreeSet<_> = quoted(totals.split("\n\n").next().unwrap_or_default())
        .into_iter()
        .filter(|word| !word.ends_with("xx"))
        .map(str::to_owned)
        .collect();
    assert_same(&fields(&status["totals"]), &totals, "docs/reference/status-json.md, totals");
}

/// The pages write functions of the library as `App::table` or `WorkerContext::stopping()`, so the test looks for this
/// form.
#[test]
fn every_function_of_the_library_that_a_page_names_exists() {
    let sources = sources().into_iter().map(|(_, text)| text).collect::<String>();
    let types = [
        "App",
        "WorkerContext",
        "SetupContext",
        "ClientInfo",
        "ClientCertificate",
        "Lifespan",
        "TableSpec",
        "BootFailure",
        "Runtime",
        "Driver",
        "Body",
    ];
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        for code in quoted(&text.replace("```", "")) {
            let name = code.split("::").skip_while(|part| !types.contains(part)).nth(1);
            let Some(name) =
                name.and_then(|name| name.split(|sign: char| !sign.is_alphanumeric() && sign != '_').next())
            else {
                continue;
            };
            assert!(sources.contains(&format!("fn {name}")), "{page} names `{code}`, and there is no fn {name}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}

/// Finds each key that a page names together with its section.
#[test]
fn no_page_names_a_key_that_does_not_exist() {
    let keys = keys();
    let sections: BTreeSet<_> = keys.iter().filter_map(|key| key.split('.').next()).collect();
    for page in pages() {
        let text = read(&page);
        for word in quoted(&text.replace("```", "")) {
            let key = word.split([' ', '=']).next().unwrap_or_default();
            let Some((section, name)) = key.split_once('.').filter(|(section, _)| sections.contains(section)) else {
                continue;
            };
            let is_name =
                !name.is_empty() && name.chars().all(|sign| sign.is_ascii_lowercase() || "_0123456789".contains(sign));
            let is_other = ["service.check", "http.disconnect"].contains(&key);
            assert!(!is_name || keys.contains(key) || is_other, "{page} names `{key}`, of {section}");
        }
    }
}

/// Runs a Python script with the packages that `make needs` has installed, and returns the lines of its output.
fn python(script: &str) -> BTreeSet<String> {
    let packages = root().join("target/peers-settings");
    assert!(packages.is_dir(), "there is no {}: run `make needs`", packages.display());
    let output = Command::new("python3").args(["-c", script]).env("PYTHONPATH", packages).output();
    let output = output.unwrap_or_else(|error| panic!("python3: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

/// Returns each name between backticks in the first column of a page's tables.
fn named(page: &str) -> BTreeSet<String> {
    rows(page).flat_map(|cells| quoted(cells[0])).map(str::to_owned).collect()
}

#[test]
fn every_setting_of_gunicorn_has_its_line() {
    let settings = python("import gunicorn.config as c; print(*(s.name for s in c.KNOWN_SETTINGS))");
    assert!(settings.len() >= 120, "{} settings", settings.len());
    let page = read("docs/reference/gunicorn-settings.md");
    assert_same(&settings, &named(&page), "docs/reference/gunicorn-settings.md");
    let version = python("import gunicorn; print(gunicorn.__version__)").pop_first().unwrap_or_default();
    assert!(page.contains(&format!("Every setting of Gunicorn {version}\n")), "the page is not of Gunicorn {version}");
    eprintln!("{} settings of Gunicorn {version}", settings.len());
}

#[test]
fn every_option_of_uvicorn_has_its_line() {
    let script = "from uvicorn.main import main as m\n\
                  print(*(o for p in m.params if p.param_type_name == 'option' for o in p.opts + p.secondary_opts))";
    let mut options = python(script);
    assert!(options.len() >= 50, "{} options", options.len());
    // Leaves out the options that every program has.
    options.retain(|option| !["--version", "--help"].contains(&option.as_str()));
    let page = read("docs/reference/uvicorn-options.md");
    let told = named(&page).into_iter().filter(|name| name.starts_with("--") && name != "--version");
    assert_same(&options, &told.collect(), "docs/reference/uvicorn-options.md");
    let version = python("import uvicorn; print(uvicorn.__version__)").pop_first().unwrap_or_default();
    assert!(page.contains(&format!("Every option of Uvicorn {version}\n")), "the page is not of Uvicorn {version}");
    eprintln!("{} options of Uvicorn {version}", options.len());
}
