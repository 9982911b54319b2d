//! Tests of `inspect` and `memory`: a model's contents, the names by which it is found, and the memory that it needs.

use std::process::Command;

use crate::program::{json, stdout};
use serde_json::Value;

#[test]
fn inspect_shows_the_model() {
    insta::assert_snapshot!("inspect", stdout(&["inspect", "embedded", "--check"]));
    let report = json(&["inspect", "embedded", "--json"]);
    assert_eq!(report["config"]["layers"], 6);
    assert_eq!(report["weights"]["formats"]["MXFP4"]["tensors"], 18);
    assert_eq!(report["memory"][0]["context"], 4096);
    // Three full layers of 4096 positions and three sliding ones of 128, keys and values of 2 heads of 64, in f32.
    assert_eq!(report["memory"][0]["cache"], (3 * 4096 + 3 * 128) * 2 * 2 * 64 * 4);
    // The model's context has 4096 tokens, so that longer ones are not shown.
    assert_eq!(report["memory"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["tensors"].as_array().expect("an array").len(), 117);
}

/// Each size in the table of `memory` ends at the same column.
#[test]
fn the_columns_of_a_memory_plan_are_aligned() {
    let text = stdout(&["memory", "embedded", "--device", "cpu"]);
    let (head, rows) = text.split_once('\n').expect("a line");
    assert!(head.ends_with(" on cpu, 4096 tokens"), "{text}");
    let rows: Vec<&str> = rows.lines().take_while(|row| !row.is_empty()).collect();
    assert!(rows.iter().any(|row| row.contains("copy of the head for shortlists")), "{text}");
    assert!(rows.iter().all(|row| row.chars().count() == 2 + 32 + 1 + 8 + 1 + 10), "{text}");
}

/// Finds models of Ollama and Hugging Face by name, in the folders that environment variables give.
#[test]
fn models_are_found_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(path(name).parent().expect("in the directory")).expect("created");
        std::fs::write(path(name), bytes).expect("written");
    };
    let golden = std::fs::read("reference/goldens/even/model.gguf").expect("readable");
    let digest = "0123456789abcdef".repeat(4);
    let manifest = format!(
        r#"{{"layers": [{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{digest}"}}]}}"#
    );
    write("ollama/manifests/registry.ollama.ai/library/gpt-oss/20b", manifest.as_bytes());
    write(&format!("ollama/blobs/sha256-{digest}"), &golden);
    write("hub/models--ggml-org--gpt-oss-20b-GGUF/snapshots/abc/gpt-oss.gguf", &golden);
    let inspect = |model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
        command.env("OLLAMA_MODELS", path("ollama")).env("HF_HUB_CACHE", path("hub"));
        let output = command.args(["inspect", model, "--json"]).output().expect("the program starts");
        assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["config"].clone()
    };
    let expected = json(&["inspect", "reference/goldens/even/model.gguf", "--json"])["config"].clone();
    let hub = path("hub/models--ggml-org--gpt-oss-20b-GGUF");
    for model in [
        "ollama:gpt-oss:20b",
        "hf:ggml-org/gpt-oss-20b-GGUF",
        "hf:ggml-org/gpt-oss-20b-GGUF/gpt-oss.gguf",
        hub.to_str().expect("UTF-8"),
        "reference/goldens/even",
    ] {
        assert_eq!(inspect(model), expected, "{model}");
    }
}

#[test]
fn memory_plan_depends_on_the_cache_format() {
    let cache =
        |kv: &str| json(&["inspect", "embedded", "--json", "--kv", kv])["memory"][0]["cache"].as_u64().expect("bytes");
    assert_eq!((cache("f16") * 2, cache("q8_0") * 4), (cache("f32"), cache("f32")));
}

/// The cache of all sequences takes the given memory, rounded down to whole pages. A page has 64 positions of three layers (all full or
/// all sliding ones), each with keys and values of two heads of 64 values, in f32.
#[test]
fn memory_plan_shows_the_shared_cache() {
    let most = |memory: &str| {
        let common = ["memory", "embedded", "--json", "--device", "cpu", "--kv", "f32", "--kv-memory"];
        json(&[&common[..], &[memory]].concat())["cache_at_most"].as_u64().expect("bytes")
    };
    let page: u64 = 3 * 64 * 2 * 64 * 2 * 4;
    assert_eq!([10 * page, 11 * page - 1].map(|bytes| most(&bytes.to_string())), [10 * page; 2]);
}
