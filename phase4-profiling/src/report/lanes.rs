//! Groups the spans of a step: those of each layer, and those before, between and after layers.

use crate::{LAUNCH, READBACK, TimedSpan, TimedStep};

/// Consecutive spans of one layer, or of none.
pub struct Lane<'a> {
    pub layer: Option<usize>,
    pub spans: &'a [TimedSpan],
}

impl Lane<'_> {
    /// Start, in seconds from the beginning of the step.
    pub fn start(&self) -> f64 {
        self.spans.iter().map(|span| span.start).fold(f64::INFINITY, f64::min)
    }

    /// End, in seconds from the beginning of the step.
    pub fn end(&self) -> f64 {
        self.spans.iter().map(|span| span.start + span.duration).fold(0.0, f64::max)
    }
}

/// Whether a span of this name is time in which no operation ran.
pub fn is_overhead(name: &str) -> bool {
    name == LAUNCH || name == READBACK
}

/// Splits a step's spans where the layer changes. Overhead is assigned to the operation after it; at the end of a step, to the last one.
pub fn lanes(step: &TimedStep) -> Vec<Lane<'_>> {
    let mut starts: Vec<(Option<usize>, usize)> = Vec::new();
    let mut after_operation = 0;
    for (index, span) in step.spans.iter().enumerate().filter(|(_, span)| !is_overhead(&span.name)) {
        if starts.last().is_none_or(|&(layer, _)| layer != span.layer) {
            starts.push((span.layer, after_operation));
        }
        after_operation = index + 1;
    }
    if starts.is_empty() && !step.spans.is_empty() {
        starts.push((None, 0));
    }
    let ends = starts.iter().skip(1).map(|&(_, start)| start).chain([step.spans.len()]);
    starts.iter().zip(ends).map(|(&(layer, start), end)| Lane { layer, spans: &step.spans[start..end] }).collect()
}
