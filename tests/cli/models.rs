//! Commands that create, convert and compare models.

use crate::program::{chat, gptoss, json, stdout};
use serde_json::Value;

#[test]
fn make_model_writes_the_printed_model() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let description = directory.path().join("small.json");
    std::fs::write(&description, stdout(&["make-model", "nano", "--print"]).replace("\"layers\": 4", "\"layers\": 2"))
        .expect("written");
    let model = directory.path().join("small.gguf");
    let (description, model) = (description.to_str().expect("UTF-8"), model.to_str().expect("UTF-8"));
    stdout(&["make-model", description, model, "--rest", "f16"]);
    let report = json(&["inspect", model, "--json"]);
    assert_eq!(report["config"]["layers"], 2);
    assert!(report["weights"]["formats"]["F16"]["tensors"].as_u64() > Some(0));
}

/// gpt-oss-120b's 36 layers and 128 experts, with small widths.
#[test]
fn commands_take_the_layers_and_experts_of_120b() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut shape: Value = serde_json::from_str(&stdout(&["make-model", "120b", "--print"])).expect("JSON");
    assert_eq!((&shape["layers"], &shape["experts"]), (&36.into(), &128.into()));
    for (dimension, narrow) in [("hidden", 64), ("expert_width", 32), ("heads", 2), ("kv_heads", 1), ("head_dim", 32)] {
        shape[dimension] = narrow.into();
    }
    shape["vocabulary"] = "small".into();
    let (description, model, folder, converted) =
        (path("narrow.json"), path("narrow.gguf"), path("folder"), path("converted.gguf"));
    std::fs::write(&description, shape.to_string()).expect("written");
    stdout(&["make-model", &description, &model]);
    stdout(&["make-model", &description, &folder, "--folder"]);
    stdout(&["convert", &folder, &converted]);
    assert!(stdout(&["verify", &folder, &converted]).ends_with("the same model\n"));

    let inspected = json(&["inspect", &model, "--check", "--json"]);
    assert_eq!((&inspected["config"]["layers"], &inspected["config"]["experts"]), (&36.into(), &128.into()));
    let tokens = |rest: &[&str]| {
        let arguments = ["generate", &model, "Once", "-n", "8", "--ignore-stops", "--json", "--device", "cpu"];
        json(&[&arguments[..], rest].concat())["tokens"].clone()
    };
    let expected = tokens(&["--engine", "reference"]);
    assert_eq!(expected.as_array().expect("an array").len(), 8);
    assert_eq!(tokens(&["--engine", "cached"]), expected);
    assert_eq!(tokens(&["--engine", "flash", "--exact"]), expected);
    chat("Hi\n/quit\n", &[model.as_str(), "-n", "4"]);

    let bench = ["bench", &model, "--device", "cpu", "--prompt", "16", "--generate", "2", "--repeat", "1", "--json"];
    let results = json(&[&bench[..], &["--engine", "cached,flash"]].concat());
    assert_eq!(results.as_array().expect("an array").len(), 2);
    let memory = json(&["memory", &model, "--device", "cpu", "--context", "100", "--observe", "--json"]);
    assert_eq!((&memory["context"], &memory["format"]), (&100.into(), &"gptoss memory 1".into()));
    assert_eq!(memory["model"]["layers"], 36);
    assert!(memory["machine"].is_string() && memory["date"].is_string() && memory["command"].is_string(), "{memory}");
    let profiles = json(&["profile", &model, "--device", "cpu", "--steps", "1", "--json"]);
    let spans = profiles[0]["steps"][0]["spans"].as_array().expect("an array");
    assert_eq!(spans.iter().filter_map(|span| span["layer"].as_u64()).max(), Some(35));
    stdout(&["logits", &model, "--tokens", "1,2,3", "--device", "cpu", "--out", &path("logits.safetensors")]);
}

#[test]
fn folders_convert_and_compare() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (hf, q8) = ("reference/goldens/folders/hf", "reference/goldens/folders/mlx-q8");
    let converted = path("converted.gguf");
    assert!(gptoss(&["convert", hf, &converted]).status.success());
    let same = stdout(&["verify", hf, &converted]);
    assert!(same.ends_with("configuration and tokenizer equal\nthe same model\n"), "{same}");
    assert!(same.starts_with("60 tensors identical"), "{same}");
    let rounded = json(&["verify", hf, q8, "--json"]);
    assert_eq!(rounded["same"], true);
    assert_eq!(rounded["tensors"][0]["verdict"], "identical");
    let other = gptoss(&["verify", hf, "embedded"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stdout).ends_with("not the same model\n"));
    assert_eq!(json(&["inspect", q8, "--json"])["weights"]["formats"]["MLX8/64"]["tensors"], 17);

    assert!(gptoss(&["make-model", "nano", &path("folder"), "--folder"]).status.success());
    let object = json(&["generate", &path("folder"), "Once", "-n", "3", "--ignore-stops", "--json", "--device", "cpu"]);
    assert_eq!(object["tokens"].as_array().expect("an array").len(), 3);
}
