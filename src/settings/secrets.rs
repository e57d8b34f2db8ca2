//! Masks the parts of a value that must not be shown.
//!
//! Owns: the choice of keys that hold a secret, and the masks. Refuses: to choose the form in which values are shown
//! (`show` does).

use toml::Value;

/// Returns true if the name of a key suggests that its value is a secret. The value of a key that ends in `_file` is no
/// secret. It is a path, and an operator needs to see the path to debug a mount.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let telling = ["token", "secret", "password", "passwd", "passphrase", "private_key", "api_key", "key_material"];
    !key.ends_with("_file") && telling.iter().any(|word| key.contains(word))
}

pub(super) fn redacted(key: &str, value: Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => Value::String(text),
        Value::Boolean(_) => value,
        Value::Table(table) => {
            let secret = is_secret(key);
            let mask = |(inner, value): (String, Value)| {
                let value = redacted(if secret { key } else { &inner }, value);
                (inner, value)
            };
            Value::Table(table.into_iter().map(mask).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| redacted(key, item)).collect()),
        _ if is_secret(key) => Value::String("***".to_owned()),
        Value::String(text) => Value::String(without_userinfo(&text)),
        Value::Integer(_) | Value::Float(_) | Value::Datetime(_) => value,
    }
}

/// Replaces `scheme://user:password@host` by `scheme://***@host` everywhere in the text. If in doubt, it hides too
/// much. It also hides a password with an unescaped `/`, and each option after a `?` whose name or value suggests a
/// secret. Database drivers take a session token, or the password of a key, in such options.
pub(super) fn without_userinfo(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("://").map(|at| at + 3) {
        let end = rest[start..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '`'))
            .map_or(rest.len(), |end| start + end);
        masked.push_str(&rest[..start]);
        match rest[start..end].rfind('@') {
            Some(at) => {
                masked.push_str("***");
                masked.push_str(&without_secret_options(&rest[start + at..end]));
            }
            None => masked.push_str(&without_secret_options(&rest[start..end])),
        }
        rest = &rest[end..];
    }
    masked + rest
}

fn without_secret_options(uri: &str) -> String {
    let Some((place, options)) = uri.split_once('?') else { return uri.to_owned() };
    let shown = options.split('&').map(|option| match option.split_once('=') {
        Some((name, value)) if is_secret(name) || is_secret(value) => format!("{name}=***"),
        _ => option.to_owned(),
    });
    format!("{place}?{}", shown.collect::<Vec<_>>().join("&"))
}
