//! A model file that shrinks while it is mapped: the system then stops whoever reads the lost pages. Instead of dying without
//! a word, say what happened.

/// What is said, and the status of wrong input.
#[cfg(unix)]
mod on_unix {
    const MESSAGE: &[u8] =
        b"gptoss: a file was cut short while it was in use; keep model files as they are while they run\n";
    const STATUS: libc::c_int = 2;

    extern "C" fn report(_: libc::c_int) {
        // SAFETY: both functions may be called from a signal handler, and the message is a constant.
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(STATUS);
        }
    }

    pub fn catch() {
        // SAFETY: the handler does nothing but what is allowed in one.
        unsafe {
            libc::signal(libc::SIGBUS, report as *const () as libc::sighandler_t);
        }
    }
}

/// Reports the loss from now on. Where the platform has no such signal, the system's own error stands.
pub fn catch() {
    #[cfg(unix)]
    on_unix::catch();
}
