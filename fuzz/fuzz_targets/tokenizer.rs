//! Reads a model folder with a fuzzed JSON file: the input's first byte selects `tokenizer.json` or `config.json`, the rest is its text.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use phase1_loading::Checkpoint;

static VALID: LazyLock<BTreeMap<String, Bytes>> = LazyLock::new(|| {
    let file = |name: &str, text: &'static [u8]| (name.to_owned(), Bytes::from_static(text));
    BTreeMap::from([
        file("config.json", include_bytes!("../../reference/goldens/folders/mlx-q8/config.json")),
        file("tokenizer.json", include_bytes!("../../reference/goldens/folders/mlx-q8/tokenizer.json")),
        // With a configuration in OpenAI's layout, the tokenizer is in the parent folder.
        file("../tokenizer.json", include_bytes!("../../reference/goldens/folders/mlx-q8/tokenizer.json")),
        file("model.safetensors", include_bytes!("../../reference/goldens/folders/mlx-q8/model.safetensors")),
    ])
});

fuzz_target!(|data: &[u8]| {
    let Some((which, text)) = data.split_first() else { return };
    let name = if which & 1 == 0 { "tokenizer.json" } else { "config.json" };
    let mut files = VALID.clone();
    files.insert(name.into(), Bytes::copy_from_slice(text));
    if let Ok(checkpoint) = Checkpoint::from_folder_bytes("fuzzed", &files)
        && let Ok(tokenizer) = checkpoint.tokenizer()
    {
        let tokens = tokenizer.encode_with_control("<|start|>user a test 123 ünï");
        let _ = tokenizer.decode(&tokens);
    }
});
