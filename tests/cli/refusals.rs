//! Invalid input is refused with a message and the exit status 2.

use std::path::Path;

use crate::program::{refusal, stdout};

#[test]
fn invalid_input_gives_one_sentence_and_status_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let in_directory = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let text_file = in_directory("text.gguf");
    std::fs::write(&text_file, "this is no model").expect("written");
    let json_file = in_directory("odd.json");
    let description = stdout(&["make-model", "nano", "--print"]);
    std::fs::write(&json_file, description.replace("\"kv_heads\": 2", "\"kv_heads\": 3")).expect("written");
    let empty_folder = in_directory("empty");
    std::fs::create_dir(&empty_folder).expect("created");
    let out = in_directory("out.gguf");

    let refusals = [
        refusal(&["inspect", "no-such.gguf"]),
        refusal(&["inspect", &text_file]),
        refusal(&["generate", "embedded", ""]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--top-p", "2"]),
        refusal(&["generate", "embedded", "Once", "--device", "abacus"]),
        refusal(&["generate", "embedded", "Once", "--phase", "9"]),
        refusal(&["generate", "embedded", "Once", "--engine", "steam"]),
        refusal(&["generate", "embedded", "Once", "--engine", "flash", "--phase", "5"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--phase", "2", "--kv", "f16"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv", "f8"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "much"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "1B"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "1GiB", "--engine", "cached"]),
        refusal(&["bench", "embedded", "--device", "cpu", "--depth", "999999"]),
        refusal(&["memory", "embedded", "--device", "cpu", "--context", "18446744073709551615"]),
        refusal(&["memory", "embedded", "--device", "cpu", "--context", "4097"]),
        refusal(&["logits", "embedded", "--tokens", "99999", "--device", "cpu", "--out", &out]),
        refusal(&["logits", "embedded", "--out", &out]),
        refusal(&["tokenize", "embedded", "--decode", "12 abc"]),
        refusal(&["make-model", "huge", &out]),
        refusal(&["make-model", &json_file, &out]),
        refusal(&["gates", "--goldens", "no-such-folder"]),
        refusal(&["eval", "--suite", "gossip"]),
        refusal(&["chat", "no-such.gguf"]),
        refusal(&["chat", "openai/gpt-oss-20b"]),
        refusal(&["chat", &empty_folder]),
        refusal(&["chat", "What", "is", "2", "+", "2?"]),
        refusal(&["chat", "What is 2 + 2?"]),
        refusal(&["chat", "--tools", "no-such.json"]),
        refusal(&["tune", "embedded", "--device", "cpu"]),
    ];
    let directory = directory.path().to_str().expect("UTF-8");
    insta::assert_snapshot!("refusals", refusals.join("\n").replace(directory, "DIRECTORY"));
    assert!(!Path::new(&out).exists(), "no file is left");
}
