//! Texts and conversations that a later run continues from a session file.

use crate::program::{chat, json, refusal, stdout};
use serde_json::Value;

/// A text that is continued twice from a session has the same tokens as in a single run.
#[test]
fn session_continues_as_in_one_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let tokens = |session: Option<&str>, prompt: &str, count: &str, engine: &[&str]| -> Vec<Value> {
        let common = ["generate", "embedded", prompt, "-n", count, "--ignore-stops", "--json", "--device", "cpu"];
        let session = session.map_or(Vec::new(), |file| vec!["--session", file]);
        json(&[&common[..], engine, &session].concat())["tokens"].as_array().expect("an array").clone()
    };
    for phase in ["3", "5"] {
        for kv in ["f32", "f16", "q8_0"] {
            let (file, engine) = (path(&format!("{phase}-{kv}")), ["--phase", phase, "--kv", kv]);
            // Longer than the window of 128, so that the rings have wrapped when they are saved.
            let whole = tokens(None, "Once upon a time", "150", &engine);
            let parts = [("Once upon a time", "7"), ("", "133"), ("", "10")];
            let parts = parts.iter().flat_map(|(prompt, count)| tokens(Some(&file), prompt, count, &engine));
            assert_eq!(parts.collect::<Vec<_>>(), whole, "phase {phase}, {kv}");
        }
    }
    // Draws depend on the seed and the position, wherever the text was interrupted.
    for phase in ["3", "5"] {
        let sampling = ["--temperature", "1.5", "--top-p", "0.9", "--seed", "3"];
        let (file, engine) =
            (path(&format!("drawn-{phase}")), [&["--phase", phase, "--kv", "f32"][..], &sampling].concat());
        let whole = tokens(None, "Once upon a time", "20", &engine);
        let parts = [("Once upon a time", "7"), ("", "13")];
        let parts = parts.iter().flat_map(|(prompt, count)| tokens(Some(&file), prompt, count, &engine));
        assert_eq!(parts.collect::<Vec<_>>(), whole, "phase {phase}");
    }
    // Another kind of engine computes the cache again from the tokens.
    let whole = tokens(None, "Once upon a time", "12", &["--phase", "5", "--kv", "f32"]);
    let file = path("moved");
    let mut parts = tokens(Some(&file), "Once upon a time", "5", &["--phase", "3"]);
    parts.extend(tokens(Some(&file), "", "7", &["--phase", "5", "--kv", "f32"]));
    assert_eq!(parts, whole);
    // A session without generated tokens has its whole text in the cache; the next run computes the last token again.
    for phase in ["3", "5"] {
        let (file, engine) = (path(&format!("begun-{phase}")), ["--phase", phase, "--kv", "f32"]);
        assert!(tokens(Some(&file), "Once upon a time", "0", &engine).is_empty());
        assert_eq!(tokens(Some(&file), "", "5", &engine), whole[..5], "phase {phase}");
    }

    let file = path("3-f16");
    let on = |rest: &[&str]| refusal(&[rest, &["--session", &file, "--device", "cpu"]].concat());
    let refusals = [
        on(&["generate", "embedded", "", "--kv", "f32"]),
        on(&["generate", "embedded", "", "--kv", "f16", "--rope", "truncated"]),
        on(&["generate", "reference/goldens/even/model.gguf", "", "--kv", "f16"]),
        on(&["generate", "embedded", "a", "--phase", "2"]),
        on(&["generate", "what is it?"]),
        on(&["chat"]),
        refusal(&["generate", "embedded", "a", "--session", "Cargo.toml", "--device", "cpu"]),
    ];
    insta::assert_snapshot!(refusals.join("\n").replace(&file, "FILE"));
}

/// A conversation that is continued in another run is the same as in a single run, with `chat` and with `generate --ask`.
#[test]
fn conversation_continues_as_in_one_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (told, asked) = ("I have a cat named Hana. My locker code is 3650.\n", "What is my pet called?\n");
    // With `low` the embedded model does not reason; with `medium` it does, and later prompts leave the reasoning out.
    for effort in ["low", "medium"] {
        for phase in ["3", "5"] {
            let file = path(&format!("{effort}-{phase}"));
            let engine = ["--reasoning", effort, "--phase", phase];
            let whole = chat(&format!("{told}{asked}"), &engine);
            let kept = [&engine[..], &["--session", &file]].concat();
            assert_eq!(chat(told, &kept) + &chat(asked, &kept), whole, "{effort}, phase {phase}");
            assert!(whole.ends_with("Hana.\n\n"), "{whole}");
            let again = ["generate", "embedded", asked.trim(), "--ask", "--device", "cpu"];
            assert!(stdout(&[&again[..], &kept].concat()).contains("Hana"), "{effort}, phase {phase}");
        }
    }
    // Cached tokens are not computed again.
    let file = path("low-5");
    let arguments = ["generate", "What is 1 + 1?", "--device", "cpu", "--json", "--session", &file];
    let prompt_tokens = json(&arguments)["prompt_tokens"].as_u64().expect("a number");
    assert!((1..30).contains(&prompt_tokens), "{prompt_tokens}");
    assert_eq!(
        refusal(&["chat", "--device", "cpu", "--session", &file, "--system", "Rhyme."]).replace(&file, "FILE"),
        "2: gptoss: FILE already has instructions; they cannot be changed with --system or --tools"
    );
}

/// `--date` sets the date in the prompt, so that an answer can be repeated on another day.
#[test]
fn the_day_can_be_chosen() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("conversation");
    let session = file.to_str().expect("UTF-8");
    let ask = ["generate", "What is 1 + 1?", "--device", "cpu", "--date", "2025-06-28", "--session", session];
    stdout(&ask);
    let tokens = phase1_loading::SavedSession::open(&file).expect("a session").header.tokens;
    let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let text = stdout(&["tokenize", "embedded", "--decode", &tokens.join(",")]);
    assert!(text.contains("Current date: 2025-06-28\n"), "{text}");
}
