//! Promise: the front page stays one page, and the book lists each of its pages. Every link leads to a page and a
//! heading that exist, and every command that a page shows exists.

use std::{collections::BTreeSet, path::Path};

use super::{generated::commands, pages, quoted, read, root};

/// The maximum number of lines in README.md. Readers do not read a longer README.md to its end.
const README_LINES: usize = 180;
const COLUMNS: usize = 120;

#[test]
fn the_readme_is_one_page() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines: move something into docs/");
    for (at, line) in read("README.md").lines().enumerate() {
        let columns = line.chars().count();
        assert!(columns <= COLUMNS, "README.md:{} has {columns} columns", at + 1);
    }
}

/// Lines of tables and lines with links may be longer, because a line break would break the table or the link.
#[test]
fn no_line_of_a_page_is_too_long() {
    for page in pages() {
        for (at, line) in read(&page).lines().enumerate() {
            let columns = line.chars().count();
            let free = line.starts_with('|') || line.contains("](");
            assert!(columns <= COLUMNS || free, "{page}:{} has {columns} columns", at + 1);
        }
    }
}

#[test]
fn the_book_lists_each_of_its_pages_once() {
    let listed: Vec<_> = links("docs/SUMMARY.md").into_iter().map(|link| format!("docs/{link}")).collect();
    let once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "docs/SUMMARY.md lists a page twice: {listed:?}");
    let mut book: BTreeSet<_> = pages().into_iter().filter(|page| page.starts_with("docs/")).collect();
    book.remove("docs/SUMMARY.md");
    assert_eq!(book.difference(&once).collect::<Vec<_>>(), [""; 0], "docs/SUMMARY.md does not list these");
    assert_eq!(
        once.difference(&book).collect::<Vec<_>>(),
        [""; 0],
        "docs/SUMMARY.md lists these, and they are not there"
    );
    assert!(book.len() > 40, "{book:?}");
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut checked = 0;
    for page in pages() {
        for link in links(&page).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => page.clone(),
                file => normal(&Path::new(&page).with_file_name("").join(file)),
            };
            assert!(root().join(&target).exists(), "{page} links to {link}, and there is no {target}");
            if let Some(anchor) = anchor {
                assert!(anchors(&target).contains(anchor), "{page} links to {link}, and {target} has no such heading");
            }
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked} links");
}

#[test]
fn every_command_of_a_page_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter(|line| line.starts_with(|sign: char| sign.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').filter(|(_, rest)| !rest.starts_with('=')).map(|(targets, _)| targets))
        .flat_map(str::split_whitespace)
        .collect();
    let commands: BTreeSet<_> = commands().into_iter().collect();
    let mut checked = 0;
    // The test leaves out the changelog, because the changelog names commands that no longer exist.
    for page in pages().into_iter().filter(|page| page != "CHANGELOG.md") {
        for command in shown(&read(&page)) {
            for (program, word) in pairs(&command) {
                let is_known = match program {
                    // The Python package takes the name of an app in the place of a command, and has one more command.
                    "oxicorn" => commands.contains(word) || ["APP", "import"].contains(&word) || word.contains(':'),
                    "make" => targets.contains(word),
                    "--example" => root().join(format!("examples/{word}.rs")).exists(),
                    _ => continue,
                };
                assert!(is_known, "{page} shows `{command}`, and there is no {program} {word}");
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "{checked} commands");
}

/// The tests compile `examples/hello.rs`. If the pages show the same code, that code compiles too.
#[test]
fn the_pages_show_the_smallest_service_as_it_is_in_the_examples() {
    let example = read("examples/hello.rs");
    let (_, code) = example.split_once("\n\n").expect("code follows the module comment");
    for page in ["README.md", "docs/guides/your-own-service.md"] {
        assert!(read(page).contains(&format!("```rust\n{code}```\n")), "{page} does not show examples/hello.rs");
    }
}

#[test]
fn every_file_of_the_sources_that_a_page_names_exists() {
    let mut checked = 0;
    for page in pages() {
        for code in quoted(&prose(&read(&page))) {
            let folders =
                ["src/", "service/", "testkit/", "tests/", "benches/", "examples/", "deploy/", "docs/", "fuzz/"];
            let is_path = folders.iter().any(|folder| code.starts_with(folder)) && !code.contains([' ', '*', '\n']);
            assert!(!is_path || root().join(code).exists(), "{page} names `{code}`, and there is no such file");
            checked += usize::from(is_path);
        }
    }
    assert!(checked > 20, "{checked} files");
}

/// `make help` lists a target if a comment with `##` follows the target's name in the Makefile.
#[test]
fn every_target_of_make_help_is_on_a_page() {
    let makefile = read("Makefile");
    let helped = makefile.lines().filter(|line| line.contains(" ## ") || line.contains(":## "));
    let helped: BTreeSet<_> = helped.filter_map(|line| line.split(':').next()).collect();
    assert!(helped.len() > 20, "{helped:?}");
    let shown: Vec<_> = pages().iter().flat_map(|page| shown(&read(page))).collect();
    let shown: BTreeSet<_> =
        shown.iter().flat_map(|code| pairs(code)).filter(|(program, _)| *program == "make").collect();
    let shown: BTreeSet<_> = shown.into_iter().map(|(_, target)| target).collect();
    assert_eq!(helped.difference(&shown).collect::<Vec<_>>(), [&""; 0], "no page shows these targets");
}

/// Returns the commands that a page shows. These are the code between backticks, and in console blocks the lines with a
/// prompt.
fn shown(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for (at, part) in page.split("```").enumerate() {
        if at % 2 == 0 {
            commands.extend(quoted(part).into_iter().map(|code| code.replace('\n', " ")));
        } else if let Some(lines) = part.strip_prefix("console\n") {
            let typed = lines.lines().filter_map(|line| line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")));
            commands.extend(typed.map(str::to_owned));
        }
    }
    commands
}

/// Returns each pair of neighbouring words, such as `make test`, in which the second word consists of lowercase letters
/// and hyphens.
fn pairs(command: &str) -> Vec<(&str, &str)> {
    let words: Vec<_> = command.split_whitespace().collect();
    let pairs = words.windows(2).map(|pair| (pair[0].trim_start_matches('"'), pair[1].trim_end_matches(['"', ','])));
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|sign| sign.is_ascii_lowercase() || sign == '-' || sign == '_')
    };
    pairs.filter(|(_, word)| is_word(word) && !word.starts_with('-')).collect()
}

/// Returns the targets of all links of a page, without those in code blocks.
fn links(page: &str) -> Vec<String> {
    let text = prose(&read(page));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| target.split_whitespace().collect()).collect()
}

/// Returns the anchors that GitHub and mdBook make from the headings of a page.
fn anchors(page: &str) -> BTreeSet<String> {
    let text = prose(&read(page));
    let headings = text.lines().filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')));
    let anchors = headings.map(|heading| {
        let kept = heading.trim().chars().filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    });
    anchors.collect()
}

/// Returns the text of a page without its code blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// Returns the file path with its `.` and `..` parts resolved.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.iter().map(|part| part.to_string_lossy()) {
        match &*part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part.to_owned()),
        }
    }
    parts.join("/")
}
