//! `tokenize` and `logits`.

use crate::program::{json, stdout};
use serde_json::Value;

#[test]
fn tokenize_round_trips() {
    let text = "Hello <|start|> wörld";
    let object = json(&["tokenize", "embedded", text, "--json"]);
    assert_eq!(object["text"], text);
    let tokens: Vec<String> = object["tokens"].as_array().expect("an array").iter().map(Value::to_string).collect();
    assert_eq!(stdout(&["tokenize", "embedded", "--decode", &tokens.join(",")]), format!("{text}\n"));
    let plain = json(&["tokenize", "embedded", text, "--json", "--plain"]);
    assert!(plain["tokens"].as_array().expect("an array").len() > tokens.len());
}

#[test]
fn logits_are_written_with_their_tokens() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("logits.safetensors");
    let out_text = out.to_str().expect("UTF-8");
    let common = ["logits", "embedded", "--tokens", "1,2,3", "--device", "cpu", "--out", out_text];
    stdout(&[&common[..], &["--dump", "--phase", "2"]].concat());
    let file = std::fs::read(&out).expect("written");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    assert_eq!(tensors.tensor("logits").expect("logits").shape(), [3, 2048]);
    let mut names = tensors.names();
    names.sort();
    insta::assert_debug_snapshot!("dumped", names);
    stdout(&common);
    let file = std::fs::read(&out).expect("written");
    assert_eq!(safetensors::SafeTensors::deserialize(&file).expect("safetensors").names(), ["logits"]);
}
