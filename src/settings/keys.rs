//! The list of all keys of the supervisor, each with its path and its reader. The settings file, the environment and
//! the flags all use this list.
//!
//! Owns: the kind and the range of the values of each key. Refuses: to define defaults (`Settings::default` does), to
//! read units (`duration` and `size` do), and to read words (`value` does).

use super::{
    access_format::AccessFormat,
    model::{LogFormat, ProxyProtocol, Settings},
    problem::{Reading, closest},
    value::Input,
};

pub(super) struct Key {
    /// The path of the key, as `section.key`.
    pub path: &'static str,
    pub set: fn(&mut Settings, &Input<'_>) -> Reading<()>,
}

const fn key(path: &'static str, set: fn(&mut Settings, &Input<'_>) -> Reading<()>) -> Key {
    Key { path, set }
}

fn put<T>(field: &mut T, read: Reading<T>) -> Reading<()> {
    *field = read?;
    Ok(())
}

const I32: i64 = i32::MAX as i64;

/// All keys. The keys for accounts are only checked for their type here, because `check::accounts` looks up their final
/// value. The file of `process.env_file` is not read here, because `resolve` reads it.
pub(super) const KEYS: &[Key] = &[
    key("server.bind", |s, v| put(&mut s.server.bind, v.binds())),
    key("server.backlog", |s, v| put(&mut s.server.backlog, v.whole(1..=I32))),
    key("server.reuse_port", |s, v| put(&mut s.server.reuse_port, v.boolean())),
    key("server.proxy_protocol", |s, v| {
        use ProxyProtocol::{Auto, Off, V1, V2};
        put(&mut s.server.proxy_protocol, v.choice(&[("off", Off), ("v1", V1), ("v2", V2), ("auto", Auto)]))
    }),
    key("server.unix_mode", |s, v| put(&mut s.server.unix_mode, v.octal())),
    key("server.unix_owner", |_, v| v.string().map(drop)),
    key("workers.count", |s, v| put(&mut s.workers.count, v.count())),
    key("workers.max_requests", |s, v| put(&mut s.workers.max_requests, v.whole(0..=i64::MAX))),
    key("workers.max_requests_jitter", |s, v| put(&mut s.workers.max_requests_jitter, v.whole(0..=i64::MAX))),
    key("workers.max_age", |s, v| put(&mut s.workers.max_age, v.duration())),
    key("workers.max_rss", |s, v| put(&mut s.workers.max_rss, v.size())),
    key("workers.overlap", |s, v| put(&mut s.workers.overlap, v.boolean())),
    key("workers.timeout", |s, v| put(&mut s.workers.timeout, v.duration())),
    key("workers.boot_timeout", |s, v| put(&mut s.workers.boot_timeout, v.duration())),
    key("workers.graceful_timeout", |s, v| match v.duration()? {
        // Do not let 0 mean "no limit" here: without a limit, one request that hangs could delay a stop for ever.
        none if none.is_zero() => Err("0 leaves a draining worker no time; give it some, such as \"1s\"".to_owned()),
        some => put(&mut s.workers.graceful_timeout, Ok(some)),
    }),
    key("workers.drain_idle", |s, v| put(&mut s.workers.drain_idle, v.duration())),
    key("workers.shutdown_delay", |s, v| put(&mut s.workers.shutdown_delay, v.duration())),
    key("http.keep_alive", |s, v| put(&mut s.http.keep_alive, v.duration())),
    key("http.header_timeout", |s, v| put(&mut s.http.header_timeout, v.duration())),
    key("http.body_timeout", |s, v| put(&mut s.http.body_timeout, v.duration())),
    key("http.write_timeout", |s, v| put(&mut s.http.write_timeout, v.duration())),
    key("http.worker_connections", |s, v| put(&mut s.http.worker_connections, v.whole(0..=I32))),
    key("http.limit_concurrency", |s, v| put(&mut s.http.limit_concurrency, v.whole(0..=I32))),
    key("http.limit_exempt", |s, v| put(&mut s.http.limit_exempt, v.routes())),
    key("http.quarantine", |s, v| put(&mut s.http.quarantine, v.boolean())),
    key("http.metrics_path", |s, v| put(&mut s.http.metrics_path, v.own_page())),
    key("http.health_path", |s, v| put(&mut s.http.health_path, v.own_page())),
    key("http.ready_path", |s, v| put(&mut s.http.ready_path, v.own_page())),
    key("http.limit_request_line", |s, v| put(&mut s.http.limit_request_line, v.whole(0..=1_048_576))),
    key("http.limit_request_fields", |s, v| put(&mut s.http.limit_request_fields, v.whole(0..=32_768))),
    key("http.limit_request_field_size", |s, v| put(&mut s.http.limit_request_field_size, v.whole(0..=1_048_576))),
    key("http.limit_request_body", |s, v| put(&mut s.http.limit_request_body, v.size())),
    key("http.request_timeout", |s, v| put(&mut s.http.request_timeout, v.duration())),
    key("http.http2", |s, v| put(&mut s.http.http2, v.boolean())),
    key("http.http2_rebalance", |s, v| put(&mut s.http.http2_rebalance, v.boolean())),
    key("http.forwarded_allow_ips", |s, v| put(&mut s.http.forwarded_allow_ips, v.allow_ips())),
    key("tls.certfile", |s, v| put(&mut s.tls.certfile, v.path())),
    key("tls.keyfile", |s, v| put(&mut s.tls.keyfile, v.path())),
    key("tls.client_ca", |s, v| put(&mut s.tls.client_ca, v.path())),
    key("log.level", |s, v| put(&mut s.log.level, v.level())),
    key("log.targets", |s, v| put(&mut s.log.targets, v.target_levels())),
    key("log.format", |s, v| put(&mut s.log.format, v.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]))),
    key("log.file", |s, v| put(&mut s.log.file, v.log_target())),
    key("log.access", |s, v| put(&mut s.log.access, v.log_target())),
    key("log.access_exclude", |s, v| put(&mut s.log.access_exclude, v.routes())),
    key("log.access_format", |s, v| put(&mut s.log.access_format, AccessFormat::parse(&v.string()?))),
    key("control.socket", |s, v| put(&mut s.control.socket, v.control_socket())),
    key("process.name", |s, v| match v.string()? {
        // The file of the control socket is named after the service, so this name must be a valid file name.
        name if name.is_empty() || name.contains(['/', '\0']) => {
            Err(format!("{name:?} cannot be a file name: it is empty or has a \"/\""))
        }
        name => put(&mut s.process.name, Ok(name)),
    }),
    key("process.user", |_, v| v.string().map(drop)),
    key("process.group", |_, v| v.string().map(drop)),
    key("process.umask", |s, v| put(&mut s.process.umask, v.umask())),
    key("process.pidfile", |s, v| put(&mut s.process.pidfile, v.run_path())),
    key("process.env_file", |s, v| put(&mut s.process.env_file, v.path())),
];

pub(super) const SECTIONS: &[&str] = &["server", "workers", "http", "tls", "log", "control", "process"];

/// The name of a reserved table. Its purpose is to run programs in other languages, but that is not supported yet.
pub(super) const PROGRAM: &str = "program";
pub(super) const PROGRAM_REFUSED: &str =
    "running another program is not supported yet; serve a Rust service with oxicorn::App";

/// The answer to an operator who means the program for Python.
pub(crate) const SERVES_NO_PYTHON: &str = "this oxicorn serves no Python; use the one in your virtual environment";

/// Returns the name of the environment variable that sets a key.
pub(super) fn variable(path: &str) -> String {
    format!("OXICORN_{}", path.replace('.', "__").to_ascii_uppercase())
}

pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Returns the known key that was probably meant by an unknown `path`: a key with the same name in another section, or
/// else the most similar one.
pub(super) fn nearest(path: &str) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let known = || KEYS.iter().map(|key| key.path);
    known().find(|known| known.split_once('.').is_some_and(|(_, key)| key == name)).map(str::to_owned).or_else(|| {
        let full = path.contains('.');
        closest(
            path,
            known().map(|known| if full { known } else { known.split_once('.').map_or(known, |(_, key)| key) }),
        )
        .and_then(|found| known().find(|known| *known == found || known.ends_with(&format!(".{found}"))))
        .map(str::to_owned)
    })
}
