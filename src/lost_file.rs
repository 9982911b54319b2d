//! Handles a model file that is truncated while it is mapped: reading a lost page raises SIGBUS, which would end the process without a
//! message.

/// Prints a message and exits with the status of invalid input.
#[cfg(unix)]
mod on_unix {
    const MESSAGE: &[u8] =
        b"gptoss: a file was cut short while it was in use; do not change model files while a program uses them\n";
    const STATUS: libc::c_int = 2;

    extern "C" fn report(_: libc::c_int) {
        // SAFETY: both functions may be called from a signal handler, and the message is a constant.
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(STATUS);
        }
    }

    pub fn catch() {
        // SAFETY: the handler calls only functions that are allowed in one.
        unsafe {
            libc::signal(libc::SIGBUS, report as *const () as libc::sighandler_t);
        }
    }
}

/// Installs the handler. Platforms without the signal report their own error.
pub fn catch() {
    #[cfg(unix)]
    on_unix::catch();
}
