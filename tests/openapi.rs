//! Promise: the reference service describes itself. `/openapi.json` lists every route and every answer. `/docs` shows
//! this document, and all files that the page needs are in the binary.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::common::{Connection, Launch, Response, get, request, root};
use serde_json::{Value, json};

fn ask(address: SocketAddr, method: &str, path: &str, kind: &str, body: &str) -> Response {
    let headers = [("Connection", "close"), ("Content-Type", kind)];
    let headers = if kind.is_empty() { &headers[..1] } else { &headers[..] };
    Connection::open(address)
        .and_then(|mut connection| connection.ask(&request(method, path, headers, body.as_bytes())))
        .unwrap_or_else(|failure| panic!("{method} {path}: {failure}"))
}

fn document(address: SocketAddr) -> Value {
    let answer = get(address, "/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

/// Returns every operation in the document, as `GET /path`.
fn operations(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, item): (&String, &Value)| {
        let methods: Vec<_> = item.as_object().expect("a path item").keys().cloned().collect();
        methods.into_iter().map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

/// Adds to `found` the value of every member called `name` in `value`, at any depth.
fn all<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(name));
            members.values().for_each(|inner| all(inner, name, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| all(inner, name, found)),
        _ => {}
    }
}

const ALWAYS: [&str; 12] = [
    "DELETE /facts/{id}",
    "GET /debug/connections",
    "GET /docs",
    "GET /facts",
    "GET /facts/{id}",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /openapi.json",
    "GET /ready",
    "POST /facts",
    "PUT /facts/{id}",
];

const DEBUG: [&str; 5] = [
    "GET /debug/abort",
    "GET /debug/allocate/{mib}",
    "GET /debug/block/{ms}",
    "GET /debug/sleep/{ms}",
    "POST /debug/echo",
];

#[test]
fn the_document_has_every_route_and_every_reference_leads_somewhere() {
    let supervisor = Launch::new().serving(2);
    let debugging = document(supervisor.address());
    let supervisor = Launch::new().set("service.debug", "false").serving(2);
    let document = document(supervisor.address());
    let names = |routes: &[&str]| routes.iter().map(|&route| route.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(operations(&document), names(&ALWAYS));
    assert_eq!(operations(&debugging), names(&[&ALWAYS[..], &DEBUG[..]].concat()));

    for document in [&document, &debugging] {
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")), "{document}");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(document["components"]["securitySchemes"]["bearer"], json!({"type": "http", "scheme": "bearer"}));

        let mut references = Vec::new();
        all(document, "$ref", &mut references);
        assert!(references.len() > 10);
        for reference in references {
            let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).expect("a place in the document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        let mut ids = Vec::new();
        all(&document["paths"], "operationId", &mut ids);
        let linked = ids.iter().map(|id| id.as_str().expect("a name")).collect::<BTreeSet<_>>();
        assert_eq!(linked.len(), operations(document).len(), "each operation has its name, and the links use no other");

        let known: Vec<_> = document["tags"].as_array().expect("tags").iter().map(|tag| &tag["name"]).collect();
        for item in document["paths"].as_object().expect("paths").values() {
            for operation in item.as_object().expect("operations").values() {
                assert!(operation["summary"].as_str().is_some_and(|summary| summary.len() > 3), "{operation}");
                assert!(known.contains(&&operation["tags"][0]), "{operation}");
            }
        }
    }
}

/// Checks the answer's status and headers against the document. Returns the schema that the document announces for the
/// answer's body.
#[track_caller]
fn announced<'a>(document: &'a Value, template: &str, method: &str, answer: &Response) -> &'a Value {
    let operation = &document["paths"][template][method.to_lowercase()];
    let response = &operation["responses"][answer.status.to_string()];
    let case = format!("{method} {template} -> {} {}", answer.status, answer.text());
    assert!(response.is_object(), "the document does not announce {case}");
    for name in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
        assert!(answer.header(name).is_some(), "the document announces the header {name} of {case}");
    }
    let kind = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
    let Some(content) = response["content"].as_object() else {
        assert!(answer.body.is_empty(), "the document announces no body for {case}");
        return &Value::Null;
    };
    let schema = &content.get(kind).unwrap_or_else(|| panic!("the document announces no {kind} for {case}"))["schema"];
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("checked above"),
        None => schema,
    }
}

#[test]
fn the_document_announces_every_answer() {
    let supervisor = Launch::new().set("http.limit_request_body", "100").set("service.debug", "false").serving(2);
    let address = supervisor.address();
    let document = document(address);
    let made = ask(address, "POST", "/facts", "application/json", r#"{"text": "one"}"#).json();
    let fact = format!("/facts/{}", made["id"].as_str().expect("an id"));
    let (list, one, long) = ("/facts", "/facts/{id}", format!(r#"{{"text": "{}"}}"#, "x".repeat(100)));
    let json_type = "application/json";
    let cases = [
        ("GET", "/health", "/health", "", "", 200),
        ("GET", "/health/live", "/health/live", "", "", 200),
        ("GET", "/ready", "/ready", "", "", 200),
        ("GET", "/health/ready", "/health/ready", "", "", 200),
        ("GET", "/debug/connections", "/debug/connections", "", "", 200),
        ("GET", "/openapi.json", "/openapi.json", "", "", 200),
        ("GET", "/docs", "/docs", "", "", 200),
        ("POST", list, list, json_type, r#"{"text": "two", "source": null, "tags": ["a"]}"#, 201),
        ("POST", list, list, json_type, "{", 400),
        ("POST", list, list, json_type, r#"{"text": 5}"#, 422),
        ("POST", list, list, json_type, r#"{"text": "x", "other": 5}"#, 422),
        ("POST", list, list, "text/plain", "x", 415),
        ("POST", list, list, json_type, &long, 413),
        ("GET", list, list, "", "", 200),
        ("GET", "/facts?limit=1&tag=a", list, "", "", 200),
        ("GET", "/facts?limit=0", list, "", "", 422),
        ("GET", "/facts?cursor=x", list, "", "", 400),
        ("GET", &fact, one, "", "", 200),
        ("GET", "/facts/x", one, "", "", 404),
        ("PUT", &fact, one, json_type, r#"{"text": "three"}"#, 200),
        ("PUT", &fact, one, json_type, "[", 400),
        ("PUT", &fact, one, json_type, "[]", 422),
        ("PUT", &fact, one, "", "x", 415),
        ("PUT", &fact, one, json_type, &long, 413),
        ("PUT", "/facts/x", one, json_type, r#"{"text": "three"}"#, 404),
        ("DELETE", &fact, one, "", "", 204),
        ("DELETE", &fact, one, "", "", 404),
    ];
    for (method, path, template, kind, body, status) in cases {
        let answer = ask(address, method, path, kind, body);
        assert_eq!(answer.status, status, "{method} {path} {body} -> {}", answer.text());
        let schema = announced(&document, template, method, &answer);
        let wanted: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if status >= 400 {
            assert_eq!(wanted, ["error", "type", "details"], "{method} {path}");
        }
        for name in wanted {
            assert!(answer.json().get(name).is_some(), "{method} {path}: no {name} in {}", answer.text());
        }
    }
}

#[test]
fn docs_come_from_the_binary_under_a_strict_policy() {
    let supervisor = Launch::new().serving(2);
    let address = supervisor.address();
    let page = get(address, "/docs");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    let html = page.text();
    assert!(!html.contains("//"), "the page names no other host: {html}");
    assert!(!html.contains("<script>") && !html.contains("<style"), "nothing inline: {html}");

    let sources: Vec<_> = ["src=\"", "href=\""]
        .iter()
        .flat_map(|mark| html.split(mark).skip(1).filter_map(|rest| rest.split('"').next()))
        .collect();
    assert_eq!(sources.len(), 6, "{sources:?}");
    for source in sources {
        let file = get(address, &format!("/{source}"));
        assert_eq!(file.status, 200, "{source}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        let kind = file.header("content-type").expect("nosniff wants a type");
        let wanted = match source.rsplit('.').next() {
            Some("js") => "text/javascript",
            Some("css") => "text/css",
            _ => "image/png",
        };
        assert_eq!(kind, wanted, "{source}");
    }
    let start = get(address, "/docs/swagger-initializer.js").text();
    assert!(start.contains("/openapi.json") && !start.contains("://"), "{start}");
    for path in ["/docs/absent.js", "/docs/index.html", "/docs/%FF"] {
        let absent = get(address, path);
        assert_eq!((absent.status, &absent.json()["type"]), (404, &json!("not_found")), "{path}");
    }
}

#[test]
fn without_the_docs_setting_there_are_no_docs() {
    let supervisor = Launch::new().set("service.docs", "false").serving(2);
    for path in ["/docs", "/docs/swagger-ui.css", "/openapi.json"] {
        let answer = get(supervisor.address(), path);
        assert_eq!((answer.status, &answer.json()["type"]), (404, &json!("not_found")), "{path}");
    }
}

#[test]
fn every_answer_carries_the_security_headers() {
    let supervisor = Launch::new().serving(2);
    for path in ["/health", "/facts", "/facts/x", "/nowhere", "/docs", "/openapi.json"] {
        let answer = get(supervisor.address(), path);
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY")]
        {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "CORS is off unless set");
    }
}

/// The field `type` of an error can have several values. The reference page and the document must each list all these
/// values.
#[test]
fn the_reference_lists_every_type_of_error() {
    let supervisor = Launch::new().serving(2);
    let document = document(supervisor.address());
    let types = document["components"]["schemas"]["ErrorType"]["enum"].as_array().expect("an enum");
    let page = root().join("docs/reference/reference-service.md");
    let page = std::fs::read_to_string(page).expect("the page of the reference service");
    let rows: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(types.len() > 5);
    for name in types {
        assert!(rows.contains(name.as_str().expect("a name")), "{name} is in no table of the page");
    }
}
