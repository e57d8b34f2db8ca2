//! Reads all sources, and chooses the value of each key by the precedence of the sources.
//!
//! Owns: the precedence: default < file < well-known environment variable < file of the runtime's own < variables that
//! the runtime knows < `OXICORN_*` < flags that the runtime knows < command line < sockets that were passed to this
//! process. Refuses: to know the syntax of files (`file` does), to read one value (`value` does),
//! and to check two keys together (`check` does).

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::Value;

use super::{
    check, cpus, file,
    flags::Flags,
    folders::{Base, Bases, STATE_DIRECTORY, given_folder},
    foreign::{ForeignSettings, Strength},
    keys,
    model::{ControlSocket, Settings},
    origin::{GivenValue, Origin},
    passed,
    problem::{Problem, Problems, Reading},
    resolved::Resolved,
    sources::Sources,
    start::StartFolder,
    table::{TableSpec, Tables},
    tls, value,
};

/// Returns the environment of this process. Variables whose name or value is not UTF-8 are left out, because they
/// cannot be settings.
pub(crate) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The purpose for which the settings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To serve with the settings. Every problem is reported.
    Serve,
    /// To show the settings, or to find a running service. The files of `[tls]` are not read for this purpose, because
    /// the user of the command may have no right to read the private key. Also, a certificate that has expired must not
    /// prevent the command from finding the service.
    Ask,
}

/// What a program declares in its code: its own tables, and its defaults for the supervisor's keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    pub(crate) tables: Vec<TableSpec>,
    /// The defaults that the program sets. If two are for the same key, the later one is used.
    pub(super) defaults: Vec<DefaultSetting>,
}

/// A default that the program sets for a key. It overrides the built-in default, and the settings file overrides it.
#[derive(Clone, Debug)]
pub(super) struct DefaultSetting {
    label: String,
    key: String,
    text: String,
}

/// Reads all sources and determines the value of each key. A reload calls this function again, because the function
/// keeps nothing between calls. If `sources` holds recorded texts, they are used instead of the files. Recorded texts
/// are not checked against the file system or the date, because they were valid when they were recorded.
///
/// # Errors
/// All problems of all sources and all tables.
pub(crate) fn resolve(
    mut sources: Sources,
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    declared: &Declared,
    purpose: Purpose,
) -> Result<Resolved, Problems> {
    let Declared { tables, .. } = declared;
    let mut problems = Vec::new();
    if !flags.program.is_empty() {
        problems.push(Problem::at(Origin::Flag("--"), "", keys::PROGRAM_REFUSED));
    }
    let foreign = sources.take_foreign();
    problems.extend(foreign.problems.iter().cloned());
    let found = if foreign.file.is_some() { Ok(None) } else { file::find(flags, env, start, &sources) };
    let read = found.and_then(|found| found.map(|found| found.read(start, &mut sources)).transpose());
    let file = read.map_err(|mut more| problems.append(&mut more)).ok().flatten();
    let names: Vec<_> = tables.iter().map(|spec| spec.name).collect();
    let written = file.as_ref().map(|file| file.entries(&names, &mut problems)).unwrap_or_default();
    let file_path = file.as_ref().map(|file| file.path.as_path());
    let Gathered { given, env_file, bases } =
        gather(written, file_path, flags, env, start, declared, &foreign, &mut sources, &mut problems);
    let mut warnings = env_file.warnings();
    let mut given = given;
    given.extend(passed::sockets(env, std::process::id(), &mut problems, &mut warnings));

    problems.extend(tables.iter().flat_map(|spec| spec.set_twice(&given)));

    let cpus = cpus::available();
    let folder = file_path.and_then(Path::parent).unwrap_or_else(|| start.path());
    let mut settings = Settings::defaults(cpus, std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned()));
    settings.state_folder = given_folder(env, STATE_DIRECTORY).unwrap_or_else(|| settings.folder.clone());
    let mut entries: BTreeMap<String, GivenValue> = BTreeMap::new();
    let mut failed: HashSet<String> = HashSet::new();
    for (path, entry) in given {
        match tables.iter().find_map(|spec| spec.held(&path, &entry, &bases.of_file.read, &mut sources)) {
            Some((key, Ok(held))) => drop(entries.insert(key, held)),
            Some((_, Err(message))) => problems.push(Problem::at(entry.origin.clone(), &path, message)),
            None => {}
        }
        if let Some(Err(message)) = bases.set(&mut settings, &path, &entry, cpus) {
            problems.push(Problem::at(entry.origin, &path, message));
            failed.insert(path);
            continue;
        }
        entries.insert(path, entry);
    }
    settings.process.env = env_file.pairs();

    let (mut parsed, mut shown) = (Tables::default(), BTreeMap::new());
    for spec in tables {
        if let Some(value) = spec.read(&entries, file.as_ref(), &mut problems) {
            shown.extend(spec.values(&value).into_iter().map(|(key, value)| (format!("{}.{key}", spec.name), value)));
            parsed.0.insert(spec.type_id(), value);
        }
    }

    let placed = |problem: Problem| match entries.get(&problem.key) {
        Some(entry) => Problem { place: entry.origin.clone(), ..problem },
        None => problem,
    };
    let mut crossed = check::accounts(&mut settings, &entries);
    if purpose == Purpose::Serve {
        let mut findings = tls::Findings::default();
        let material = tls::read(&settings.tls, settings.http.http2, &mut sources, &mut findings);
        settings.tls.material = material.map(Arc::new);
        // Recorded settings are used even if their certificate has expired: a service with an expired certificate is
        // better than no service.
        if !sources.is_recorded() {
            crossed.extend(findings.problems);
            warnings.extend(findings.warnings.into_iter().map(|warning| placed(warning).to_string()));
        }
    }
    if !sources.is_recorded() {
        crossed.extend(check::problems(&settings, &failed, sources.is_again()));
    }
    problems.extend(crossed.into_iter().map(placed));
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let ForeignSettings { notes, file: foreign_file, .. } = foreign;
    let foreign_file = foreign_file.map(|(path, _)| path);
    let file = file.map(|file| file.path).or_else(|| foreign_file.clone());
    let start = start.clone();
    let mut resolved =
        Resolved { settings, tables: parsed, shown, file, start, warnings, notes, foreign_file, entries, sources };
    resolved.warnings.extend(check::warnings(&resolved));
    Ok(resolved)
}

/// The settings that identify a service, as far as they can be read.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) socket: ControlSocket,
    pub(crate) name: String,
    /// The path of the settings file, with all symbolic links resolved.
    pub(crate) file: Option<PathBuf>,
    /// True if `-c` or `OXICORN_CONFIG` named the file; false if it was found in the start folder.
    pub(crate) file_is_named: bool,
}

/// Reads `control.socket` and `process.name` by the same precedence as [`resolve`], even from a settings file with
/// mistakes. Without these values a command could not find its service, or would ask another service. This function
/// reports no mistakes, because [`resolve`] reports them. If a value is refused, the value of the next weaker source is
/// used.
///
/// If a file cannot be read, returns the problems of this file, and the settings from the other sources.
pub(crate) fn resolve_partly(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    declared: &Declared,
    foreign: &ForeignSettings,
) -> (Partial, Option<Problems>) {
    const WANTED: [&str; 3] = ["control.socket", "process.name", "process.env_file"];
    let foreign_file = foreign.file.as_ref().map(|(path, _)| path.as_path());
    let found = if foreign_file.is_some() { Ok(None) } else { file::find(flags, env, start, &Sources::default()) };
    let read = found
        .map_err(Problems)
        .and_then(|found| found.map(|found| Ok((file::salvaged(&found.text(start)?, &WANTED), found))).transpose());
    let (read, problems) = match read {
        Ok(read) => (read, None),
        Err(problems) => (None, Some(problems)),
    };
    let (written, found) = read.unzip();
    let path = found.as_ref().map(|found| found.path.as_path());
    let mut sources = Sources::default();
    let Gathered { given, bases, .. } =
        gather(written.unwrap_or_default(), path, flags, env, start, declared, foreign, &mut sources, &mut Vec::new());
    let mut settings = Settings::defaults(1, PathBuf::new());
    for (path, entry) in given.iter().filter(|(path, _)| WANTED.contains(&path.as_str())) {
        let _ = bases.set(&mut settings, path, entry, 1);
    }
    let partial = Partial {
        socket: settings.control.socket,
        name: settings.process.name,
        file: path.or(foreign_file).map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
        file_is_named: found.is_some_and(|found| found.is_named()),
    };
    (partial, problems)
}

/// All values that the sources give. The values of a weaker source come before those of a stronger one.
struct Gathered {
    given: Vec<(String, GivenValue)>,
    env_file: file::EnvFile,
    bases: BasesBySource,
}

/// The folders that relative paths are resolved against. `of_file` is for paths in the settings file and for the
/// program's defaults. `of_text` is for paths in the environment and on the command line.
struct BasesBySource {
    of_file: Bases,
    of_text: Bases,
}

impl BasesBySource {
    /// Reads one value and sets it in `settings`. Returns `None` if the supervisor has no such key.
    fn set(&self, settings: &mut Settings, path: &str, entry: &GivenValue, cpus: u32) -> Option<Reading<()>> {
        let (text, bases) = match entry.origin {
            Origin::File { .. } => (false, &self.of_file),
            Origin::Program(_) => (true, &self.of_file),
            Origin::Default | Origin::Env(_) | Origin::EnvFile { .. } | Origin::Flag(_) | Origin::Foreign(_) => {
                (true, &self.of_text)
            }
        };
        keys::find(path).map(|key| (key.set)(settings, &value::Input { value: &entry.value, text, bases, cpus }))
    }
}

/// Collects the values of all sources in the order of their precedence. `written` are the values in the settings file.
#[expect(clippy::too_many_arguments, reason = "they are the sources")]
fn gather(
    written: Vec<(String, GivenValue)>,
    file: Option<&Path>,
    flags: &Flags,
    env: &BTreeMap<String, String>,
    start: &StartFolder,
    declared: &Declared,
    foreign: &ForeignSettings,
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) -> Gathered {
    let base = file.and_then(Path::parent).map_or_else(|| start.base(), Base::of_file);
    let mut given = declared.defaults(problems);
    given.extend(written);
    let env_file = file::env_file(flags, env, &given, foreign, &base, start)
        .map(|path| file::EnvFile::read(&path, start, sources));
    let env_file =
        env_file.and_then(|read| read.map_err(|mut more| problems.append(&mut more)).ok()).unwrap_or_default();
    let variables = env_file.beneath(env);
    given.extend(well_known_entries(&variables, &declared.tables));
    given.extend(declared.foreign_entries(foreign, Strength::File, problems));
    given.extend(declared.foreign_entries(foreign, Strength::Environment, problems));
    given.extend(own_entries(&variables, &declared.tables, problems));
    given.extend(declared.foreign_entries(foreign, Strength::Flag, problems));
    given.extend(flags.given.iter().map(|flag| {
        (flag.key.to_owned(), GivenValue { value: Value::String(flag.text.clone()), origin: Origin::Flag(flag.flag) })
    }));
    let bases = BasesBySource { of_file: Bases::of_file(base, env), of_text: Bases::of_text(&start.base()) };
    Gathered { given, env_file, bases }
}

impl Declared {
    /// Adds a default for `key` (`section.key`). Messages and `oxicorn config` call its origin `default (label)`.
    /// `text` is written as in an environment variable: `"2m"`, `"true"`, `":9000"`. A relative path is resolved
    /// against the same folder as a path in the settings file.
    pub(crate) fn add_default(&mut self, label: &str, key: &str, text: impl Into<String>) {
        let (label, key, text) = (label.to_owned(), key.to_owned(), text.into());
        self.defaults.push(DefaultSetting { label, key, text });
    }

    /// Returns the program's defaults as values of keys. A key that does not exist becomes a problem.
    fn defaults(&self, problems: &mut Vec<Problem>) -> Vec<(String, GivenValue)> {
        let mut entries = Vec::new();
        for DefaultSetting { label, key, text } in &self.defaults {
            let origin = Origin::Program(label.clone());
            if self.has_key(key) {
                entries.push((key.clone(), GivenValue { value: Value::String(text.clone()), origin }));
            } else {
                problems.push(Problem { hint: keys::nearest(key), ..Problem::at(origin, key, "unknown key") });
            }
        }
        entries
    }

    /// Returns the runtime's settings of this strength as values of keys. A key that does not exist becomes a problem.
    fn foreign_entries(
        &self,
        foreign: &ForeignSettings,
        strength: Strength,
        problems: &mut Vec<Problem>,
    ) -> Vec<(String, GivenValue)> {
        let (known, unknown): (Vec<_>, Vec<_>) = foreign.given(strength).partition(|(key, _)| self.has_key(key));
        problems.extend(unknown.into_iter().map(|(key, entry)| Problem {
            hint: keys::nearest(key),
            ..Problem::at(entry.origin.clone(), key, "unknown key")
        }));
        known.into_iter().map(|(key, entry)| (key.to_owned(), entry.clone())).collect()
    }

    /// Returns true if the supervisor has this key, or if it is in a table of the app.
    fn has_key(&self, key: &str) -> bool {
        let section = key.split('.').next();
        keys::find(key).is_some() || self.tables.iter().any(|spec| key != spec.name && section == Some(spec.name))
    }
}

/// Returns the values that well-known variables set. A later value overrides an earlier one.
fn well_known_entries(env: &BTreeMap<String, (String, Origin)>, tables: &[TableSpec]) -> Vec<(String, GivenValue)> {
    let mut entries = Vec::new();
    let mut give = |path: String, text: String, origin: &Origin| {
        entries.push((path, GivenValue { value: Value::String(text), origin: origin.clone() }));
    };
    let known = |name: &str| env.get(name).filter(|(text, _)| !text.is_empty());
    if let Some((port, origin)) = known("PORT") {
        give("server.bind".to_owned(), format!("0.0.0.0:{port}"), origin);
    }
    if let Some((_, origin)) = known("DEBUG").filter(|(text, _)| text.eq_ignore_ascii_case("true")) {
        give("log.level".to_owned(), "debug".to_owned(), origin);
    }
    for (name, key) in [
        ("WEB_CONCURRENCY", "workers.count"),
        ("LOG_LEVEL", "log.level"),
        ("FORWARDED_ALLOW_IPS", "http.forwarded_allow_ips"),
    ] {
        if let Some((text, origin)) = known(name) {
            give(key.to_owned(), text.clone(), origin);
        }
    }
    for spec in tables {
        for alias in &spec.aliases {
            if let Some((text, origin)) = known(alias.name) {
                give(format!("{}.{}", spec.name, alias.key), text.clone(), origin);
            }
        }
    }
    entries
}

/// Returns the values that the variables `OXICORN_<SECTION>__<KEY>` set.
fn own_entries(
    env: &BTreeMap<String, (String, Origin)>,
    tables: &[TableSpec],
    problems: &mut Vec<Problem>,
) -> Vec<(String, GivenValue)> {
    let mut entries = Vec::new();
    for (name, (text, origin)) in env {
        let Some((section, key)) = name.strip_prefix("OXICORN_").and_then(|name| name.split_once("__")) else {
            continue;
        };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let path = match tables.iter().find(|spec| spec.name.to_ascii_lowercase().replace('-', "_") == section) {
            Some(spec) => format!("{}.{key}", spec.name),
            None => format!("{section}.{key}"),
        };
        if keys::find(&path).is_some() || tables.iter().any(|spec| path.split('.').next() == Some(spec.name)) {
            entries.push((path, GivenValue { value: Value::String(text.clone()), origin: origin.clone() }));
        } else if section == keys::PROGRAM {
            problems.push(Problem::at(origin.clone(), "", keys::PROGRAM_REFUSED));
        } else {
            let hint = keys::nearest(&path).map(|path| keys::variable(&path));
            problems.push(Problem { hint, ..Problem::at(origin.clone(), "", "unknown key") });
        }
    }
    entries
}
