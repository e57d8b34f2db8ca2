//! Reads and writes sizes in the form of the settings: in `"512MiB"` and `"64k"` the units are powers of 1024, in
//! `"16MB"` powers of 1000. A number without a unit means bytes.
//!
//! A size below 0 or above `i64::MAX` bytes is an error. A field in an app's own table can use this form too:
//!
//! ```
//! #[derive(serde::Deserialize)]
//! struct Shop {
//!     #[serde(with = "oxicorn::settings::size")]
//!     cache: u64,
//! }
//! ```
//!
//! Owns: the units, reading and writing. Refuses: to check the range of a key (`keys` does).

use std::fmt;

use serde::{Deserializer, Serializer, de};

pub(super) const WANTED: &str = "a size such as \"512MiB\", \"16MB\", \"64k\" or a number of bytes";

/// The reason why a text is not a size. Each message quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseSizeError {
    /// The text is not a whole number with one of the units.
    #[error("\"{text}\" is not {WANTED}")]
    Malformed {
        /// The text, as it was given.
        text: String,
    },
    /// The size is below 0.
    #[error("\"{text}\" is negative; the least is 0")]
    Negative {
        /// The text, as it was given.
        text: String,
    },
    /// The size is above `i64::MAX` bytes.
    #[error("\"{text}\" is too large")]
    TooLarge {
        /// The text, as it was given.
        text: String,
    },
}

/// Reads a size from a text such as `"512MiB"`. Returns the number of bytes.
///
/// # Errors
/// See [`ParseSizeError`].
pub fn parse(text: &str) -> Result<u64, ParseSizeError> {
    let malformed = || ParseSizeError::Malformed { text: text.to_owned() };
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(ParseSizeError::Negative { text: text.to_owned() });
    }
    let (number, unit) = trimmed.split_at(trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len()));
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let fits = bytes.filter(|bytes| i64::try_from(*bytes).is_ok());
    fits.ok_or_else(|| ParseSizeError::TooLarge { text: text.to_owned() })
}

/// Writes a size with the largest of the units GiB, MiB and KiB that divides it. If none of them divides it, writes the
/// number of bytes.
///
/// # Errors
/// The errors of the serializer.
pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match unit.iter().find(|(shift, _)| *bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => serializer.collect_str(&format_args!("{}{unit}", bytes >> shift)),
        None => serializer.serialize_u64(*bytes),
    }
}

/// Reads a size from a string or a number of bytes.
///
/// # Errors
/// The errors of [`parse`], and an error if the value is neither a string nor a whole number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(WANTED)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse(text).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
            self.visit_str(&bytes.to_string())
        }
        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u64, E> {
            self.visit_str(&bytes.to_string())
        }
    }
    deserializer.deserialize_any(Visitor)
}
