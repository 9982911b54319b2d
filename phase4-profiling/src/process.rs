//! Memory of this process.

/// Peak resident memory of this process, including mapped file pages. `None` if the platform does not report it.
pub fn peak_resident_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: getrusage fills the struct that it is given and keeps no pointer to it.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        Some(usage.ru_maxrss as u64 * unit)
    }
    #[cfg(not(unix))]
    None
}

/// Peak resident memory since the last call of this function, or since the start. Linux only.
pub fn take_peak_resident_bytes() -> Option<u64> {
    let peak = status("VmHWM:");
    // If the system does not permit the reset, the next peak counts from the start.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak
}

/// Resident anonymous memory now: what the process itself allocated. Linux only.
pub fn anonymous_resident_bytes() -> Option<u64> {
    status("RssAnon:")
}

/// Resident memory now: anonymous memory and file pages. Linux only.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024)
}
