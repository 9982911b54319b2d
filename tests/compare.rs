//! `gptoss compare` and the records that it writes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A small comparison on the CPU with the model inside the program; its record goes to `out`.
fn compare(arguments: &[&str], out: &Path) -> Output {
    let small =
        ["--prompt", "20", "--depth", "0,30", "--generate", "4", "--repeat", "1", "--check", "8", "--greedy", "4"];
    Command::new(env!("CARGO_BIN_EXE_gptoss"))
        .args(["compare", "embedded", "--device", "cpu", "--sequences", "3"])
        .args(small)
        .args(arguments)
        .arg("--out")
        .arg(out)
        .output()
        .expect("the program starts")
}

/// The one record in a folder.
fn record_in(folder: &Path) -> Value {
    let files: Vec<_> = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    serde_json::from_slice(&std::fs::read(file).expect("read")).expect("JSON")
}

#[test]
fn compare_writes_a_record_of_every_engine_and_turn() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("records");
    let output = compare(&["--engine", "cached,flash", "--exact"], &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record = record_in(&out);
    assert_eq!(record["format"], "gptoss compare 1");
    assert!(record["command"].as_str().is_some_and(|text| text.starts_with("gptoss compare embedded ")), "{record}");
    let date = record["date"].as_str().expect("a date");
    assert!(date.len() == 20 && date.ends_with('Z') && date.as_bytes()[10] == b'T', "{date}");
    assert!(record["machine"].as_str().is_some_and(|machine| !machine.is_empty()));
    assert_eq!(record["model"]["layers"], 6);

    let runs = record["runs"].as_array().expect("an array");
    let order = |run: &Value| (run["turn"].as_u64(), run["engine"].as_str().map(str::to_owned));
    let expected = [(1, "cached"), (1, "flash"), (2, "flash"), (2, "cached")];
    let expected = expected.map(|(turn, engine)| (Some(turn), Some(engine.to_owned())));
    assert_eq!(runs.iter().map(order).collect::<Vec<_>>(), expected);
    for run in runs {
        let what = |result: &Value| (result["what"].to_string(), result["depth"].as_u64(), result["batch"].as_u64());
        let results: Vec<_> = run["results"].as_array().expect("an array").iter().map(what).collect();
        let expected = |what: &str, depth, batch| (format!("\"{what}\""), Some(depth), Some(batch));
        let one = |depth| [expected("decode", depth, 1), expected("prefill", depth, 1)];
        assert_eq!(results, [&one(0)[..], &one(30), &[expected("decode", 0, 3)]].concat());
        let prompts: Vec<_> =
            run["first_tokens"].as_array().expect("an array").iter().map(|first| &first["prompt"]).collect();
        assert_eq!(prompts, [1, 20]);
        for number in ["start_ms", "start_to_first_token_ms"] {
            assert!(run[number].as_f64().is_some_and(|ms| ms > 0.0), "{number}: {run}");
        }
        // Both engines compute in f32.
        let exact = &run["agreement"]["exact"];
        assert!(exact["rms"].as_f64().is_some_and(|rms| rms < 2e-5), "{exact}");
        assert_eq!((exact["likeliest_equal"].as_u64(), exact["greedy_equal"].as_u64()), (Some(8), Some(4)), "{exact}");
        assert!(run["agreement"]["truncated"].is_null());
        let kernels = (run["threads"].as_u64() > Some(0), run["isa"].is_string());
        assert_eq!(kernels, (run["engine"] == "flash", run["engine"] == "flash"), "{run}");
        if cfg!(target_os = "linux") {
            let bytes = |name: &str| run[name].as_u64().unwrap_or_else(|| panic!("{name}: {run}"));
            assert!(bytes("peak_rss_bytes") >= bytes("anonymous_bytes"), "{run}");
        }
    }
    // A header, the start, two times to a first token, five speeds, memory where it can be measured, three measures of agreement, and a
    // line about each engine.
    let table = String::from_utf8_lossy(&output.stdout);
    let memory = if cfg!(target_os = "linux") { 2 } else { 0 };
    assert_eq!(table.lines().count(), 1 + 1 + 2 + 5 + memory + 3 + 2, "{table}");
    let engines: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(engines, ["cached", "flash"]);
    assert!(table.lines().any(|line| line.starts_with("greedy tokens equal, of 4 ")), "{table}");
}

#[test]
fn failing_engine_does_not_affect_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("one");
    // A cache that is too small for any sequence. Only `flash` gets the limit; `cached` allocates what its sequences need.
    let output = compare(&["--engine", "cached,flash", "--kv-memory", "1B", "--turns", "1"], &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record = record_in(&out);
    let [cached, flash] = &record["runs"].as_array().expect("an array")[..] else { panic!("{record}") };
    assert_eq!(cached["engine"], "cached");
    assert_eq!(cached["results"].as_array().map(Vec::len), Some(5));
    assert_eq!(flash["engine"], "flash");
    assert_eq!(flash["turn"], 1);
    let error = flash["error"].as_str().expect("an error");
    assert!(!error.is_empty());
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains(&format!("flash failed in turn 1: {error}\n")), "{table}");

    let out = directory.path().join("none");
    let output = compare(&["--engine", "flash", "--kv-memory", "1B", "--turns", "1"], &out);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().last()), (Some(2), Some("gptoss: no engine ran")), "{stderr}");
    assert!(record_in(&out)["runs"][0]["error"].is_string());
}

#[test]
fn models_may_come_after_two_dashes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_gptoss"))
        .args(["compare", "--engine", "flash", "--device", "cpu", "--prompt", "4", "--depth", "0", "--generate", "1"])
        .args(["--repeat", "1", "--turns", "1", "--check", "1", "--greedy", "1", "--sequences", "2", "--out"])
        .arg(directory.path())
        .args(["--", "embedded"])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = &record_in(directory.path())["runs"][0];
    assert!(run["start_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{run}");
}
