//! The meaning of `log.access_format`: the parts of a line of the access log. The text is read once, with the settings.
//!
//! Owns: Gunicorn's format strings, the two named formats, and the messages for a format that is not understood.
//! Refuses: to write lines; `worker::access_log` does.

use std::str::FromStr;

use http::{
    HeaderName,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, REFERER, USER_AGENT},
};
use serde::{Serialize, Serializer};

use super::problem::closest;

/// The format that `combined` stands for: Apache's combined format, which is also Gunicorn's default.
const COMBINED: &str = r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#;

/// A valid format of the access log, as `log.access_format` sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessFormat {
    written: String,
    pub(crate) form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON object for each request, each on one line.
    Json,
    Text(Vec<Part>),
}

/// A part of a line in a text format: literal text, or an atom of the format string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(String),
    /// The atom `h`: the client's address, without its port.
    Client,
    /// The atom `u`: the user name that the client sent with HTTP's Basic authentication.
    User,
    /// The atom `t`: the time at which the line is written, in local time, such as `[22/Nov/2026:05:13:51 +0000]`.
    Time,
    /// The atom `r`: method, target and protocol of the request.
    RequestLine,
    /// The atom `m`: the method of the request.
    Method,
    /// The atom `{RAW_URI}e`: the path and the query of the request, as the client sent them.
    Target,
    /// The atom `U`: the path of the request, as the client sent it.
    Path,
    /// The atom `q`: the text after the `?` of the target; empty without a `?`.
    Query,
    /// The atom `H`: the protocol of the request, such as `HTTP/1.1`.
    Protocol,
    /// The atom `s`: the status of the answer.
    Status,
    /// The atoms `B` and `b`: the number of bytes in the body of the answer. If there was no answer, `b` is `-` and `B`
    /// is 0.
    Bytes {
        dash: bool,
    },
    /// The atom `T`: the duration of the request in whole seconds.
    Seconds,
    /// The atom `M`: the duration of the request in whole milliseconds.
    Milliseconds,
    /// The atom `D`: the duration of the request in whole microseconds.
    Microseconds,
    /// The atom `L`: the duration of the request in seconds, with six decimals.
    DecimalSeconds,
    /// The atom `p`: the pid of the worker, between `<` and `>`.
    Pid,
    /// The atom `{name}i`: a header of the request. The atoms `f` (Referer) and `a` (User-Agent) are headers too.
    RequestHeader(HeaderName),
    /// The atom `{name}o`: a header of the answer.
    ResponseHeader(HeaderName),
}

/// All atoms whose name is one letter.
const ATOMS: [&str; 19] =
    ["h", "l", "u", "t", "r", "m", "U", "q", "H", "s", "B", "b", "f", "a", "T", "D", "M", "L", "p"];

/// The names that `{NAME}e` accepts for the parts of a request. They are WSGI's names (PEP 3333). A header that is not
/// in this list has the name `HTTP_<NAME>`.
const VARIABLES: [(&str, Part); 8] = [
    ("REQUEST_METHOD", Part::Method),
    ("RAW_URI", Part::Target),
    ("PATH_INFO", Part::Path),
    ("QUERY_STRING", Part::Query),
    ("SERVER_PROTOCOL", Part::Protocol),
    ("REMOTE_ADDR", Part::Client),
    ("CONTENT_TYPE", Part::RequestHeader(CONTENT_TYPE)),
    ("CONTENT_LENGTH", Part::RequestHeader(CONTENT_LENGTH)),
];

impl AccessFormat {
    pub(super) fn combined() -> Self {
        Self::parse("combined").expect("our own format")
    }

    /// Reads the text of `log.access_format`.
    ///
    /// # Errors
    /// A sentence that quotes the part which is not understood, and says what was probably meant.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let form = match text {
            "json" => Form::Json,
            "combined" => Form::Text(parts(COMBINED)?),
            text => Form::Text(parts(text)?),
        };
        Ok(Self { written: text.to_owned(), form })
    }
}

impl Serialize for AccessFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

/// Returns the names of the headers that `parts` need: first those of the request, then those of the response.
pub(crate) fn headers(parts: &[Part]) -> (Vec<HeaderName>, Vec<HeaderName>) {
    let (mut request, mut response) = (Vec::new(), Vec::new());
    for part in parts {
        let (names, name) = match part {
            Part::RequestHeader(name) => (&mut request, name),
            Part::User => (&mut request, &AUTHORIZATION),
            Part::ResponseHeader(name) => (&mut response, name),
            _ => continue,
        };
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    (request, response)
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    if !text.contains("%(") {
        return Err(format!("{text:?} is not combined, json, or a format string with atoms such as %(h)s"));
    }
    if text.contains(char::is_control) {
        return Err(format!("{text:?} has a control character; a line of the log must stay one line"));
    }
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let inside = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        let Some((name, after)) = inside.and_then(|(name, after)| Some((name, after.strip_prefix('s')?))) else {
            let wrong: String = after.chars().take_while(|c| !c.is_whitespace()).collect();
            return Err(format!("\"%{wrong}\" is not an atom such as %(h)s; a percent sign is written %%"));
        };
        match part(name)? {
            Part::Literal(fixed) => literal.push_str(&fixed),
            part => {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(part);
            }
        }
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

fn part(name: &str) -> Result<Part, String> {
    Ok(match name {
        "h" => Part::Client,
        "l" => Part::Literal("-".to_owned()),
        "u" => Part::User,
        "t" => Part::Time,
        "r" => Part::RequestLine,
        "m" => Part::Method,
        "U" => Part::Path,
        "q" => Part::Query,
        "H" => Part::Protocol,
        "s" => Part::Status,
        "B" => Part::Bytes { dash: false },
        "b" => Part::Bytes { dash: true },
        "f" => Part::RequestHeader(REFERER),
        "a" => Part::RequestHeader(USER_AGENT),
        "T" => Part::Seconds,
        "D" => Part::Microseconds,
        "M" => Part::Milliseconds,
        "L" => Part::DecimalSeconds,
        "p" => Part::Pid,
        _ => return named(name).ok_or_else(|| unknown(name)),
    })
}

/// Reads an atom such as `{name}i`, `{name}o` or `{NAME}e`. The name may be in upper or lower case. Returns `None` if
/// the atom is unknown.
fn named(atom: &str) -> Option<Part> {
    let (name, of) = atom.strip_prefix('{')?.split_once('}')?;
    let header = |name: &str| HeaderName::from_str(name).ok();
    match of {
        "i" => header(name).map(Part::RequestHeader),
        "o" => header(name).map(Part::ResponseHeader),
        "e" => {
            let name = name.to_ascii_uppercase();
            match name.strip_prefix("HTTP_") {
                Some(name) => header(&name.replace('_', "-")).map(Part::RequestHeader),
                None => VARIABLES.into_iter().find(|(known, _)| *known == name).map(|(_, part)| part),
            }
        }
        _ => None,
    }
}

fn unknown(name: &str) -> String {
    let says = format!("%({name})s is not an atom");
    let meant = match name.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((name, "e")) => {
            let name = name.to_ascii_uppercase();
            let known = VARIABLES.iter().map(|(known, _)| *known);
            closest(&name, known).map(|known| format!("%({{{known}}}e)s"))
        }
        Some((name, _)) => Some(format!("%({{{name}}}i)s")),
        None if name.len() == 1 => {
            let known = ATOMS.iter().find(|known| known.eq_ignore_ascii_case(name));
            known.map(|known| format!("%({known})s"))
        }
        None => HeaderName::from_str(name).ok().map(|name| format!("%({{{name}}}i)s")),
    };
    match meant {
        Some(meant) => format!("{says}; did you mean {meant}?"),
        None => format!("{says}; there are {} and {{name}}i, {{name}}o, {{NAME}}e", ATOMS.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        AccessFormat::parse(text).unwrap_err()
    }

    #[test]
    fn a_format_is_split_into_texts_and_atoms() {
        let Form::Text(read) = AccessFormat::parse("100%% %(h)s%(l)s [%({X-A}i)s]%({content-type}o)s").unwrap().form
        else {
            panic!()
        };
        let literal = |text: &str| Part::Literal(text.to_owned());
        assert_eq!(
            read,
            [
                literal("100% "),
                Part::Client,
                literal("- ["),
                Part::RequestHeader(HeaderName::from_static("x-a")),
                literal("]"),
                Part::ResponseHeader(CONTENT_TYPE),
            ]
        );
        for atom in ATOMS {
            assert!(part(atom).is_ok(), "{atom}");
        }
    }

    #[test]
    fn an_e_atom_reads_variables_of_the_request_only() {
        let of = |name: &str| named(&format!("{{{name}}}e"));
        assert_eq!(of("request_method"), Some(Part::Method));
        assert_eq!(of("HTTP_X_REQUEST_ID"), Some(Part::RequestHeader(HeaderName::from_static("x-request-id"))));
        assert_eq!(of("PATH"), None);
    }

    #[test]
    fn only_the_headers_that_are_shown_are_kept() {
        let read = AccessFormat::combined();
        let Form::Text(parts) = read.form else { panic!() };
        assert_eq!(headers(&parts), (vec![AUTHORIZATION, REFERER, USER_AGENT], vec![]));
    }

    #[test]
    fn an_unknown_atom_is_named_with_the_nearest_known_one() {
        for (text, says) in [
            ("%(S)s", "%(S)s is not an atom; did you mean %(s)s?"),
            ("%(user-agent)s", "%(user-agent)s is not an atom; did you mean %({user-agent}i)s?"),
            ("%({user-agent}x)s", "%({user-agent}x)s is not an atom; did you mean %({user-agent}i)s?"),
            ("%({REMOTE_ADR}e)s", "%({REMOTE_ADR}e)s is not an atom; did you mean %({REMOTE_ADDR}e)s?"),
            ("%(h)s %s", "\"%s\" is not an atom such as %(h)s; a percent sign is written %%"),
            ("%(h)s 5%", "\"%\" is not an atom such as %(h)s; a percent sign is written %%"),
            ("%(h)d %(t)s", "\"%(h)d\" is not an atom such as %(h)s; a percent sign is written %%"),
            ("common", "\"common\" is not combined, json, or a format string with atoms such as %(h)s"),
            ("%(h)s\n", "\"%(h)s\\n\" has a control character; a line of the log must stay one line"),
        ] {
            assert_eq!(refused(text), says);
        }
        let says = refused("%(z)s");
        assert!(says.contains(" h l u t r ") && says.ends_with("{name}i, {name}o, {NAME}e"), "{says}");
    }
}
