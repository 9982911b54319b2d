//! `gptoss compare` and the records that it writes.

use std::process::Command;

use serde_json::Value;

#[test]
fn compare_writes_a_record_of_every_engine_and_turn() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("records");
    let small =
        ["--prompt", "20", "--depth", "0,30", "--generate", "4", "--repeat", "1", "--check", "8", "--greedy", "4"];
    let output = Command::new(env!("CARGO_BIN_EXE_gptoss"))
        .args(["compare", "embedded", "--engine", "cached,flash", "--device", "cpu", "--sequences", "3", "--exact"])
        .args(small)
        .arg("--out")
        .arg(&out)
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<_> = std::fs::read_dir(&out).expect("a folder").map(|file| file.expect("a file").path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let record: Value = serde_json::from_slice(&std::fs::read(file).expect("read")).expect("JSON");
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
        // Both compute in f32.
        let exact = &run["agreement"]["exact"];
        assert!(exact["rms"].as_f64().is_some_and(|rms| rms < 2e-5), "{exact}");
        assert_eq!((exact["likeliest_equal"].as_u64(), exact["greedy_equal"].as_u64()), (Some(8), Some(4)), "{exact}");
        assert!(run["agreement"]["truncated"].is_null());
    }
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(table.lines().count(), 1 + 4 * (1 + 2 + 5), "{table}");
}
