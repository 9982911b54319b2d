//! A trace in Chrome's event format, which Perfetto and chrome://tracing open.

use serde::Serialize;
use serde_json::{Value, json};

use super::lanes::lanes;
use crate::{Profile, TimedSpan};

/// The trace: steps, layers and operations as complete events of one thread, nested by time. The time between steps is left out.
pub fn trace(profile: &Profile) -> String {
    let mut events = vec![
        metadata("process_name", json!({ "name": format!("{}: phase {}", profile.device, profile.phase) })),
        metadata("thread_name", json!({ "name": profile.workload.text() })),
    ];
    let mut begin = 0;
    for (number, step) in profile.steps.iter().enumerate() {
        let last = step.spans.iter().map(|span| span.start + span.duration).fold(step.wall, f64::max);
        let at = |seconds: f64| nanoseconds(seconds).saturating_add(begin);
        events.push(complete(
            "step",
            format!("step {number}"),
            at(0.0),
            at(last),
            json!({ "wall_ms": step.wall * 1e3 }),
        ));
        for lane in lanes(step) {
            if let Some(layer) = lane.layer {
                events.push(complete(
                    "layer",
                    format!("layer {layer}"),
                    at(lane.start()),
                    at(lane.end()),
                    json!({ "layer": layer }),
                ));
            }
            events.extend(lane.spans.iter().map(|span| {
                complete(
                    "operation",
                    span.name.clone(),
                    at(span.start),
                    at(span.start + span.duration),
                    arguments(span),
                )
            }));
        }
        begin = at(last);
    }
    let Profile { model, device, machine, date, phase, .. } = profile;
    let origin = json!({
        "model": model, "device": device, "machine": machine, "date": date, "phase": phase,
        "workload": profile.workload.text(), "clock": profile.clock.text(),
    });
    json!({ "traceEvents": events, "displayTimeUnit": "ms", "otherData": origin }).to_string()
}

/// An event: complete (`X`), with times in microseconds, or metadata (`M`), without.
#[derive(Serialize)]
struct Event {
    name: String,
    ph: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    args: Value,
}

fn metadata(name: &str, args: Value) -> Event {
    Event { name: name.into(), ph: "M", cat: None, ts: None, dur: None, pid: 1, tid: 1, args }
}

/// A complete event from `start` to `end`, in nanoseconds.
fn complete(category: &'static str, name: String, start: u64, end: u64, args: Value) -> Event {
    let micro = |nano: u64| Some(nano as f64 / 1e3);
    let duration = end.saturating_sub(start);
    Event { name, ph: "X", cat: Some(category), ts: micro(start), dur: micro(duration), pid: 1, tid: 1, args }
}

/// Converts to nanoseconds. All times are rounded in the same way, so that nested events stay nested.
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn arguments(span: &TimedSpan) -> Value {
    let TimedSpan { layer, tokens, keys, bytes, operations, .. } = span;
    json!({ "layer": layer, "tokens": tokens, "keys": keys, "bytes": bytes, "operations": operations })
}
