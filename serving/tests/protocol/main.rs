//! Protocol cases: requests of OpenAI clients, and rules for the responses that hold for any model.
//!
//! The cases are in `cases.json`, which documents its format at the top. `PROTOCOL_CASES=F.json` runs another file, and `PROTOCOL_ONLY=ID`
//! only the cases whose id begins with `ID`.

mod check;
#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;
mod run;
#[path = "../schema/mod.rs"]
mod schema;
mod stream;

use std::collections::BTreeMap;
use std::path::Path;

use http::Running;
use run::{KEY, Verdict};
use serde_json::Value;
use serving::api::{Key, Settings};
use serving::worker::Options;

#[test]
fn protocol_cases_pass() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocol/cases.json");
    let other = std::env::var_os("PROTOCOL_CASES");
    let file = other.clone().map_or(own, Into::into);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let cases: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let only = std::env::var("PROTOCOL_ONLY").unwrap_or_default();

    let open = Running::start(Settings::default(), Options::default());
    let keys = vec![Key { name: "ada".into(), secret: KEY.into() }];
    let closed = Running::start(Settings { keys, ..Settings::default() }, Options::default());
    let (mut passed, mut skipped, mut failed) = (0, Vec::new(), BTreeMap::new());
    for case in cases["cases"].as_array().expect("cases") {
        let id = case["id"].as_str().expect("an id").to_owned();
        if !id.starts_with(&only) {
            continue;
        }
        let needs_key = case["tags"].as_array().is_some_and(|tags| tags.contains(&"needs_key".into()));
        match run::run(if needs_key { &closed } else { &open }, case) {
            Verdict::Passed => passed += 1,
            Verdict::Skipped(why) => skipped.push(format!("{id}: {why}")),
            Verdict::Failed(faults) => drop(failed.insert(id, faults)),
        }
    }
    println!("{passed} passed, {} failed, {} skipped: {skipped:#?}", failed.len(), skipped.len());
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(passed > 0, "no case was run");
    // A case is skipped if the model's text is too short for it. No case of our own file may be
    // skipped: it would test nothing.
    assert!(other.is_some() || skipped.is_empty(), "{skipped:#?}");
}
