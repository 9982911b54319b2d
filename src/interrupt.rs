//! Ctrl-C ends the answer under way, not the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is remembered. A second one before [`clear`] ends the process, for whoever does not want to wait for
/// the token under way.
pub fn catch() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("Ctrl-C cannot be caught")
}

/// Whether Ctrl-C was pressed since the last [`clear`].
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub fn clear() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}
