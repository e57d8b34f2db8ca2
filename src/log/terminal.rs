//! Prints the messages of a command for the operator at the terminal: lines on stderr that begin with the name of the
//! program.
//!
//! Owns: the name of the program, and the form of these lines. Refuses: the log of a service, and the content of the
//! messages.

use std::sync::OnceLock;

/// The name of a program that does not set its name with `App::name`.
pub(crate) const DEFAULT_NAME: &str = "oxicorn";

static NAME: OnceLock<String> = OnceLock::new();

/// Sets the name of the program. It is called once, before the first message.
pub(crate) fn set_name(name: &str) {
    let _ = NAME.set(name.to_owned());
}

/// Returns the name with which the messages of the program begin.
pub(crate) fn name() -> &'static str {
    NAME.get().map_or(DEFAULT_NAME, String::as_str)
}

/// Prints an error. Each line of `sentences` begins with the name of the program.
pub(crate) fn error(sentences: &str) {
    for line in sentences.lines() {
        eprintln!("{}: error: {line}", name());
    }
}

/// Prints a warning as one line.
pub(crate) fn warning(sentence: &str) {
    eprintln!("{}: warning: {sentence}", name());
}

/// Prints a note: a fact that the operator should know, but does not have to act on.
pub(crate) fn note(sentence: &str) {
    eprintln!("{}: note: {sentence}", name());
}
