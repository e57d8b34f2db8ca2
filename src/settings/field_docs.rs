//! A test that the documentation of each field of the settings is equal to the comment of its key in supervisor.toml.
//! With `REWRITE=1` it writes the documentation from the comments.
//!
//! Owns: the first paragraph of each field's documentation. Refuses: to change the later paragraphs. They are only for
//! readers of the Rust documentation.

use std::{collections::BTreeMap, fs, path::Path};

/// The source files that define structs for sections, each with the names of its structs and of their sections.
const FILES: [(&str, &[(&str, &str)]); 2] = [
    (
        "src/settings/model.rs",
        &[
            ("Server", "server"),
            ("Workers", "workers"),
            ("Http", "http"),
            ("Log", "log"),
            ("Control", "control"),
            ("Process", "process"),
        ],
    ),
    ("src/settings/tls.rs", &[("Tls", "tls")]),
];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Returns the comment above each key of supervisor.toml, joined to one line, by `section.key`.
fn comments() -> BTreeMap<String, String> {
    let (mut section, mut above, mut comments) = (String::new(), Vec::new(), BTreeMap::new());
    for line in read("supervisor.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            above.clear();
        } else if let Some(comment) = line.strip_prefix('#') {
            above.push(comment.trim().to_owned());
        } else if let Some((key, _)) = line.split_once(" = ") {
            comments.insert(format!("{section}.{key}"), std::mem::take(&mut above).join(" "));
        } else {
            above.clear();
        }
    }
    comments
}

/// Returns a comment as Markdown: words that are code, such as keys, paths and quoted values, are put between
/// backticks.
fn markdown(comment: &str) -> String {
    let mut words = Vec::new();
    let mut quoted = String::new();
    for word in comment.split(' ') {
        if !quoted.is_empty() || word.trim_start_matches('(').starts_with(['"', '`']) {
            if !quoted.is_empty() {
                quoted.push(' ');
            }
            quoted.push_str(word);
            if quoted.chars().filter(|sign| matches!(sign, '"' | '`')).count() >= 2 {
                words.push(code(&std::mem::take(&mut quoted)));
            }
            continue;
        }
        let bare = word.trim_matches(['(', ')', '.', ',', ';', ':']);
        let is_code = bare.contains('_')
            || bare.starts_with(['$', '/', '<'])
            || bare.contains('=')
            || bare.contains(".sock")
            || bare.ends_with('*')
            || bare.split_once('.').is_some_and(|(section, key)| is_word(section) && !key.is_empty());
        words.push(if is_code { code(word) } else { word.to_owned() });
    }
    assert!(quoted.is_empty(), "a quote is not closed: {comment}");
    words.join(" ")
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Puts a word between backticks, but leaves the punctuation around it outside.
fn code(word: &str) -> String {
    let core = word.trim_start_matches('(');
    let core = core.trim_end_matches(['.', ',', ';', ':']);
    let core = if core.contains('(') { core } else { core.trim_end_matches(')') };
    if core.starts_with('`') {
        return word.to_owned();
    }
    let (before, after) = word.split_once(core).unwrap();
    format!("{before}`{core}`{after}")
}

/// Returns `text` as the lines of a field's documentation, at most 120 columns wide.
fn doc_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= 120) {
            Some(line) => *line = format!("{line} {word}"),
            None => lines.push(format!("    /// {word}")),
        }
    }
    lines
}

/// Returns the source of a file with the documentation that its fields should have, and removes the used entries from
/// `comments`.
fn rewritten(source: &str, structs: &[(&str, &str)], comments: &mut BTreeMap<String, String>) -> String {
    let (mut section, mut docs, mut out) = (None, Vec::new(), Vec::new());
    // `attributes` collects the lines of the attributes that stand between the documentation of a field and the field.
    let mut attributes = Vec::new();
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            section = structs.iter().find(|(known, _)| *known == name).map(|(_, section)| *section);
        } else if line == "}" {
            section = None;
        }
        let key = section.zip(line.strip_prefix("    pub ").and_then(|rest| rest.split_once(": ")));
        let comment = key.and_then(|(section, (field, _))| comments.remove(&format!("{section}.{field}")));
        if section.is_some() && line.starts_with("    ///") {
            docs.push(line.to_owned());
            continue;
        }
        if section.is_some() && line.starts_with("    #[") {
            attributes.push(line.to_owned());
            continue;
        }
        if let Some(comment) = comment {
            let rest = docs.iter().position(|line| line == "    ///").unwrap_or(docs.len());
            out.extend(doc_lines(&markdown(&comment)));
            out.extend(docs.drain(..).skip(rest));
        }
        out.append(&mut docs);
        out.append(&mut attributes);
        out.push(line.to_owned());
    }
    out.join("\n") + "\n"
}

#[test]
fn each_field_is_documented_by_the_comment_of_its_key() {
    let mut comments = comments();
    comments.retain(|key, _| !key.starts_with("service."));
    for (name, structs) in FILES {
        let source = read(name);
        let wanted = rewritten(&source, structs, &mut comments);
        if std::env::var_os("REWRITE").is_some() {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), wanted).unwrap();
            continue;
        }
        for (is, should) in source.lines().zip(wanted.lines()) {
            assert_eq!(is, should, "{name}: REWRITE=1 cargo test --lib field_docs writes it again");
        }
        assert_eq!(source, wanted, "{name}");
    }
    assert_eq!(comments, BTreeMap::new(), "keys without a field");
}

#[test]
fn prose_and_code_are_told_apart() {
    for (comment, wanted) in [
        (
            "Port: \"host:port\" or \":port\" (see LISTEN_FDS).",
            "Port: `\"host:port\"` or `\":port\"` (see `LISTEN_FDS`).",
        ),
        ("As http.keep_alive. Empty: none.", "As `http.keep_alive`. Empty: none."),
        ("Needs \"Authorization: Bearer <token>\".", "Needs `\"Authorization: Bearer <token>\"`."),
        ("Like \"%(h)s %(m)s\".", "Like `\"%(h)s %(m)s\"`."),
        ("`oxicorn status` and <name>.sock, 0..=9", "`oxicorn status` and `<name>.sock`, `0..=9`"),
    ] {
        assert_eq!(markdown(comment), wanted);
    }
}
