//! Commands that measure speed and quality.

use std::path::Path;

use crate::program::{gptoss, json, stdout};
use serde_json::Value;

#[test]
fn bench_measures_the_requested_sizes() {
    let arguments = ["bench", "embedded", "--device", "cpu", "--prompt", "20,40", "--depth", "0,30", "--repeat", "2"];
    let choices = ["--phase", "2,3,5", "--kv", "f32,q8_0", "--batch", "1,3", "--generate", "4"];
    let report = json(&[&arguments[..], &choices, &["--json"]].concat());
    let engines = report.as_array().expect("an array");
    let engine = |engine: &Value| (engine["phase"].as_u64(), engine["kv"].as_str().map(str::to_owned));
    let with = |phase, kv: &str| (Some(phase), Some(kv.to_owned()));
    let expected = [(Some(2), None), with(3, "f32"), with(3, "q8_0"), with(5, "f32"), with(5, "q8_0")];
    assert_eq!(engines.iter().map(engine).collect::<Vec<_>>(), expected);
    for engine in engines {
        let results = engine["results"].as_array().expect("an array");
        let what = |result: &Value| {
            let number = |name: &str| result[name].as_u64().expect("a whole number");
            (result["what"].to_string(), number("tokens"), number("depth"), number("batch"))
        };
        let at = |depth| {
            let prefill = |tokens| ("\"prefill\"".to_owned(), tokens, depth, 1);
            let decode = |batch| ("\"decode\"".to_owned(), 4, depth, batch);
            [decode(1), prefill(20), prefill(40), decode(3)]
        };
        assert_eq!(results.iter().map(what).collect::<Vec<_>>(), [at(0), at(30)].concat());
        for result in results {
            for number in ["tok_s", "tok_s_min", "tok_s_max", "ms_per_token", "gb_s", "roofline"] {
                assert!(result[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {result}");
            }
        }
        assert!(engine["peak_rss_bytes"].as_u64() > Some(0) || !cfg!(target_os = "linux"), "{engine}");
        // The fields of a record.
        assert_eq!(engine["format"], "gptoss bench 1");
        assert_eq!(engine["model"]["name"], "embedded");
        assert!(engine["command"].as_str().is_some_and(|text| text.starts_with("gptoss bench embedded ")), "{engine}");
        assert!(engine["date"].is_string() && engine["machine"].is_string(), "{engine}");
    }
    let text = stdout(&[&arguments[..], &["--generate", "4"]].concat());
    // A header, three results per depth, and two lines about the start.
    assert_eq!(text.lines().count(), 1 + 2 * 3 + 2, "{text}");
}

#[test]
fn bench_compares_prefill_with_and_without_concurrent_decoding() {
    let arguments = ["bench", "embedded", "--device", "cpu", "--prompt", "0", "--generate", "2", "--repeat", "1"];
    let choices = ["--engine", "cached,flash", "--draw", "sampled", "--mixed"];
    let report = json(&[&arguments[..], &choices, &["--json"]].concat());
    let engines = report.as_array().expect("an array");
    assert_eq!(engines.len(), 2);
    for (engine, name) in engines.iter().zip(["cached", "flash"]) {
        assert_eq!(engine["engine"], name);
        let [decode, mixed] = &engine["results"].as_array().expect("an array")[..] else { panic!("{engine}") };
        assert_eq!(decode["what"], "decode");
        assert!(decode["steps_in_flight"].as_u64() > Some(0), "{decode}");
        assert_eq!(mixed["what"], "mixed");
        assert_eq!((mixed["tokens"].as_u64(), mixed["batch"].as_u64()), (Some(512), Some(16)));
        for result in [decode, mixed] {
            assert_eq!(result["draw"], "sampled");
            for number in ["tok_s", "ms_per_token", "gb_s", "roofline"] {
                assert!(result[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {result}");
            }
        }
        let number = |name: &str| mixed[name].as_f64().expect("a number");
        assert!((number("ratio") * number("alone_ms") / number("mixed_ms") - 1.0).abs() < 1e-6, "{mixed}");
    }
    let text = stdout(&[&arguments[..], &["--mixed"]].concat());
    assert!(text.contains("× the prompt alone"), "{text}");
    assert!(text.contains("\n  start: device "), "{text}");
    let stepwise = json(&[&arguments[..], &["--stepwise", "--json"]].concat());
    assert!(stepwise[0]["results"][0]["draw"].is_null(), "{stepwise}");
}

#[test]
fn eval_scores_the_embedded_model() {
    let suites = |phase| {
        let arguments =
            ["eval", "--suite", "arithmetic_low", "--suite", "stories", "--limit", "4", "--device", "cpu", "--json"];
        json(&[&arguments[..], &["--phase", phase]].concat())["suites"].clone()
    };
    let (two, three, five) = (suites("2"), suites("3"), suites("5"));
    assert_eq!(two["arithmetic_low"], three["arithmetic_low"]);
    assert_eq!(five["arithmetic_low"]["accuracy"], 1.0);
    assert_eq!(three["arithmetic_low"]["accuracy"], 1.0);
    assert_eq!(three["arithmetic_low"]["harmony_valid"], 1.0);
    let perplexity = |suites: &Value| suites["stories"]["perplexity"].as_f64().expect("a number");
    assert!(perplexity(&three) < 1.5, "{three}");
    assert!((perplexity(&two) / perplexity(&three) - 1.0).abs() < 1e-4, "{two} and {three}");
    assert!((perplexity(&five) / perplexity(&three) - 1.0).abs() < 1e-2, "{five} and {three}");
}

#[test]
fn gates_pass_and_fail() {
    let report = json(&["gates", "--device", "cpu", "--json"]);
    assert_eq!(report["format"], "gptoss gates 1");
    assert!(report["engine"].is_null() && report["machine"].is_string() && report["date"].is_string(), "{report}");
    assert_eq!((&report["device"], &report["command"]), (&"cpu".into(), &"gptoss gates --device cpu --json".into()));
    let checks = report["checks"].as_array().expect("an array");
    assert!(checks.iter().all(|check| check["passed"] == true));
    for phase in [1, 2, 3, 5] {
        assert!(checks.iter().any(|check| check["phase"] == phase), "phase {phase}");
    }

    // With one weight changed, the first phase fails and later ones do not run.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let goldens = Path::new("reference/goldens").to_owned();
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
