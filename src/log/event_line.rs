//! Formats an event of `tracing` as one line of the log.
//!
//! Owns: the format (text or JSON), and the escapes that keep an event from forging a second line. Refuses: to choose
//! the events that are written, and to choose the output.

use std::{
    error::Error,
    fmt::{self, Write},
};

use jiff::Timestamp;
use tracing::field::{Field, Visit};

use super::terminal::is_unsafe;

/// The format of a line.
#[derive(Clone, Copy, Debug)]
pub(super) enum LineFormat {
    Text,
    /// Text for systemd's journal. The line has no time, because the journal adds the time itself. It begins with the
    /// priority, because the journal reads the priority there.
    Journal,
    Json,
}

/// A line that is being built: first the message, then the fields in their order.
pub(super) struct EventLine {
    format: LineFormat,
    text: String,
    fields: String,
}

impl EventLine {
    pub(super) fn new(format: LineFormat, now: Timestamp, level: tracing::Level) -> Self {
        let mut text = String::with_capacity(256);
        let written = match format {
            LineFormat::Text => write!(text, "{now:.3} {:<5} ", level.as_str()),
            LineFormat::Journal => write!(text, "<{}>{:<5} ", priority(level), level.as_str()),
            LineFormat::Json => write!(text, "{{\"timestamp\":\"{now:.3}\",\"level\":\"{level}\""),
        };
        written.expect("a String takes all");
        Self { format, text, fields: String::new() }
    }

    pub(super) fn message(&mut self, message: impl fmt::Display) {
        let message = message.to_string();
        match self.format {
            LineFormat::Text | LineFormat::Journal => escape(&mut self.text, &message, &[]),
            LineFormat::Json => {
                self.text.push_str(",\"message\":");
                quote_json(&mut self.text, &message);
            }
        }
    }

    /// Adds a field to the line. `bare` is true if the value is a number or a boolean, which needs no quotes in JSON.
    pub(super) fn put(&mut self, name: &str, value: &str, bare: bool) {
        // A field whose name is a keyword, such as `type`, is written `r#type` in the source. The log shows it without
        // `r#`.
        let name = name.strip_prefix("r#").unwrap_or(name);
        let fields = &mut self.fields;
        match self.format {
            LineFormat::Text | LineFormat::Journal => {
                fields.push(' ');
                fields.push_str(name);
                fields.push('=');
                let plain = |c: char| !c.is_whitespace() && !is_unsafe(c) && !matches!(c, '"' | '=' | '\\');
                if !value.is_empty() && value.chars().all(plain) {
                    fields.push_str(value);
                } else {
                    fields.push('"');
                    escape(fields, value, &['"', '\\']);
                    fields.push('"');
                }
            }
            LineFormat::Json => {
                fields.push(',');
                quote_json(fields, name);
                fields.push(':');
                if bare { fields.push_str(value) } else { quote_json(fields, value) }
            }
        }
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str(&self.fields);
        self.text.push_str(match self.format {
            LineFormat::Text | LineFormat::Journal => "\n",
            LineFormat::Json => "}\n",
        });
        self.text
    }
}

impl Visit for EventLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message(format_args!("{value:?}")),
            name => self.put(name, &format!("{value:?}"), false),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message(value),
            name => self.put(name, value, false),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for infinity or NaN, so such a value is written as a string.
        self.put(field.name(), &value.to_string(), value.is_finite());
    }

    /// Adds an error with all its causes as one field.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let causes = std::iter::successors(Some(value), |&error| error.source());
        self.put(field.name(), &causes.map(ToString::to_string).collect::<Vec<_>>().join(": "), false);
    }
}

/// Returns the priority of a level, as a number of syslog(3).
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        tracing::Level::DEBUG | tracing::Level::TRACE => 7,
    }
}

fn escape(to: &mut String, text: &str, also: &[char]) {
    for c in text.chars() {
        if is_unsafe(c) || also.contains(&c) {
            to.extend(c.escape_default());
        } else {
            to.push(c);
        }
    }
}

fn quote_json(to: &mut String, text: &str) {
    // serde_json escapes only the characters below U+0020. The other characters that `is_unsafe` names have four
    // hexadecimal digits, as many as an escape of JSON needs.
    for c in serde_json::Value::from(text).to_string().chars() {
        if is_unsafe(c) {
            let _ = write!(to, "\\u{:04x}", u32::from(c));
        } else {
            to.push(c);
        }
    }
}
