//! What a server asks of the system that it runs on: enough open files, and that freed memory goes back.

use std::time::Duration;

use super::app::App;

/// Files that a process has open beside its connections: the model, logs, pipes.
const OTHER_FILES: usize = 128;
/// Between looks for memory to give back.
const LOOK: Duration = Duration::from_secs(2);

/// Lets the process open as many files as so many connections take, if its hard limit allows it. Systems begin with 1,024 or 256.
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
            // Where it fails, connections beyond the limit wait to be taken.
            // SAFETY: `limit` is valid for reads.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        }
    }
    #[cfg(not(unix))]
    let _ = (connections, OTHER_FILES);
}

/// Gives freed memory back whenever the server comes to rest. glibc keeps what many threads have freed: after large bodies that is
/// some hundred megabytes. Never ends.
pub async fn give_memory_back(app: &App) {
    let mut before = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let answered = app.metrics.answered();
        if answered != before && app.is_idle() {
            before = answered;
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do it themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
