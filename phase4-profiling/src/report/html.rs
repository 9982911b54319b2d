//! The profile as one self-contained HTML page: the data, and a script that draws it.

use serde::Serialize;

use super::lanes::lanes;
use super::table::diagnoses;
use crate::{Ceiling, Profile, Row, TimedSpan, TimedStep};

const PAGE: &str = include_str!("page.html");
/// The placeholder in the page, which the data replaces.
const DATA: &str = "PROFILE_DATA";

/// A page with the table, a timeline of each step's layers and the roofline.
pub fn html(profile: &Profile) -> String {
    let data = Data {
        model: &profile.model,
        device: &profile.device,
        machine: &profile.machine,
        date: &profile.date,
        phase: profile.phase,
        workload: profile.workload.text(),
        tokens: profile.workload.tokens(),
        clock: profile.clock.text(),
        ceiling: &profile.ceiling,
        wall: profile.wall(),
        unattributed: profile.unattributed(),
        diagnoses: diagnoses(profile),
        rows: profile.rows(),
        steps: profile.steps.iter().map(|step| DrawnStep::of(step, &profile.ceiling)).collect(),
    };
    // In JSON `<` occurs only in strings, where the escape means the same. With it, no name can end the script element.
    let json = serde_json::to_string(&data).expect("strings and numbers serialize").replace('<', "\\u003c");
    let (head, tail) = PAGE.split_once(DATA).expect("the page has a place for its data");
    [head, &json, tail].concat()
}

/// The data that the page's script reads. Times are in seconds.
#[derive(Serialize)]
struct Data<'a> {
    model: &'a str,
    device: &'a str,
    machine: &'a str,
    date: &'a str,
    phase: u8,
    workload: String,
    /// New tokens per step.
    tokens: usize,
    clock: &'static str,
    ceiling: &'a Ceiling,
    wall: f64,
    unattributed: f64,
    diagnoses: Vec<String>,
    rows: Vec<Row>,
    steps: Vec<DrawnStep<'a>>,
}

#[derive(Serialize)]
struct DrawnStep<'a> {
    wall: f64,
    lanes: Vec<DrawnLane<'a>>,
}

#[derive(Serialize)]
struct DrawnLane<'a> {
    layer: Option<usize>,
    start: f64,
    end: f64,
    spans: Vec<DrawnSpan<'a>>,
}

#[derive(Serialize)]
struct DrawnSpan<'a> {
    #[serde(flatten)]
    span: &'a TimedSpan,
    floor: f64,
}

impl<'a> DrawnStep<'a> {
    fn of(step: &'a TimedStep, ceiling: &Ceiling) -> DrawnStep<'a> {
        let lanes = lanes(step).into_iter().map(|lane| DrawnLane {
            layer: lane.layer,
            start: lane.start(),
            end: lane.end(),
            spans: lane.spans.iter().map(|span| DrawnSpan { span, floor: span.floor(ceiling) }).collect(),
        });
        DrawnStep { wall: step.wall, lanes: lanes.collect() }
    }
}
