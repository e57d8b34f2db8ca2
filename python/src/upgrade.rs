//! The program that an upgrade executes.
//!
//! Owns: how this program was started, and how to start it anew. Refuses: to choose the interpreter: a command names its
//! own, so that an upgrade follows a virtual environment behind a link that was turned to another one.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use oxicorn::UpgradeCommand;

/// The most bytes of a script's first line that Linux reads.
const LINE_MAX: u64 = 255;

/// The files of the running program, as they were at its start.
#[derive(Debug)]
pub(crate) struct Files(Vec<(PathBuf, Option<Identity>)>);

type Identity = (u64, u64, i64, i64, u64);

impl Files {
    pub(crate) fn at_the_start(paths: Vec<PathBuf>) -> Self {
        Self(paths.into_iter().map(|path| (identity(&path), path)).map(|(identity, path)| (path, identity)).collect())
    }

    /// Checks that the files are the same still.
    ///
    /// # Errors
    /// The sentence that names the first one that is not.
    pub(crate) fn are_kept(&self) -> Result<(), String> {
        match self.0.iter().find(|(path, before)| identity(path) != *before) {
            Some((path, _)) if path.exists() => Err(format!("{} was replaced in place", path.display())),
            Some((path, _)) => Err(format!("{} is gone", path.display())),
            None => Ok(()),
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
}

/// How this program was started. Links in the paths are kept.
#[derive(Debug)]
pub(crate) enum Start {
    /// By the command `oxicorn`, which is a script.
    Script(PathBuf),
    /// By `python -m oxicorn`.
    Module { interpreter: PathBuf, options: Vec<OsString> },
}

impl Start {
    /// Returns the command that starts this program, or the program `asked`, anew.
    pub(crate) fn again(&self, asked: Option<&Path>) -> UpgradeCommand {
        match (asked, self) {
            (Some(asked), _) if is_interpreter(asked) => module(asked, &[]),
            (Some(asked), _) => script(asked),
            (None, Self::Script(path)) => script(path),
            (None, Self::Module { interpreter, options }) => module(interpreter, options),
        }
    }
}

fn is_interpreter(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b"python") && !matches!(first_line(program), Ok(Some(_)))
}

fn module(interpreter: &Path, options: &[OsString]) -> UpgradeCommand {
    let command = UpgradeCommand::new(interpreter);
    options.iter().fold(command, UpgradeCommand::arg).arg("-m").arg("oxicorn")
}

/// Returns the command that runs a script. The supervisor executes an open file, and the kernel cannot execute a script
/// in this way, so the interpreter is executed. A file that is no script is executed as it is, and so is one that cannot
/// be read: then the upgrade says why.
fn script(path: &Path) -> UpgradeCommand {
    let Ok(Some(line)) = first_line(path) else { return UpgradeCommand::new(path) };
    let line = line.trim_ascii();
    let (interpreter, argument) = match line.iter().position(u8::is_ascii_whitespace) {
        Some(at) => (&line[..at], line[at..].trim_ascii_start()),
        None => (line, &[][..]),
    };
    let command = UpgradeCommand::new(PathBuf::from(OsString::from_vec(interpreter.to_vec())));
    let command = if argument.is_empty() { command } else { command.arg(OsStr::from_bytes(argument)) };
    command.arg(path)
}

/// Returns what stands behind `#!` in the first line of a file; `None` if the file does not begin so.
fn first_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    Ok(line.strip_prefix(b"#!").map(<[u8]>::to_vec))
}
