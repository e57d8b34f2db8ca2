//! Tests of the settings: each kind of mistake with its message, and the precedence of the sources.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;

/// The type of a table that belongs to the app.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct App {
    store: Store,
    sqlite_path: String,
    mongodb_uri: String,
    mongodb_uri_file: String,
    mongodb_database: String,
    docs: bool,
    debug: bool,
    bearer_token: String,
    bearer_token_file: String,
    cors_origins: Vec<String>,
    #[serde(with = "duration")]
    patience: Duration,
    #[serde(with = "size")]
    cache: u64,
    check: Vec<Probe>,
    pool: Option<Pool>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Store {
    #[default]
    Auto,
    Sqlite,
    Mongodb,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Probe {
    name: String,
    tcp: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Pool {
    min: u32,
    max: u32,
}

impl Default for App {
    fn default() -> Self {
        Self {
            store: Store::Auto,
            sqlite_path: "data/facts.db".to_owned(),
            mongodb_uri: String::new(),
            mongodb_uri_file: String::new(),
            mongodb_database: "r3nd".to_owned(),
            docs: true,
            debug: false,
            bearer_token: String::new(),
            bearer_token_file: String::new(),
            cors_origins: Vec::new(),
            patience: Duration::from_secs(1),
            cache: 0,
            check: Vec::new(),
            pool: None,
        }
    }
}

fn specs() -> Vec<TableSpec> {
    vec![
        TableSpec::new::<App>("service")
            .file("mongodb_uri_file", "mongodb_uri")
            .env("MONGODB_URI_FILE", "mongodb_uri_file")
            .env("MONGODB_URI", "mongodb_uri")
            .env("MONGODB_DATABASE", "mongodb_database"),
    ]
}

fn declared(tables: Vec<TableSpec>) -> Declared {
    Declared { tables, ..Declared::default() }
}

/// The sources of a test: a start folder with files, an environment and a command line.
struct World {
    folder: TempDir,
    env: BTreeMap<String, String>,
    flags: Flags,
    declared: Declared,
    foreign: ForeignSettings,
}

fn world(settings: &str) -> World {
    let world = bare();
    world.write("supervisor.toml", settings);
    world
}

fn bare() -> World {
    World {
        folder: tempfile::tempdir().unwrap(),
        env: BTreeMap::new(),
        flags: Flags::default(),
        declared: declared(specs()),
        foreign: ForeignSettings::new(),
    }
}

impl World {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, text: &str) -> Self {
        self.flags.given.push(Given { key, flag, text: text.to_owned() });
        self
    }

    fn resolve(&self) -> Result<Resolved, Problems> {
        self.resolve_from(Sources::default())
    }

    fn resolve_from(&self, sources: Sources) -> Result<Resolved, Problems> {
        let (sources, start) = (sources.with_foreign(self.foreign.clone()), StartFolder::at(self.folder.path()));
        resolve(sources, &self.flags, &self.env, &start, &self.declared, Purpose::Serve)
    }

    #[track_caller]
    fn good(&self) -> Resolved {
        self.resolve().unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[track_caller]
    fn bad(&self) -> String {
        self.resolve().expect_err("there should be a problem").to_string()
    }
}

fn app(resolved: &Resolved) -> Arc<App> {
    resolved.tables.get::<App>().unwrap()
}

#[test]
fn the_reference_file_states_the_defaults() {
    let text = include_str!("../../supervisor.toml");
    let world = world(text);
    let resolved = world.good();
    let defaults = Settings::defaults(cpus::available(), world.folder.path().to_owned());
    assert_eq!(show::flat(&resolved.settings), show::flat(&defaults));
    assert_eq!(resolved.settings, defaults);
    assert_eq!(resolved.warnings, Vec::<String>::new());
    assert_eq!(*app(&resolved), App::default());

    let written: Vec<&str> = resolved.entries.keys().map(String::as_str).collect();
    for key in keys::KEYS {
        assert!(written.contains(&key.path), "{} is missing from supervisor.toml", key.path);
    }
    let lines: Vec<_> = text.lines().collect();
    for (number, pair) in lines.windows(2).enumerate() {
        let is_key = pair[1].contains(" = ") && !pair[1].starts_with('#');
        assert!(!is_key || pair[0].starts_with("# "), "line {} has no comment above it", number + 2);
    }
}

#[test]
fn every_key_can_be_read_and_shown() {
    let shown: Vec<String> = show::flat(&Settings::default()).into_keys().collect();
    let mut read: Vec<&str> = keys::KEYS.iter().map(|key| key.path).collect();
    read.sort_unstable();
    assert_eq!(shown, read);
    let sections: HashSet<&str> = keys::KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
    assert_eq!(sections, keys::SECTIONS.iter().copied().collect());
}

#[test]
fn without_any_source_the_defaults_hold() {
    let resolved = bare().good();
    assert_eq!(resolved.file, None);
    assert_eq!(resolved.origin("workers.timeout"), Origin::Default);
    assert_eq!(resolved.settings.server.bind, [Bind::Tcp { host: "127.0.0.1".to_owned(), port: 8000 }]);
    assert!(resolved.settings.workers.count >= 1);
}

#[test]
fn each_mistake_in_the_file_is_reported_in_one_line() {
    for (text, wanted) in [
        ("[workers]\ncuont = 4", "supervisor.toml:2: workers.cuont: unknown key; did you mean workers.count?"),
        ("[workers]\nbind = 4", "supervisor.toml:2: workers.bind: unknown key; did you mean server.bind?"),
        ("[workers]\nxylophone = 4", "supervisor.toml:2: workers.xylophone: unknown key"),
        ("\n[worker]\ncount = 4", "supervisor.toml:2: worker: unknown table; did you mean workers?"),
        ("[servcie]\ndocs = true", "supervisor.toml:1: servcie: unknown table; did you mean service?"),
        ("timeout = 5", "supervisor.toml:1: timeout: unknown key, outside of any table; did you mean workers.timeout?"),
        ("tiemout = 5", "supervisor.toml:1: tiemout: unknown key, outside of any table; did you mean workers.timeout?"),
        ("workers = 5", "supervisor.toml:1: workers: a table is wanted here: [workers] and its keys below"),
        (
            "[program]\ncommand = ['x']",
            "supervisor.toml:1: program: running another program is not supported yet; serve a Rust service with oxicorn::App",
        ),
        ("[workers]\ncount = 4\ncount = 5", "supervisor.toml:3: not valid TOML: duplicate key"),
        ("[server]\nbacklog = \"many\"", "supervisor.toml:2: server.backlog: \"many\" is not a whole number"),
        (
            "[server]\nbacklog = \"9\"",
            "supervisor.toml:2: server.backlog: \"9\" is not a whole number: write it without quotes",
        ),
        ("[server]\nbacklog = 0", "supervisor.toml:2: server.backlog: 0 is not within 1 and 2147483647"),
        ("[server]\nreuse_port = 1", "supervisor.toml:2: server.reuse_port: 1 is not true or false"),
        (
            "[server]\nproxy_protocol = 'v3'",
            "supervisor.toml:2: server.proxy_protocol: \"v3\" is not one of off, v1, v2, auto",
        ),
        (
            "[server]\nunix_mode = 660",
            "supervisor.toml:2: server.unix_mode: 660 is not permission bits in quotes, such as \"0660\"",
        ),
        (
            "[server]\nunix_mode = '0998'",
            "supervisor.toml:2: server.unix_mode: \"0998\" is not permission bits in quotes, such as \"0660\"",
        ),
        (
            "[server]\nbind = []",
            "supervisor.toml:2: server.bind: no address to listen on; give one such as \"127.0.0.1:8000\"",
        ),
        ("[server]\nbind = [8000]", "supervisor.toml:2: server.bind: [8000] is not a list of strings"),
        (
            "[server]\nbind = ['8000']",
            "supervisor.toml:2: server.bind: \"8000\" is a port without its colon; write \":8000\"",
        ),
        ("[server]\nbind = ['h:99999']", "supervisor.toml:2: server.bind: \"h:99999\": \"99999\" is above 65535"),
        ("[server]\nbind = ['h:http']", "supervisor.toml:2: server.bind: \"h:http\": \"http\" is not a port"),
        (
            "[server]\nbind = ['::1']",
            "supervisor.toml:2: server.bind: \"::1\" is an IPv6 address without brackets; write \"[::1]:8000\"",
        ),
        (
            "[server]\nbind = ['[::1:80']",
            "supervisor.toml:2: server.bind: \"[::1:80\" is not \"host:port\", \"[::1]:port\" or \"unix:/path\"",
        ),
        ("[server]\nbind = ['unix:']", "supervisor.toml:2: server.bind: \"unix:\" names no path"),
        (
            "[server]\nbind = ['fd://x']",
            "supervisor.toml:2: server.bind: \"fd://x\" is not a descriptor such as \"fd://3\"",
        ),
        ("[server]\nbind = ['fd://3', 'fd://3']", "supervisor.toml:2: server.bind: fd://3 is listed twice"),
        ("[server]\nbind = ['a:1', 'a:1']", "supervisor.toml:2: server.bind: a:1 is listed twice"),
        (
            "[workers]\ncount = 'abc'",
            "supervisor.toml:2: workers.count: \"abc\" is not a number, \"auto\" or a formula such as \"2n+1\"",
        ),
        ("[workers]\ncount = 0", "supervisor.toml:2: workers.count: 0 workers serve nothing; the least is 1"),
        (
            "[workers]\ntimeout = '30x'",
            "supervisor.toml:2: workers.timeout: \"30x\" is not a duration such as \"30s\", \"500ms\", \"2m\" or a number of seconds",
        ),
        ("[workers]\ntimeout = -1", "supervisor.toml:2: workers.timeout: \"-1\" is negative; the least is 0"),
        (
            "[workers]\ntimeout = true",
            "supervisor.toml:2: workers.timeout: true is not a duration such as \"30s\", \"500ms\", \"2m\" or a number of seconds",
        ),
        ("[workers]\ntimeout = 1e300", "workers.timeout: \"1"),
        (
            "[workers]\ngraceful_timeout = 0",
            "supervisor.toml:2: workers.graceful_timeout: 0 leaves a draining worker no time; give it some, such as \"1s\"",
        ),
        (
            "[workers]\nmax_rss = '12 bananas'",
            "supervisor.toml:2: workers.max_rss: \"12 bananas\" is not a size such as \"512MiB\", \"16MB\", \"64k\" or a number of bytes",
        ),
        ("[workers]\nmax_rss = '99999999TiB'", "supervisor.toml:2: workers.max_rss: \"99999999TiB\" is too large"),
        ("[http]\nmetrics_path = 'm'", "supervisor.toml:2: http.metrics_path: \"m\" does not begin with \"/\""),
        ("[http]\nhealth_path = 'h'", "supervisor.toml:2: http.health_path: \"h\" does not begin with \"/\""),
        (
            "[http]\nready_path = '/r?v=1'",
            "supervisor.toml:2: http.ready_path: \"/r?v=1\" has a '?', which no path of a request has",
        ),
        (
            "[http]\nready_path = '/x'\nmetrics_path = '/x'",
            "supervisor.toml:2: http.ready_path: \"/x\" is http.metrics_path too; each page needs a path of its own",
        ),
        ("[http]\nlimit_exempt = ['x']", "supervisor.toml:2: http.limit_exempt: \"x\" does not begin with \"/\""),
        (
            "[http]\nforwarded_allow_ips = ['10.0.0.0/33']",
            "supervisor.toml:2: http.forwarded_allow_ips: \"10.0.0.0/33\" is not an IP address, a network such as \"10.0.0.0/8\", or \"*\"",
        ),
        (
            "[tls]\nkeyfile = 'supervisor.toml'",
            "supervisor.toml:2: tls.keyfile: a key needs its certificate: set tls.certfile as well",
        ),
        (
            "[tls]\ncertfile = 'supervisor.toml'",
            "supervisor.toml:2: tls.certfile: a certificate needs its key: set tls.keyfile as well",
        ),
        (
            "[tls]\nclient_ca = 'supervisor.toml'",
            "supervisor.toml:2: tls.client_ca: clients show certificates only over TLS: set tls.certfile and tls.keyfile",
        ),
        (
            "[log]\nlevel = 'loud'",
            "supervisor.toml:2: log.level: \"loud\" is not one of error, warn, info, debug, trace",
        ),
        ("[log]\nfile = '/nowhere/at/all.log'", "supervisor.toml:2: log.file: there is no folder /nowhere/at"),
        ("[log]\nfile = '/'", "supervisor.toml:2: log.file: / is a folder"),
        ("[process]\npidfile = '/nowhere/pid'", "supervisor.toml:2: process.pidfile: there is no folder /nowhere"),
        (
            "[process]\nname = 'a/b'",
            "supervisor.toml:2: process.name: \"a/b\" cannot be a file name: it is empty or has a \"/\"",
        ),
        ("[process]\nuser = 'no-such-user'", "supervisor.toml:2: process.user: there is no user \"no-such-user\" here"),
        (
            "[process]\ngroup = 'no-such-group'",
            "supervisor.toml:2: process.group: there is no group \"no-such-group\" here",
        ),
        ("[process]\nuser = 7", "supervisor.toml:2: process.user: 7 is not a string"),
        (
            "[process]\numask = '9'",
            "supervisor.toml:2: process.umask: \"9\" is not permission bits in quotes, such as \"0660\"",
        ),
        (
            "[process]\nenv_file = 'gone.env'",
            "gone.env: process.env_file: cannot be read: No such file or directory (os error 2)",
        ),
    ] {
        let said = world(text).bad();
        let same =
            if text.contains("1e300") { said.contains(wanted) && said.contains("longer") } else { said == wanted };
        assert!(same, "for {text:?}\nwanted {wanted}\n   got {said}");
    }
}

#[test]
fn each_mistake_in_another_source_is_reported_in_one_line() {
    type Make = fn() -> World;
    let cases: &[(Make, &str)] = &[
        (
            || bare().env("WEB_CONCURRENCY", "abc"),
            "env WEB_CONCURRENCY: workers.count: \"abc\" is not a number, \"auto\" or a formula such as \"2n+1\"",
        ),
        (|| bare().env("PORT", "http"), "env PORT: server.bind: \"0.0.0.0:http\": \"http\" is not a port"),
        (
            || bare().flag("workers.timeout", "--timeout", "soon"),
            "--timeout: workers.timeout: \"soon\" is not a duration such as \"30s\", \"500ms\", \"2m\" or a number of seconds",
        ),
        (
            || bare().env("OXICORN_WORKERS__CUONT", "4"),
            "env OXICORN_WORKERS__CUONT: unknown key; did you mean OXICORN_WORKERS__COUNT?",
        ),
        (
            || bare().env("OXICORN_SERVICE__DCOS", "true"),
            "env OXICORN_SERVICE__DCOS: unknown key; did you mean OXICORN_SERVICE__DOCS?",
        ),
        (
            || bare().env("OXICORN_PROGRAM__COMMAND", "x"),
            "env OXICORN_PROGRAM__COMMAND: running another program is not supported yet; serve a Rust service with oxicorn::App",
        ),
        (
            || bare().env("OXICORN_CONFIG", "gone.toml"),
            "env OXICORN_CONFIG: the settings file gone.toml cannot be read: No such file or directory (os error 2)",
        ),
        (
            || {
                let mut world = bare();
                world.flags.config = Some("gone.toml".into());
                world
            },
            "--config: the settings file gone.toml cannot be read: No such file or directory (os error 2)",
        ),
        (
            || {
                let mut world = bare();
                world.flags.program = vec!["uvicorn".to_owned()];
                world
            },
            "--: running another program is not supported yet; serve a Rust service with oxicorn::App",
        ),
        (
            || bare().flag("tls.keyfile", "--keyfile", "/dev/null/x"),
            "--keyfile: tls.keyfile: a key needs its certificate: set tls.certfile as well\n\
             --keyfile: tls.keyfile: there is no file /dev/null/x",
        ),
        (
            || bare().env("MONGODB_URI_FILE", "/nowhere/uri"),
            "env MONGODB_URI_FILE: service.mongodb_uri_file: /nowhere/uri cannot be read: No such file or directory (os error 2)",
        ),
        (
            || {
                let world = world("[process]\nenv_file = 'app.env'");
                world.write("app.env", "A=1\nnonsense\nexport 1B=2\nC=\"open\nD='x' y\nWEB_CONCURRENCY=abc");
                world
            },
            "app.env:2: process.env_file: not KEY=VALUE\n\
             app.env:3: process.env_file: the name before \"=\" is not letters, digits and \"_\"\n\
             app.env:4: process.env_file: a quote is not closed on its line\n\
             app.env:5: process.env_file: D: something follows the closing quote",
        ),
        (
            || {
                let world = world("[process]\nenv_file = 'app.env'");
                world.write("app.env", "\nWEB_CONCURRENCY=abc");
                world
            },
            "app.env:2: WEB_CONCURRENCY: workers.count: \"abc\" is not a number, \"auto\" or a formula such as \"2n+1\"",
        ),
    ];
    for (world, wanted) in cases {
        assert_eq!(world().bad(), *wanted);
    }
}

#[test]
fn all_mistakes_of_all_sources_are_reported_at_once() {
    let world = world(
        "[workers]\ncount = 'abc'\ntiemout = 1\n\n[http]\nkeep_alive = -1\n\n[service]\ndocs = 'yes'\nstroe = 'auto'\n\
         cors_origins = [1]\n\n[[service.check]]\nname = 'a'\ntpc = 'b'\n\n[[service.check]]\nname = 5\n",
    )
    .env("OXICORN_SERVICE__DEBUG", "maybe")
    .env("LOG_LEVEL", "loud")
    .flag("server.backlog", "--backlog", "x");
    let mut said: Vec<String> = world.bad().lines().map(str::to_owned).collect();
    said.sort();
    assert_eq!(
        said,
        [
            "--backlog: server.backlog: \"x\" is not a whole number",
            "env LOG_LEVEL: log.level: \"loud\" is not one of error, warn, info, debug, trace",
            "env OXICORN_SERVICE__DEBUG: service.debug: invalid type: string \"maybe\", expected a boolean",
            "supervisor.toml:10: service.stroe: unknown key; did you mean service.store?",
            "supervisor.toml:11: service.cors_origins[0]: invalid type: integer `1`, expected a string",
            "supervisor.toml:15: service.check[0].tpc: unknown key; did you mean service.check[0].tcp?",
            "supervisor.toml:18: service.check[1].name: invalid type: integer `5`, expected a string",
            "supervisor.toml:2: workers.count: \"abc\" is not a number, \"auto\" or a formula such as \"2n+1\"",
            "supervisor.toml:3: workers.tiemout: unknown key; did you mean workers.timeout?",
            "supervisor.toml:6: http.keep_alive: \"-1\" is negative; the least is 0",
            "supervisor.toml:9: service.docs: invalid type: string \"yes\", expected a boolean",
        ]
    );
}

#[test]
fn a_mistake_in_one_half_of_a_pair_is_one_mistake() {
    assert_eq!(
        world("[tls]\ncertfile = 5\nkeyfile = 'supervisor.toml'").bad(),
        "supervisor.toml:2: tls.certfile: 5 is not a string"
    );
}

#[test]
fn each_mistake_in_an_apps_table_is_reported_in_one_line() {
    for (text, wanted) in [
        (
            "[service]\nstore = 'mongo'",
            "supervisor.toml:2: service.store: \"mongo\" is not one of auto, sqlite, mongodb; did you mean \"mongodb\"?",
        ),
        (
            "[service]\nstore = 'floppy'",
            "supervisor.toml:2: service.store: \"floppy\" is not one of auto, sqlite, mongodb",
        ),
        ("[service.pool]\nmin = 1", "supervisor.toml:1: service.pool: missing field `max`"),
        (
            "[service.pool]\nmin = 1\nmax = 'x'",
            "supervisor.toml:3: service.pool.max: invalid type: string \"x\", expected u32",
        ),
        ("[service]\npatience = '1x'", "service.patience: \"1x\" is not a duration"),
        ("[service]\ncache = -1", "service.cache: \"-1\" is negative"),
        (
            "[[service.check]]\nname = 'a'\ntcp = 5",
            "supervisor.toml:3: service.check[0].tcp: invalid type: integer `5`, expected a string",
        ),
        (
            "[service]\nbearer_token = 12345",
            "supervisor.toml:2: service.bearer_token: refused by the service; the value is a secret and not shown",
        ),
    ] {
        let said = world(text).bad();
        assert!(said.contains(wanted) && said.lines().count() == 1, "for {text:?}\nwanted {wanted}\n   got {said}");
    }
}

#[test]
#[should_panic(expected = "the app's table [workers] needs another name")]
fn an_apps_table_cannot_have_the_name_of_a_supervisors_table() {
    let _ = TableSpec::new::<App>("workers");
}

#[test]
fn a_required_key_of_an_absent_table_is_reported() {
    #[derive(Debug, Deserialize)]
    struct Strict {
        #[expect(dead_code, reason = "only its absence matters")]
        key: String,
    }
    let declared = declared(vec![TableSpec::new::<Strict>("strict")]);
    let world = bare();
    let problems = resolve(
        Sources::default(),
        &world.flags,
        &world.env,
        &StartFolder::at(world.folder.path()),
        &declared,
        Purpose::Serve,
    )
    .unwrap_err();
    assert_eq!(problems.to_string(), "strict: missing field `key`");
}

#[test]
fn each_source_overrides_those_below_it() {
    let port = |resolved: &Resolved| match &resolved.settings.server.bind[..] {
        [Bind::Tcp { host, port }] => format!("{host}:{port} {}", resolved.origin("server.bind")),
        other => panic!("{other:?}"),
    };
    let mut world = bare();
    assert_eq!(port(&world.good()), "127.0.0.1:8000 default");
    world.write("supervisor.toml", "[process]\nenv_file = 'app.env'\n[server]\nbind = ['a:1']");
    world.write("app.env", "");
    assert_eq!(port(&world.good()), "a:1 supervisor.toml:4");
    world.write("app.env", "PORT=2");
    assert_eq!(port(&world.good()), "0.0.0.0:2 app.env:1: PORT");
    world = world.env("PORT", "3");
    assert_eq!(port(&world.good()), "0.0.0.0:3 env PORT");
    world.write("app.env", "OXICORN_SERVER__BIND=d:4");
    assert_eq!(port(&world.good()), "d:4 app.env:1: OXICORN_SERVER__BIND");
    world = world.env("OXICORN_SERVER__BIND", "e:5");
    assert_eq!(port(&world.good()), "e:5 env OXICORN_SERVER__BIND");
    world = world.flag("server.bind", "--bind", "f:6");
    assert_eq!(port(&world.good()), "f:6 --bind");
    world = world.env("LISTEN_PID", &std::process::id().to_string()).env("LISTEN_FDS", "2");
    let resolved = world.good();
    assert_eq!(resolved.settings.server.bind, [Bind::Fd(3), Bind::Fd(4)]);
    assert_eq!(resolved.origin("server.bind").to_string(), "env LISTEN_FDS");
}

#[test]
fn sockets_passed_to_another_process_are_ignored() {
    let pid = std::process::id();
    for (meant_for, warned) in [("1", "LISTEN_PID=\"1\""), ("", "LISTEN_PID=\"\"")] {
        let resolved = bare().env("LISTEN_PID", meant_for).env("LISTEN_FDS", "1").good();
        assert_eq!(resolved.origin("server.bind"), Origin::Default);
        let wanted = format!("env LISTEN_FDS: the sockets are for the process {warned}, not for {pid}: ignored");
        assert_eq!(resolved.warnings, [wanted]);
    }
    for none in ["", "0"] {
        let resolved = bare().env("LISTEN_PID", &pid.to_string()).env("LISTEN_FDS", none).good();
        assert_eq!((resolved.origin("server.bind"), resolved.warnings), (Origin::Default, vec![]));
    }
    let refused = bare().env("LISTEN_PID", &pid.to_string()).env("LISTEN_FDS", "-1").bad();
    assert_eq!(refused, "env LISTEN_FDS: server.bind: \"-1\" is not a number of sockets");
}

#[test]
fn the_settings_file_is_the_one_that_was_named() {
    let mut world = world("[workers]\ncount = 1");
    fs::create_dir(world.path("etc")).unwrap();
    world.write("etc/env.toml", "[workers]\ncount = 2\n[log]\nfile = 'x.log'");
    world.write("etc/flag.toml", "[workers]\ncount = 3");
    assert_eq!(world.good().settings.workers.count, 1);
    world = world.env("OXICORN_CONFIG", "etc/env.toml");
    let resolved = world.good();
    assert_eq!(resolved.settings.workers.count, 2);
    assert_eq!(resolved.file, Some(world.path("etc/env.toml")));
    assert_eq!(resolved.settings.folder, world.path("etc"));
    assert_eq!(resolved.settings.log.file, LogTarget::File(world.path("etc/x.log")));
    world.flags.config = Some("etc/flag.toml".into());
    assert_eq!(world.good().settings.workers.count, 3);
}

#[test]
fn a_relative_path_begins_in_the_folder_of_its_source() {
    let world = bare();
    fs::create_dir(world.path("etc")).unwrap();
    world.write("etc/s.toml", "[process]\npidfile = 'a.pid'\n[server]\nbind = ['unix:s.sock', 'unix:/tmp/t.sock']");
    let mut world = world.env("OXICORN_LOG__FILE", "b.log");
    world.flags.config = Some("etc/s.toml".into());
    let settings = world.good().settings;
    assert_eq!(settings.process.pidfile, Some(world.path("etc/a.pid")));
    assert_eq!(settings.log.file, LogTarget::File(world.path("b.log")));
    assert_eq!(settings.server.bind, [Bind::Unix(world.path("etc/s.sock")), Bind::Unix("/tmp/t.sock".into())]);
}

/// The folder of the settings file may be one to which the service cannot write, such as /etc. Then logs, run files and
/// state must go to the folders that the service manager made.
#[test]
fn written_files_go_to_the_folders_of_the_service_manager() {
    let world = bare();
    fs::create_dir(world.path("etc")).unwrap();
    let written = "[process]\npidfile = 'a.pid'\n[log]\nfile = 'a.log'\naccess = 'b.log'\n[tls]\ncertfile = 'c.pem'";
    let written = format!("{written}\n[control]\nsocket = 'c.sock'\n[server]\nbind = ['unix:s.sock']");
    world.write("etc/s.toml", &written);
    let folders = ["state", "other", "logs", "run"].map(|name| {
        fs::create_dir(world.path(name)).unwrap();
        world.path(name).display().to_string()
    });
    let [state, other, logs, run] = &folders;
    let mut world = world.env("STATE_DIRECTORY", &format!("{state}:{other}"));
    world = world.env("LOGS_DIRECTORY", logs).env("RUNTIME_DIRECTORY", run).env("OXICORN_LOG__ACCESS", "typed.log");
    world.flags.config = Some("etc/s.toml".into());
    let refused = world.bad();
    assert!(refused.contains(&format!("there is no file {}", world.path("etc/c.pem").display())), "{refused}");

    world.write("etc/s.toml", &written.replace("[tls]\ncertfile = 'c.pem'\n", ""));
    let resolved = world.good();
    let settings = &resolved.settings;
    assert_eq!((&settings.state_folder, &settings.folder), (&world.path("state"), &world.path("etc")));
    assert_eq!(settings.log.file, LogTarget::File(world.path("logs/a.log")));
    assert_eq!(
        settings.log.access,
        LogTarget::File(world.path("typed.log")),
        "a path in the environment stays as it is written"
    );
    assert_eq!(settings.process.pidfile, Some(world.path("run/a.pid")));
    // Sockets stay beside the settings file: other programs look for them by the same settings, but without the
    // variables of the service manager.
    assert_eq!(settings.control.socket, ControlSocket::Path(world.path("etc/c.sock")));
    assert_eq!(settings.server.bind, [Bind::Unix(world.path("etc/s.sock"))]);
    let told = format!("# Relative paths of state are relative to {state}, from env STATE_DIRECTORY.\n");
    assert!(resolved.to_toml().starts_with(&told), "{}", resolved.to_toml());
    let json: serde_json::Value = serde_json::from_str(&resolved.to_json()).unwrap();
    assert_eq!(json["state_folder"]["value"], *state);

    for unset in ["", "relative", ":/x"] {
        let world = bare().env("STATE_DIRECTORY", unset);
        assert_eq!(world.good().settings.state_folder, world.path(""), "{unset:?}");
    }
}

#[test]
fn well_known_variables_set_their_keys() {
    for (name, value, key, wanted) in [
        ("PORT", "80", "server.bind", "[\"0.0.0.0:80\"]"),
        ("WEB_CONCURRENCY", "7", "workers.count", "7"),
        ("LOG_LEVEL", "WARNING", "log.level", "\"warn\""),
        ("DEBUG", "true", "log.level", "\"debug\""),
        ("DEBUG", "false", "log.level", "\"info\""),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/8, ::1", "http.forwarded_allow_ips", "[\"10.0.0.0/8\", \"::1\"]"),
        ("MONGODB_URI", "mongodb://h", "service.mongodb_uri", "\"mongodb://h\""),
        ("MONGODB_DATABASE", "5", "service.mongodb_database", "\"5\""),
        ("PORT", "", "server.bind", "[\"127.0.0.1:8000\"]"),
        ("LOG_LEVEL", "", "log.level", "\"info\""),
        ("OXICORN_SERVICE_HOST", "10.0.0.1", "log.level", "\"info\""),
    ] {
        let resolved = bare().env(name, value).good();
        assert_eq!(resolved.flat()[key].to_string(), wanted, "{name}={value}");
    }
    assert_eq!(bare().env("DEBUG", "true").env("LOG_LEVEL", "error").good().settings.log.level, Level::Error);
}

#[test]
fn an_apps_table_reads_texts_as_the_types_of_its_fields() {
    let world = bare()
        .env("OXICORN_SERVICE__MONGODB_DATABASE", "42")
        .env("OXICORN_SERVICE__DOCS", "false")
        .env("OXICORN_SERVICE__CORS_ORIGINS", "https://a, https://b")
        .env("OXICORN_SERVICE__PATIENCE", "2m")
        .env("OXICORN_SERVICE__CACHE", "64k")
        .env("OXICORN_SERVICE__STORE", "sqlite")
        .env("OXICORN_SERVICE__POOL", "{ min = 1, max = 2 }")
        .env("OXICORN_SERVICE__BEARER_TOKEN", "true");
    let resolved = world.good();
    let app = app(&resolved);
    assert_eq!(app.mongodb_database, "42");
    assert!(!app.docs);
    assert_eq!(app.cors_origins, ["https://a", "https://b"]);
    assert_eq!(app.patience, Duration::from_secs(120));
    assert_eq!(app.cache, 65_536);
    assert_eq!(app.store, Store::Sqlite);
    assert_eq!(app.pool, Some(Pool { min: 1, max: 2 }));
    assert_eq!(app.bearer_token, "true");
}

#[test]
fn a_secret_can_be_in_a_file() {
    let world = bare();
    world.write("uri", "mongodb://in-file\n");
    let path = world.path("uri").display().to_string();
    let world = world.env("MONGODB_URI_FILE", &path);
    assert_eq!(app(&world.good()).mongodb_uri, "mongodb://in-file");
    assert_eq!(world.good().origin("service.mongodb_uri").to_string(), "env MONGODB_URI_FILE");
    assert_eq!(app(&world.env("MONGODB_URI", "mongodb://env").good()).mongodb_uri, "mongodb://env");

    let world = self::world("[service]\nmongodb_uri_file = 'secrets/uri'\nmongodb_uri = 'mongodb://written'");
    fs::create_dir(world.path("secrets")).unwrap();
    world.write("secrets/uri", "mongodb://me:hush@mounted\n");
    let resolved = world.good();
    assert_eq!(app(&resolved).mongodb_uri, "mongodb://me:hush@mounted", "the same place: the file is the safer one");
    assert!(!resolved.to_toml().contains("hush") && resolved.to_toml().contains("secrets/uri"));
    let named = world.env("OXICORN_SERVICE__MONGODB_URI", "mongodb://nearer").good();
    assert_eq!(app(&named).mongodb_uri, "mongodb://nearer", "a later place wins over a file named in an earlier one");
    let bad = self::world("\n[service]\nmongodb_uri_file = 'gone'").bad();
    assert_eq!(
        bad,
        "supervisor.toml:3: service.mongodb_uri_file: gone cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn the_environment_overrides_the_env_file() {
    let world = world("[process]\nenv_file = 'app.env'");
    world.write(
        "app.env",
        "# a comment\n\nexport WEB_CONCURRENCY=3 # why\nMONGODB_URI=\"mongodb://\\\"h\\\"\" # quoted\nLOG_LEVEL='debug'\n\
         MONGODB_DATABASE = a#b\nEMPTY=\nNOTED= # nothing\nOXICORN_CONFIG=other.toml\nTEXT=\"a\\nb\"\n",
    );
    let world = world.env("LOG_LEVEL", "").env("MONGODB_DATABASE", "real");
    let resolved = world.good();
    assert_eq!(resolved.settings.workers.count, 3);
    assert_eq!(resolved.settings.log.level, Level::Debug, "an empty variable hides nothing");
    assert_eq!(app(&resolved).mongodb_uri, "mongodb://\"h\"");
    assert_eq!(app(&resolved).mongodb_database, "real");
    assert_eq!(resolved.origin("workers.count").to_string(), "app.env:3: WEB_CONCURRENCY");
    let pair = |name: &str| {
        resolved.settings.process.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    };
    assert_eq!(pair("MONGODB_DATABASE"), Some("a#b"));
    assert_eq!(pair("EMPTY"), Some(""));
    assert_eq!(pair("NOTED"), Some(""));
    assert_eq!(pair("TEXT"), Some("a\nb"));
    assert!(!format!("{resolved:?}").contains("mongodb://"), "a debug print shows no secret");
    assert_eq!(resolved.warnings, ["app.env:9: OXICORN_CONFIG has no effect here: the settings were already found"]);
}

#[test]
fn a_key_without_effect_causes_a_warning() {
    let warn = |text: &str| world(text).good().warnings;
    assert_eq!(warn("[http]\nrequest_timeout = '0s'\nhttp2 = false"), Vec::<String>::new());
    assert_eq!(
        warn("[http]\nrequest_timeout = 5\n[workers]\nmax_requests_jitter = 5"),
        ["supervisor.toml:4: workers.max_requests_jitter: does nothing while workers.max_requests is 0"]
    );
}

#[test]
fn addresses_are_read_as_gunicorn_reads_them() {
    let tcp = |host: &str, port| Bind::Tcp { host: host.to_owned(), port };
    for (text, wanted) in [
        ("127.0.0.1:80", tcp("127.0.0.1", 80)),
        (":80", tcp("0.0.0.0", 80)),
        ("[::1]:80", tcp("::1", 80)),
        ("[::]", tcp("::", 8000)),
        ("tcp://h:0", tcp("h", 0)),
        ("unix:/tmp/a", Bind::Unix("/tmp/a".into())),
        ("unix:///tmp/a", Bind::Unix("/tmp/a".into())),
    ] {
        let resolved = bare().flag("server.bind", "--bind", text).good();
        assert_eq!(resolved.settings.server.bind, [wanted], "{text}");
    }
}

#[test]
fn two_addresses_with_port_0_stay_two() {
    let resolved = bare().flag("server.bind", "--bind", "127.0.0.1:0,127.0.0.1:0").good();
    assert_eq!(resolved.settings.server.bind.len(), 2);
}

#[test]
fn durations_and_sizes_are_read_with_their_units() {
    for (text, millis) in
        [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("1.5", 1_500), ("0", 0)]
    {
        let parsed = duration::parse(text).unwrap();
        assert_eq!(parsed, Duration::from_millis(millis), "{text}");
        assert_eq!(duration::parse(&duration::display(parsed)), Ok(parsed), "{text}");
    }
    for text in ["", "s", "ms", "-1s", "1 fortnight", "nan", "inf", "1e300", "5000000000"] {
        assert!(duration::parse(text).is_err(), "{text}");
    }
    for (text, bytes) in
        [("512MiB", 512 << 20), ("16MB", 16_000_000), ("64k", 65_536), ("1 GiB", 1 << 30), ("7", 7), ("8b", 8)]
    {
        assert_eq!(size::parse(text), Ok(bytes), "{text}");
    }
    for text in ["", "k", "-1", "1.5k", "1x", "9223372036854775808", "99999999999999999999"] {
        assert!(size::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_user_without_an_account_needs_a_group() {
    let (uid, gid) = crate::sys::host::effective_ids();
    let world =
        bare().flag("process.user", "--user", &uid.to_string()).flag("process.group", "--group", &gid.to_string());
    let process = world.good().settings.process;
    assert_eq!(process.user.map(|user| user.uid), Some(uid));
    assert_eq!(process.group.map(|group| group.gid), Some(gid));
    let unknown = bare().flag("process.user", "--user", "3999999999");
    assert!(unknown.bad().contains("uid 3999999999 has no account here"), "{}", unknown.bad());
    let other = bare().flag("process.user", "--user", "3999999999").flag("process.group", "--group", &gid.to_string());
    if uid == 0 {
        assert_eq!(other.good().settings.process.user.map(|user| (user.uid, user.gid)), Some((3_999_999_999, gid)));
    } else {
        assert!(other.bad().contains("only root may change to another user"), "{}", other.bad());
    }
}

#[test]
fn the_owner_of_a_socket_is_looked_up() {
    let owner = |text: &str| bare().env("OXICORN_SERVER__UNIX_OWNER", text).good().settings.server.unix_owner;
    assert_eq!(owner(""), Owner::default());
    let (uid, gid) = crate::sys::host::effective_ids();
    for (text, found) in [
        (format!("{uid}:{gid}"), (Some(uid), Some(gid))),
        (format!("{uid}"), (Some(uid), None)),
        (format!("{uid}:"), (Some(uid), None)),
        (format!(":{gid}"), (None, Some(gid))),
        (":root".to_owned(), (None, Some(0))),
    ] {
        assert_eq!(owner(&text), Owner { name: text, uid: found.0, gid: found.1 });
    }
    let refused = world("[server]\nunix_owner = 'no-such-user:no-such-group'").bad();
    let place = "supervisor.toml:2: server.unix_owner";
    let wanted =
        format!("{place}: there is no user \"no-such-user\" here\n{place}: there is no group \"no-such-group\" here");
    assert_eq!(refused, wanted);
}

#[test]
fn a_command_that_only_asks_does_not_read_the_key() {
    let world = world("[tls]\ncertfile = 'supervisor.toml'\nkeyfile = 'supervisor.toml'");
    assert!(world.bad().contains("tls.keyfile: there is no private key in"), "{}", world.bad());
    let asked = resolve(
        Sources::default(),
        &world.flags,
        &world.env,
        &StartFolder::at(world.folder.path()),
        &world.declared,
        Purpose::Ask,
    )
    .unwrap();
    assert_eq!((asked.settings.tls.material, asked.warnings), (None, vec![]));
}

#[test]
fn changes_are_grouped_by_what_they_need() {
    let world = world("[workers]\ncount = 2\ntimeout = '60s'\n[process]\nenv_file = 'app.env'\n[service]\ndocs = true");
    world.write("app.env", "A=1");
    let old = world.good();
    let changes = |old: &Resolved| Changes::between(old, &world.good());
    assert_eq!(changes(&old), Changes::default());
    assert_eq!(changes(&old).to_string(), "no setting has changed");
    world.write(
        "supervisor.toml",
        "[server]\nreuse_port = false\n[workers]\ncount = 3\ntimeout = '1m'\n\
         [process]\nenv_file = 'app.env'\nname = 'other'\n[service]\ndocs = false",
    );
    world.write("app.env", "A=2");
    assert_eq!(
        changes(&old).to_string(),
        "applies at once: workers.count; with the new workers: process.env_file, service.docs; \
         as before until a restart: process.name, server.reuse_port"
    );
}

#[test]
fn the_effective_settings_are_shown_with_their_origins() {
    let world = world(
        "[workers]\ncount = 'n'\n[service]\nbearer_token = 'hush'\nbearer_token_file = '/run/t'\n\
         mongodb_uri = 'mongodb://me:p@/ss@h1,h2/db'",
    )
    .env("WEB_CONCURRENCY", "3")
    .flag("workers.timeout", "--timeout", "90");
    let resolved = world.good();
    let shown = resolved.to_toml();
    for line in [
        "[workers]",
        "count = 3  # from env WEB_CONCURRENCY",
        "timeout = \"90s\"  # from --timeout",
        "boot_timeout = \"1m\"  # from default",
        "bind = [\"127.0.0.1:8000\"]  # from default",
        "limit_request_body = \"16MiB\"  # from default",
        "unix_mode = \"0660\"  # from default",
        "bearer_token = \"***\"  # from supervisor.toml:4",
        "bearer_token_file = \"/run/t\"  # from supervisor.toml:5",
        "mongodb_uri = \"mongodb://***@h1,h2/db\"  # from supervisor.toml:6",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("hush") && !shown.contains("/ss"), "{shown}");
    let options = "tls=true&tlsCertificateKeyFilePassword=hush&authMechanismProperties=AWS_SESSION_TOKEN:hush&w=1";
    let uri = bare().env("MONGODB_URI", &format!("mongodb://h/db?{options}")).good().to_toml();
    let masked = "tls=true&tlsCertificateKeyFilePassword=***&authMechanismProperties=***&w=1";
    assert!(uri.contains(&format!("mongodb://h/db?{masked}\"")) && !uri.contains("hush"), "{uri}");

    let json: serde_json::Value = serde_json::from_str(&resolved.to_json()).unwrap();
    assert_eq!(json["workers.count"], serde_json::json!({"value": 3, "origin": "env WEB_CONCURRENCY"}));
    assert_eq!(json["service.bearer_token"]["value"], "***");

    let formula = bare().flag("workers.count", "--workers", "0n+3").good();
    assert!(formula.to_toml().contains("count = 3  # from --workers (0n+3)\n"), "{}", formula.to_toml());

    // An operator can use the text that is shown as a settings file, and gets the same settings.
    let again = self::world(&shown.replace("\"***\"", "\"\"")).good();
    assert_eq!(show::flat(&again.settings), show::flat(&resolved.settings));
}

#[test]
fn a_programs_defaults_stand_between_the_built_in_ones_and_the_file() {
    let mut world = world("[workers]\ncount = 3\n").env("OXICORN_HTTP__KEEP_ALIVE", "9s");
    for (label, key, text) in [
        ("python", "workers.count", "2"),
        ("python", "workers.timeout", "2m"),
        ("shop", "workers.timeout", "3m"),
        ("shop", "http.keep_alive", "4s"),
        ("shop", "process.name", "shop"),
        ("shop", "process.pidfile", "shop.pid"),
        ("shop", "service.cache", "1MiB"),
    ] {
        world.declared.add_default(label, key, text);
    }
    let resolved = world.good();
    let Settings { workers, http, process, .. } = &resolved.settings;
    assert_eq!((workers.count, workers.timeout.as_secs(), http.keep_alive.as_secs()), (3, 180, 9));
    assert_eq!((process.name.as_str(), process.pidfile.as_ref()), ("shop", Some(&world.path("shop.pid"))));
    assert_eq!(app(&resolved).cache, 1 << 20);
    let shown = resolved.to_toml();
    for line in [
        "count = 3  # from supervisor.toml:2",
        "timeout = \"3m\"  # from default (shop)",
        "boot_timeout = \"1m\"  # from default",
        "name = \"shop\"  # from default (shop)",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    let start = StartFolder::at(world.folder.path());
    let (partial, problems) =
        resolve_partly(&world.flags, &world.env, &start, &world.declared, &ForeignSettings::new());
    assert_eq!((partial.name.as_str(), problems), ("shop", None));

    let mut bad = bare();
    for (label, key, text) in
        [("python", "workers.timeout", "soon"), ("shop", "workers.tiemout", "3"), ("shop", "x", "")]
    {
        bad.declared.add_default(label, key, text);
    }
    assert_eq!(
        bad.bad(),
        "default (shop): workers.tiemout: unknown key; did you mean workers.timeout?\n\
         default (shop): x: unknown key\n\
         default (python): workers.timeout: \"soon\" is not a duration such as \"30s\", \"500ms\", \"2m\" or a number of \
         seconds"
    );
}

#[test]
fn the_env_file_of_a_program_is_a_default() {
    let mut world = world("[process]\nenv_file = 'b.env'\n");
    world.write("a.env", "A=1");
    world.write("b.env", "A=2");
    world.declared.add_default("shop", "process.env_file", "a.env");
    assert_eq!(world.good().settings.process.env, [("A".to_owned(), "2".to_owned())]);
    world.write("supervisor.toml", "");
    assert_eq!(world.good().settings.process.env, [("A".to_owned(), "1".to_owned())]);
}

/// Adds settings of a runtime for one key to `world`, one of each strength. The value of each is its number.
fn add_foreign(world: &mut World, strengths: &[Strength]) {
    for strength in strengths {
        let number = match strength {
            Strength::File => "3",
            Strength::Environment => "4",
            Strength::Flag => "6",
        };
        world.foreign.set(*strength, "workers.count", number, format!("{strength:?}"));
    }
}

#[test]
fn settings_of_a_runtime_have_their_place_in_the_precedence() {
    use Strength::{Environment, File, Flag};
    let all = [Flag, File, Environment];
    for (strengths, env, flag, count, origin) in [
        (&[][..], &[][..], false, 1, "supervisor.toml:2"),
        (&[], &[("WEB_CONCURRENCY", "2")], false, 2, "env WEB_CONCURRENCY"),
        (&[File], &[("WEB_CONCURRENCY", "2")], false, 3, "File"),
        (&[Environment, File], &[("WEB_CONCURRENCY", "2")], false, 4, "Environment"),
        (&[Environment, File], &[("OXICORN_WORKERS__COUNT", "5")], false, 5, "env OXICORN_WORKERS__COUNT"),
        (&all, &[("OXICORN_WORKERS__COUNT", "5")], false, 6, "Flag"),
        (&all, &[("OXICORN_WORKERS__COUNT", "5")], true, 7, "--workers"),
    ] {
        let mut world = world("[workers]\ncount = 1\n");
        add_foreign(&mut world, strengths);
        for (name, value) in env {
            world = world.env(name, value);
        }
        if flag {
            world = world.flag("workers.count", "--workers", "7");
        }
        let resolved = world.good();
        let line = format!("count = {count}  # from {origin}");
        assert!(resolved.to_toml().lines().any(|shown| shown == line), "{line} is not in\n{}", resolved.to_toml());
    }
}

#[test]
fn settings_of_a_runtime_are_checked_as_all_others() {
    let mut world = world("[workers]\ntimeout = 'soon'\n");
    world.foreign.set(Strength::Flag, "workers.count", "many", "-w");
    world.foreign.set(Strength::File, "workers.cuont", "3", "other.py:1");
    world.foreign.set(Strength::File, "service.store", "oracle", "other.py:2");
    world.foreign.refuse("-k gevnt", "there is no worker of this class");
    let problems = world.bad();
    let lines: Vec<&str> = problems.lines().collect();
    assert_eq!(lines.len(), 5, "{problems}");
    for told in [
        "-k gevnt: there is no worker of this class",
        "other.py:1: workers.cuont: unknown key; did you mean workers.count?",
        "supervisor.toml:2: workers.timeout: \"soon\" is not",
        "-w: workers.count: \"many\" is not",
        "other.py:2: service.store: \"oracle\" is not one of auto, sqlite, mongodb",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(told)), "{told}\n{problems}");
    }
}

#[test]
fn a_file_of_the_runtime_stands_in_the_place_of_the_settings_file() {
    let mut world = world("[process]\nname = 'toml'\n");
    let file = world.path("conf/other.py");
    world.foreign.file(&file, "what the runtime needs");
    world.foreign.set(Strength::File, "process.pidfile", "a.pid", "other.py:1");
    world.foreign.set(Strength::File, "process.env_file", "a.env", "other.py:2");
    world.foreign.set(Strength::File, "service.docs", "false", "other.py:3");
    world.foreign.set(Strength::File, "process.name", "other", "other.py:4");
    world.write("a.env", "OXICORN_WORKERS__COUNT=3");
    let resolved = world.good();
    let Settings { process, workers, .. } = &resolved.settings;
    assert_eq!((process.name.as_str(), workers.count, app(&resolved).docs), ("other", 3, false));
    assert_eq!(process.pidfile, Some(world.path("a.pid")), "paths begin in the start folder, not in that of the file");
    assert_eq!(resolved.settings.folder, fs::canonicalize(world.folder.path()).unwrap());
    assert_eq!((resolved.file.as_ref(), resolved.foreign()), (Some(&file), Some("what the runtime needs")));

    let start = StartFolder::at(world.folder.path());
    let (partial, _) = resolve_partly(&world.flags, &world.env, &start, &world.declared, &world.foreign);
    assert_eq!((partial.name.as_str(), partial.file.as_ref()), ("other", Some(&file)));

    let recorded = resolved.sources.texts().clone();
    assert_eq!(recorded[&file], "what the runtime needs");
    fs::remove_file(world.path("a.env")).unwrap();
    let again = world.resolve_from(Sources::recorded(recorded)).unwrap();
    assert_eq!(again.settings.workers.count, 3);

    // The settings file is read again once the runtime has no file, and its absence then counts.
    world.foreign = ForeignSettings::new();
    assert_eq!(world.good().settings.process.name, "toml");
}

/// A table that can be written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Greeter {
    greeting: String,
    #[serde(with = "duration")]
    pause: Duration,
    names: Vec<String>,
}

impl Default for Greeter {
    fn default() -> Self {
        Self { greeting: "hello".to_owned(), pause: Duration::from_secs(90), names: Vec::new() }
    }
}

#[test]
fn a_table_that_can_be_written_is_shown_with_its_defaults() {
    let world = world("[greeter]\npause = 60\n").env("OXICORN_GREETER__NAMES", "a, b");
    let world = World { declared: declared(vec![TableSpec::shown::<Greeter>("greeter")]), ..world };
    let (resolved, shown) = (world.good(), world.good().to_toml());
    for line in [
        r#"greeting = "hello"  # from default"#,
        r#"pause = "1m"  # from supervisor.toml:2"#,
        r#"names = ["a", "b"]  # from env OXICORN_GREETER__NAMES"#,
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    world.write("supervisor.toml", "[greeter]\npause = '1m'\ngreeting = 'hello'\n");
    assert_eq!(Changes::between(&resolved, &world.good()), Changes::default(), "the values are the same");
}
