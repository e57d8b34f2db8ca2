//! Sends requests to every route of the service, in the form in which hyper hands them over.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use oxicorn::WorkerSignals;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower_service::Service;

use super::*;
use crate::settings::StoreKind;

struct App {
    router: Router,
    store: Store,
    signals: WorkerSignals,
    _folder: TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("not JSON: {:?}", self.bytes))
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl App {
    async fn start(settings: ServiceSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = ServiceSettings { sqlite_path: folder.path().join("facts.db"), ..settings };
        fs::File::create_new(&settings.sqlite_path).unwrap();
        let (worker, signals) = WorkerContext::builder().build_with_signals();
        let store = open(&worker, &settings).await.unwrap();
        let router = routes(&worker, &settings, Token::default(), store.clone());
        Self { router, store, signals, _folder: folder }
    }

    async fn new() -> Self {
        Self::start(ServiceSettings::default()).await
    }

    async fn ask(&self, method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
        let mut request = Request::new(body.into());
        *request.method_mut() = method.parse::<Method>().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        if !content_type.is_empty() {
            request.headers_mut().insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        let response = self.router.clone().call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().into();
        Answer { status: parts.status, headers: parts.headers, bytes }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", Body::empty()).await
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Answer {
        self.ask(method, path, "application/json", body.to_string()).await
    }

    async fn post(&self, text: &str, tags: &[&str]) -> Value {
        let answer = self.send("POST", "/facts", json!({"text": text, "tags": tags})).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        answer.json()
    }

    async fn texts(&self, query: &str) -> (Vec<String>, Option<String>) {
        let answer = self.get(&format!("/facts?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.json());
        let listing = answer.json();
        let text = |fact: &Value| fact["text"].as_str().unwrap().to_owned();
        let texts = listing["items"].as_array().unwrap().iter().map(text).collect();
        (texts, listing["next_cursor"].as_str().map(Into::into))
    }
}

fn is_rfc3339_millis(time: &Value) -> bool {
    let time = time.as_str().unwrap();
    time.len() == "2026-11-21T10:00:00.000Z".len() && time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok()
}

#[tokio::test]
async fn a_fact_is_created_read_replaced_and_deleted() {
    let app = App::new().await;

    let sent = json!({"text": "water is wet", "source": "a friend", "tags": ["b", "a", "b"]});
    let created = app.send("POST", "/facts", sent).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let fact = created.json();
    let path = format!("/facts/{}", fact["id"].as_str().unwrap());
    assert_eq!(created.header(header::LOCATION), path);
    assert_eq!(fact["text"], "water is wet");
    assert_eq!(fact["source"], "a friend");
    assert_eq!(fact["tags"], json!(["b", "a"]));
    assert!(is_rfc3339_millis(&fact["created_at"]), "{fact}");
    assert_eq!(fact["created_at"], fact["updated_at"]);
    assert_eq!(fact.as_object().unwrap().len(), 6);

    assert_eq!(app.get(&path).await.json(), fact);
    let head = app.ask("HEAD", &path, "", Body::empty()).await;
    assert_eq!((head.status, head.bytes.len()), (StatusCode::OK, 0));

    // `updated_at` counts in milliseconds, so repeat the request until a millisecond has passed.
    let replaced = loop {
        let replaced = app.send("PUT", &path, json!({"text": "water is not wet"})).await;
        assert_eq!(replaced.status, StatusCode::OK);
        if replaced.json()["updated_at"] != fact["updated_at"] {
            break replaced.json();
        }
    };
    assert_eq!(replaced["text"], "water is not wet");
    assert_eq!((&replaced["source"], &replaced["tags"]), (&Value::Null, &json!([])));
    assert_eq!((&replaced["id"], &replaced["created_at"]), (&fact["id"], &fact["created_at"]));
    assert!(replaced["updated_at"].as_str() > fact["updated_at"].as_str());
    assert_eq!(app.get(&path).await.json(), replaced);

    let deleted = app.ask("DELETE", &path, "", Body::empty()).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (StatusCode::NO_CONTENT, 0));
    for method in ["GET", "PUT", "DELETE"] {
        let gone = app.send(method, &path, json!({"text": "x"})).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND, "{method}");
        assert_eq!(gone.json()["type"], "not_found");
    }
}

#[tokio::test]
async fn text_is_counted_in_characters_and_kept_as_sent() {
    let app = App::new().await;
    for text in [&"é".repeat(2000), "x", " padded ", "nul \u{0} inside", "🦀"] {
        let fact = app.post(text, &[&"ü".repeat(64), "nul\u{0}a", "nul\u{0}b"]).await;
        assert_eq!(fact["text"], *text);
        assert_eq!(app.get(&format!("/facts/{}", fact["id"].as_str().unwrap())).await.json(), fact);
    }
}

#[tokio::test]
async fn each_mistake_has_its_status_and_names_its_field() {
    let app = App::start(ServiceSettings { debug: true, ..ServiceSettings::default() }).await;
    let json_type = "application/json";
    let long = |n| format!("{{\"text\": \"{}\"}}", "é".repeat(n));
    let tags = |tags: Value| json!({"text": "x", "tags": tags}).to_string();
    let long_tag = &format!("/facts?tag={}", "x".repeat(65));
    let cases: Vec<(&str, &str, &str, String, u16, &str, &str)> = vec![
        // The columns: method, path, content type, body, status, type, field.
        ("POST", "/facts", json_type, "".into(), 400, "bad_request", "body"),
        ("POST", "/facts", json_type, "{".into(), 400, "bad_request", "body"),
        ("POST", "/facts", json_type, "{\"text\": \"x\"} {}".into(), 400, "bad_request", "body"),
        ("POST", "/facts", json_type, "[1".into(), 400, "bad_request", "body"),
        ("POST", "/facts", json_type, "\"text\"".into(), 422, "validation_error", "body"),
        ("POST", "/facts", json_type, "[\"text\", null, []]".into(), 422, "validation_error", "body"),
        ("POST", "/facts", json_type, "{}".into(), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, "{\"text\": null}".into(), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, "{\"text\": 5}".into(), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, "{\"text\": \"\"}".into(), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, "{\"text\": \" \\n\"}".into(), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, long(2001), 422, "validation_error", "text"),
        ("POST", "/facts", json_type, "{\"text\": \"x\", \"txet\": 1}".into(), 422, "validation_error", "txet"),
        ("POST", "/facts", json_type, "{\"text\": \"x\", \"source\": []}".into(), 422, "validation_error", "source"),
        ("POST", "/facts", json_type, tags(json!("a")), 422, "validation_error", "tags"),
        ("POST", "/facts", json_type, tags(json!(["a", 5])), 422, "validation_error", "tags[1]"),
        ("POST", "/facts", json_type, tags(json!(["a", ""])), 422, "validation_error", "tags[1]"),
        ("POST", "/facts", json_type, tags(json!(["x".repeat(65)])), 422, "validation_error", "tags[0]"),
        ("POST", "/facts", json_type, tags(json!(vec!["a"; 17])), 422, "validation_error", "tags"),
        ("POST", "/facts", "text/plain", "{\"text\": \"x\"}".into(), 415, "unsupported_media_type", ""),
        ("POST", "/facts", "", "{\"text\": \"x\"}".into(), 415, "unsupported_media_type", ""),
        ("POST", "/facts", json_type, " ".repeat((16 << 20) + 1), 413, "payload_too_large", ""),
        ("POST", "/debug/echo", "", " ".repeat((16 << 20) + 1), 413, "payload_too_large", ""),
        ("PUT", "/facts/x", json_type, "{}".into(), 422, "validation_error", "text"),
        ("GET", "/facts/no-such-id", "", "".into(), 404, "not_found", ""),
        ("GET", "/facts/%FF", "", "".into(), 404, "not_found", ""),
        ("GET", "/facts?limit=0", "", "".into(), 422, "validation_error", "limit"),
        ("GET", "/facts?limit=101", "", "".into(), 422, "validation_error", "limit"),
        ("GET", "/facts?limit=-1", "", "".into(), 422, "validation_error", "limit"),
        ("GET", "/facts?limit=ten", "", "".into(), 422, "validation_error", "limit"),
        ("GET", "/facts?limit=", "", "".into(), 422, "validation_error", "limit"),
        ("GET", "/facts?tag=", "", "".into(), 422, "validation_error", "tag"),
        ("GET", "/facts?cursor=", "", "".into(), 400, "bad_request", "cursor"),
        ("GET", long_tag, "", "".into(), 422, "validation_error", "tag"),
        ("GET", "/facts?cursor=zzz", "", "".into(), 400, "bad_request", "cursor"),
        ("GET", "/nowhere", "", "".into(), 404, "not_found", ""),
        ("GET", "/debug/sleep/long", "", "".into(), 422, "validation_error", "ms"),
        ("GET", "/debug/sleep/%FF", "", "".into(), 422, "validation_error", "ms"),
        ("GET", "/debug/allocate/-1", "", "".into(), 422, "validation_error", "mib"),
        ("GET", "/debug/allocate/4294967295", "", "".into(), 422, "validation_error", "mib"),
    ];
    for (method, path, content_type, body, status, kind, field) in cases {
        let shown: String = body.chars().take(60).collect();
        let answer = app.ask(method, path, content_type, body).await;
        let error = answer.json();
        let case = format!("{method} {path} {shown} -> {} {error}", answer.status);
        assert_eq!(answer.status.as_u16(), status, "{case}");
        assert_eq!(answer.header(header::CONTENT_TYPE), "application/json", "{case}");
        assert_eq!(error["type"], kind, "{case}");
        assert!(error["error"].as_str().is_some_and(|sentence| sentence.contains(' ')), "{case}");
        let details = error["details"].as_array().unwrap();
        if field.is_empty() {
            assert!(details.is_empty(), "{case}");
        } else {
            assert_eq!(details[0]["field"], field, "{case}");
            assert!(details[0]["message"].as_str().is_some_and(|message| message.contains(' ')), "{case}");
        }
    }
}

#[tokio::test]
async fn every_mistake_is_named_at_once() {
    let app = App::new().await;
    let sent = json!({"source": "x".repeat(2001), "tags": ["", "ok", "y".repeat(65)]});
    let answer = app.send("POST", "/facts", sent).await.json();
    let fields: Vec<&str> =
        answer["details"].as_array().unwrap().iter().map(|detail| detail["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["text", "source", "tags[0]", "tags[2]"]);
}

#[tokio::test]
async fn other_content_types_of_json_are_accepted() {
    let app = App::new().await;
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.fact+json"] {
        let answer = app.ask("POST", "/facts", kind, "{\"text\": \"x\"}").await;
        assert_eq!(answer.status, StatusCode::CREATED, "{kind}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_allowed_ones() {
    let app = App::start(ServiceSettings { debug: true, ..ServiceSettings::default() }).await;
    for (method, path, allow) in [
        ("PATCH", "/facts", "GET,HEAD,POST"),
        ("POST", "/facts/x", "GET,HEAD,PUT,DELETE"),
        ("POST", "/health", "GET,HEAD"),
        ("DELETE", "/ready", "GET,HEAD"),
        ("GET", "/debug/echo", "POST"),
        ("POST", "/debug/connections", "GET,HEAD"),
    ] {
        let answer = app.ask(method, path, "", Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(answer.header(header::ALLOW), allow, "{method} {path}");
        assert_eq!(answer.json()["type"], "method_not_allowed");
    }
}

#[tokio::test]
async fn pages_do_not_shift_under_inserts_and_deletes() {
    let app = App::new().await;
    assert_eq!(app.texts("").await, (vec![], None));
    let mut facts = Vec::new();
    for i in 0..7 {
        facts.push(app.post(&format!("fact {i}"), &[]).await);
    }
    let (page, cursor) = app.texts("limit=3").await;
    assert_eq!(page, ["fact 6", "fact 5", "fact 4"]);
    let mut cursor = cursor.unwrap();

    app.post("newcomer", &[]).await;
    // Delete the fact to which the cursor points, and a fact of the next page.
    for gone in [&facts[4], &facts[2]] {
        let path = format!("/facts/{}", gone["id"].as_str().unwrap());
        assert_eq!(app.ask("DELETE", &path, "", Body::empty()).await.status, StatusCode::NO_CONTENT);
    }
    let mut rest = Vec::new();
    loop {
        let (page, next) = app.texts(&format!("limit=2&cursor={cursor}")).await;
        rest.extend(page);
        match next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!(rest, ["fact 3", "fact 1", "fact 0"]);
}

#[tokio::test]
async fn a_full_last_page_has_no_cursor() {
    let app = App::new().await;
    for i in 0..25 {
        app.post(&format!("fact {i}"), &[]).await;
    }
    let (page, next) = app.texts("other=1").await;
    assert_eq!(page.len(), 20);
    let (page, next) = app.texts(&format!("limit=5&cursor={}", next.unwrap())).await;
    assert_eq!((page.len(), next), (5, None));
    assert_eq!(app.texts("limit=100").await.0.len(), 25);
}

#[tokio::test]
async fn the_tag_filter_follows_replaces_and_deletes() {
    let app = App::new().await;
    let path = |fact: &Value| format!("/facts/{}", fact["id"].as_str().unwrap());
    let one = app.post("one", &["a", "b c"]).await;
    let two = app.post("two", &["a"]).await;
    app.post("three", &["b c"]).await;
    let (page, next) = app.texts("tag=a&limit=1").await;
    assert_eq!(page, ["two"]);
    assert_eq!(app.texts(&format!("tag=a&cursor={}", next.unwrap())).await, (vec!["one".into()], None));
    assert_eq!(app.texts("tag=b%20c").await.0, ["three", "one"]);

    app.send("PUT", &path(&one), json!({"text": "one", "tags": ["b c", "d"]})).await;
    assert_eq!(app.texts("tag=a").await.0, ["two"]);
    assert_eq!(app.texts("tag=d").await.0, ["one"]);
    app.ask("DELETE", &path(&two), "", Body::empty()).await;
    assert!(app.texts("tag=a").await.0.is_empty());
}

#[tokio::test]
async fn health_answers_whatever_the_store_does() {
    let app = App::new().await;
    app.store.close().await;
    for path in ["/health", "/health/live"] {
        let answer = app.get(path).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"status": "alive"})));
    }
}

#[tokio::test]
async fn ready_follows_the_store_and_the_stop() {
    for path in ["/ready", "/health/ready"] {
        let app = App::new().await;
        let answer = app.get(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json(), json!({"status": "ready", "checks": {"database": "ok"}}));
        app.signals.stop();
        let answer = app.get(path).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "draining"})));
        assert_eq!(app.get("/health").await.status, StatusCode::OK);

        let app = App::new().await;
        app.store.close().await;
        let answer = app.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json(), json!({"status": "degraded", "checks": {"database": "unavailable"}}));
    }
}

#[tokio::test]
async fn a_store_that_fails_is_a_503_that_may_be_retried() {
    let app = App::new().await;
    app.store.close().await;
    for (method, path) in [("GET", "/facts"), ("POST", "/facts"), ("GET", "/facts/x"), ("DELETE", "/facts/x")] {
        let answer = app.send(method, path, json!({"text": "x"})).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
        assert_eq!(answer.json()["type"], "unavailable");
        assert_eq!(answer.header(header::RETRY_AFTER), "1");
    }
}

#[tokio::test]
async fn connections_shows_this_worker() {
    let app = App::new().await;
    let answer = app.get("/debug/connections").await.json();
    assert_eq!(answer["pid"], std::process::id());
    assert_eq!((&answer["slot"], &answer["generation"]), (&json!(0), &json!(1)));
    assert!(answer["active_requests"].is_u64() && answer["connections"].is_u64(), "{answer}");
}

#[tokio::test]
async fn debug_routes_are_off_by_default() {
    let app = App::new().await;
    for path in ["sleep/1", "block/1", "abort", "allocate/1", "echo"] {
        for method in ["GET", "POST"] {
            let answer = app.ask(method, &format!("/debug/{path}"), "", Body::empty()).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
        }
    }
    let app = App::start(ServiceSettings { debug: true, ..ServiceSettings::default() }).await;
    assert_eq!(app.get("/debug/sleep/1").await.json(), json!({"slept_ms": 1}));
    assert_eq!(app.get("/debug/block/1").await.json(), json!({"blocked_ms": 1}));
    assert_eq!(app.get("/debug/allocate/2").await.json(), json!({"kept_mib": 2}));
    assert_eq!(app.get("/debug/allocate/1").await.json(), json!({"kept_mib": 3}));
}

#[tokio::test]
async fn echo_returns_a_body_above_axums_default_limit() {
    let app = App::start(ServiceSettings { debug: true, ..ServiceSettings::default() }).await;
    let body: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
    let answer = app.ask("POST", "/debug/echo", "image/x-noise", body.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header(header::CONTENT_TYPE), "image/x-noise");
    assert!(answer.bytes == body);
}

#[tokio::test]
async fn a_failed_build_names_the_key() {
    let impossible = ServiceSettings {
        store: StoreKind::Sqlite,
        sqlite_path: "/proc/nowhere/facts.db".into(),
        mongodb_uri: "mongodb://db".into(),
        ..ServiceSettings::default()
    };
    let error = build(WorkerContext::builder().table(impossible).build()).await.unwrap_err();
    assert!(error.to_string().contains("service.sqlite_path is gone: /proc/nowhere/facts.db"), "{error}");
}

#[tokio::test]
async fn the_lifespan_closes_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facts.db");
    fs::File::create_new(&path).unwrap();
    let settings = ServiceSettings { sqlite_path: path.clone(), ..ServiceSettings::default() };
    let lifespan = build(WorkerContext::builder().table(settings).build()).await.unwrap();
    let log = folder.path().join("facts.db-wal");
    assert!(log.exists());
    lifespan.shut_down().await;
    assert!(path.exists() && !log.exists());
}
