//! Promise: `/ready` asks all dependencies at the same time, waits for them for at most one second, and does not ask
//! them again within a second.

use std::{net::TcpListener, sync::atomic::Ordering, thread, time::Duration};

use crate::common::{Canary, Dependency, Launch, PATIENCE, Supervisor, eventually, free_port, get, now};
use serde_json::json;

fn serving(checks: &str) -> Supervisor {
    let launch = Launch::new().set("workers.count", "1").set("service.check", checks);
    launch.serving(1)
}

#[test]
fn each_dependency_is_shown_by_its_name() {
    let good = Dependency::start(Some("HTTP/1.1 204 No Content\r\n\r\n"));
    let ill = Dependency::start(Some("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nill"));
    let queue = Dependency::start(None);
    let checks = |ill: &Dependency| {
        format!(
            r#"[{{ name = "good", http = "{}" }}, {{ name = "ill", http = "{}" }}, {{ name = "queue", tcp = "{}" }}]"#,
            good.url(),
            ill.url(),
            queue.address
        )
    };
    let mut supervisor = serving(&checks(&ill));
    for path in ["/ready", "/health/ready"] {
        let answer = get(supervisor.address(), path);
        assert_eq!(answer.status, 503);
        let checks = json!({"database": "ok", "good": "ok", "ill": "unavailable", "queue": "ok"});
        assert_eq!(answer.json(), json!({"status": "degraded", "checks": checks}));
    }
    let said = supervisor.wait_log("dependency_failed", 1, PATIENCE);
    assert!(said[0].contains("ill") && said[0].contains("500"), "{}", said[0]);
    assert_eq!(get(supervisor.address(), "/health").status, 200);
    supervisor.stop();

    let mut supervisor = serving(&checks(&good));
    assert_eq!(get(supervisor.address(), "/ready").json()["status"], "ready");
    supervisor.stop();
}

#[test]
fn a_dependency_that_comes_back_is_ready_again() {
    let port = free_port();
    let mut supervisor = serving(&format!(r#"[{{ name = "late", tcp = "127.0.0.1:{port}" }}]"#));
    assert_eq!(get(supervisor.address(), "/ready").json()["checks"]["late"], "unavailable");
    let _listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is still free");
    eventually("ready", PATIENCE, || (get(supervisor.address(), "/ready").status == 200).then_some(()));
    supervisor.wait_log("dependency_recovered", 1, PATIENCE);
    supervisor.stop();
}

#[test]
fn silent_dependencies_cost_one_second_together() {
    let (one, two) = (Dependency::start(None), Dependency::start(None));
    let checks = format!(r#"[{{ name = "one", http = "{}" }}, {{ name = "two", http = "{}" }}]"#, one.url(), two.url());
    let mut supervisor = serving(&checks);
    let (canary, began) = (Canary::start(), now());
    let answer = get(supervisor.address(), "/ready");
    let took = began.elapsed().saturating_sub(2 * canary.longest());
    assert_eq!(answer.json()["checks"], json!({"database": "ok", "one": "unavailable", "two": "unavailable"}));
    assert!(took < Duration::from_millis(1500), "{took:?}");
    supervisor.stop();
}

#[test]
fn many_probes_ask_a_dependency_once_a_second() {
    let dependency = Dependency::start(Some("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let mut supervisor = serving(&format!(r#"[{{ name = "shy", http = "{}" }}]"#, dependency.url()));
    let began = now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..25).for_each(|_| assert_eq!(get(supervisor.address(), "/ready").status, 200)));
        }
    });
    let most = 1 + began.elapsed().as_secs() as u32;
    let asked = dependency.asked.load(Ordering::Relaxed);
    assert!((1..=most).contains(&asked), "asked {asked} times in {:?}", began.elapsed());
    supervisor.stop();
}

#[test]
fn every_invalid_check_is_named() {
    let launch = Launch::new().raw(
        "[service]\n[[service.check]]\nname = \"redis\"\ntcp = \"redis\"\n[[service.check]]\nname = \"redis\"\n\
         [[service.check]]\nname = \"typo\"\ntpc = \"a:1\"",
    );
    let output = launch.run_with(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("service.check[2].tpc: unknown key"), "{said}");

    let launch = Launch::new()
        .raw("[service]\n[[service.check]]\nname = \"redis\"\ntcp = \"redis\"\n[[service.check]]\nname = \"redis\"");
    let output = launch.run_with(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in
        ["supervisor.toml:2: service.check", "\"redis\" wants tcp", "\"redis\" is taken", "\"redis\" has neither"]
    {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}
