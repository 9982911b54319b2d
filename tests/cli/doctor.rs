//! `gptoss doctor`: what the machine can run, and which models are on it.

use std::path::Path;
use std::process::{Command, Output};

use crate::program::{json, refusal};
use serde_json::Value;

/// Runs `gptoss` with the model folders of other programs inside `folder`.
fn with_models_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.env("OLLAMA_MODELS", folder.join("ollama")).env("HF_HUB_CACHE", folder.join("hub"));
    command.env("HOME", folder).env_remove("HF_HOME").env_remove("XDG_CACHE_HOME");
    command.args(arguments).output().expect("the program starts")
}

#[test]
fn doctor_plans_for_the_shape_of_20b_without_a_model() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let doctor = |rest: &[&str]| {
        let output = with_models_in(directory.path(), &[&["doctor", "--device", "cpu"][..], rest].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let report: Value = serde_json::from_str(&doctor(&["--json"])).expect("JSON");
    assert_eq!(report["processors"]["architecture"], std::env::consts::ARCH);
    let (usable, threads) = (report["processors"]["usable"].as_u64(), report["threads"].as_u64());
    assert!(threads > Some(0) && threads <= usable, "{report}");
    let kernels = report["kernels"].as_array().expect("an array");
    assert_eq!(kernels.last().expect("one at least"), "portable");
    assert!(report["memory"]["total"].as_u64() > Some(0) || !cfg!(target_os = "linux"), "{report}");
    assert_eq!(report["models"], serde_json::json!([]));

    let plan = &report["plan"];
    assert_eq!((&plan["model"], &plan["assumed"]), (&"gpt-oss-20b".into(), &true.into()));
    assert_eq!(plan["context"], 4096);
    // Each of 24 layers has three stacks of 32 experts in MXFP4, four projections in Q8_0 and a router in F32; there are also an embedding
    // and a head in Q8_0.
    let (experts, router) = (3 * 32 * 2880 * 2880 / 32 * 17, 32 * 2880 * 4);
    let attention = (2 * 4096 + 2 * 512) * 2880 / 32 * 34;
    let file: u64 = 24 * (experts + attention + router) + 2 * 201_088 * 2880 / 32 * 34;
    assert_eq!(plan["cpu"]["mapped"], file);
    // Half of the layers cache 4096 positions, half have a ring of at least 128: keys and values of 8 heads of 64, in f16.
    let cache = 12 * (4096 + 128) * 2 * 8 * 64 * 2;
    assert!(plan["cpu"]["own"].as_u64() > Some(cache), "{plan}");
    let (on_gpu, for_auto) = (plan["gpu"]["bytes"].as_u64(), plan["gpu"]["bytes_for_auto"].as_u64());
    assert!(on_gpu > Some(file) && for_auto > on_gpu, "{plan}");

    let engine =
        serde_json::json!({ "engine": "flash", "phase": 5, "device": "cpu", "reason": "selected with --device" });
    assert_eq!(report["engine"], engine);
    let advice = report["advice"].as_array().expect("an array");
    assert!(
        advice.last().expect("one at least").as_str().is_some_and(|last| last.contains("hf download")),
        "{advice:?}"
    );

    let text = doctor(&[]);
    for part in [
        "\nprocessor   ",
        "\nmemory      ",
        "\ngraphics    ",
        "\nengine      flash (phase 5) on cpu: selected with --device",
    ] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    assert!(text.contains("gpt-oss-20b (not downloaded), with 4096 tokens"), "{text}");
    assert!(text.contains(", of which 12.07 GB are pages of the model's file"), "{text}");
}

#[test]
fn doctor_finds_models_and_names_what_is_wrong_with_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, contents: &[u8]| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("in the directory")).expect("created");
        std::fs::write(path, contents).expect("written");
    };
    let golden = std::fs::read("reference/goldens/even/model.gguf").expect("readable");
    write("hub/models--openai--gpt-oss-20b/snapshots/abc/model.gguf", &golden);
    write("hub/models--ggml-org--gpt-oss-20b-GGUF/snapshots/abc/model.gguf", b"this is no model");
    let output = with_models_in(directory.path(), &["doctor", "--device", "cpu", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let [damaged, whole] = &report["models"].as_array().expect("an array")[..] else { panic!("{report}") };
    assert_eq!((&damaged["name"], &damaged["bytes"]), (&"hf:ggml-org/gpt-oss-20b-GGUF".into(), &Value::Null));
    assert!(damaged["error"].as_str().is_some_and(|error| error.contains("magic bytes")), "{damaged}");
    assert_eq!((&whole["name"], &whole["error"]), (&"hf:openai/gpt-oss-20b".into(), &Value::Null));
    assert_eq!((&report["plan"]["model"], &report["plan"]["assumed"]), (&whole["name"], &false.into()));
    let bytes = json(&["inspect", "reference/goldens/even/model.gguf", "--json"])["weights"]["bytes"].clone();
    assert_eq!(whole["bytes"], bytes);

    let embedded = json(&["doctor", "embedded", "--device", "cpu", "--engine", "cached", "--json"]);
    assert_eq!((&embedded["plan"]["model"], &embedded["engine"]["engine"]), (&"embedded".into(), &"cached".into()));
    assert_eq!(
        refusal(&["doctor", "no-such.gguf"]),
        "2: gptoss: no-such.gguf cannot be read: No such file or directory (os error 2)"
    );
}
