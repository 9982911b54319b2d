//! Reads the input as a session file. Wrong checksums are corrected first, so that the contents are parsed.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use phase1_loading::{LoadError, SavedSession};

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    // Up to three corrections: the checksum of the header, that of the items, and that of the header again, because it covers that of the
    // items. The fourth attempt then opens the file.
    for _ in 0..4 {
        let opened = SavedSession::from_bytes(Path::new("fuzzed"), file.clone().into());
        let Err(LoadError::Invalid { expected, found, .. }) = opened else { return };
        let Some(wrong) = found.strip_suffix(" (a damaged file)") else { return };
        if wrong.is_empty() || wrong.len() != expected.len() {
            return;
        }
        let Some(at) = file.windows(wrong.len()).position(|bytes| bytes == wrong.as_bytes()) else { return };
        file[at..at + expected.len()].copy_from_slice(expected.as_bytes());
    }
});
