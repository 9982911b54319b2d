//! Ctrl-C ends the current answer, not the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Records Ctrl-C from now on. A second one before [`clear`] ends the process, without waiting for the current token.
pub fn catch() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("Ctrl-C cannot be handled")
}

/// Whether Ctrl-C was pressed since the last [`clear`].
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub fn clear() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}
