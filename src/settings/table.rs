//! The tables of an app. Each table has a name and a type, and is set from the same sources as the supervisor's tables.
//!
//! Owns: parsing a table as any type `T`, so that every mistake is found, with its key, place and hint. Refuses: to
//! depend on a particular type `T`.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::{
    file::File,
    folders::Base,
    keys,
    origin::{GivenValue, Origin},
    problem::{Problem, closest},
    secrets,
    sources::Sources,
};
use crate::hook;

/// A parsed table, as a value of the type that the app declared for this table.
type TableValue = Arc<dyn Any + Send + Sync>;

/// A table of `supervisor.toml` that belongs to the app: its name, its type and its well-known environment variables.
#[derive(Clone)]
pub struct TableSpec {
    pub(super) name: &'static str,
    type_id: TypeId,
    type_name: &'static str,
    parse: fn(Value) -> Result<TableValue, Mistake>,
    /// Writes a parsed table again; `None` if only the keys that were given can be shown.
    show: Option<fn(&TableValue) -> Option<Table>>,
    pub(super) aliases: Vec<Alias>,
    files: Vec<Holder>,
}

/// Declares that the key `name` is the path of a file, and that the content of this file is the value of the key `key`.
#[derive(Clone)]
struct Holder {
    name: &'static str,
    key: &'static str,
    /// True if it is a mistake to set both `name` and `key`.
    instead: bool,
}

impl fmt::Debug for TableSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(super) struct Alias {
    pub name: &'static str,
    pub key: &'static str,
}

/// The values of the tables that an app declared with [`App::table`](crate::App::table), by their type.
#[derive(Clone, Default)]
pub(crate) struct Tables(pub(crate) HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Tables {
    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>()).cloned().and_then(|value| value.downcast().ok())
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({})", self.0.len())
    }
}

/// A mistake that serde found in a table, and its place in that table.
struct Mistake {
    path: String,
    steps: Vec<Step>,
    message: String,
}

#[derive(Clone)]
enum Step {
    Key(String),
    Item(usize),
}

impl TableSpec {
    /// Declares the table `name`. The table is read as a `T`. `T` should have `#[serde(deny_unknown_fields)]`: then a
    /// mistyped key is an error, and the message names the most similar key. If the table is absent, `T` is read from
    /// an empty table.
    ///
    /// # Panics
    /// If `name` has a dot or is the name of one of the supervisor's own tables. That is a mistake in the program.
    #[must_use]
    pub fn new<T: DeserializeOwned + Send + Sync + 'static>(name: &'static str) -> Self {
        assert!(
            !keys::SECTIONS.contains(&name) && name != keys::PROGRAM && !name.contains('.'),
            "the app's table [{name}] needs another name: this one belongs to the supervisor"
        );
        Self {
            name,
            type_id: TypeId::of::<T>(),
            type_name: std::any::type_name::<T>(),
            parse: parse::<T>,
            show: None,
            aliases: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Declares a table as [`new`](Self::new) does. The command `config` shows all its keys with their values, also those
    /// that were not given. `T` must be written with the same keys as it is read.
    ///
    /// # Panics
    /// If [`new`](Self::new) would panic with the same name.
    #[must_use]
    pub fn shown<T: DeserializeOwned + Serialize + Send + Sync + 'static>(name: &'static str) -> Self {
        Self { show: Some(|table| Table::try_from(table.downcast_ref::<T>()?).ok()), ..Self::new::<T>(name) }
    }

    /// Returns the values of all keys of a parsed table, if it can be written.
    pub(super) fn values(&self, table: &TableValue) -> Table {
        self.show.and_then(|show| show(table)).unwrap_or_default()
    }

    /// Checks that two tables of an app differ in type and name.
    ///
    /// # Panics
    /// If both tables have the same type or the same name. The value of a table is found by its type, and the table in
    /// the settings file by its name, so both must differ.
    pub(crate) fn assert_differs(&self, other: &Self) {
        let (name, type_name) = (self.name, self.type_name);
        assert!(
            self.type_id != other.type_id,
            "the tables [{}] and [{name}] have the same type, {type_name}: each table needs a type of its own",
            other.name
        );
        assert!(
            name != other.name,
            "the table [{name}] is declared twice, with the types {} and {type_name}",
            other.type_name
        );
    }

    /// Declares that the environment variable `variable` sets `key`. The variable overrides the settings file, and
    /// `OXICORN_<TABLE>__<KEY>` overrides the variable. An empty variable is ignored.
    #[must_use]
    pub fn env(mut self, variable: &'static str, key: &'static str) -> Self {
        self.aliases.push(Alias { name: variable, key });
        self
    }

    /// Declares that the key `holder` is the path of a file, and that the trimmed content of this file becomes the
    /// value of `key`. This is for mounted secrets. The master reads the file, with its rights. The value has the same
    /// precedence as if `key` had been set where `holder` was set. `T` must have both keys.
    #[must_use]
    pub fn file(mut self, holder: &'static str, key: &'static str) -> Self {
        self.files.push(Holder { name: holder, key, instead: false });
        self
    }

    /// Declares the same as [`file`](Self::file), but it is a mistake to set both keys, even in different sources.
    #[must_use]
    pub fn file_instead(mut self, holder: &'static str, key: &'static str) -> Self {
        self.files.push(Holder { name: holder, key, instead: true });
        self
    }

    /// Returns a problem for each pair of keys that are both set, although [`file_instead`](Self::file_instead) allows
    /// only one of the two.
    pub(super) fn set_twice(&self, given: &[(String, GivenValue)]) -> Vec<Problem> {
        let set = |key: &str| {
            let path = join(self.name, key);
            given.iter().rev().find(|(given, _)| *given == path).filter(|(_, entry)| entry.value.as_str() != Some(""))
        };
        let twice = |holder: &Holder| {
            let (path, entry) = set(holder.name).filter(|_| holder.instead && set(holder.key).is_some())?;
            let message = format!("{} and {} are both set; set only one of them", holder.key, holder.name);
            Some(Problem::at(entry.origin.clone(), path, message))
        };
        self.files.iter().filter_map(twice).collect()
    }

    /// If the key `path` names a file that holds the value of another key, returns the path of that other key and the
    /// value. Otherwise returns `None`.
    pub(super) fn held(
        &self,
        path: &str,
        entry: &GivenValue,
        base: &Base,
        sources: &mut Sources,
    ) -> Option<(String, Result<GivenValue, String>)> {
        let holder = path.strip_prefix(self.name)?.strip_prefix('.')?;
        let key = self.files.iter().find(|known| known.name == holder)?.key;
        let file = entry.value.as_str().filter(|file| !file.is_empty())?;
        let read = base.join(file).and_then(|path| match sources.read(&path) {
            // An empty file is a mistake: its value would mean "not set", but the operator named the file on purpose.
            Ok(text) if text.trim().is_empty() => Err(format!("{file} is empty")),
            Ok(text) => Ok(GivenValue { value: Value::String(text.trim().to_owned()), origin: entry.origin.clone() }),
            Err(error) => Err(format!("{file} cannot be read: {error}")),
        });
        Some((format!("{}.{key}", self.name), read))
    }

    pub(super) fn type_id(&self) -> TypeId {
        self.type_id
    }

    /// Parses the table. After a mistake it removes the wrong part and parses the rest again, so that it finds every
    /// mistake. Returns `None` if there was a mistake.
    pub(super) fn read(
        &self,
        entries: &BTreeMap<String, GivenValue>,
        file: Option<&File>,
        problems: &mut Vec<Problem>,
    ) -> Option<TableValue> {
        let mine = |path: &str| path.strip_prefix(self.name)?.strip_prefix('.').map(str::to_owned);
        let origins: HashMap<String, &Origin> =
            entries.iter().filter_map(|(path, entry)| Some((mine(path)?, &entry.origin))).collect();
        let mut table = Table::new();
        // `guesses` holds, for each key from the environment or the command line, the values that its text may mean.
        // The values are tried from the last to the first, until one has the type of the field.
        let mut guesses: HashMap<String, Vec<Value>> = HashMap::new();
        for (path, entry) in entries {
            let Some(key) = mine(path) else { continue };
            let mut value = entry.value.clone();
            if let (false, Value::String(text)) = (matches!(entry.origin, Origin::File { .. }), &value) {
                let mut meanings = meanings(text);
                if let Some(first) = meanings.pop() {
                    guesses.insert(key.clone(), meanings);
                    value = first;
                }
            }
            table.insert(key, value);
        }

        let mut sound = true;
        let mut first_message: HashMap<String, String> = HashMap::new();
        let mut removed: HashSet<String> = HashSet::new();
        loop {
            let mistake = match (self.parse)(Value::Table(table.clone())) {
                Ok(parsed) => return sound.then_some(parsed),
                Err(mistake) => mistake,
            };
            let top = match mistake.steps.first() {
                Some(Step::Key(top)) => top.clone(),
                Some(Step::Item(_)) | None => String::new(),
            };
            let first = first_message.remove(&top);
            // The value may be one of several guesses of what a text means. If the mistake is deeper inside the value,
            // the guess had the right kind, so report this message. Otherwise report the message for the first guess.
            let message = first.filter(|_| mistake.steps.len() == 1).unwrap_or_else(|| mistake.message.clone());
            if let Some(next) = guesses.get_mut(&top).and_then(Vec::pop) {
                table.insert(top.clone(), next);
                first_message.insert(top, message);
                continue;
            }
            sound = false;
            let missing = missing_field(&mistake.message).map(|field| join(&mistake.path, field));
            // If a part was removed, do not report a mistake of the whole table. The missing part may be the only
            // reason for that mistake.
            let of_the_whole = mistake.steps.is_empty() && !removed.is_empty();
            if !missing.is_some_and(|missing| removed.contains(&missing)) && !of_the_whole {
                problems.push(self.problem(&mistake.path, &top, &message, &origins, file));
            }
            // If there is no key that can be removed, the table cannot be parsed again, and further mistakes cannot be
            // found.
            removed.insert(mistake.path.clone());
            if !remove(&mut table, &mistake.steps) {
                return None;
            }
        }
    }

    fn problem(
        &self,
        path: &str,
        top: &str,
        message: &str,
        origins: &HashMap<String, &Origin>,
        file: Option<&File>,
    ) -> Problem {
        let key = join(self.name, path);
        let place = match (origins.get(top), file) {
            (Some(Origin::File { .. }), Some(file)) => match file.origin(&key) {
                Origin::File { line: None, .. } => file.origin(&join(self.name, top)),
                exact => exact,
            },
            (Some(origin), _) => (*origin).clone(),
            (None, Some(file)) => match file.origin(self.name) {
                Origin::File { line: None, .. } => Origin::Default,
                header => header,
            },
            (None, None) => Origin::Default,
        };
        if let Some((kind, known)) = unknown(message) {
            let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
            let name = key.rsplit_once('.').map_or(key.as_str(), |(_, name)| name);
            return match (kind, &place) {
                ("field", Origin::Env(_) | Origin::EnvFile { .. }) => {
                    let hint = closest(name, known).map(|known| keys::variable(&join(parent, known)));
                    Problem { hint, ..Problem::at(place, "", "unknown key") }
                }
                ("field", _) => {
                    let hint = closest(name, known).map(|known| join(parent, known));
                    Problem { hint, ..Problem::at(place, &key, "unknown key") }
                }
                _ => {
                    let wrong = message.split('`').nth(1).unwrap_or_default();
                    let words: Vec<&str> = known.clone().collect();
                    let hint = closest(wrong, known).map(|word| format!("\"{word}\""));
                    let message = format!("\"{wrong}\" is not one of {}", words.join(", "));
                    Problem { hint, ..Problem::at(place, &key, message) }
                }
            };
        }
        let message = if secrets::is_secret(path) && missing_field(message).is_none() {
            "refused by the service; the value is a secret and not shown".to_owned()
        } else {
            secrets::without_userinfo(message)
        };
        Problem::at(place, &key, message)
    }
}

fn parse<T: DeserializeOwned + Send + Sync + 'static>(value: Value) -> Result<TableValue, Mistake> {
    let parsed = hook::call("the type of the table", || serde_path_to_error::deserialize::<_, T>(value));
    match parsed {
        Err(panicked) => Err(Mistake { path: String::new(), steps: Vec::new(), message: panicked.to_string() }),
        Ok(Ok(parsed)) => Ok(Arc::new(parsed)),
        Ok(Err(error)) => {
            let steps: Vec<Step> = error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    Segment::Map { key } => Some(Step::Key(key.clone())),
                    Segment::Seq { index } => Some(Step::Item(*index)),
                    Segment::Enum { .. } | Segment::Unknown => None,
                })
                .collect();
            let path = if steps.is_empty() { String::new() } else { error.path().to_string() };
            Err(Mistake { path, steps, message: error.inner().message().trim_end().to_owned() })
        }
    }
}

/// Returns the values that a text from the environment may mean: a list of strings, a string, and a TOML value if the
/// text is one. The best guess is the last.
fn meanings(text: &str) -> Vec<Value> {
    let list = text.split(',').map(|item| Value::String(item.trim().to_owned())).collect();
    let mut meanings = vec![Value::Array(list), Value::String(text.to_owned())];
    if let Some(typed) = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1) {
        meanings.extend(typed.into_iter().map(|(_, value)| value));
    }
    meanings
}

fn join(parent: &str, key: &str) -> String {
    match (parent, key) {
        ("", only) | (only, "") => only.to_owned(),
        (parent, key) => format!("{parent}.{key}"),
    }
}

/// Removes the innermost key of the path `steps` from the table. It never removes a single item of a list, because that
/// would change the index of the items after it. Returns `false` if nothing was removed.
fn remove(table: &mut Table, steps: &[Step]) -> bool {
    let Some((Step::Key(key), rest)) = steps.split_first() else { return false };
    let last_key = steps.iter().rposition(|step| matches!(step, Step::Key(_)));
    if last_key == Some(0) || !matches!(steps.last(), Some(Step::Key(_))) {
        return table.remove(key).is_some();
    }
    let mut here = table.get_mut(key);
    for (index, step) in rest.iter().enumerate() {
        here = match (here, step) {
            (Some(Value::Table(inner)), Step::Key(key)) if Some(index + 1) == last_key => {
                return inner.remove(key).is_some();
            }
            (Some(Value::Table(inner)), Step::Key(key)) => inner.get_mut(key),
            (Some(Value::Array(items)), Step::Item(item)) => items.get_mut(*item),
            _ => return false,
        };
    }
    false
}

/// Reads serde's message about an unknown name, such as "unknown field `a`, expected one of `b`, `c`". The message is
/// the same for every format. Returns "field" or "variant", and the names that are known.
fn unknown(message: &str) -> Option<(&str, impl Iterator<Item = &str> + Clone)> {
    let kind =
        message.strip_prefix("unknown ")?.split(' ').next().filter(|kind| matches!(*kind, "field" | "variant"))?;
    Some((kind, message.split('`').skip(3).step_by(2)))
}

fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}
