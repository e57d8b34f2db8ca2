//! What a command says to the operator at the terminal: lines on stderr, under the name of the program.
//!
//! Owns: that name, and the form of these lines. Refuses: the log of a service, and to decide what is said.

use std::sync::OnceLock;

/// The name of a program that gives itself none.
pub(crate) const DEFAULT_NAME: &str = "oxicorn";

static NAME: OnceLock<String> = OnceLock::new();

/// Sets the name of the program, once and before the first line.
pub(crate) fn set_name(name: &str) {
    let _ = NAME.set(name.to_owned());
}

/// The name of the program, as its messages begin.
pub(crate) fn name() -> &'static str {
    NAME.get().map_or(DEFAULT_NAME, String::as_str)
}

/// Prints an error, each line of it with the name before.
pub(crate) fn error(sentences: &str) {
    for line in sentences.lines() {
        eprintln!("{}: error: {line}", name());
    }
}

/// Prints a warning.
pub(crate) fn warning(sentence: &str) {
    eprintln!("{}: warning: {sentence}", name());
}

/// Prints what the operator should know, and need not act on.
pub(crate) fn note(sentence: &str) {
    eprintln!("{}: note: {sentence}", name());
}
