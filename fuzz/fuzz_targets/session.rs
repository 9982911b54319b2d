//! A session file. The checksum at its end is corrected, so that the content is parsed.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::SavedSession;

fuzz_target!(|data: &[u8]| {
    let _ = SavedSession::from_bytes(Path::new("fuzzed"), Bytes::copy_from_slice(data));
    let mut file = data.to_vec();
    let sum = twox_hash::XxHash3_64::oneshot(&file);
    file.extend(sum.to_le_bytes());
    let _ = SavedSession::from_bytes(Path::new("fuzzed"), file.into());
});
