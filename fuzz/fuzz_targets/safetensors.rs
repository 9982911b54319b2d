//! A folder whose only weights file is the input; everything else is valid.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::{Checkpoint, check_values};

static OTHERS: LazyLock<BTreeMap<String, Bytes>> = LazyLock::new(|| {
    let file = |name: &str, text: &'static [u8]| (name.to_owned(), Bytes::from_static(text));
    BTreeMap::from([
        file("config.json", include_bytes!("../../reference/goldens/folders/mlx-q8/config.json")),
        file("tokenizer.json", include_bytes!("../../reference/goldens/folders/mlx-q8/tokenizer.json")),
    ])
});

fuzz_target!(|data: &[u8]| {
    let mut files = OTHERS.clone();
    files.insert("model.safetensors".into(), Bytes::copy_from_slice(data));
    if let Ok(checkpoint) = Checkpoint::from_folder_bytes("fuzzed", &files) {
        for (name, tensor) in &checkpoint.tensors {
            let _ = check_values(&checkpoint.path, name, tensor);
        }
    }
});
