//! Invalid folders: each error names the file, the part, what was expected and what was found.

use std::collections::BTreeMap;

use crate::folders::configured;
use crate::made::files;
use bytes::Bytes;
use phase1_loading::Checkpoint;
use serde_json::{Value, json};

/// A folder whose only safetensors file has one tensor, with this header entry and `data` bytes of zeros.
fn shard(tensor: &str, entry: Value, data: usize) -> BTreeMap<String, Bytes> {
    let mut files = files("mlx-mxfp4");
    files.remove("model.safetensors.index.json");
    let header = json!({ tensor: entry }).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + data, 0);
    files.insert("model.safetensors".into(), file.into());
    files
}

#[test]
fn inconsistent_folders_are_refused_by_name() {
    let refusal = |files: &BTreeMap<String, Bytes>| match Checkpoint::from_folder_bytes("lying", files) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    };
    let config = |change: fn(&mut Value)| configured("mlx-q8", change);
    let with = |name: &str, bytes: &'static [u8]| {
        let mut files = files("mlx-q8");
        files.insert(name.into(), Bytes::from_static(bytes));
        files
    };
    let without = |name: &str| {
        let mut files = files("mlx-q8");
        files.remove(name);
        files
    };
    let entry = |shape: Value, offsets: [u64; 2]| json!({ "dtype": "U8", "shape": shape, "data_offsets": offsets });
    // Found by `mutations.rs`: the matrix exists, but its bias does not.
    let no_bias = {
        let mut files = files("hf");
        let name = "model-00001-of-00002.safetensors";
        let mut shard = files[name].to_vec();
        let at = shard.windows(14).position(|window| window == b"down_proj_bias").expect("named");
        shard[at + 13] = b'z';
        files.insert(name.into(), shard.into());
        files
    };
    // Sixteen tensors, of which the last ends at the largest 64-bit offset.
    let overflow = {
        let mut files = shard("a", entry(json!([1]), [0, 1]), 1);
        let size = 1u64 << 60;
        let end = |i: u64| i.wrapping_mul(size).wrapping_sub(u64::from(i == 16));
        let header: serde_json::Map<String, Value> =
            (0..16).map(|i| (format!("t{i}"), entry(json!([end(i + 1) - end(i)]), [end(i), end(i + 1)]))).collect();
        let header = Value::from(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        files.insert("model.safetensors".into(), file.into());
        files
    };
    let lies = [
        ("no config", without("config.json")),
        ("no tokenizer", without("tokenizer.json")),
        ("no weights", without("model.safetensors")),
        ("config is no JSON", with("config.json", b"{")),
        ("nested too deep", with("config.json", &[b'['; 100_000])),
        ("another model", config(|c| c["model_type"] = json!("llama"))),
        ("no rope", config(|c| c["rope_scaling"] = json!(null))),
        ("another rope", config(|c| c["rope_scaling"]["rope_type"] = json!("linear"))),
        ("other betas", config(|c| c["rope_scaling"]["beta_fast"] = json!(16))),
        ("negative size", config(|c| c["hidden_size"] = json!(-64))),
        ("absurd size", config(|c| c["vocab_size"] = json!(u64::MAX))),
        ("size as text", config(|c| c["head_dim"] = json!("32"))),
        ("too many layers", config(|c| c["num_hidden_layers"] = json!(100_000))),
        (
            "fewer layers",
            config(|c| {
                c["num_hidden_layers"] = json!(2);
                c["layer_types"] = json!(null);
            }),
        ),
        ("unknown layer type", config(|c| c["layer_types"][1] = json!("chunked_attention"))),
        ("too few layer types", config(|c| c["layer_types"] = json!(["full_attention"]))),
        ("heads do not divide", config(|c| c["num_key_value_heads"] = json!(3))),
        ("other shape", config(|c| c["intermediate_size"] = json!(96))),
        ("other quantization", config(|c| c["quantization"]["lm_head"]["bits"] = json!(4))),
        ("end of sequence", config(|c| c["eos_token_id"] = json!([1_000_000]))),
        ("weights elsewhere", with("model.safetensors.index.json", br#"{"weight_map": {"a": "../../secret"}}"#)),
        ("weights anywhere", with("model.safetensors.index.json", br#"{"weight_map": {"a": "/etc/passwd"}}"#)),
        ("long header", with("model.safetensors", &[255; 100])),
        ("short file", with("model.safetensors", &[0; 5])),
        ("zero dimension", shard("a", entry(json!([0]), [0, 0]), 0)),
        ("overlap", shard("a", entry(json!([4]), [2, 6]), 6)),
        ("past the end", shard("a", entry(json!([1000]), [0, 1000]), 10)),
        ("overflowing shape", shard("a", entry(json!([u64::MAX, 2]), [0, 10]), 10)),
        ("data that nothing describes", shard("a", entry(json!([4]), [0, 4]), 10)),
        ("overflowing sum", overflow),
        ("no bias", no_bias),
        (
            "token outside the vocabulary",
            with("tokenizer.json", br#"{"model": {"vocab": {"a": 4000000000}, "merges": []}}"#),
        ),
        ("another tokenizer", with("tokenizer.json", br#"{"model": {"type": "Unigram", "vocab": {}, "merges": []}}"#)),
    ];
    let messages: Vec<String> = (lies.iter())
        .map(|(lie, files)| {
            let message = match Checkpoint::from_folder_bytes("lying", files).map(|model| model.tokenizer()) {
                Ok(Err(error)) => error.to_string(),
                _ => refusal(files),
            };
            format!("{lie}: {message}")
        })
        .collect();
    insta::assert_snapshot!(messages.join("\n"));
}
