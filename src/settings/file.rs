//! Reads the two files of a service, `supervisor.toml` and `process.env_file`, as keys and values with their line
//! numbers.
//!
//! Owns: finding the files, their syntax, line numbers, and problems with unknown tables and keys. Refuses: to
//! interpret a value (`value` does).

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    flags::Flags,
    folders::Base,
    foreign::{ForeignSettings, Strength},
    keys,
    origin::{GivenValue, Origin},
    problem::{Problem, Problems, closest},
    sources::Sources,
    start::StartFolder,
};

/// The settings file that is used: one that the operator named, or the one in the start folder.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The flag or the variable that named the file; `Origin::Default` if it was found in the start folder.
    named_by: Origin,
}

/// The name of the settings file in the start folder, if the operator names no other.
pub(crate) const DEFAULT_FILE: &str = "supervisor.toml";

/// Finds the settings file: the one that `-c` names, else the one that `OXICORN_CONFIG` names, else `./supervisor.toml`
/// if it exists. `None` if the service has no settings file.
///
/// # Errors
/// The running service had a settings file that is gone now, or this process cannot see if the file exists.
pub(super) fn find(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    sources: &Sources,
) -> Result<Option<Found>, Vec<Problem>> {
    let variable = || env.get("OXICORN_CONFIG").filter(|path| !path.is_empty());
    let named = match &flags.config {
        Some(path) => Some((path.as_path(), Origin::Flag("--config"))),
        None => variable().map(|path| (Path::new(path), Origin::Env("OXICORN_CONFIG".to_owned()))),
    };
    if let Some((path, named_by)) = named {
        return match start.join(path) {
            Ok(path) => Ok(Some(Found { path, named_by })),
            Err(message) => Err(vec![Problem::at(named_by, "", message)]),
        };
    }
    let path = start.path().join(DEFAULT_FILE);
    let refused = |message: String| Err(vec![Problem::at(Origin::Default, "", message)]);
    match sources.exists(&path) {
        Err(error) => refused(format!("the settings file {} cannot be seen: {error}", path.display())),
        _ if start.is_gone() && !sources.is_recorded() => refused(format!(
            "the folder that the service was started in is gone: {}; name the settings file by an absolute path",
            start.path().display()
        )),
        Ok(true) => Ok(Some(Found { path, named_by: Origin::Default })),
        Ok(false) if sources.had_file() => refused(format!(
            "the settings file {} is gone, and this service runs with one; put it back, or restart the service to run \
             without",
            path.display()
        )),
        Ok(false) => Ok(None),
    }
}

impl Found {
    /// Returns true if `-c` or `OXICORN_CONFIG` names the file.
    pub(super) fn is_named(&self) -> bool {
        self.named_by != Origin::Default
    }

    /// Returns the text of the file without parsing it, so that a file with mistakes can be used too.
    pub(super) fn text(&self, start: &StartFolder) -> Result<String, Problems> {
        Sources::default().read(&self.path).map_err(|error| Problems(vec![self.unreadable(start, &error)]))
    }

    fn unreadable(&self, start: &StartFolder, error: &std::io::Error) -> Problem {
        let shown = shown(&self.path, start);
        let message = format!("the settings file {} cannot be read: {error}", shown.display());
        Problem::at(self.named_by.clone(), "", message)
    }

    pub(super) fn read(self, start: &StartFolder, sources: &mut Sources) -> Result<File, Vec<Problem>> {
        let shown = shown(&self.path, start);
        let text = sources.read_filled(&self.path).map_err(|error| vec![self.unreadable(start, &error)])?;
        let malformed = |error: toml::de::Error| {
            let line = error.span().map(|span| line_of(&text, span.start));
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            vec![Problem::at(Origin::File { path: shown.clone(), line }, "", format!("not valid TOML: {message}"))]
        };
        // The text is parsed twice: once for the values and once for their line numbers.
        let table: Table = text.parse().map_err(malformed)?;
        let mut lines = HashMap::new();
        for (name, value) in DeTable::parse(&text).map_err(malformed)?.get_ref() {
            note_lines(&text, name.get_ref(), name.span().start, value.get_ref(), &mut lines);
        }
        Ok(File { path: self.path, shown, table, lines })
    }
}

pub(super) struct File {
    /// The absolute path of the file.
    pub path: PathBuf,
    shown: PathBuf,
    table: Table,
    /// The line number of each key, by the path of the key in the file. Nested keys have a path such as
    /// `service.check[0].name`.
    lines: HashMap<String, usize>,
}

impl File {
    pub(super) fn origin(&self, path: &str) -> Origin {
        Origin::File { path: self.shown.clone(), line: self.lines.get(path).copied() }
    }

    /// Returns every `section.key` of the file with its value. Unknown tables and keys become problems. `tables` are
    /// the names of the app's tables. This function does not check the keys in these tables, because the types of the
    /// tables check them later.
    pub(super) fn entries(&self, tables: &[&str], problems: &mut Vec<Problem>) -> Vec<(String, GivenValue)> {
        let mut entries = Vec::new();
        for (name, value) in &self.table {
            let theirs = tables.iter().any(|table| table == name);
            if name == keys::PROGRAM {
                problems.push(Problem::at(self.origin(name), name, keys::PROGRAM_REFUSED));
                continue;
            }
            if !theirs && !keys::SECTIONS.contains(&name.as_str()) {
                let known = keys::SECTIONS.iter().copied().chain(tables.iter().copied());
                let (message, hint) = match value {
                    Value::Table(_) if name == "python" => (keys::SERVES_NO_PYTHON, None),
                    Value::Table(_) => ("unknown table", closest(name, known).map(str::to_owned)),
                    _ => ("unknown key, outside of any table", keys::nearest(name)),
                };
                problems.push(Problem { hint, ..Problem::at(self.origin(name), name, message) });
                continue;
            }
            let Value::Table(section) = value else {
                let message = format!("a table is wanted here: [{name}] and its keys below");
                problems.push(Problem::at(self.origin(name), name, message));
                continue;
            };
            for (key, value) in section {
                let path = format!("{name}.{key}");
                let origin = self.origin(&path);
                if theirs || keys::find(&path).is_some() {
                    entries.push((path, GivenValue { value: value.clone(), origin }));
                } else {
                    let hint = keys::nearest(&path);
                    problems.push(Problem { hint, ..Problem::at(origin, &path, "unknown key") });
                }
            }
        }
        entries
    }
}

/// Reads the values of `keys` from a text with mistakes, as far as that is possible. Returns only values that are
/// strings.
pub(super) fn salvaged(text: &str, keys: &[&str]) -> Vec<(String, GivenValue)> {
    let sound = without_faulty_lines(text);
    let tables = [text, &sound].map(|text| DeTable::parse_recoverable(text).0);
    let written = |path: &str| {
        let (section, key) = path.split_once('.')?;
        tables.iter().find_map(|table| {
            let section = table.get_ref().get(section)?.get_ref().as_table()?;
            Some(Value::String(section.get(key)?.get_ref().as_str()?.to_owned()))
        })
    };
    let entry = |value| GivenValue { value, origin: Origin::File { path: PathBuf::new(), line: None } };
    keys.iter().filter_map(|path| Some(((*path).to_owned(), entry(written(path)?)))).collect()
}

/// Returns the text with each line that has a mistake replaced by an empty line. The recovery of the parser is not
/// enough, because it may lose the table that follows a mistake.
fn without_faulty_lines(text: &str) -> String {
    const MISTAKES_MAX: usize = 32;
    let mut lines: Vec<&str> = text.lines().collect();
    for _ in 0..MISTAKES_MAX {
        let left = lines.join("\n");
        let Some(span) = DeTable::parse(&left).err().and_then(|error| error.span()) else { break };
        match lines.get_mut(line_of(&left, span.start) - 1) {
            Some(line) if !line.is_empty() => *line = "",
            Some(_) | None => break,
        }
    }
    lines.join("\n")
}

fn note_lines(text: &str, path: &str, start: usize, value: &DeValue<'_>, lines: &mut HashMap<String, usize>) {
    lines.insert(path.to_owned(), line_of(text, start));
    match value {
        DeValue::Table(table) => {
            for (key, value) in table {
                note_lines(text, &format!("{path}.{}", key.get_ref()), key.span().start, value.get_ref(), lines);
            }
        }
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                note_lines(text, &format!("{path}[{index}]"), item.span().start, item.get_ref(), lines);
            }
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {}
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn shown(path: &Path, start: &StartFolder) -> PathBuf {
    // Do not shorten paths if the start folder is `/`, as in a cron job: every path is below it, and `etc/shop.toml`
    // would be misleading.
    path.strip_prefix(start.path()).ok().filter(|_| start.path().parent().is_some()).unwrap_or(path).to_owned()
}

/// Returns the path of `process.env_file`. This path is determined before all other values, because the variables in
/// that file may set them. If the path is relative and its folder is gone, returns `None`. The error is reported later,
/// when the key `process.env_file` itself is read.
pub(super) fn env_file(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    file: &[(String, GivenValue)],
    foreign: &ForeignSettings,
    folder: &Base,
    start: &StartFolder,
) -> Option<PathBuf> {
    const KEY: &str = "process.env_file";
    let start = &start.base();
    let flag = flags.given.iter().rev().find(|given| given.key == KEY).map(|given| (start, given.text.as_str()));
    let named = || env.get(&keys::variable(KEY)).map(|text| (start, text.as_str()));
    let written = || file.iter().rfind(|(path, _)| path == KEY).and_then(|(_, e)| Some((folder, e.value.as_str()?)));
    let by_runtime = |strength| {
        let mut given = foreign.given(strength).rev();
        given.find(|(key, _)| *key == KEY).and_then(|(_, entry)| Some((start, entry.value.as_str()?)))
    };
    let (base, path) = flag
        .or_else(|| by_runtime(Strength::Flag))
        .or_else(named)
        .or_else(|| by_runtime(Strength::Environment))
        .or_else(|| by_runtime(Strength::File))
        .or_else(written)?;
    if path.is_empty() { None } else { base.join(path).ok() }
}

/// The contents of `process.env_file`: lines `KEY=VALUE`, with `export`, quotes and comments as in a shell, but without
/// expansion of `$`.
#[derive(Default)]
pub(super) struct EnvFile {
    shown: PathBuf,
    variables: Vec<(usize, String, String)>,
}

impl EnvFile {
    pub(super) fn read(path: &Path, start: &StartFolder, sources: &mut Sources) -> Result<Self, Vec<Problem>> {
        let shown = shown(path, start);
        let text = sources.read_filled(path).map_err(|error| {
            let place = Origin::File { path: shown.clone(), line: None };
            vec![Problem::at(place, "process.env_file", format!("cannot be read: {error}"))]
        })?;
        let mut problems = Vec::new();
        let mut variables = Vec::new();
        for (index, line) in text.lines().enumerate() {
            match variable(line) {
                Ok(Some((name, value))) => variables.push((index + 1, name, value)),
                Ok(None) => {}
                Err(message) => {
                    let place = Origin::File { path: shown.clone(), line: Some(index + 1) };
                    problems.push(Problem::at(place, "process.env_file", message));
                }
            }
        }
        if problems.is_empty() { Ok(Self { shown, variables }) } else { Err(problems) }
    }

    /// Returns the variables of this file, overridden by those of the real environment. A real variable that is empty
    /// does not override a variable of the file. There is one exception: if the name begins with `OXICORN_`, the empty
    /// value does override, because it may mean "none".
    pub(super) fn beneath(&self, real: &BTreeMap<String, String>) -> BTreeMap<String, (String, Origin)> {
        let mut merged: BTreeMap<String, (String, Origin)> = BTreeMap::new();
        for (line, name, value) in &self.variables {
            let origin = Origin::EnvFile { path: self.shown.clone(), line: *line, name: name.clone() };
            merged.insert(name.clone(), (value.clone(), origin));
        }
        for (name, value) in real {
            if !value.is_empty() || name.starts_with("OXICORN_") || !merged.contains_key(name) {
                merged.insert(name.clone(), (value.clone(), Origin::Env(name.clone())));
            }
        }
        // Ignore the variables of this file that choose the settings file or the env file, because both were already
        // chosen.
        merged.retain(|name, (_, origin)| !(Self::too_late(name) && matches!(origin, Origin::EnvFile { .. })));
        merged
    }

    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        self.variables.iter().map(|(_, name, value)| (name.clone(), value.clone())).collect()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let late = self.variables.iter().filter(|(_, name, _)| Self::too_late(name));
        late.map(|(line, name, _)| {
            format!("{}:{line}: {name} has no effect here: the settings were already found", self.shown.display())
        })
        .collect()
    }

    fn too_late(name: &str) -> bool {
        matches!(name, "OXICORN_CONFIG" | "OXICORN_PROCESS__ENV_FILE")
    }
}

/// Reads one line of an env file. The error messages never quote the line, because it may hold a secret.
fn variable(line: &str) -> Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, rest) = line.split_once('=').ok_or("not KEY=VALUE")?;
    let name = name.trim_end();
    let sound = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    if name.is_empty() || !sound(name) {
        return Err("the name before \"=\" is not letters, digits and \"_\"".to_owned());
    }
    let rest = rest.trim_start();
    let value = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (value, after) = unquote(&rest[1..], quote)?;
            if !(after.is_empty() || after.starts_with('#') || after.starts_with(" #")) {
                return Err(format!("{name}: something follows the closing quote"));
            }
            value
        }
        // As in a shell, a "#" begins a comment only at the start of the value or after a blank.
        _ if rest.starts_with('#') => String::new(),
        _ => rest.find(" #").or_else(|| rest.find("\t#")).map_or(rest, |cut| &rest[..cut]).trim_end().to_owned(),
    };
    if value.contains('\0') {
        return Err(format!("{name}: a variable cannot hold a NUL byte"));
    }
    Ok(Some((name.to_owned(), value)))
}

/// Returns the text up to the closing quote, and the rest behind the quote. Within double quotes `\n`, `\t` and `\r`
/// are read as control characters, and a `\` before any other character is dropped.
fn unquote(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Ok((value, text[at + c.len_utf8()..].trim_end())),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            _ => value.push(c),
        }
    }
    Err("a quote is not closed on its line".to_owned())
}
