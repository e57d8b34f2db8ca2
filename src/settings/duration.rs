//! Reads and writes durations in the form of the settings: `"500ms"`, `"30s"`, `"2m"`, `"1h"`, `"1d"`. A number without
//! a unit means seconds.
//!
//! A duration below 0 or above `u32::MAX` seconds is an error. A field in an app's own table can use this form too:
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! struct Shop {
//!     #[serde(with = "oxicorn::settings::duration")]
//!     patience: Duration,
//! }
//! ```
//!
//! Owns: the units, reading and writing. Refuses: to check the range of a key (`keys` does).

use std::{fmt, time::Duration};

use serde::{Deserializer, Serializer, de};

pub(super) const WANTED: &str = "a duration such as \"30s\", \"500ms\", \"2m\" or a number of seconds";

/// The reason why a text is not a duration. Each message quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDurationError {
    /// The text is not a number with one of the units.
    #[error("\"{text}\" is not {WANTED}")]
    Malformed {
        /// The text, as it was given.
        text: String,
    },
    /// The duration is below 0.
    #[error("\"{text}\" is negative; the least is 0")]
    Negative {
        /// The text, as it was given.
        text: String,
    },
    /// The duration is above `u32::MAX` seconds.
    #[error("\"{text}\" is longer than {} seconds", u32::MAX)]
    TooLong {
        /// The text, as it was given.
        text: String,
    },
}

/// Reads a duration from a text such as `"30s"`.
///
/// # Errors
/// See [`ParseDurationError`].
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let malformed = || ParseDurationError::Malformed { text: text.to_owned() };
    let trimmed = text.trim();
    let (number, unit) = trimmed.split_at(trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len()));
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(malformed()),
    };
    let number: f64 = number.trim().parse().map_err(|_| malformed())?;
    if number < 0.0 {
        return Err(ParseDurationError::Negative { text: text.to_owned() });
    }
    let total = number * seconds;
    if total > f64::from(u32::MAX) {
        return Err(ParseDurationError::TooLong { text: text.to_owned() });
    }
    Duration::try_from_secs_f64(total).map_err(|_| malformed())
}

/// Returns the shortest text that [`parse`] reads back as this duration.
#[must_use]
pub fn display(duration: Duration) -> String {
    let millis = duration.as_millis();
    match duration.as_secs() {
        _ if !duration.subsec_nanos().is_multiple_of(1_000_000) => format!("{}s", duration.as_secs_f64()),
        _ if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        0 => "0s".to_owned(),
        seconds if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// Writes a duration as [`display`] does.
///
/// # Errors
/// The errors of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&display(*duration))
}

/// Reads a duration from a string or a number of seconds.
///
/// # Errors
/// The errors of [`parse`], and an error if the value is neither a string nor a number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(WANTED)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
            self.visit_str(&seconds.to_string())
        }
        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
            self.visit_str(&seconds.to_string())
        }
        fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Duration, E> {
            self.visit_str(&seconds.to_string())
        }
    }
    deserializer.deserialize_any(Visitor)
}
