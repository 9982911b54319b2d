//! The number of threads: by default one per physical core that this process may use.

use std::collections::HashSet;
use std::fs;
use std::num::NonZero;
use std::thread::available_parallelism;

/// The number of threads to start: `wanted`, or by default one per physical core (one per processor if the system does not report cores),
/// but not more than the process has processors. Threads spin while they wait for each other, so that more threads would slow each other
/// down.
pub(super) fn count(wanted: Option<usize>) -> usize {
    let processors = available_parallelism().map_or(1, NonZero::get);
    let allowed = fs::read_to_string("/proc/self/status").ok().and_then(|status| allowed_processors(&status));
    let siblings = |processor: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
        fs::read_to_string(path).ok()
    };
    threads(wanted, processors, allowed.as_deref(), siblings)
}

/// `processors` is the number that affinity mask and CPU quota allow, `allowed` the affinity mask alone; `siblings` returns the processors
/// that share a core with a given one.
fn threads(
    wanted: Option<usize>,
    processors: usize,
    allowed: Option<&[usize]>,
    siblings: impl Fn(usize) -> Option<String>,
) -> usize {
    let cores: HashSet<String> = allowed.unwrap_or_default().iter().filter_map(|&cpu| siblings(cpu)).collect();
    let default = if cores.is_empty() { processors } else { cores.len().min(processors) };
    wanted.unwrap_or(default).clamp(1, processors)
}

/// The processors of `Cpus_allowed_list`, such as `0-3,8`.
fn allowed_processors(status: &str) -> Option<Vec<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut processors = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        processors.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight processors, with two per core.
    fn pairs(processor: usize) -> Option<String> {
        (processor < 8).then(|| format!("{}-{}", processor / 2 * 2, processor / 2 * 2 + 1))
    }

    #[test]
    fn one_thread_per_core_of_the_mask_and_never_more_than_processors() {
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(threads(None, 8, Some(&all), pairs), 4);
        // Affinity to one core, or to one thread of each of two cores.
        assert_eq!(threads(None, 2, Some(&[4, 5]), pairs), 1);
        assert_eq!(threads(None, 2, Some(&[0, 6]), pairs), 2);
        // A CPU quota of one and a half.
        assert_eq!(threads(None, 1, Some(&all), pairs), 1);
        // If the system does not report cores.
        assert_eq!(threads(None, 6, None, |_| None), 6);
        assert_eq!(threads(None, 6, Some(&all), |_| None), 6);
        for (wanted, found) in [(1, 1), (3, 3), (8, 8), (64, 8), (0, 1)] {
            assert_eq!(threads(Some(wanted), 8, Some(&all), pairs), found);
        }
    }

    #[test]
    fn affinity_mask_is_parsed() {
        let status = "Name:\tgptoss\nCpus_allowed:\t10f\nCpus_allowed_list:\t0-3,8\nMems_allowed_list:\t0\n";
        assert_eq!(allowed_processors(status), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(allowed_processors("Name:\tgptoss\n"), None);
        assert_eq!(allowed_processors("Cpus_allowed_list:\tall\n"), None);
    }
}
