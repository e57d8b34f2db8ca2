//! The problems of the settings, each with its place. All of them are reported at once, one line for each.
//!
//! Owns: the text of a problem, and the search for the word that was probably meant. Refuses: to judge a value;
//! `value`, `check` and an app's own types do.

use std::fmt;

use serde::Serialize;

use super::origin::Origin;

/// The result of reading a value: the value as it is meant, or a sentence that says why it is refused.
pub(super) type Reading<T> = Result<T, String>;

/// One problem of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// The key that has the problem, as `section.key`; empty if the problem does not belong to a single key.
    pub(crate) key: String,
    pub(crate) place: Origin,
    pub(crate) message: String,
    /// The word that was probably meant, for the question "did you mean …?".
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn at(place: Origin, key: &str, message: impl Into<String>) -> Self {
        Self { key: key.to_owned(), place, message: message.into(), hint: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Origin::Default {
            write!(f, "{}: ", self.place)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; did you mean {hint}?"),
            None => Ok(()),
        }
    }
}

/// All problems of the settings. As text, each problem is one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Returns the `known` word that differs least from `word`; `None` if all differ by more than a few keystrokes.
pub(super) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = word.rsplit('.').next().unwrap_or(word);
    known
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .filter(|(distance, _)| *distance <= (last.len() / 3).max(2))
        .min()
        .map(|(_, known)| known)
}
