//! Promise: when a bearer token is set, every write needs the token and no read needs it. Web pages from the listed
//! origins may call the service.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt};

use crate::common::{Connection, Launch, Response, get, request};
use serde_json::json;

fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let common = [("Connection", "close"), ("Content-Type", "application/json")];
    let body = if matches!(method, "POST" | "PUT") { &br#"{"text": "x"}"#[..] } else { b"" };
    Connection::open(address)
        .and_then(|mut connection| connection.ask(&request(method, path, &[&common, headers].concat(), body)))
        .unwrap_or_else(|failure| panic!("{method} {path}: {failure}"))
}

fn writes_need(address: SocketAddr, token: &str) {
    let right = format!("Bearer {token}");
    let made = ask(address, "POST", "/facts", &[("Authorization", &right)]);
    assert_eq!(made.status, 201, "{}", made.text());
    let fact = format!("/facts/{}", made.json()["id"].as_str().expect("an id"));

    for (method, path) in [("POST", "/facts"), ("PUT", &*fact), ("DELETE", &fact), ("DELETE", "/facts/x")] {
        let wrong = format!("{right}x");
        for (headers, says) in [
            (&[][..], r#"Bearer realm="oxicorn""#),
            (&[("Authorization", "Basic eDp5")], r#"Bearer realm="oxicorn""#),
            (&[("Authorization", &*wrong)], r#"Bearer realm="oxicorn", error="invalid_token""#),
            (&[("Authorization", &right[..right.len() - 1])], r#"Bearer realm="oxicorn", error="invalid_token""#),
        ] {
            let refused = ask(address, method, path, headers);
            assert_eq!(refused.status, 401, "{method} {path} {headers:?}: {}", refused.text());
            assert_eq!(refused.header("www-authenticate"), Some(says), "{headers:?}");
            assert_eq!((&refused.json()["type"], &refused.json()["details"]), (&json!("unauthorized"), &json!([])));
            assert!(!refused.text().contains(token));
        }
    }
    assert_eq!(get(address, &fact).json(), made.json(), "nothing was changed, and a read needs no token");
    assert_eq!(ask(address, "PATCH", "/facts", &[]).status, 405, "a method without a route");
    assert_eq!(ask(address, "PUT", &fact, &[("Authorization", &right)]).status, 200);
    assert_eq!(ask(address, "DELETE", &fact, &[("Authorization", &right)]).status, 204);
}

#[test]
fn writes_need_the_token_of_the_settings() {
    let token = "c29tZSB0b2tlbg==";
    let supervisor = Launch::new().env("OXICORN_SERVICE__BEARER_TOKEN", token).serving(2);
    writes_need(supervisor.address(), token);
    let shown = supervisor.ctl_in(&["config"], &[("OXICORN_SERVICE__BEARER_TOKEN", token.as_ref())]);
    assert!(shown.status.success());
    for text in [supervisor.log().tail(1000), String::from_utf8_lossy(&shown.stdout).into_owned()] {
        assert!(!text.contains(token), "{text}");
    }
}

#[test]
fn writes_need_the_token_of_the_file() {
    // The master reads the file, so the user of the workers needs no right to read it.
    let launch = Launch::new()
        .set("process.user", r#""nobody""#)
        .set("service.sqlite_path", r#""{dir}/data/facts.db""#)
        .set("service.bearer_token_file", r#""token""#);
    fs::write(launch.path("token"), "from-a-file\n").expect("a file in our own folder");
    fs::set_permissions(launch.path("token"), fs::Permissions::from_mode(0o600)).expect("our own file");
    let supervisor = launch.serving(2);
    writes_need(supervisor.address(), "from-a-file");

    fs::write(supervisor.path("token"), "another").expect("a file in our own folder");
    assert!(supervisor.ctl(&["reload"]).status.success());
    supervisor.wait_serving(2);
    writes_need(supervisor.address(), "another");
}

#[test]
fn the_document_asks_for_the_token_only_where_one_is_needed() {
    let document = |launch: Launch| get(launch.serving(2).address(), "/openapi.json").json();
    let closed = document(Launch::new().set("service.bearer_token", r#""x""#));
    let open = document(Launch::new());
    for (path, method, writes) in [
        ("/facts", "post", true),
        ("/facts/{id}", "put", true),
        ("/facts/{id}", "delete", true),
        ("/facts", "get", false),
        ("/facts/{id}", "get", false),
    ] {
        let says = |document: &serde_json::Value| {
            let operation = &document["paths"][path][method];
            (operation["security"] == json!([{"bearer": []}]), operation["responses"]["401"].is_object())
        };
        assert_eq!(says(&closed), (writes, writes), "{method} {path}");
        assert_eq!(says(&open), (false, false), "{method} {path}");
    }
}

#[test]
fn settings_with_an_unusable_token_or_origin_are_refused() {
    for (settings, sentence) in [
        ("bearer_token = \"a\"\nbearer_token_file = \"b\"", "bearer_token and bearer_token_file are both set"),
        ("bearer_token = \"no good\"", "bearer_token cannot be sent by a client"),
        ("cors_origins = [\"https://a.example\", \"https://b.example/\"]", "\"https://b.example/\" is not an origin"),
    ] {
        let output = Launch::new().raw(&format!("[service]\n{settings}\n")).arg("check").run();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(sentence) && said.contains("supervisor.toml:") && !said.contains("no good"), "{said}");
    }
    let output = Launch::new().env("OXICORN_SERVICE__CORS_ORIGINS", "https://a.example, null").arg("check").run();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("service.cors_origins[1]: \"null\" is not an origin"), "{said}");
    for (content, sentence) in
        [(None, "No such file"), (Some("\n"), "is empty"), (Some("two\nlines"), "cannot be sent by a client")]
    {
        let launch = Launch::new().set("service.bearer_token_file", r#""token""#);
        if let Some(content) = content {
            fs::write(launch.path("token"), content).expect("a file in our own folder");
        }
        let output = launch.run();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("bearer_token") && said.contains(sentence) && !said.contains("lines"), "{said}");
    }
}

#[test]
fn pages_of_listed_origins_may_call() {
    let ours = "https://app.example.com";
    let supervisor = Launch::new()
        .set("service.cors_origins", r#"["https://app.example.com", "http://localhost:5173"]"#)
        .set("service.bearer_token", r#""x""#)
        .serving(2);
    let address = supervisor.address();
    let preflight = ask(address, "OPTIONS", "/facts", &[("Origin", ours), ("Access-Control-Request-Method", "POST")]);
    assert_eq!(preflight.status, 204, "a preflight carries no token");
    for (name, wanted) in [
        ("access-control-allow-origin", ours),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "authorization"),
        ("vary", "origin"),
    ] {
        let value = preflight.header(name).unwrap_or_default();
        assert!(value.contains(wanted), "{name}: {value}");
    }
    for (method, status) in [("GET", 200), ("POST", 401)] {
        let answer = ask(address, method, "/facts", &[("Origin", ours)]);
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some(ours), "the page may read what it did wrong");
    }
    let stranger = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    for (method, status) in [("OPTIONS", 405), ("GET", 200)] {
        let answer = ask(address, method, "/facts", &stranger);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, None));
        assert_eq!(answer.header("vary"), Some("origin"), "a cache must keep them apart");
    }
}
