//! System settings of a server: the limit of open files, and the return of freed memory.

use std::time::Duration;

use super::app::App;

/// Open files of the process other than connections: the model, logs, pipes.
const OTHER_FILES: usize = 128;
/// Interval between checks for memory to return.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Raises the limit of open files to what that many connections need, as far as the hard limit permits. Typical defaults are 1,024 or 256.
pub fn allow_open_files(connections: usize) {
    #[cfg(unix)]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writes.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
            return;
        }
        let wanted = (connections.saturating_add(OTHER_FILES) as libc::rlim_t).min(limit.rlim_max);
        if wanted > limit.rlim_cur {
            limit.rlim_cur = wanted;
            // If this fails, connections beyond the limit wait to be accepted.
            // SAFETY: `limit` is valid for reads.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        }
    }
    #[cfg(not(unix))]
    let _ = (connections, OTHER_FILES);
}

/// Returns freed memory to the system when the server is idle and has answered requests since the last time. glibc keeps memory that many
/// threads have freed: several hundred megabytes after large bodies. Never completes.
pub async fn release_free_memory(app: &App) {
    let mut before = 0;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let answered = app.metrics.answered();
        if answered != before && app.is_idle() {
            before = answered;
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: `malloc_trim` may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return memory themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
