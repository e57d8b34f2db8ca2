//! Promise: `/facts` behaves the same with every store.

use std::time::SystemTime;

use crate::common::{Connection, Launch, Mongod, Response, Supervisor, json_request, request};
use serde_json::{Value, json};

#[test]
fn facts_on_sqlite_keep_every_promise() {
    every_promise(Launch::new().serving(2));
}

#[test]
fn facts_on_mongodb_keep_every_promise() {
    let mongod = Mongod::start();
    let launch = Launch::new().env("MONGODB_URI", &mongod.uri());
    let migrated = launch.run_with(&["migrate"]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let supervisor = launch.serving(2);
    every_promise(supervisor);
}

fn every_promise(mut supervisor: Supervisor) {
    let service = Service(&supervisor);
    a_fact_is_created_read_replaced_and_deleted(&service);
    everything_is_stored_as_it_was_sent(&service);
    pages_do_not_shift_under_inserts_and_deletes(&service);
    the_tag_filter_follows_replaces_and_deletes(&service);
    impossible_requests_are_refused(&service);
    supervisor.stop();
}

struct Service<'a>(&'a Supervisor);

impl Service<'_> {
    fn ask(&self, request: &[u8]) -> Response {
        let answer = Connection::open(self.0.address()).and_then(|mut connection| connection.ask(request));
        answer.unwrap_or_else(|failure| panic!("{failure}: {}", String::from_utf8_lossy(request)))
    }

    #[track_caller]
    fn send(&self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let answer = self.ask(&json_request(method, path, body));
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    #[track_caller]
    fn get(&self, path: &str, status: u16) -> Value {
        let answer = self.ask(&request("GET", path, &[("Connection", "close")], b""));
        assert_eq!(answer.status, status, "GET {path}: {}", answer.text());
        answer.json()
    }

    /// Posts a fact, waits until the millisecond in which the fact was created is over, and returns the fact. Without
    /// the wait, two workers could create facts in one millisecond, and the ids of these facts would have no order.
    #[track_caller]
    fn post(&self, text: &str, tags: &[&str]) -> Value {
        let fact = self.send("POST", "/facts", &json!({"text": text, "tags": tags}), 201);
        while now() <= millis(&fact["created_at"]) {
            std::hint::spin_loop();
        }
        fact
    }

    #[track_caller]
    fn texts(&self, query: &str) -> (Vec<String>, Option<String>) {
        let listing = self.get(&format!("/facts?{query}"), 200);
        let items = listing["items"].as_array().expect("items");
        let texts = items.iter().map(|fact| fact["text"].as_str().expect("a text").to_owned()).collect();
        (texts, listing["next_cursor"].as_str().map(str::to_owned))
    }
}

fn path(fact: &Value) -> String {
    format!("/facts/{}", fact["id"].as_str().expect("an id"))
}

/// Returns the milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// Reads a time in the form `2026-11-21T10:00:00.000Z`, and panics at any other form.
fn millis(time: &Value) -> i64 {
    let text = time.as_str().expect("a time is a string");
    assert!(text.len() == 24 && text.ends_with('Z'), "{text} has three decimals and is UTC");
    text.parse::<jiff::Timestamp>().expect("RFC 3339").as_millisecond()
}

fn a_fact_is_created_read_replaced_and_deleted(service: &Service<'_>) {
    let before = now();
    let sent = json!({"text": "water is wet", "source": "a friend", "tags": ["b", "a", "b"]});
    let answer = service.ask(&json_request("POST", "/facts", &sent));
    let fact = answer.json();
    assert_eq!((answer.status, answer.header("location")), (201, Some(path(&fact).as_str())));
    let id = fact["id"].as_str().expect("an id");
    let created = millis(&fact["created_at"]);
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "{id} is a version 7 UUID");
    let in_id = i64::from_str_radix(&id.replace('-', "")[..12], 16).expect("hexadecimal");
    assert_eq!(in_id, created, "the id's time is the fact's");
    assert!((before..before + 60_000).contains(&created), "{created} is now");
    let wanted = json!({"id": id, "text": "water is wet", "source": "a friend", "tags": ["b", "a"],
        "created_at": fact["created_at"], "updated_at": fact["created_at"]});
    assert_eq!(fact, wanted);
    assert_eq!(service.get(&path(&fact), 200), fact);

    // `updated_at` counts whole milliseconds. The loop repeats the change until it happens in a later millisecond than
    // the creation.
    let replaced = loop {
        let replaced = service.send("PUT", &path(&fact), &json!({"text": "not wet"}), 200);
        if replaced["updated_at"] != fact["updated_at"] {
            break replaced;
        }
    };
    let wanted = json!({"id": id, "text": "not wet", "source": null, "tags": [],
        "created_at": fact["created_at"], "updated_at": replaced["updated_at"]});
    assert_eq!(replaced, wanted);
    assert!(millis(&replaced["updated_at"]) > created);
    assert_eq!(service.get(&path(&fact), 200), replaced);

    service.send("DELETE", &path(&fact), &Value::Null, 204);
    service.get(&path(&fact), 404);
    service.send("PUT", &path(&fact), &json!({"text": "gone"}), 404);
    service.send("DELETE", &path(&fact), &Value::Null, 404);
}

fn everything_is_stored_as_it_was_sent(service: &Service<'_>) {
    let (long, tag) = ("é".repeat(2000), "ü".repeat(64));
    for text in [long.as_str(), "x", " padded ", "nul \u{0} inside", "🦀", "$where", "{\"$gt\": \"\"}"] {
        let fact = service.post(text, &[&tag, "nul\u{0}a", "nul\u{0}b", "$set", "a.b"]);
        assert_eq!(fact["text"], text);
        assert_eq!(service.get(&path(&fact), 200), fact);
        service.send("DELETE", &path(&fact), &Value::Null, 204);
    }
}

fn pages_do_not_shift_under_inserts_and_deletes(service: &Service<'_>) {
    assert_eq!(service.texts(""), (vec![], None));
    let facts: Vec<_> = (0..7).map(|number| service.post(&format!("fact {number}"), &[])).collect();
    let (page, cursor) = service.texts("limit=3");
    assert_eq!(page, ["fact 6", "fact 5", "fact 4"]);
    service.post("newcomer", &[]);
    // Deletes the fact that the cursor points to, and one fact of the next page.
    for gone in [&facts[4], &facts[2]] {
        service.send("DELETE", &path(gone), &Value::Null, 204);
    }
    let (mut rest, mut cursor) = (Vec::new(), cursor);
    while let Some(before) = cursor {
        let (page, next) = service.texts(&format!("limit=2&cursor={before}"));
        rest.extend(page);
        cursor = next;
    }
    assert_eq!(rest, ["fact 3", "fact 1", "fact 0"]);
    let (page, next) = service.texts("limit=6");
    assert_eq!((page.len(), next), (6, None), "a full last page promises no further one");

    for number in 0..100 {
        service.post(&format!("many {number}"), &[]);
    }
    let (page, next) = service.texts("limit=100");
    assert_eq!((page.len(), page[99].as_str()), (100, "many 0"), "the longest page there is");
    let (page, next) = service.texts(&format!("limit=100&cursor={}", next.expect("there are older ones")));
    assert_eq!((page.len(), page[0].as_str(), next), (6, "newcomer", None));
    assert_eq!(service.texts("").0.len(), 20, "the default length of a page");
}

fn the_tag_filter_follows_replaces_and_deletes(service: &Service<'_>) {
    let one = service.post("one", &["a", "b c"]);
    let two = service.post("two", &["a"]);
    service.post("three", &["b c"]);
    let (page, next) = service.texts("tag=a&limit=1");
    assert_eq!(page, ["two"]);
    assert_eq!(service.texts(&format!("tag=a&cursor={}", next.expect("one more"))), (vec!["one".into()], None));
    assert_eq!(service.texts("tag=b%20c").0, ["three", "one"]);
    assert!(service.texts("tag=none").0.is_empty());

    service.send("PUT", &path(&one), &json!({"text": "one", "tags": ["b c", "d"]}), 200);
    assert_eq!(service.texts("tag=a").0, ["two"]);
    assert_eq!(service.texts("tag=d").0, ["one"]);
    service.send("DELETE", &path(&two), &Value::Null, 204);
    assert!(service.texts("tag=a").0.is_empty());
}

fn impossible_requests_are_refused(service: &Service<'_>) {
    let refused = |answer: Value, kind: &str| {
        assert_eq!(answer["type"], kind, "{answer}");
        assert!(answer["error"].as_str().is_some_and(|sentence| sentence.contains(' ')), "{answer}");
    };
    refused(service.get("/facts/no-such-id", 404), "not_found");
    refused(service.get("/facts?cursor=zzz", 400), "bad_request");
    let invalid = service.send("POST", "/facts", &json!({"tags": [""]}), 422);
    refused(invalid.clone(), "validation_error");
    let fields: Vec<_> =
        invalid["details"].as_array().expect("details").iter().map(|detail| &detail["field"]).collect();
    assert_eq!(fields, ["text", "tags[0]"]);
}
