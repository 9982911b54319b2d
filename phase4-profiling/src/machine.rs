//! Which machine this is, what day, and where measurements of it are kept.

use std::path::PathBuf;
use std::process::Command;
use std::thread::available_parallelism;

use time::OffsetDateTime;

/// The processor's name and how many hardware threads this process may use.
pub fn machine() -> String {
    let threads = available_parallelism().map_or(1, usize::from);
    format!("{} ({threads} threads)", processor().unwrap_or_else(|| std::env::consts::ARCH.into()))
}

/// `2026-11-23`, in UTC.
pub fn today() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{:04}-{:02}-{:02}", now.year(), u8::from(now.month()), now.day())
}

/// Where what was measured on this machine is kept: the user's cache directory. `None` where there is no user.
pub fn cache_directory() -> Option<PathBuf> {
    let caches = match std::env::var_os("XDG_CACHE_HOME") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME").or_else(|| std::env::var_os("LOCALAPPDATA"))?).join(".cache"),
    };
    Some(caches.join("gptoss"))
}

fn processor() -> Option<String> {
    if cfg!(target_os = "linux") {
        let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        return Some(line.split_once(':')?.1.trim().into());
    }
    if cfg!(target_vendor = "apple") {
        let brand = Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
        return Some(String::from_utf8(brand.stdout).ok()?.trim().into());
    }
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}
