//! A session file. The checksum that ends it is put right, so that what lies before it is read.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::SavedSession;

fuzz_target!(|data: &[u8]| {
    let _ = SavedSession::from_bytes(Path::new("fuzzed"), Bytes::copy_from_slice(data));
    let mut file = data.to_vec();
    let sum = xxhash_rust::xxh3::xxh3_64(&file);
    file.extend(sum.to_le_bytes());
    let _ = SavedSession::from_bytes(Path::new("fuzzed"), file.into());
});
