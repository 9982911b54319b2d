//! Reads a model folder whose only weights file is the input. Its other files are valid, once in mlx-lm's layout and once in OpenAI's.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::{Checkpoint, check_values};

static OTHERS: LazyLock<[BTreeMap<String, Bytes>; 2]> = LazyLock::new(|| {
    let file = |name: &str, text: &'static [u8]| (name.to_owned(), Bytes::from_static(text));
    let tokenizer = include_bytes!("../../reference/goldens/folders/mlx-q8/tokenizer.json");
    let of_mlx = include_bytes!("../../reference/goldens/folders/mlx-q8/config.json");
    let of_openai = include_bytes!("../openai.json");
    [
        BTreeMap::from([file("config.json", of_mlx), file("tokenizer.json", tokenizer)]),
        BTreeMap::from([file("config.json", of_openai), file("../tokenizer.json", tokenizer)]),
    ]
});

fuzz_target!(|data: &[u8]| {
    for mut files in OTHERS.clone() {
        files.insert("model.safetensors".into(), Bytes::copy_from_slice(data));
        if let Ok(checkpoint) = Checkpoint::from_folder_bytes("fuzzed", &files) {
            for (name, tensor) in &checkpoint.tensors {
                let _ = check_values(&checkpoint.path, name, tensor);
            }
        }
    }
});
