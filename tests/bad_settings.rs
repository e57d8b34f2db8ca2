//! Promise: oxicorn refuses wrong settings before it starts anything. It reports all mistakes at once, and says where
//! each mistake is.

use std::fs;

use crate::common::{Launch, free_port, get, text};

/// Asserts that `check` and `run` both exit with code 2 and that the output holds every fragment.
#[track_caller]
fn assert_refused(make: impl Fn() -> Launch, fragments: &[&str]) {
    for command in ["check", "run"] {
        let output = make().arg(command).run();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{command}: {text}");
        for fragment in fragments {
            assert!(text.contains(fragment), "{command}: {fragment:?} is not in:\n{text}");
        }
        assert!(!text.contains("worker_forked"), "{command}: nothing is started:\n{text}");
        assert!(!text.contains("panicked"), "{command}:\n{text}");
    }
}

#[test]
fn good_settings_pass() {
    let output = Launch::new().arg("check").run();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let output = Launch::new().arg("--check-config").run();
    assert_eq!(output.status.code(), Some(0), "Gunicorn's name for it: {}", text(&output));
}

#[test]
fn each_kind_of_mistake_is_reported_with_its_key_and_line() {
    let cases: &[(&str, &[&str])] = &[
        ("[workers]\ncuont = 2", &["workers.cuont", "count", "supervisor.toml:2"]),
        ("[worker]\ncount = 2", &["worker", "workers", "supervisor.toml:1"]),
        ("[workers]\n\ncount = \"many\"", &["workers.count", "many", "supervisor.toml:3"]),
        ("[workers]\ncount = 0", &["workers.count", "supervisor.toml:2"]),
        ("[workers]\ncount = -3", &["workers.count", "supervisor.toml:2"]),
        ("[workers]\ntimeout = \"soon\"", &["workers.timeout", "soon", "supervisor.toml:2"]),
        ("[workers]\nmax_rss = \"12 elephants\"", &["workers.max_rss", "supervisor.toml:2"]),
        ("[server]\nbind = [\"nonsense\"]", &["server.bind", "nonsense", "supervisor.toml:2"]),
        ("[server]\nbind = [\"127.0.0.1:70000\"]", &["server.bind", "70000", "supervisor.toml:2"]),
        ("[server]\nproxy_protocol = \"v3\"", &["server.proxy_protocol", "v3", "supervisor.toml:2"]),
        ("[log]\nlevel = \"loud\"", &["log.level", "loud", "supervisor.toml:2"]),
        ("[http]\nforwarded_allow_ips = [\"300.1.1.1/8\"]", &["http.forwarded_allow_ips", "300.1.1.1"]),
        ("[http]\nhttp2 = \"maybe\"", &["http.http2", "supervisor.toml:2"]),
        ("[process]\nuser = \"no-such-user-here\"", &["process.user", "no-such-user-here"]),
        ("[process]\numask = \"99\"", &["process.umask", "supervisor.toml:2"]),
        ("[tls]\ncertfile = \"/tmp/chain.pem\"", &["tls.keyfile"]),
        ("[service]\ndebgu = true", &["service.debgu", "debug", "supervisor.toml:2"]),
        ("[workers]\ncount = 2\ncount = 3", &["supervisor.toml:3"]),
        ("[workers\ncount = 2", &["supervisor.toml:1"]),
        ("[program]\ncommand = [\"uvicorn\"]", &["program"]),
    ];
    for (toml, fragments) in cases {
        eprintln!("--- {toml}");
        assert_refused(|| Launch::new().raw(toml), fragments);
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let toml = "[server]\nbind = [\"nonsense\"]\n[workers]\ncuont = 2\ntimeout = \"soon\"\n[log]\nlevel = \"loud\"\n";
    assert_refused(
        || Launch::new().raw(toml).env("OXICORN_HTTP__BACKLOGG", "1"),
        &[
            "server.bind",
            "supervisor.toml:2",
            "workers.cuont",
            "supervisor.toml:4",
            "workers.timeout",
            "supervisor.toml:5",
            "log.level",
            "supervisor.toml:7",
            "OXICORN_HTTP__BACKLOGG",
        ],
    );
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let cases = [
        ("OXICORN_WORKERS__COUNT", "many", "many"),
        ("OXICORN_WORKERS__CUONT", "2", "OXICORN_WORKERS__COUNT"),
        ("WEB_CONCURRENCY", "lots", "lots"),
        ("PORT", "http", "http"),
        ("LOG_LEVEL", "loud", "loud"),
    ];
    for (name, value, fragment) in cases {
        assert_refused(|| Launch::new().env(name, value), &[name, fragment]);
    }
}

#[test]
fn a_mistake_on_the_command_line_is_refused() {
    for (arguments, fragment) in [
        (&["--wrokers", "2"] as &[&str], "--workers"),
        (&["--workers", "many"], "many"),
        (&["--timeout", "soon"], "soon"),
        (&["--bind", "nonsense"], "nonsense"),
        (&["--config", "/nowhere/supervisor.toml"], "/nowhere/supervisor.toml"),
        (&["--", "uvicorn", "app:main"], "not"),
    ] {
        let output = Launch::new().args(arguments).run();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(fragment), "{arguments:?}: {fragment:?} is not in:\n{text}");
    }
}

#[test]
fn a_second_instance_is_refused_and_the_first_keeps_serving() {
    let mut first = Launch::new().serving(2);
    let address = first.address();
    let output = Launch::new().set("server.bind", &format!("[\"{address}\"]")).run();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains(&address.to_string()), "{text}");
    for _ in 0..50 {
        assert_eq!(get(address, "/health").status, 200, "every connection still reaches the first instance");
    }
    first.stop();
}

/// If the master cannot bind one of the addresses, it binds none of them.
#[test]
fn either_all_addresses_are_bound_or_none() {
    let mut first = Launch::new().serving(2);
    let free = free_port();
    let bind = format!(r#"["127.0.0.1:{free}", "{}"]"#, first.address());
    let output = Launch::new().set("server.bind", &bind).run();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(!text(&output).contains("worker_forked"));
    first.stop();
}

#[test]
fn a_regular_file_in_the_place_of_the_socket_is_left_alone() {
    let launch = Launch::new().set("server.bind", r#"["unix:{dir}/precious"]"#);
    let precious = launch.path("precious");
    fs::write(&precious, "my thesis").expect("a file in our own folder");
    let output = launch.run();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("precious"), "{text}");
    assert_eq!(fs::read_to_string(&precious).expect("it is still there"), "my thesis");
}
