//! Comparison of two profiles: which operations got faster or slower.

use std::fmt;

use serde::Serialize;

use super::text::{NONE, columns, decimals, fixed, percent, plain};
use crate::{Clock, Profile, Workload};

/// Two profiles, operation by operation.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileComparison {
    pub before: Side,
    pub after: Side,
    /// Differences between the profiles other than the code, such as another machine, that can explain differences in time.
    pub warnings: Vec<String>,
    /// Sorted from the largest slowdown to the largest gain.
    pub changes: Vec<Change>,
}

/// The origin of one of the two profiles.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub model: String,
    pub device: String,
    pub machine: String,
    pub date: String,
    pub phase: u8,
    pub workload: Workload,
    pub clock: Clock,
    /// Mean seconds per step.
    pub wall: f64,
}

/// One operation in both profiles, in mean seconds per step.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// An operation, `launch`, `readback` or `unattributed`.
    pub name: String,
    /// `None` if the profile has no such operation.
    pub before: Option<f64>,
    pub after: Option<f64>,
    pub change: f64,
    /// After over before; `None` if one is missing or the ratio is not finite.
    pub ratio: Option<f64>,
    /// This change as a share of the sum of the magnitudes of all changes, with its sign.
    pub share: f64,
}

/// Compares `a` (before) with `b` (after). A positive change is a slowdown.
pub fn compare(a: &Profile, b: &Profile) -> ProfileComparison {
    let times = |profile: &Profile| {
        let rows = profile.rows().into_iter().map(|row| (row.name, row.total));
        rows.chain([("unattributed".into(), profile.unattributed())]).collect::<Vec<_>>()
    };
    let (before, after) = (times(a), times(b));
    let find =
        |times: &[(String, f64)], name: &str| times.iter().find(|(other, _)| other == name).map(|&(_, time)| time);
    let only_after = after.iter().filter(|(name, _)| find(&before, name).is_none());
    let change = |name: &String| {
        let (before, after) = (find(&before, name), find(&after, name));
        let ratio = before.zip(after).map(|(before, after)| after / before).filter(|ratio| ratio.is_finite());
        let change = after.unwrap_or(0.0) - before.unwrap_or(0.0);
        Change { name: name.clone(), before, after, change, ratio, share: 0.0 }
    };
    let mut changes: Vec<Change> = before.iter().chain(only_after).map(|(name, _)| change(name)).collect();
    let size: f64 = changes.iter().map(|change| change.change.abs()).sum();
    for change in &mut changes {
        change.share = if size > 0.0 { change.change / size } else { 0.0 };
    }
    changes.sort_by(|a, b| b.change.total_cmp(&a.change));
    let (before, after) = (Side::of(a), Side::of(b));
    ProfileComparison { warnings: warnings(&before, &after), before, after, changes }
}

fn warnings(a: &Side, b: &Side) -> Vec<String> {
    let differing = [
        ("models", plain(&a.model), plain(&b.model)),
        ("workloads", a.workload.text(), b.workload.text()),
        ("devices", plain(&a.device), plain(&b.device)),
        ("machines", plain(&a.machine), plain(&b.machine)),
        ("clocks", a.clock.text().into(), b.clock.text().into()),
    ];
    let differing = differing.into_iter().filter(|(_, a, b)| a != b);
    differing.map(|(what, a, b)| format!("the {what} differ: {a}; {b}")).collect()
}

impl Side {
    fn of(profile: &Profile) -> Side {
        let Profile { model, device, machine, date, phase, workload, clock, .. } = profile.clone();
        Side { model, device, machine, date, phase, workload, clock, wall: profile.wall() }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [model, device, machine, date] =
            [&self.model, &self.device, &self.machine, &self.date].map(|name| plain(name));
        write!(f, "{model}, {device} on {machine}, {date}, phase {}, {}", self.phase, self.workload.text())
    }
}

impl fmt::Display for ProfileComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before.wall, self.after.wall);
        let decimals = decimals(before.min(after));
        let ms = |seconds: f64| fixed(seconds * 1e3, decimals);
        let signed =
            |seconds: f64| if seconds.is_finite() { format!("{:+.decimals$}", seconds * 1e3) } else { NONE.into() };
        let times = |ratio: Option<f64>| ratio.map_or(NONE.into(), |ratio| format!("{ratio:.2}x"));

        writeln!(f, "before: {}\nafter:  {}", self.before, self.after)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        let mut lines = vec![
            ["operation", "before ms", "after ms", "change ms", "ratio", "share of changes"].map(String::from).to_vec(),
        ];
        for Change { name, before, after, change, ratio, share } in &self.changes {
            let [before, after] = [before, after].map(|time| time.map_or(NONE.into(), ms));
            lines.push(vec![plain(name), before, after, signed(*change), times(*ratio), percent(*share)]);
        }
        let ratio = Some(after / before).filter(|ratio| ratio.is_finite());
        lines.push(vec!["step".into(), ms(before), ms(after), signed(after - before), times(ratio), NONE.into()]);
        write!(f, "\n{}", columns(&lines))
    }
}
