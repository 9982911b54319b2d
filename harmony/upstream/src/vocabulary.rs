//! The vocabulary o200k_harmony for both implementations, this project's tokenizer and OpenAI's crate, without a download.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use openai_harmony::{HarmonyEncoding, HarmonyEncodingName};
use phase1_loading::{Checkpoint, Tokenizer};
use synthetic::SyntheticModel;

/// Number of tokens of o200k_base; the control tokens have the ids after them.
const RANKS: u32 = 199_998;

/// The tokenizer of a synthetic model's file.
pub fn ours() -> Tokenizer {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("o200k.gguf");
    let tiny = SyntheticModel::preset("tiny").expect("a preset");
    let model = SyntheticModel { layers: 1, hidden: 32, ..tiny };
    model.write(&path, 0, &mut |_, _| ()).expect("written");
    Checkpoint::open(&path).expect("opened").tokenizer().expect("built")
}

/// The encoding of OpenAI's crate. It reads a file `o200k_base.tiktoken`, which is written here from the data in tiktoken-rs, and checks
/// its SHA-256.
pub fn theirs() -> HarmonyEncoding {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiktoken = tiktoken_rs::o200k_harmony_singleton();
    let mut lines = String::new();
    for token in 0..RANKS {
        let bytes = tiktoken.decode_bytes(&[token]).expect("the ranks have no gaps");
        writeln!(lines, "{} {token}", BASE64_STANDARD.encode(bytes)).expect("a string takes anything");
    }
    std::fs::write(directory.path().join("o200k_base.tiktoken"), lines).expect("written");
    // SAFETY: the program has not started a thread.
    unsafe { std::env::set_var("TIKTOKEN_ENCODINGS_BASE", directory.path()) };
    openai_harmony::load_harmony_encoding(HarmonyEncodingName::HarmonyGptOss).expect("a vocabulary")
}
