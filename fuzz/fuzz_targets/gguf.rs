//! Reads the input as a GGUF file: its header and, if the file opens, its tokenizer and all values of its tensors.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::{Checkpoint, check_values};

fuzz_target!(|data: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_bytes("fuzzed", Bytes::copy_from_slice(data)) {
        let _ = checkpoint.tokenizer();
        for (name, tensor) in &checkpoint.tensors {
            let _ = check_values(&checkpoint.path, name, tensor);
        }
    }
});
