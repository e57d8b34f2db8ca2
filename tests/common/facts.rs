//! Compares the facts that were confirmed to clients with the facts that the service holds.

use std::collections::BTreeMap;

use super::{Connection, harness::Supervisor};

/// Asserts that the service stores each confirmed fact, answered with 201, exactly once. Each other stored fact must
/// belong to one of the `lost` requests, which got no answer. `accepted` maps ids to texts; each text occurs only once.
#[track_caller]
pub fn assert_each_stored_once(supervisor: &Supervisor, accepted: &BTreeMap<String, String>, lost: usize) {
    let stored = everything(supervisor);
    for (id, text) in accepted {
        assert_eq!(stored.get(id), Some(text), "an answered fact is stored");
    }
    assert!(stored.len() <= accepted.len() + lost, "only what was answered, or lost its answer, is stored");
    let mut texts: Vec<_> = stored.values().collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), stored.len(), "no text is stored twice");
}

/// Reads all facts that the service holds, page by page, and returns their texts by id.
fn everything(supervisor: &Supervisor) -> BTreeMap<String, String> {
    let mut stored = BTreeMap::new();
    let mut connection = Connection::open(supervisor.address()).expect("a connection");
    let mut path = "/facts?limit=100".to_owned();
    loop {
        let page = connection.get(&path).expect("a page").json();
        for fact in page["items"].as_array().expect("items") {
            let (id, text) = (fact["id"].as_str().expect("an id"), fact["text"].as_str().expect("a text"));
            assert!(stored.insert(id.to_owned(), text.to_owned()).is_none(), "{id} is listed twice");
        }
        let Some(cursor) = page["next_cursor"].as_str() else { return stored };
        path = format!("/facts?limit=100&cursor={cursor}");
    }
}
