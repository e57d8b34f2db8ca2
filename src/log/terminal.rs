//! Prints the messages of a command for the operator at the terminal. The result goes to stdout. Errors, warnings and
//! notes go to stderr, and each of their lines begins with the name of the program.
//!
//! Owns: the name of the program, the form of these lines, and the escapes. Without these escapes, a text from another
//! process or from a hook of the app could control the terminal. Refuses: to write the log of a service, and to choose
//! the content of the messages.

use std::{borrow::Cow, sync::OnceLock};

/// The name of a program that does not set its name with `App::name`.
pub(crate) const DEFAULT_NAME: &str = "oxicorn";

static NAME: OnceLock<String> = OnceLock::new();

/// Sets the name of the program. The program calls this once, before its first message.
pub(crate) fn set_name(name: &str) {
    let _ = NAME.set(name.to_owned());
}

/// Returns the name with which the messages of the program begin.
pub(crate) fn name() -> &'static str {
    NAME.get().map_or(DEFAULT_NAME, String::as_str)
}

/// Returns true if a character must be escaped, because it would start a new line or change how a terminal shows the
/// rest of this line. The last two ranges are the bidirectional controls, which can make a terminal show the characters
/// in another order.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes the characters of one line that a terminal would obey. A tab is not escaped, because it only moves the
/// cursor to the right.
pub(crate) fn plain(line: &str) -> Cow<'_, str> {
    let escapes = |c: char| is_unsafe(c) && c != '\t';
    if !line.contains(escapes) {
        return Cow::Borrowed(line);
    }
    let mut text = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if escapes(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    Cow::Owned(text)
}

/// Prints the result of a command, which may have several lines.
pub(crate) fn result(text: &str) {
    for line in text.lines() {
        println!("{}", plain(line));
    }
}

/// Prints an error. Each line of `sentences` begins with the name of the program.
pub(crate) fn error(sentences: &str) {
    for line in sentences.lines() {
        eprintln!("{}: error: {}", name(), plain(line));
    }
}

/// Prints a warning as one line.
pub(crate) fn warning(sentence: &str) {
    eprintln!("{}: warning: {}", name(), plain(sentence));
}

/// Prints a note: a fact that the operator should know, but does not have to act on.
pub(crate) fn note(sentence: &str) {
    eprintln!("{}: note: {}", name(), plain(sentence));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_control_the_terminal() {
        let escaped = plain("a\u{1b}[2J\r\0\u{7f}\u{9b}31m\u{202e}b\u{2066}c\u{2069}\u{2028}d");
        let expected = r"a\u{1b}[2J\r\u{0}\u{7f}\u{9b}31m\u{202e}b\u{2066}c\u{2069}\u{2028}d";
        assert_eq!(escaped, expected);
        assert!(matches!(plain("é\tü – 漢字 \u{200f}"), Cow::Borrowed(_)), "these characters stay");
    }
}
