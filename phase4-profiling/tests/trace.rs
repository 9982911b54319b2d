//! Parses the trace with a parser that accepts nothing but Chrome's trace event format.

mod sample;

use std::collections::{BTreeMap, BTreeSet};

use phase4_profiling::Profile;
use phase4_profiling::report::trace;
use serde::Deserialize;
use serde_json::Value;

/// The object form of the format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Trace {
    trace_events: Vec<Event>,
    display_time_unit: Unit,
    #[allow(dead_code)]
    other_data: BTreeMap<String, Value>,
}

#[derive(Deserialize, PartialEq, Debug)]
enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// The two kinds of events that are written, with every required field and no unknown one.
#[derive(Deserialize)]
#[serde(tag = "ph", deny_unknown_fields)]
enum Event {
    X { name: String, cat: String, ts: f64, dur: f64, pid: u64, tid: u64, args: BTreeMap<String, Value> },
    M { name: String, pid: u64, tid: u64, args: BTreeMap<String, Value> },
}

/// A complete event, in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
struct Complete {
    name: String,
    category: String,
    start: u64,
    end: u64,
    arguments: BTreeMap<String, Value>,
}

fn parse(text: &str) -> Vec<Complete> {
    let trace: Trace = serde_json::from_str(text).expect("Chrome's trace format");
    assert_eq!(trace.display_time_unit, Unit::Milliseconds);
    let (mut complete, mut named, mut threads) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for event in trace.trace_events {
        match event {
            Event::X { name, cat, ts, dur, pid, tid, args } => {
                assert!(ts >= 0.0 && dur >= 0.0, "{name} lasts {dur} from {ts}");
                threads.insert((pid, tid));
                let nano = |micro: f64| (micro * 1e3).round() as u64;
                complete.push(Complete {
                    name,
                    category: cat,
                    start: nano(ts),
                    end: nano(ts) + nano(dur),
                    arguments: args,
                });
            }
            Event::M { name, pid, tid, args } => {
                assert!(args["name"].is_string(), "{name} gives no name");
                assert!(
                    ["process_name", "thread_name"].contains(&name.as_str()),
                    "{name} is no metadata of the format"
                );
                named.insert((name, pid, tid));
            }
        }
    }
    assert_eq!(threads.len(), 1, "the events of a profile nest, so they are of one thread");
    for (pid, tid) in threads {
        assert!(
            named.contains(&("process_name".into(), pid, tid)) && named.contains(&("thread_name".into(), pid, tid))
        );
    }
    complete
}

/// Every event with the events that contain it, the outermost first. Overlapping events that are not nested are refused, because viewers
/// draw them wrongly.
fn nested(mut events: Vec<Complete>) -> Vec<(Complete, Vec<Complete>)> {
    let depth = |category: &str| {
        ["step", "layer", "operation"].iter().position(|known| *known == category).expect("a category")
    };
    events.sort_by_key(|event| (event.start, std::cmp::Reverse(event.end), depth(&event.category)));
    let (mut around, mut nested): (Vec<Complete>, Vec<(Complete, Vec<Complete>)>) = (Vec::new(), Vec::new());
    for event in events {
        while around.last().is_some_and(|outer| outer.end <= event.start) {
            around.pop();
        }
        if let Some(outer) = around.last() {
            assert!(event.end <= outer.end, "{event:?} ends after {outer:?}");
        }
        nested.push((event.clone(), around.clone()));
        around.push(event);
    }
    nested
}

fn check(profile: &Profile) {
    let events = parse(&trace(profile));
    let spans = || {
        profile.steps.iter().enumerate().flat_map(|(number, step)| step.spans.iter().map(move |span| (number, span)))
    };
    let layers: BTreeSet<(usize, usize)> = spans().filter_map(|(number, span)| Some((number, span.layer?))).collect();
    assert_eq!(events.len(), profile.steps.len() + layers.len() + spans().count());

    let nested = nested(events);
    let operations: Vec<_> = nested.iter().filter(|(event, _)| event.category == "operation").collect();
    assert_eq!(operations.len(), spans().count());
    for ((event, around), (number, span)) in operations.into_iter().zip(spans()) {
        assert_eq!(event.name, span.name);
        assert_eq!(around[0].name, format!("step {number}"));
        assert!((event.end - event.start).abs_diff((span.duration * 1e9) as u64) <= 2, "{event:?} is not {span:?}");
        for (key, value) in [
            ("bytes", span.bytes),
            ("operations", span.operations),
            ("tokens", span.tokens as u64),
            ("keys", span.keys as u64),
        ] {
            assert_eq!(event.arguments[key], value, "{key} of {event:?}");
        }
        match span.layer {
            Some(layer) => assert_eq!((around.len(), &around[1].name), (2, &format!("layer {layer}"))),
            None => assert!(around.len() <= 2),
        }
    }
    let steps = nested.iter().filter(|(event, _)| event.category == "step");
    for ((event, around), step) in steps.zip(&profile.steps) {
        assert!(around.is_empty(), "{event:?} is inside {around:?}");
        assert!((event.end - event.start).abs_diff((step.wall * 1e9) as u64) <= 2, "{event:?} takes {} s", step.wall);
    }
}

#[test]
fn trace_nests_operations_in_layers_in_steps() {
    for profile in [sample::decode(1024, 3), sample::gpu(1024, 3), sample::prefill(128)] {
        check(&profile);
    }
}

#[test]
#[should_panic(expected = "ends after")]
fn overlapping_events_fail_the_nesting_check() {
    let event = |start, end| Complete {
        name: "a".into(),
        category: "operation".into(),
        start,
        end,
        arguments: BTreeMap::new(),
    };
    nested(vec![event(0, 10), event(5, 15)]);
}
