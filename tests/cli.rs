//! The command line as scripts see it: output, JSON and exit status.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn gptoss(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command.output().expect("the program starts")
}

fn stdout(arguments: &[&str]) -> String {
    let output = gptoss(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("JSON")
}

/// Exit status and message of a refusal.
fn refusal(arguments: &[&str]) -> String {
    let output = gptoss(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    let last = message.lines().rfind(|line| line.starts_with("gptoss: ") || line.starts_with("error: "));
    format!("{}: {}", output.status.code().expect("an exit status"), last.expect("a message"))
}

#[test]
fn alone_it_does_the_main_job() {
    let output = gptoss(&[]);
    assert!(output.status.success());
    insta::assert_snapshot!("demo", String::from_utf8(output.stdout).expect("UTF-8"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tok/s"));
}

#[test]
fn inspect_shows_the_model() {
    insta::assert_snapshot!("inspect", stdout(&["inspect", "nano", "--check"]));
    let report = json(&["inspect", "nano", "--json"]);
    assert_eq!(report["config"]["layers"], 4);
    assert_eq!(report["weights"]["formats"]["MXFP4"]["tensors"], 12);
    assert_eq!(report["memory"][0]["context"], 4096);
    // Two full layers of 4096 positions and two rings of 32, keys and values of 2 heads of 32, in f32.
    assert_eq!(report["memory"][0]["cache"], (2 * 4096 + 2 * 32) * 2 * 2 * 32 * 4);
    assert_eq!(report["tensors"].as_array().expect("an array").len(), 79);
}

#[test]
fn tokenize_goes_there_and_back() {
    let text = "Hello <|start|> wörld";
    let object = json(&["tokenize", "nano", text, "--json"]);
    assert_eq!(object["text"], text);
    let tokens: Vec<String> = object["tokens"].as_array().expect("an array").iter().map(Value::to_string).collect();
    assert_eq!(stdout(&["tokenize", "nano", "--decode", &tokens.join(",")]), format!("{text}\n"));
    let plain = json(&["tokenize", "nano", text, "--json", "--plain"]);
    assert!(plain["tokens"].as_array().expect("an array").len() > tokens.len());
}

#[test]
fn generate_reports_what_scripts_read() {
    for (phase, device) in [("2", "cpu"), ("3", "cpu")] {
        let arguments = ["generate", "nano", "Once", "-n", "5", "--ignore-stops", "--json"];
        let object = json(&[&arguments[..], &["--phase", phase, "--device", device]].concat());
        assert_eq!(object["tokens"].as_array().expect("an array").len(), 5);
        assert_eq!(object["phase"].to_string(), phase);
        assert_eq!(object["device"], device);
        for number in ["prompt_tokens", "load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s", "peak_rss_bytes"] {
            assert!(object[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {object}");
        }
        assert!(object["text"].is_string());
    }
}

#[test]
fn a_seed_repeats_itself() {
    let run = |seed: &str| {
        let arguments =
            ["generate", "nano", "Once", "-n", "20", "--temperature", "1", "--device", "cpu", "--seed", seed];
        stdout(&arguments)
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn logits_are_written_with_what_led_to_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("logits.safetensors");
    let out_text = out.to_str().expect("UTF-8");
    let common = ["logits", "nano", "--tokens", "1,2,3", "--device", "cpu", "--out", out_text];
    stdout(&[&common[..], &["--dump", "--phase", "2"]].concat());
    let file = std::fs::read(&out).expect("written");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    assert_eq!(tensors.tensor("logits").expect("logits").shape(), [3, 1009]);
    let mut names = tensors.names();
    names.sort();
    insta::assert_debug_snapshot!("dumped", names);
    stdout(&common);
    let file = std::fs::read(&out).expect("written");
    assert_eq!(safetensors::SafeTensors::deserialize(&file).expect("safetensors").names(), ["logits"]);
}

#[test]
fn gates_pass_and_fail() {
    let report = json(&["gates", "--device", "cpu", "--json"]);
    let checks = report.as_array().expect("an array");
    assert!(checks.iter().all(|check| check["passed"] == true));
    for phase in 1..=3 {
        assert!(checks.iter().any(|check| check["phase"] == phase), "phase {phase}");
    }

    // One weight changed: the first phase fails, and no later one runs.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/goldens");
    let damaged = directory.path().join("damaged");
    std::fs::create_dir(&damaged).expect("created");
    for file in ["model.gguf", "exact.safetensors", "truncated.safetensors", "weights.safetensors"] {
        std::fs::copy(goldens.join("even").join(file), damaged.join(file)).expect("copied");
    }
    let mut model = std::fs::read(damaged.join("model.gguf")).expect("readable");
    let near_the_end = model.len() - 200;
    model[near_the_end] ^= 0x40;
    std::fs::write(damaged.join("model.gguf"), model).expect("written");
    let output = gptoss(&["gates", "--device", "cpu", "--goldens", directory.path().to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("FAILED") && !text.contains("phase 2"), "{text}");
}

#[test]
fn make_model_makes_what_it_prints() {
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

#[test]
fn bad_input_is_one_sentence_and_status_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let in_directory = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let text_file = in_directory("text.gguf");
    std::fs::write(&text_file, "this is no model").expect("written");
    let json_file = in_directory("odd.json");
    let description = stdout(&["make-model", "nano", "--print"]);
    std::fs::write(&json_file, description.replace("\"kv_heads\": 2", "\"kv_heads\": 3")).expect("written");
    let out = in_directory("out.gguf");

    let refusals = [
        refusal(&["inspect", "no-such.gguf"]),
        refusal(&["inspect", &text_file]),
        refusal(&["generate", "nano", ""]),
        refusal(&["generate", "nano", "Once", "--device", "cpu", "--top-p", "2"]),
        refusal(&["generate", "nano", "Once", "--device", "abacus"]),
        refusal(&["generate", "nano", "Once", "--phase", "9"]),
        refusal(&["logits", "nano", "--tokens", "99999", "--device", "cpu", "--out", &out]),
        refusal(&["logits", "nano", "--out", &out]),
        refusal(&["tokenize", "nano", "--decode", "12 abc"]),
        refusal(&["make-model", "huge", &out]),
        refusal(&["make-model", &json_file, &out]),
        refusal(&["gates", "--goldens", "no-such-folder"]),
    ];
    let directory = directory.path().to_str().expect("UTF-8");
    insta::assert_snapshot!("refusals", refusals.join("\n").replace(directory, "DIRECTORY"));
    assert!(!Path::new(&out).exists(), "nothing is left behind");
}
