//! Formatting of numbers and names for terminals and pages.

use crate::{Clock, Profile, Workload};

/// Printed in place of a value that is missing or not finite.
pub const NONE: &str = "-";

pub fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { NONE.into() }
}

/// Three significant digits, but at most three decimals, and no rounding before the decimal point: `0.042`, `4.20`, `42.0`, `420`, `4200`.
pub fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    fixed(value, decimals)
}

/// Number of decimals with which `seconds`, printed in milliseconds, has five significant digits; at most six decimals.
pub fn decimals(seconds: f64) -> usize {
    let digits = 4.0 - (seconds * 1e3).log10().floor();
    if digits.is_finite() { digits.clamp(0.0, 6.0) as usize } else { 3 }
}

pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { NONE.into() }
}

/// A name from an untrusted file on one line, without control characters and the characters that XML forbids.
pub fn plain(name: &str) -> String {
    let harmless = |c: char| if c.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&c) { '\u{fffd}' } else { c };
    name.chars().map(harmless).collect()
}

/// Formats rows of equal length as lines: the first column left-aligned, the others right-aligned.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

impl Workload {
    /// `decode at depth 1024`, `prefill of 128 tokens`.
    pub(super) fn text(self) -> String {
        match self {
            Workload::Decode { depth, sequences: 1 } => format!("decode at depth {depth}"),
            Workload::Decode { depth, sequences } => format!("decode of {sequences} sequences at depth {depth}"),
            Workload::Prefill { tokens } => format!("prefill of {tokens} tokens"),
        }
    }

    /// New tokens of a step.
    pub(super) fn tokens(self) -> usize {
        match self {
            Workload::Decode { sequences, .. } => sequences,
            Workload::Prefill { tokens } => tokens,
        }
    }
}

impl Clock {
    pub(super) fn text(self) -> &'static str {
        match self {
            Clock::Host => "the host's clock",
            Clock::DeviceTimestamps => "the device's timestamps",
            Clock::Synchronized => "the host's clock, the device drained after each operation",
        }
    }
}

impl Profile {
    /// Device and machine, such as `cpu on AMD EPYC`: the device alone is called `cpu` on every machine.
    pub(super) fn device_label(&self) -> String {
        format!("{} on {}", plain(&self.device), plain(&self.machine))
    }
}
