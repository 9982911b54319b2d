//! `gptoss generate`: generated texts, and the reasons for which they end.

#[cfg(unix)]
use std::io::Read;
#[cfg(unix)]
use std::process::{Command, Stdio};

use crate::program::{gptoss, json, refusal, stdout};
use serde_json::Value;

#[test]
fn without_arguments_it_answers_a_question() {
    let output = gptoss(&[]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "> What is 47 + 38?\n47 + 38 = 85.\n");
    let about = String::from_utf8_lossy(&output.stderr);
    for line in ["model: gptoss-tiny (inside the program)\n", "device: ", "engine: flash (phase 5)"] {
        assert!(about.contains(&format!("\n{line}")), "{line}: {about}");
    }
    assert!(about.contains("tokens (reasoning included), ") && about.contains(" tok/s; ended by stop\n"), "{about}");
    for next in ["gptoss chat", "gptoss serve", "gptoss doctor", "gptoss --help"] {
        assert!(about.contains(&format!("\n  {next} ")), "{next}: {about}");
    }
}

#[test]
fn without_a_model_the_embedded_one_is_used() {
    assert_eq!(stdout(&["generate", "What is 8 + 9?", "--device", "cpu"]), "8 + 9 = 17.\n");
    let asked = ["generate", "embedded", "What is 8 + 9?", "--ask", "--reasoning", "low", "--device", "cpu", "--json"];
    assert_eq!(json(&asked)["text"], "8 + 9 = 17.");
}

#[test]
fn generate_writes_json_for_scripts() {
    for (engine, phase, device) in [("reference", "2", "cpu"), ("cached", "3", "cpu"), ("flash", "5", "cpu")] {
        let arguments = ["generate", "embedded", "Once", "-n", "5", "--ignore-stops", "--json", "--device", device];
        let object = json(&[&arguments[..], &["--engine", engine]].concat());
        assert_eq!(object["tokens"].as_array().expect("an array").len(), 5);
        assert_eq!(object["engine"], engine);
        assert_eq!(object["phase"].to_string(), phase);
        let by_phase = json(&[&arguments[..], &["--phase", phase]].concat());
        assert_eq!((&by_phase["tokens"], &by_phase["engine"]), (&object["tokens"], &object["engine"]));
        assert_eq!(object["device"], device);
        for number in ["prompt_tokens", "load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s", "peak_rss_bytes"] {
            assert!(object[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {object}");
        }
        assert!(object["text"].is_string());
        let stages = object["start"]["stages"].as_array().expect("an array");
        assert_eq!(
            stages.iter().map(|stage| stage["name"].as_str().expect("a name")).collect::<Vec<_>>(),
            ["file", "device", "model", "end of tokenizer", "prompt", "first token"]
        );
        let sum: f64 = stages.iter().map(|stage| stage["ms"].as_f64().expect("a number")).sum();
        let whole = object["load_ms"].as_f64().expect("a number") + object["ttft_ms"].as_f64().expect("a number");
        assert!(sum > 0.0 && sum <= whole, "{object}");
        assert_eq!(object["start"]["parts"][0]["name"], "tokenizer");
    }
}

/// An argument that looks like a model is not taken for a question, and a misspelled flag is not taken for a prompt.
#[test]
fn missing_prompt_is_reported() {
    for model in
        ["20b.gguf", "my models/gpt oss.GGUF", "reference/goldens/even", "embedded", "ollama:gpt-oss:20b", "./x y"]
    {
        let expected =
            format!("2: gptoss: `{model}` looks like a model; a prompt is missing: gptoss generate MODEL PROMPT");
        assert_eq!(refusal(&["generate", model]), expected);
    }
    assert_eq!(
        refusal(&["generate", "embedded", "--jsn"]),
        "2: gptoss: `generate` has no flag `--jsn`; put -- before a prompt that looks like one"
    );
    assert_eq!(refusal(&["generate", "embedded", "Once", "--jsn"]), "2: error: unexpected argument '--jsn' found");
    assert_eq!(
        refusal(&["generate", "no-such.gguf", "Once"]),
        "2: gptoss: no-such.gguf cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    for prompt in ["-help me", "- a list", "-1 + 1 =", "--help me", "—"] {
        let object = json(&["tokenize", "embedded", prompt, "--json"]);
        assert_eq!(object["text"], prompt);
        let tokens = object["tokens"].as_array().expect("an array").len();
        let options = ["-n", "1", "--ignore-stops", "--device", "cpu", "--json"];
        for arguments in [
            [&["generate", "embedded", prompt][..], &options].concat(),
            [&["generate", "embedded"][..], &options, &["--", prompt]].concat(),
        ] {
            assert_eq!(json(&arguments)["prompt_tokens"], tokens, "{prompt}");
        }
    }
    let flag =
        json(&["generate", "embedded", "-n", "1", "--ignore-stops", "--device", "cpu", "--json", "--", "--json"]);
    assert!(flag["prompt_tokens"].as_u64() > Some(0), "{flag}");
    // A stop string may begin with a hyphen too.
    let ask = [
        "generate",
        "embedded",
        "What is 8 + 9?",
        "--ask",
        "--device",
        "cpu",
        "--json",
        "--stop",
        "-",
        "--stop",
        " = ",
    ];
    assert_eq!(json(&ask)["text"], "8 + 9");
}

#[test]
fn minus_one_is_no_limit_and_no_seed() {
    let ask = ["generate", "embedded", "What is 8 + 9?", "--ask", "--device", "cpu", "--json", "-n", "-1"];
    let object = json(&ask);
    assert_eq!((&object["text"], &object["finish_reason"]), (&Value::from("8 + 9 = 17."), &Value::from("stop")));
    let drawn = ["generate", "embedded", "Once", "-n", "3", "--ignore-stops", "--device", "cpu", "--temperature", "1"];
    let object = json(&[&drawn[..], &["--json", "--seed", "-1"]].concat());
    assert_eq!(object["tokens"].as_array().expect("an array").len(), 3);
    let refused = |flag: &str, value: &str| refusal(&["generate", "embedded", "Once", flag, value]);
    assert!(refused("-n", "-2").ends_with("expected a whole number, or -1 for the rest of the context"));
    assert!(refused("--seed", "-2").ends_with("expected a whole number, or -1 for a different seed in every run"));
    assert!(refused("--date", "2026-13-01").ends_with("expected a day such as 2026-11-23"));
}

#[test]
fn same_seed_gives_the_same_text() {
    let run = |seed: &str| {
        let arguments =
            ["generate", "embedded", "Once", "-n", "20", "--temperature", "4", "--device", "cpu", "--seed", seed];
        stdout(&arguments)
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

/// Stop strings apply to visible text, not to reasoning or structure, and tokens that end a text are not shown.
#[test]
fn stop_strings_and_end_tokens_are_not_shown() {
    let ask = |rest: &[&str]| {
        let common = ["generate", "embedded", "What is 8 + 9?", "--ask", "--device", "cpu"];
        json(&[&common[..], rest, &["--json"]].concat())
    };
    for effort in ["low", "medium"] {
        let object = ask(&["--reasoning", effort, "--stop", " = "]);
        assert_eq!(
            (&object["text"], &object["finish_reason"]),
            (&Value::from("8 + 9"), &Value::from("stop")),
            "{effort}"
        );
        for unseen in ["analysis", "message", "<|", "final"] {
            assert_eq!(ask(&["--reasoning", effort, "--stop", unseen])["text"], "8 + 9 = 17.", "{effort}, {unseen}");
        }
    }
    let end = json(&["tokenize", "embedded", "<|endoftext|>", "--json"])["tokens"][0].to_string();
    let object = ask(&["--logit-bias", &format!("{end}=1000")]);
    assert_eq!((&object["text"], &object["finish_reason"]), (&Value::from(""), &Value::from("stop")));
    let refused = refusal(&["generate", "embedded", "Hi", "--ask", "--device", "cpu", "--stop", ""]);
    assert_eq!(refused, "2: gptoss: stop string 0 is empty, but must hold at least one character");
}

/// Ctrl-C ends a text: the part that was generated has been shown, and the exit status is 130.
#[cfg(unix)]
#[test]
fn interrupted_text_exits_with_130() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    // The slowest engine: thousands of tokens would take minutes.
    command.args(["generate", "embedded", "Once", "-n", "-1", "--ignore-stops", "--device", "cpu"]);
    command.args(["--engine", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // The handler of Ctrl-C is installed before the first text is shown.
    child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("a text");
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(signalled.success());
    let output = child.wait_with_output().expect("it ends");
    let about = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{about}");
    assert!(about.ends_with("; stopped by Ctrl-C\n"), "{about}");
}

#[test]
fn usage_shows_every_form() {
    let usage = "Usage: gptoss generate [OPTIONS] QUESTION\n       gptoss generate [OPTIONS] MODEL PROMPT\n       \
                 gptoss generate [OPTIONS] MODEL --ask QUESTION\n";
    assert!(stdout(&["generate", "--help"]).contains(usage));
    let output = gptoss(&["generate"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains(usage), "{message}");
}
