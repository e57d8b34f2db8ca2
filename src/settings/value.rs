//! One value as it was written, and the functions that read it.
//!
//! Owns: lists, addresses, names of choices, and the messages that refuse a value. Refuses: to choose the function for
//! a key (`keys` does), and to check two keys together (`check` does).

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use toml::Value;

use super::{
    cpus, duration,
    folders::{Base, Bases},
    model::{AllowIp, Bind, ControlSocket, Level, LogTarget, TargetLevel},
    problem::Reading,
    size,
};

/// A value as it was written, with the folders and the number of CPUs that are needed to read it.
pub(super) struct Input<'a> {
    pub value: &'a Value,
    /// True if the value is from the environment or the command line, where every value is a string.
    pub text: bool,
    /// The folders that a relative path in this value is resolved against.
    pub bases: &'a Bases,
    /// The number of CPUs, for `auto` and for formulas.
    pub cpus: u32,
}

impl Input<'_> {
    fn is_not(&self, wanted: &str) -> String {
        format!("{} is not {wanted}", self.value)
    }

    pub(super) fn whole<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Reading<T> {
        let number = match self.value {
            Value::Integer(number) => *number,
            Value::String(text) if self.text => text.trim().parse().map_err(|_| self.is_not("a whole number"))?,
            Value::String(text) if text.parse::<i64>().is_ok() => {
                return Err(self.is_not("a whole number: write it without quotes"));
            }
            _ => return Err(self.is_not("a whole number")),
        };
        let refused = || format!("{number} is not within {} and {}", range.start(), range.end());
        if !range.contains(&number) {
            return Err(refused());
        }
        T::try_from(number).map_err(|_| refused())
    }

    pub(super) fn boolean(&self) -> Reading<bool> {
        match self.value {
            Value::Boolean(value) => Ok(*value),
            Value::String(text) if self.text => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err(self.is_not("true or false")),
            },
            _ => Err(self.is_not("true or false")),
        }
    }

    pub(super) fn string(&self) -> Reading<String> {
        self.value.as_str().map(str::to_owned).ok_or_else(|| self.is_not("a string"))
    }

    /// Reads a list of strings: an array, or one string with commas between the items.
    pub(super) fn list(&self) -> Reading<Vec<String>> {
        let refused = || self.is_not("a list of strings");
        match self.value {
            Value::String(text) => {
                Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
            }
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(refused)).collect()
            }
            _ => Err(refused()),
        }
    }

    /// Reads the path of a page that the worker answers itself; it is empty if there is no such page. A path that no
    /// request can have is refused, because its page would never be shown.
    pub(super) fn own_page(&self) -> Reading<String> {
        let path = self.string()?;
        if !path.is_empty() && !path.starts_with('/') {
            return Err(format!("\"{path}\" does not begin with \"/\""));
        }
        match path.chars().find(|c| c.is_whitespace() || matches!(c, '?' | '#')) {
            Some(c) => Err(format!("\"{path}\" has a {c:?}, which no path of a request has")),
            None => Ok(path),
        }
    }

    /// Reads a list of request paths. Each must begin with `/`.
    pub(super) fn routes(&self) -> Reading<Vec<String>> {
        let list = self.list()?;
        match list.iter().find(|route| !route.starts_with('/')) {
            Some(route) => Err(format!("\"{route}\" does not begin with \"/\"")),
            None => Ok(list),
        }
    }

    pub(super) fn duration(&self) -> Reading<Duration> {
        let read = match self.value {
            Value::Integer(seconds) => duration::parse(&seconds.to_string()),
            Value::Float(seconds) => duration::parse(&seconds.to_string()),
            Value::String(text) => duration::parse(text),
            _ => return Err(self.is_not(duration::WANTED)),
        };
        read.map_err(|error| error.to_string())
    }

    pub(super) fn size(&self) -> Reading<u64> {
        let read = match self.value {
            Value::Integer(bytes) => size::parse(&bytes.to_string()),
            Value::String(text) => size::parse(text),
            _ => return Err(self.is_not(size::WANTED)),
        };
        read.map_err(|error| error.to_string())
    }

    pub(super) fn count(&self) -> Reading<u32> {
        match self.value {
            Value::Integer(number) => cpus::count(&number.to_string(), self.cpus),
            Value::String(text) => cpus::count(text.trim(), self.cpus),
            other => Err(cpus::misread(&other.to_string())),
        }
    }

    /// Reads the path of a file that is only read, or of a socket. An empty string gives `None`.
    pub(super) fn path(&self) -> Reading<Option<PathBuf>> {
        self.path_in(&self.bases.read)
    }

    /// Reads the path of a file that exists only while the service runs. A relative path is resolved against the folder
    /// for such files. An empty string gives `None`.
    pub(super) fn run_path(&self) -> Reading<Option<PathBuf>> {
        self.path_in(&self.bases.run)
    }

    fn path_in(&self, base: &Base) -> Reading<Option<PathBuf>> {
        let text = self.string()?;
        if text.contains('\0') {
            return Err("a path cannot hold a NUL byte".to_owned());
        }
        if text.is_empty() { Ok(None) } else { base.join(text).map(Some) }
    }

    pub(super) fn log_target(&self) -> Reading<LogTarget> {
        match self.value.as_str() {
            Some("off") => Ok(LogTarget::Off),
            Some("-") => Ok(LogTarget::Standard),
            _ => self
                .path_in(&self.bases.logs)?
                .map(LogTarget::File)
                .ok_or_else(|| self.is_not("\"off\", \"-\" or a path")),
        }
    }

    pub(super) fn control_socket(&self) -> Reading<ControlSocket> {
        match self.value.as_str() {
            Some("auto") => Ok(ControlSocket::Auto),
            Some("off") => Ok(ControlSocket::Off),
            _ => self.path()?.map(ControlSocket::Path).ok_or_else(|| self.is_not("\"auto\", \"off\" or a path")),
        }
    }

    /// Reads one of the words in `choices`, in upper or lower case.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Reading<T> {
        let text = self.value.as_str().map(|text| text.trim().to_ascii_lowercase()).unwrap_or_default();
        choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.is_not(&format!("one of {}", words.join(", ")))
        })
    }

    /// Reads a level of the log. It also accepts Gunicorn's names `warning` and `critical`.
    pub(super) fn level(&self) -> Reading<Level> {
        match self.value.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("warning") => Ok(Level::Warn),
            Some("critical") => Ok(Level::Error),
            _ => self.choice(&[
                ("error", Level::Error),
                ("warn", Level::Warn),
                ("info", Level::Info),
                ("debug", Level::Debug),
                ("trace", Level::Trace),
            ]),
        }
    }

    /// Reads a list of entries such as `sqlx=warn`.
    pub(super) fn target_levels(&self) -> Reading<Vec<TargetLevel>> {
        let read = |entry: String| {
            let refused =
                || format!("\"{entry}\" is not a target and its level, such as \"sqlx=warn\" or \"sqlx=off\"");
            let (target, level) = entry.split_once('=').ok_or_else(refused)?;
            let (target, level) = (target.trim(), level.trim());
            if target.is_empty() {
                return Err(refused());
            }
            let value = &Value::String(level.to_owned());
            let level = match level {
                "off" => None,
                _ => Some(Input { value, ..*self }.level().map_err(|_| refused())?),
            };
            Ok(TargetLevel { target: target.to_owned(), level })
        };
        self.list()?.into_iter().map(read).collect()
    }

    /// Reads permission bits in octal. They must be a string, because TOML does not allow `0660`, and `660` without
    /// quotes would be decimal.
    pub(super) fn octal(&self) -> Reading<u32> {
        let refused = || self.is_not("permission bits in quotes, such as \"0660\"");
        let text = self.value.as_str().ok_or_else(refused)?;
        let digits = text.strip_prefix("0o").unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'7')) {
            return Err(refused());
        }
        u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(refused)
    }

    pub(super) fn umask(&self) -> Reading<Option<u32>> {
        if self.value.as_str() == Some("") { Ok(None) } else { self.octal().map(Some) }
    }

    pub(super) fn binds(&self) -> Reading<Vec<Bind>> {
        let list = self.list()?;
        if list.is_empty() {
            return Err("no address to listen on; give one such as \"127.0.0.1:8000\"".to_owned());
        }
        list.iter().map(|text| bind(text, &self.bases.read)).collect()
    }

    pub(super) fn allow_ips(&self) -> Reading<Vec<AllowIp>> {
        self.list()?.iter().map(|text| allow_ip(text)).collect()
    }
}

/// Reads one entry of `server.bind`. A port without a host (`:8000`) means every IPv4 address. A host without a port is
/// refused, because it is usually a typing error; Gunicorn would use port 8000.
fn bind(text: &str, base: &Base) -> Reading<Bind> {
    if let Some(path) = text.strip_prefix("unix:") {
        let name = path.strip_prefix("//").unwrap_or(path);
        let path = base.join(name)?;
        // The kernel's sockaddr_un has room for a path of 108 bytes, and the last byte must be NUL.
        return match path.as_os_str().len() {
            _ if name.is_empty() => Err(format!("\"{text}\" names no path")),
            ..=107 => Ok(Bind::Unix(path)),
            _ => Err(format!("\"{}\" is longer than the 107 bytes of a unix socket's path", path.display())),
        };
    }
    if let Some(fd) = text.strip_prefix("fd://") {
        return match fd.parse() {
            Ok(fd) if fd >= 0 => Ok(Bind::Fd(fd)),
            _ => Err(format!("\"{text}\" is not a descriptor such as \"fd://3\"")),
        };
    }
    let address = text.strip_prefix("tcp://").unwrap_or(text);
    let refused = || format!("\"{text}\" is not \"host:port\", \"[::1]:port\" or \"unix:/path\"");
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(refused)?;
        host.parse::<Ipv6Addr>().map_err(|_| refused())?;
        (host, if rest.is_empty() { "8000" } else { rest.strip_prefix(':').ok_or_else(refused)? })
    } else if address.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("\"{text}\" is an IPv6 address without brackets; write \"[{address}]:8000\""));
    } else if !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("\"{text}\" is a port without its colon; write \":{address}\""));
    } else {
        match address.split_once(':') {
            Some(("", port)) => ("0.0.0.0", port),
            Some((host, port)) => (host, port),
            None => return Err(format!("\"{text}\" lacks a port; write \"{address}:8000\"")),
        }
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '[' | ']' | '\0')) {
        return Err(refused());
    }
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits).ok_or_else(|| {
        let wanted = if digits { "above 65535" } else { "not a port" };
        format!("\"{text}\": \"{port}\" is {wanted}")
    })?;
    Ok(Bind::Tcp { host: host.to_owned(), port })
}

fn allow_ip(text: &str) -> Reading<AllowIp> {
    if text == "*" {
        return Ok(AllowIp::Any);
    }
    let refused = || format!("\"{text}\" is not an IP address, a network such as \"10.0.0.0/8\", or \"*\"");
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(widest), str::parse).ok().filter(|bits| *bits <= widest).ok_or_else(refused)?;
    Ok(AllowIp::Net { address, prefix })
}
