//! Memory of this process.

/// The most memory that was ever resident, mapped file pages included. `None` where the platform does not say.
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

/// The most that was resident since this function was last called, or since the start. Linux only.
pub fn take_peak_resident_bytes() -> Option<u64> {
    let peak = status("VmHWM:");
    // Where this is not allowed, the peak still counts from the start.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak
}

/// Memory resident now that is no file's: what the process itself allocated. Linux only.
pub fn anonymous_resident_bytes() -> Option<u64> {
    status("RssAnon:")
}

/// Memory resident now: own memory and touched pages of files. Linux only.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024)
}
