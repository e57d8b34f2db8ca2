//! Promise to ourselves: in the library, no two types have the same name, and modules do not import each other in
//! circles.
//!
//! Owns: the lists of items that a file defines and imports, which the test reads without a compiler. Refuses: to
//! decide which module may import which (`tidy` does).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use super::{TESTS, is_in, sources};

/// Type names that two modules may define, each with its reason.
const TWICE: &[(&str, &str)] = &[("Material", "with the feature `tls`, and without it")];

/// Groups of modules that may import each other in a circle, each with its reason. `a::` stands for every module below
/// `a`.
const CIRCLES: &[(&[&str], &str)] =
    &[(&["worker::connection::"], "a connection is one state machine in several files")];

const TYPES: [&str; 5] = ["struct", "enum", "union", "trait", "type"];
const ITEMS: [&str; 10] = ["struct", "enum", "union", "trait", "type", "fn", "const", "static", "macro_rules", "mod"];

/// For each module, the modules that it imports.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// What one source file of the library defines and imports.
#[derive(Default)]
struct Module {
    types: BTreeSet<String>,
    items: BTreeSet<String>,
    /// The imported Rust paths. The key is the name that the imported item has in this file.
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// The imported paths without re-exports. Only this file's own code uses these imports.
    used: Vec<Vec<String>>,
    /// The Rust paths that the code uses outside of `use` items.
    paths: BTreeSet<Vec<String>>,
}

struct Library(BTreeMap<String, Module>);

/// The whole library. It is read only once for all tests.
static LIBRARY: LazyLock<Library> = LazyLock::new(Library::read);

impl Library {
    fn read() -> Self {
        let sources = sources();
        let tests: BTreeSet<_> = sources.iter().flat_map(|source| test_modules(&source.module, &source.text)).collect();
        let is_test = |module: &str| tests.iter().any(|test| is_in(module, test));
        let library = sources.iter().filter(|source| !is_in(&source.module, "service") && !is_test(&source.module));
        Self(library.map(|source| (source.module.clone(), Module::read(&source.code))).collect())
    }

    /// Returns the absolute form of a Rust path that the code of `module` contains, or `None` if the path leads out of
    /// the library.
    fn absolute(&self, module: &str, path: &[String]) -> Option<Vec<String>> {
        let own =
            || if module == "lib" { Vec::new() } else { module.split("::").map(str::to_owned).collect::<Vec<_>>() };
        let (first, rest) = path.split_first()?;
        let mut start = match first.as_str() {
            "crate" => Vec::new(),
            "self" => own(),
            "super" => {
                let mut parent = own();
                parent.pop();
                parent
            }
            child if self.0.contains_key(&join(&own(), child)) => [own(), vec![child.to_owned()]].concat(),
            imported => {
                let import = self.0[module].imports.get(imported).filter(|import| *import != path)?;
                self.absolute(module, import)?
            }
        };
        for name in rest {
            if name == "super" {
                start.pop();
            } else {
                start.push(name.clone());
            }
        }
        Some(start)
    }

    /// Follows all re-exports and returns the module that defines the item which a path names. Returns `None` if the
    /// path names a module.
    fn definer(&self, path: &[String], depth: u8) -> Option<String> {
        let mut module = "lib".to_owned();
        for (at, name) in path.iter().enumerate() {
            let parts = path[..at].to_vec();
            let child = join(&parts, name);
            if self.0.contains_key(&child) {
                module = child;
                continue;
            }
            let here = self.0.get(&module)?;
            if here.items.contains(name) || depth > 8 {
                return Some(module);
            }
            let behind = &path[at + 1..];
            let imported = here.imports.get(name).and_then(|import| self.absolute(&module, import));
            let globs = here.globs.iter().filter_map(|glob| self.absolute(&module, glob));
            let candidates =
                imported.into_iter().chain(globs.map(|glob| [glob, vec![name.clone()]].concat())).collect::<Vec<_>>();
            let found =
                candidates.iter().find_map(|start| self.definer(&[start.clone(), behind.to_vec()].concat(), depth + 1));
            return found.or(Some(module));
        }
        None
    }

    fn edges(&self) -> Edges {
        let target = |module: &str, path: &[String]| self.definer(&self.absolute(module, path)?, 0);
        self.0
            .iter()
            .map(|(name, module)| {
                let paths = module.used.iter().chain(&module.paths);
                let targets = paths.filter_map(|path| target(name, path)).filter(|target| target != name);
                (name.clone(), targets.collect())
            })
            .collect()
    }
}

impl Module {
    fn read(code: &str) -> Self {
        let mut module = Self::default();
        let (mut rest, mut depth, mut code_left, mut before) = (code, 0_i32, String::new(), "");
        let mut trees: Vec<(bool, String)> = Vec::new();
        while let Some(sign) = rest.chars().next() {
            if !is_name(sign) {
                depth += i32::from(sign == '{') - i32::from(sign == '}');
                let (text, after) = rest.split_at(sign.len_utf8());
                if !sign.is_whitespace() {
                    before = text;
                }
                code_left += text;
                rest = after;
                continue;
            }
            let (word, after) = rest.split_at(rest.find(|sign| !is_name(sign)).unwrap_or(rest.len()));
            rest = after;
            // The word `use` in `-> impl Trait + use<…>` does not begin an import.
            if word == "use" && after.starts_with(' ') {
                let (tree, after) = after.split_once(';').unwrap_or((after, ""));
                trees.push((matches!(before, "pub" | ")"), tree.split_whitespace().collect::<Vec<_>>().join(" ")));
                (rest, before) = (after, "");
                continue;
            }
            if depth == 0 && ITEMS.contains(&word) {
                let name = after.trim_start_matches(['!', ' ']);
                let name = &name[..name.find(|sign| !is_name(sign)).unwrap_or(name.len())];
                if TYPES.contains(&word) {
                    module.types.insert(name.to_owned());
                }
                module.items.insert(name.to_owned());
            }
            before = word;
            code_left += word;
        }
        module.paths = paths(&code_left);
        let words: BTreeSet<_> = code_left.split(|sign| !is_name(sign)).collect();
        for (public, tree) in trees {
            for (path, name) in leaves(&[], &tree) {
                if name == "*" {
                    module.used.push([path.clone(), vec!["*".to_owned()]].concat());
                    module.globs.push(path);
                    continue;
                }
                if !public || words.contains(name.as_str()) {
                    module.used.push(path.clone());
                }
                module.imports.insert(name, path);
            }
        }
        module
    }
}

fn is_name(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn join(path: &[String], name: &str) -> String {
    path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("::")
}

/// Returns the modules of a file that are compiled only for tests or for the fuzzer.
fn test_modules(module: &str, text: &str) -> Vec<String> {
    let parent = if module == "lib" { String::new() } else { format!("{module}::") };
    let mut found = Vec::new();
    for mark in TESTS {
        for (at, _) in text.match_indices(mark) {
            let item = text[at..].split([';', '{']).next().unwrap_or_default();
            let mut words = item.split_whitespace().skip_while(|word| *word != "mod").skip(1);
            found.extend(words.next().map(|name| format!("{parent}{name}")));
        }
    }
    found
}

/// Returns each name that a `use` tree imports, as its full path and as the name that it has in this file.
fn leaves(prefix: &[String], tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some(group) = tree.strip_prefix('{').and_then(|tree| tree.strip_suffix('}')) {
        let (mut depth, mut parts) = (0, vec![String::new()]);
        for sign in group.chars() {
            depth += i32::from(sign == '{') - i32::from(sign == '}');
            if sign == ',' && depth == 0 {
                parts.push(String::new());
            } else {
                parts.last_mut().expect("one part").push(sign);
            }
        }
        return parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| leaves(prefix, part)).collect();
    }
    if let Some((first, rest)) = tree.split_once("::").filter(|(first, _)| !first.contains('{')) {
        return leaves(&[prefix, &[first.trim().to_owned()]].concat(), rest);
    }
    let (name, called) = tree.split_once(" as ").unwrap_or((tree, tree));
    match name.trim() {
        "*" => vec![(prefix.to_vec(), "*".to_owned())],
        "self" => {
            vec![(prefix.to_vec(), prefix.last().filter(|_| called == tree).map_or(called, |last| last).to_owned())]
        }
        name => vec![([prefix, &[name.to_owned()]].concat(), called.trim().to_owned())],
    }
}

/// Returns each Rust path in the code that has at least two names.
fn paths(code: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("::") {
        let before = code[..at].rsplit(|sign| !is_name(sign)).next().unwrap_or_default();
        // A path with three names contains `::` twice. The code below reads the whole path at the first `::`, so it
        // skips the second one.
        if before.is_empty() || code[..at - before.len()].ends_with("::") || code[..at - before.len()].ends_with('.') {
            continue;
        }
        let mut path = vec![before.to_owned()];
        let mut rest = &code[at..];
        while let Some(after) = rest.strip_prefix("::") {
            let end = after.find(|sign| !is_name(sign)).unwrap_or(after.len());
            if end == 0 {
                break;
            }
            path.push(after[..end].to_owned());
            rest = &after[end..];
        }
        if path.len() > 1 {
            found.insert(path);
        }
    }
    found
}

fn stands_in(allowed: &[&str], module: &str) -> bool {
    allowed.iter().any(|allowed| module == *allowed || (allowed.ends_with("::") && module.starts_with(allowed)))
}

#[test]
fn a_type_name_stands_for_one_thing() {
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, module) in &LIBRARY.0 {
        for of_type in &module.types {
            places.entry(of_type).or_default().push(name);
        }
    }
    places.retain(|_, modules| modules.len() > 1);
    let needless: Vec<_> = TWICE.iter().filter(|(name, _)| places.remove(name).is_none()).collect();
    assert!(places.is_empty(), "one type, or two names:\n{places:#?}");
    assert!(needless.is_empty(), "exceptions that are not needed any more: {needless:?}");
}

/// Returns the groups of modules in which each module imports every other module of the group, directly or through
/// other modules. Each group is as large as possible.
fn circles(edges: &Edges) -> BTreeSet<Vec<&str>> {
    fn reached<'a>(edges: &'a Edges, from: &'a str) -> BTreeSet<&'a str> {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
        while let Some(module) = waiting.pop() {
            waiting.extend(edges[module].iter().filter(|to| seen.insert(to.as_str())).map(String::as_str));
        }
        seen
    }
    let reached: BTreeMap<_, _> = edges.keys().map(|from| (from.as_str(), reached(edges, from))).collect();
    let circle = |from: &str| reached[from].iter().copied().filter(|to| reached[to].contains(from)).collect::<Vec<_>>();
    reached.keys().map(|from| circle(from)).filter(|circle| !circle.is_empty()).collect()
}

/// A module and the modules below it may import each other. The parent module uses its parts, and the parts use the
/// types of the parent.
#[test]
fn modules_do_not_import_each_other_in_circles() {
    let (mut faults, mut needed) = (Vec::new(), BTreeSet::new());
    for upwards in [false, true] {
        let mut edges = LIBRARY.edges();
        edges
            .iter_mut()
            .for_each(|(from, to)| to.retain(|to| if upwards { !is_in(to, from) } else { !is_in(from, to) }));
        for circle in circles(&edges) {
            let allows = |group: &(&[&str], &str)| circle.iter().all(|module| stands_in(group.0, module));
            match CIRCLES.iter().position(allows) {
                Some(group) => drop(needed.insert(group)),
                None => faults.extend(circle.iter().map(|from| {
                    let to: Vec<_> = edges[*from].iter().filter(|to| circle.contains(&to.as_str())).collect();
                    format!("{from} imports {to:?}")
                })),
            }
        }
    }
    assert!(faults.is_empty(), "circles:\n{}", faults.join("\n"));
    let needless: Vec<_> = (0..CIRCLES.len()).filter(|at| !needed.contains(at)).map(|at| CIRCLES[at]).collect();
    assert!(needless.is_empty(), "exceptions that are not needed any more: {needless:?}");
}

/// Gives `Module::read` code that contains each form of import and definition that it must understand.
#[test]
fn imports_and_definitions_are_read() {
    let module = Module::read(
        "use crate::{a::{B, c::{self, D as E}}, f};\npub(crate) use self::g::H;\nuse super::*;\npub struct I { j: f::K }\n\
         impl L for I { type M = c::N; }\nfn o() -> Result<E, super::P> { crate::q::r() }",
    );
    assert_eq!(module.types.iter().collect::<Vec<_>>(), ["I"]);
    assert_eq!(module.items.iter().collect::<Vec<_>>(), ["I", "o"]);
    let imports: Vec<_> = module.imports.iter().map(|(name, path)| format!("{name}={}", path.join("::"))).collect();
    assert_eq!(imports, ["B=crate::a::B", "E=crate::a::c::D", "H=self::g::H", "c=crate::a::c", "f=crate::f"]);
    let paths: Vec<_> = module.paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["c::N", "crate::q::r", "f::K", "super::P"]);
    assert!(!module.used.contains(&["self", "g", "H"].map(str::to_owned).to_vec()), "a re-export is not a use");
}
