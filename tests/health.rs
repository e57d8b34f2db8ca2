//! Promise: `oxicorn health` and `oxicorn config --running` report on the service that runs. The settings file may have
//! been edited since the start. The commands therefore never report the values in the file as the values in effect.

use std::{fs, net::TcpListener, os::fd::AsRawFd};

use crate::common::{Launch, Supervisor, free_port, text};

#[track_caller]
fn assert_healthy(supervisor: &Supervisor) {
    let asked = supervisor.ctl(&["health"]);
    assert!(asked.status.success() && text(&asked).is_empty(), "{} {}", asked.status, text(&asked));
}

fn rewrite(supervisor: &Supervisor, settings: &str) {
    fs::write(supervisor.path("supervisor.toml"), settings).expect("our own file");
}

#[test]
fn an_edit_of_the_file_does_not_make_a_service_unhealthy() {
    let mut supervisor = Launch::new().serving(2);
    let port = free_port();
    for edited in [
        "[control]\nsocket = \"control.sock\"\n[server]\nbind = = 4\n".to_owned(),
        "[control]\nsocket = \"control.sock\"\n[sever]\n".to_owned(),
        format!("[control]\nsocket = \"control.sock\"\n[server]\nbind = [\"127.0.0.1:{port}\"]\n"),
        "[control]\nsocket = \"control.sock\"\n[server]\nproxy_protocol = \"v2\"\n".to_owned(),
        "[control]\nsocket = \"control.sock\"\n[tls]\ncertfile = \"none.pem\"\nkeyfile = \"none.pem\"\n".to_owned(),
    ] {
        rewrite(&supervisor, &edited);
        assert_healthy(&supervisor);
        assert!(supervisor.ctl(&["health", "/ready"]).status.success());
    }
    let asked = supervisor.ctl(&["health", "/nowhere"]);
    let address = supervisor.address();
    assert!(text(&asked).contains(&format!("http://{address}/nowhere answers 404")), "{}", text(&asked));
    supervisor.stop();
    let asked = supervisor.ctl(&["health"]);
    assert_eq!(asked.status.code(), Some(1), "{}", text(&asked));
}

#[test]
fn every_kind_of_address_is_asked_as_it_was_bound() {
    for bind in [
        r#"["127.0.0.1:0"]"#,
        r#"["0.0.0.0:0"]"#,
        r#"["[::]:0"]"#,
        r#"["[::1]:0"]"#,
        r#"["localhost:0"]"#,
        r#"["unix:{dir}/web.sock"]"#,
        r#"["unix:{dir}/web.sock", "127.0.0.1:0"]"#,
    ] {
        let supervisor = Launch::new().set("server.bind", bind).set("workers.count", "1").serving(1);
        assert_healthy(&supervisor);
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let passed = format!("exec 3<&{}; exec \"$@\"", listener.as_raw_fd());
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("our own socket");
    let launch = Launch::new().set("server.bind", r#"["fd://3"]"#).through(&["bash", "-c", &passed, "bash"]);
    assert_healthy(&launch.serving(2));
}

#[test]
fn health_takes_the_address_from_the_settings_when_no_master_answers_and_says_so() {
    let port = free_port();
    let settings = |socket: &str| format!("[control]\nsocket = {socket}\n[server]\nbind = [\"127.0.0.1:{port}\"]\n");
    let launch = Launch::new().raw(&format!("{}[service]\nsqlite_path = \"facts.db\"\n", settings("\"off\"")));
    let supervisor = launch.env("OXICORN_WORKERS__COUNT", "2").serving(2);
    let asked = supervisor.ctl(&["health"]);
    assert!(asked.status.success() && text(&asked).contains("so the settings say"), "{}", text(&asked));
    // The settings file now names the control socket of another service. `health` must not take the address from that
    // service's master.
    let other = Launch::new().serving(2);
    rewrite(&supervisor, &settings(&format!("{:?}", other.path("control.sock"))));
    let asked = supervisor.ctl(&["health"]);
    assert!(asked.status.success() && text(&asked).contains("another service answers"), "{}", text(&asked));
    rewrite(&supervisor, "[control]\nsocket = \"off\"\n[server]\nbind = = 4\n");
    let asked = supervisor.ctl(&["health"]);
    assert!(asked.status.code() == Some(1) && text(&asked).contains("the command check says why"), "{}", text(&asked));
}

#[test]
fn config_prints_the_file_and_says_where_a_running_service_differs() {
    let mut supervisor = Launch::new().args(&["--keep-alive", "9"]).serving(2);
    let config = |arguments: &[&str]| {
        let output = supervisor.ctl(&[&["config"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let pid = supervisor.pid();
    let printed = config(&["--keep-alive", "9"]);
    assert!(printed.starts_with("# Relative paths of state"), "nothing differs:\n{printed}");
    let printed = config(&[]);
    let first = printed.lines().next().unwrap_or_default();
    assert!(
        first.starts_with(&format!("# oxicorn (pid {pid}, ")) && first.contains(" values of http.keep_alive: "),
        "{first}"
    );
    printed.parse::<toml::Table>().expect("it is a settings file still");
    assert!(printed.contains("keep_alive = \"75s\"  # from default"), "{printed}");
    assert!(config(&["--running"]).contains("keep_alive = \"9s\"  # from --keep-alive"));

    assert!(supervisor.ctl(&["scale", "3"]).status.success());
    let json: serde_json::Value = serde_json::from_str(&config(&["--json"])).expect("one JSON object");
    assert_eq!(json["running"]["differs"], serde_json::json!(["http.keep_alive", "workers.count"]));
    assert_eq!(json["running"]["service"]["pid"], pid);
    assert_eq!(json["workers.count"]["value"], 2);
    let json: serde_json::Value = serde_json::from_str(&config(&["--running", "--json"])).expect("one JSON object");
    assert_eq!((&json["workers.count"]["value"], &json["http.keep_alive"]["value"]), (&3.into(), &"9s".into()));

    // A syntax mistake in the settings file does not stop `--running` from showing what is in effect.
    rewrite(&supervisor, "[control]\nsocket = \"control.sock\"\n[server\n");
    assert!(config(&["--running"]).contains("keep_alive = \"9s\""));
    assert_eq!(supervisor.ctl(&["config"]).status.code(), Some(2));
    supervisor.stop();
    let asked = supervisor.ctl(&["config", "--running"]);
    assert_eq!(asked.status.code(), Some(1), "{}", text(&asked));
}
