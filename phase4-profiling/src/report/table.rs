//! The table for a terminal, with the largest bottlenecks.

use super::lanes::is_overhead;
use super::text::{NONE, columns, decimals, fixed, percent, plain, significant};
use crate::profile::percentile;
use crate::{Bound, Ceiling, LAUNCH, Profile, READBACK, Row};

/// Number of bottlenecks that are listed.
const MAX_BOTTLENECKS: usize = 3;

/// A table of the operations, slowest first, followed by time outside operations and the whole step; below it, the largest bottlenecks.
pub fn table(profile: &Profile) -> String {
    let head = heading(profile);
    if profile.steps.is_empty() {
        return format!("{head}\nno steps\n");
    }
    let diagnoses: String = diagnoses(profile).into_iter().map(|line| line + "\n").collect();
    let separator = if diagnoses.is_empty() { "" } else { "\n" };
    format!("{head}\n{}{separator}{diagnoses}", columns(&cells(profile)))
}

/// One line for each of the `MAX_BOTTLENECKS` largest bottlenecks, the largest gain first: what limits the operation, and the time of the
/// step if the operation ran at its floor (the time that the operation would take at the machine's ceiling).
pub fn diagnoses(profile: &Profile) -> Vec<String> {
    let wall = profile.wall();
    let mut rows: Vec<Row> = profile.rows();
    rows.retain(|row| excess(row) > 0.0 && excess(row) < wall);
    rows.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
    rows.iter().take(MAX_BOTTLENECKS).map(|row| diagnosis(row, wall, &profile.ceiling)).collect()
}

/// Seconds per step above the floor.
fn excess(row: &Row) -> f64 {
    row.total - row.floor
}

fn diagnosis(row: &Row, wall: f64, ceiling: &Ceiling) -> String {
    let ms = |seconds: f64| fixed(seconds * 1e3, decimals(wall).saturating_sub(1));
    let (Row { name, calls, total, .. }, excess) = (row, excess(row));
    let gain =
        format!("the step takes {} ms instead of {} ({:.2}x)", ms(wall - excess), ms(wall), wall / (wall - excess));
    if name == LAUNCH {
        return format!("{name}: the device waits {} ms for the host; without waiting, {gain}", ms(*total));
    }
    if name == READBACK {
        return format!("{name}: the logits take {} ms to reach the host; without that, {gain}", ms(*total));
    }
    let reached = |done: u64, best: f64, unit: &str| {
        format!("{} of {} {unit}", significant(done as f64 / total * 1e-9), significant(best * 1e-9))
    };
    let held = match row.bound {
        Bound::Memory => format!("it moves {}", reached(row.bytes, ceiling.read_bandwidth, "GB/s")),
        Bound::Compute => format!("it computes {}", reached(row.operations, ceiling.arithmetic(), "GFLOP/s")),
        Bound::Launch => {
            format!("{calls} calls of {} us, too small to launch alone", significant(total / *calls as f64 * 1e6))
        }
    };
    format!("{name}: {} ms above its floor of {} ms ({held}); at the floor {gain}", ms(excess), ms(row.floor))
}

fn heading(profile: &Profile) -> String {
    let Profile { model, date, phase, workload, clock, ceiling, steps, .. } = profile;
    let (wall, place) = (profile.wall(), profile.device_label());
    let giga = |rate: f64| significant(rate * 1e-9);
    let packed = match ceiling.packed_rate {
        rate if rate > 0.0 => format!(", {} G operations/s packed", giga(rate)),
        _ => String::new(),
    };
    let elsewhere = match (&ceiling.machine, &ceiling.device) == (&profile.machine, &profile.device) {
        true => String::new(),
        false => format!(" for {} on {}: percentages are misleading", plain(&ceiling.device), plain(&ceiling.machine)),
    };
    format!(
        "{}, {place}, {}\nphase {phase}, {}, {} by {}\n{} ms per step, {} tokens/s\n\
         ceiling: {} GB/s, {} GFLOP/s in f32{packed}, measured {}{elsewhere}\n",
        plain(model),
        plain(date),
        workload.text(),
        if let [_] = steps[..] { "1 step".into() } else { format!("{} steps", steps.len()) },
        clock.text(),
        fixed(wall * 1e3, decimals(wall)),
        significant(workload.tokens() as f64 / wall),
        giga(ceiling.read_bandwidth),
        giga(ceiling.f32_rate),
        plain(&ceiling.date),
    )
}

/// The cells of the table, with percentiles if there are several steps.
fn cells(profile: &Profile) -> Vec<Vec<String>> {
    let (wall, several) = (profile.wall(), profile.steps.len() > 1);
    let ms = |seconds: f64| fixed(seconds * 1e3, decimals(wall));
    let per_second =
        |done: u64, seconds: f64| if done == 0 { NONE.into() } else { significant(done as f64 / seconds * 1e-9) };
    let line = |row: &Row, is_operation: bool, bound: &str| {
        let mut line = vec![plain(&row.name), row.calls.to_string(), ms(row.total), percent(row.share)];
        if several {
            line.extend([row.p50, row.p95, row.p99].map(ms));
        }
        let megabytes = if row.bytes == 0 { NONE.into() } else { significant(row.bytes as f64 * 1e-6) };
        let roofline = if is_operation { percent(row.floor / row.total) } else { NONE.into() };
        line.extend([
            megabytes,
            per_second(row.bytes, row.total),
            per_second(row.operations, row.total),
            roofline,
            bound.into(),
        ]);
        line
    };

    let mut header = vec!["operation", "calls", "ms", "share"];
    if several {
        header.extend(["p50", "p95", "p99"]);
    }
    header.extend(["MB", "GB/s", "GFLOP/s", "of roofline", "bound by"]);
    let mut lines = vec![header.into_iter().map(String::from).collect()];

    let rows = profile.rows();
    let (overhead, operations): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| is_overhead(&row.name));
    lines.extend(operations.iter().map(|row| line(row, true, row.bound.name())));
    lines.extend(overhead.iter().map(|row| line(row, false, NONE)));

    let unattributed = profile.unattributed();
    let mut rest = vec!["unattributed".into(), NONE.into(), ms(unattributed), percent(unattributed / wall)];
    rest.resize(lines[0].len(), NONE.into());
    lines.push(rest);
    lines.push(line(&step(profile, &rows), true, NONE));
    lines
}

/// The whole step as a row.
fn step(profile: &Profile, rows: &[Row]) -> Row {
    let mut times: Vec<f64> = profile.steps.iter().map(|step| step.wall).collect();
    times.sort_by(f64::total_cmp);
    Row {
        name: "step".into(),
        calls: rows.iter().filter(|row| !is_overhead(&row.name)).map(|row| row.calls).sum(),
        total: profile.wall(),
        share: 1.0,
        bytes: rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.bytes)),
        operations: rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.operations)),
        floor: rows.iter().map(|row| row.floor).sum(),
        bound: Bound::Memory,
        p50: percentile(&times, 0.5),
        p95: percentile(&times, 0.95),
        p99: percentile(&times, 0.99),
    }
}

impl Bound {
    fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
            Bound::Launch => "launch",
        }
    }
}
