//! The instruction sets, processors and memory that this process may use, within the limits of its container or service.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::Serialize;

use crate::machine::processor;

/// The processors that this process may use.
#[derive(Clone, Debug, Serialize)]
pub struct Processors {
    /// The processor's name, if the system reports it.
    pub name: Option<String>,
    /// For example `x86_64` or `aarch64`.
    pub architecture: &'static str,
    /// The instruction sets of this machine that are relevant to kernels.
    pub features: Vec<&'static str>,
    /// Hardware threads of the machine. Linux only.
    pub of_machine: Option<usize>,
    /// Hardware threads that this process may use, within its CPU affinity and quota.
    pub usable: usize,
    /// Quota of the control group, in processors. Linux only.
    pub quota: Option<f64>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HostMemory {
    /// Memory of the machine. Linux and macOS.
    pub total: Option<u64>,
    /// Memory that is free or can be freed, such as cached pages of files. Linux only.
    pub available: Option<u64>,
    /// Limit of the control group. Linux only.
    pub limit: Option<u64>,
}

impl Processors {
    pub fn of_this_machine() -> Processors {
        Processors {
            name: processor(),
            architecture: std::env::consts::ARCH,
            features: features(),
            of_machine: read("/proc/cpuinfo").map(|text| text.lines().filter(|l| l.starts_with("processor")).count()),
            usable: available_parallelism().map_or(1, usize::from),
            quota: quota(),
        }
    }
}

impl HostMemory {
    pub fn of_this_machine() -> HostMemory {
        let information = read("/proc/meminfo").unwrap_or_default();
        let total = meminfo(&information, "MemTotal:").or_else(total_by_sysctl);
        let limit: Option<u64> =
            control_group("memory", &["memory.max", "memory.limit_in_bytes"], |text| text.trim().parse().ok());
        HostMemory {
            total,
            available: meminfo(&information, "MemAvailable:"),
            // Version 1 of control groups reports a number larger than any memory if there is no limit.
            limit: limit.filter(|&limit| total.is_none_or(|total| limit < total)),
        }
    }

    /// The most memory that this process may use: the limit, or without one the total.
    pub fn most(&self) -> Option<u64> {
        self.limit.or(self.total)
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&'static str, bool); 0] = [];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

fn quota() -> Option<f64> {
    control_group("cpu", &["cpu.max"], processors_of_max).or_else(|| {
        let microseconds = |file: &'static str| control_group("cpu", &[file], |text| text.trim().parse::<f64>().ok());
        let (quota, period) = (microseconds("cpu.cfs_quota_us")?, microseconds("cpu.cfs_period_us")?);
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    })
}

/// The number of processors in `150000 100000` (quota and period); `None` for `max 100000`.
fn processors_of_max(text: &str) -> Option<f64> {
    let (time, period) = text.trim().split_once(' ')?;
    let (time, period): (f64, f64) = (time.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then(|| time / period)
}

/// The first value in a file of the process's control group that `parse` accepts. Searches both versions of control groups, and also the
/// root: in a container the process's own group is mounted as the root.
fn control_group<T>(controller: &str, files: &[&str], parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    let groups = read("/proc/self/cgroup")?;
    let own = groups.lines().filter_map(|line| group(line, controller));
    let folders = own.chain([String::new(), format!("/{controller}")]);
    let paths = folders.flat_map(|folder| files.iter().map(move |file| format!("/sys/fs/cgroup{folder}/{file}")));
    paths.filter_map(read).find_map(|text| parse(&text))
}

/// The folder below `/sys/fs/cgroup` of a line of `/proc/self/cgroup`, if the line is for that controller or, in version 2, for all.
fn group(line: &str, controller: &str) -> Option<String> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_end_matches('/'));
    match controllers {
        "" => Some(path.to_owned()),
        _ if controllers.split(',').any(|name| name == controller) => Some(format!("/{controller}{path}")),
        _ => None,
    }
}

/// The bytes in a line such as `MemTotal:       24683656 kB`.
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn total_by_sysctl() -> Option<u64> {
    if !cfg!(target_vendor = "apple") {
        return None;
    }
    let output = Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_quota_is_read_as_processors() {
        for (text, processors) in [("150000 100000\n", Some(1.5)), ("max 100000\n", None), ("", None), ("1 0", None)] {
            assert_eq!(processors_of_max(text), processors, "{text:?}");
        }
    }

    #[test]
    fn cgroups_of_both_versions_are_found() {
        let found = |line, controller| group(line, controller);
        assert_eq!(found("0::/system.slice/gptoss.service", "memory").as_deref(), Some("/system.slice/gptoss.service"));
        assert_eq!(found("0::/", "memory").as_deref(), Some(""));
        assert_eq!(found("4:cpu,cpuacct:/docker/ab", "cpu").as_deref(), Some("/cpu/docker/ab"));
        assert_eq!(found("4:cpu,cpuacct:/docker/ab", "memory"), None);
        assert_eq!(found("damaged", "memory"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24683656 kB\nMemFree:        10744988 kB\nMemAvailable:   22933052 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(24_683_656 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(22_933_052 * 1024));
        assert_eq!(meminfo(text, "SwapTotal:"), None);
        assert_eq!(meminfo("MemTotal: 18446744073709551615 kB", "MemTotal:"), None);
    }

    /// If there is a limit, `most` returns it.
    #[test]
    fn memory_limit_caps_total_memory() {
        let memory = |total, limit| HostMemory { total, available: None, limit }.most();
        assert_eq!(memory(Some(8), Some(4)), Some(4));
        assert_eq!(memory(Some(8), None), Some(8));
        assert_eq!(memory(None, None), None);
    }
}
