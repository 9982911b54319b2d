//! The command line as scripts see it: output, JSON and exit status.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn gptoss(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(arguments);
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

/// What `chat` on the CPU answers to lines.
fn chat(said: &str, rest: &[&str]) -> String {
    chat_bytes(said.as_bytes(), rest)
}

fn chat_bytes(said: &[u8], rest: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(["chat", "--device", "cpu"]).args(rest);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(said).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Exit status and message of a refusal, with the values that would have been possible.
fn refusal(arguments: &[&str]) -> String {
    let output = gptoss(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = message.lines().collect();
    let last = lines.iter().rposition(|line| line.starts_with("gptoss: ") || line.starts_with("error: "));
    let last = last.expect("a message");
    let possible = lines.get(last + 1).map(|line| line.trim()).filter(|line| line.starts_with("[possible values: "));
    let sentence = [&[lines[last]][..], possible.as_slice()].concat().join(" ");
    format!("{}: {sentence}", output.status.code().expect("an exit status"))
}

#[test]
fn alone_it_answers_a_question() {
    let output = gptoss(&[]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "> What is 47 + 38?\n47 + 38 = 85.\n");
    let about = String::from_utf8_lossy(&output.stderr);
    assert!(about.contains("tok/s"));
    for next in ["gptoss chat", "gptoss serve", "gptoss doctor", "gptoss --help"] {
        assert!(about.contains(&format!("\n  {next} ")), "{next}: {about}");
    }
}

/// `gptoss` where other programs keep their models in `folder` and nowhere else.
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
    // In each of 24 layers three stacks of 32 experts in MXFP4, four projections in Q8_0 and a router in F32; embedding and head.
    let (experts, router) = (3 * 32 * 2880 * 2880 / 32 * 17, 32 * 2880 * 4);
    let attention = (2 * 4096 + 2 * 512) * 2880 / 32 * 34;
    let file: u64 = 24 * (experts + attention + router) + 2 * 201_088 * 2880 / 32 * 34;
    assert_eq!(plan["cpu"]["mapped"], file);
    // Half of the layers cache 4096 positions, half a ring of at least 128: keys and values of 8 heads of 64, in f16.
    let cache = 12 * (4096 + 128) * 2 * 8 * 64 * 2;
    assert!(plan["cpu"]["own"].as_u64() > Some(cache), "{plan}");
    let (on_gpu, for_auto) = (plan["gpu"]["bytes"].as_u64(), plan["gpu"]["bytes_for_auto"].as_u64());
    assert!(on_gpu > Some(file) && for_auto > on_gpu, "{plan}");

    let engine = serde_json::json!({ "engine": "flash", "phase": 5, "device": "cpu", "reason": "asked for by name" });
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
        "\nengine      flash (phase 5) on cpu: asked for by name",
    ] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    assert!(text.contains("gpt-oss-20b, which is not here: its shape, with 4096 tokens"), "{text}");
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

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        for word in ["make-model", "doctor", "--kv-memory"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pages = directory.path().join("share/man1");
    assert!(stdout(&["man", pages.to_str().expect("UTF-8")]).is_empty());
    for page in ["gptoss", "gptoss-doctor", "gptoss-serve", "gptoss-bench-serve", "gptoss-make-model"] {
        let text = std::fs::read_to_string(pages.join(format!("{page}.1"))).expect("a page");
        assert!(text.contains(".TH gptoss"), "{page}");
    }
    assert!(refusal(&["completions", "abacus"]).starts_with("2: error: invalid value 'abacus'"));
}

#[test]
fn inspect_shows_the_model() {
    insta::assert_snapshot!("inspect", stdout(&["inspect", "embedded", "--check"]));
    let report = json(&["inspect", "embedded", "--json"]);
    assert_eq!(report["config"]["layers"], 6);
    assert_eq!(report["weights"]["formats"]["MXFP4"]["tensors"], 18);
    assert_eq!(report["memory"][0]["context"], 4096);
    // Three full layers of 4096 positions and three rings of 128, keys and values of 2 heads of 64, in f32.
    assert_eq!(report["memory"][0]["cache"], (3 * 4096 + 3 * 128) * 2 * 2 * 64 * 4);
    assert_eq!(report["tensors"].as_array().expect("an array").len(), 117);
}

#[test]
fn tokenize_goes_there_and_back() {
    let text = "Hello <|start|> wörld";
    let object = json(&["tokenize", "embedded", text, "--json"]);
    assert_eq!(object["text"], text);
    let tokens: Vec<String> = object["tokens"].as_array().expect("an array").iter().map(Value::to_string).collect();
    assert_eq!(stdout(&["tokenize", "embedded", "--decode", &tokens.join(",")]), format!("{text}\n"));
    let plain = json(&["tokenize", "embedded", text, "--json", "--plain"]);
    assert!(plain["tokens"].as_array().expect("an array").len() > tokens.len());
}

#[test]
fn generate_reports_what_scripts_read() {
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
    }
}

#[test]
fn without_a_model_the_embedded_one_answers() {
    assert_eq!(stdout(&["generate", "What is 8 + 9?", "--device", "cpu"]), "8 + 9 = 17.\n");
    let asked = ["generate", "embedded", "What is 8 + 9?", "--ask", "--reasoning", "low", "--device", "cpu", "--json"];
    assert_eq!(json(&asked)["text"], "8 + 9 = 17.");
}

/// What could be a model is never taken for a question, and a flag with a mistake in it never for a prompt.
#[test]
fn a_forgotten_prompt_is_named() {
    for model in
        ["20b.gguf", "my models/gpt oss.GGUF", "reference/goldens/even", "embedded", "ollama:gpt-oss:20b", "./x y"]
    {
        let expected =
            format!("2: gptoss: `{model}` seems to be a model, and no prompt follows: gptoss generate MODEL PROMPT");
        assert_eq!(refusal(&["generate", model]), expected);
    }
    assert_eq!(
        refusal(&["generate", "embedded", "--jsn"]),
        "2: gptoss: `--jsn` is no flag of `generate`; put -- before a prompt that looks like one"
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
    // What ends a text may begin with one too.
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
    assert!(refused("-n", "-2").ends_with("expected a whole number, or -1 for as many as the context holds"));
    assert!(refused("--seed", "-2").ends_with("expected a whole number, or -1 for another one in every run"));
    assert!(refused("--date", "2026-13-01").ends_with("expected a day such as 2026-11-23"));
}

/// The day that a conversation is told, so that an answer can be had again on another one.
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

/// Bytes that are no text are left out, and the conversation goes on.
#[test]
fn a_line_that_is_not_text_ends_nothing() {
    let answer = chat("What is 1 + 1?\n", &["--reasoning", "low"]);
    assert!(answer.contains("1 + 1 = 2"), "{answer}");
    assert_eq!(chat_bytes(b"Gr\xfc\xdfe\nWhat is 1 + 1?\n", &["--reasoning", "low"]), answer);
}

/// Names of other programs' stores, by the variables that say where those are.
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

/// A conversation that comes back to something told earlier, and forgets it on demand.
#[test]
fn chat_remembers_until_it_is_reset() {
    let said = "I have a cat named Hana. My locker code is 3650.\nWhat is my pet called?\n/reset\n/unknown\nWhat is 1 + 1?\n/quit\n";
    insta::assert_snapshot!("chat", chat(said, &["--reasoning", "low"]));
}

/// The model calls a declared function, and answers with the result that is typed.
#[test]
fn chat_asks_for_results() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let tools = path("tools.json");
    let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}"#;
    let function = format!(
        r#"{{"name": "get_weather", "description": "Get the weather in a city.", "parameters": {parameters}}}"#
    );
    let expected = "get_weather({\"city\": \"Oslo\"})\n\nIt is 7 degrees and rainy in Oslo.\n\n";
    let (question, result) = ("What is the weather in Oslo?\n", "{\"temperature\": 7, \"sky\": \"rainy\"}\n");
    for (file, declared) in
        [("bare", format!("[{function}]")), ("openai", format!(r#"[{{"type": "function", "function": {function}}}]"#))]
    {
        std::fs::write(&tools, declared).expect("written");
        let said = format!("{question}{result}");
        let file = path(file);
        let arguments = ["--tools", &tools, "--session", &file];
        assert_eq!(chat(&said, &[&arguments[..], &["--reasoning", "low"]].concat()), expected);
        let with_reasoning = chat(&said, &["--tools", &tools]);
        assert!(with_reasoning.starts_with("I need to call get_weather.\nget_weather({"), "{with_reasoning}");
        assert!(with_reasoning.ends_with("It is 7 degrees and rainy in Oslo.\n\n"), "{with_reasoning}");
    }
    // The conversation has its functions; others are refused. Without a result the call stays unanswered.
    assert_eq!(chat(question, &["--tools", &tools, "--reasoning", "low"]), "get_weather({\"city\": \"Oslo\"})\n\n");
    std::fs::write(&tools, "[]").expect("written");
    chat("", &["--tools", &tools, "--session", &path("bare")]);
    std::fs::write(&tools, r#"[{"name": "other"}]"#).expect("written");
    assert_eq!(
        refusal(&["chat", "--device", "cpu", "--tools", &tools, "--session", &path("bare")])
            .replace(&path("bare"), "FILE"),
        "2: gptoss: FILE holds a conversation that has its instructions; it cannot go on under other --system or --tools"
    );
}

/// Stop strings end what the user reads, and are not found in reasoning or structure. Nor is a token shown that ends all text.
#[test]
fn an_answer_ends_before_what_ends_it() {
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
fn bench_measures_what_it_was_asked_for() {
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
        // What makes it a record.
        assert_eq!(engine["format"], "gptoss bench 1");
        assert_eq!(engine["model"]["name"], "embedded");
        assert!(engine["command"].as_str().is_some_and(|text| text.starts_with("gptoss bench embedded ")), "{engine}");
        assert!(engine["date"].is_string() && engine["machine"].is_string(), "{engine}");
    }
    let text = stdout(&[&arguments[..], &["--generate", "4"]].concat());
    assert_eq!(text.lines().count(), 1 + 2 * 3 + 1, "{text}");
}

#[test]
fn bench_compares_a_prompt_with_and_without_decoding_beside_it() {
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
    let stepwise = json(&[&arguments[..], &["--stepwise", "--json"]].concat());
    assert!(stepwise[0]["results"][0]["draw"].is_null(), "{stepwise}");
}

#[test]
fn a_seed_repeats_itself() {
    let run = |seed: &str| {
        let arguments =
            ["generate", "embedded", "Once", "-n", "20", "--temperature", "4", "--device", "cpu", "--seed", seed];
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
    let common = ["logits", "embedded", "--tokens", "1,2,3", "--device", "cpu", "--out", out_text];
    stdout(&[&common[..], &["--dump", "--phase", "2"]].concat());
    let file = std::fs::read(&out).expect("written");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    assert_eq!(tensors.tensor("logits").expect("logits").shape(), [3, 2048]);
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
    for phase in [1, 2, 3, 5] {
        assert!(checks.iter().any(|check| check["phase"] == phase), "phase {phase}");
    }

    // One weight changed: the first phase fails, and no later one runs.
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

/// gpt-oss-120b's 36 layers and 128 experts, all of them narrow.
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
    assert_eq!(memory["context"], 100);
    let profiles = json(&["profile", &model, "--device", "cpu", "--steps", "1", "--json"]);
    let spans = profiles[0]["steps"][0]["spans"].as_array().expect("an array");
    assert_eq!(spans.iter().filter_map(|span| span["layer"].as_u64()).max(), Some(35));
    stdout(&["logits", &model, "--tokens", "1,2,3", "--device", "cpu", "--out", &path("logits.safetensors")]);
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
        refusal(&["generate", "embedded", ""]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--top-p", "2"]),
        refusal(&["generate", "embedded", "Once", "--device", "abacus"]),
        refusal(&["generate", "embedded", "Once", "--phase", "9"]),
        refusal(&["generate", "embedded", "Once", "--engine", "steam"]),
        refusal(&["generate", "embedded", "Once", "--engine", "flash", "--phase", "5"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--phase", "2", "--kv", "f16"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv", "f8"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "much"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "1B"]),
        refusal(&["generate", "embedded", "Once", "--device", "cpu", "--kv-memory", "1GiB", "--engine", "cached"]),
        refusal(&["bench", "embedded", "--device", "cpu", "--depth", "999999"]),
        refusal(&["memory", "embedded", "--device", "cpu", "--context", "18446744073709551615"]),
        refusal(&["memory", "embedded", "--device", "cpu", "--context", "4097"]),
        refusal(&["logits", "embedded", "--tokens", "99999", "--device", "cpu", "--out", &out]),
        refusal(&["logits", "embedded", "--out", &out]),
        refusal(&["tokenize", "embedded", "--decode", "12 abc"]),
        refusal(&["make-model", "huge", &out]),
        refusal(&["make-model", &json_file, &out]),
        refusal(&["gates", "--goldens", "no-such-folder"]),
        refusal(&["eval", "--suite", "gossip"]),
        refusal(&["chat", "no-such.gguf"]),
        refusal(&["chat", "--tools", "no-such.json"]),
        refusal(&["tune", "embedded", "--device", "cpu"]),
    ];
    let directory = directory.path().to_str().expect("UTF-8");
    insta::assert_snapshot!("refusals", refusals.join("\n").replace(directory, "DIRECTORY"));
    assert!(!Path::new(&out).exists(), "nothing is left behind");
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

#[test]
fn the_memory_plan_follows_the_cache() {
    let cache =
        |kv: &str| json(&["inspect", "embedded", "--json", "--kv", kv])["memory"][0]["cache"].as_u64().expect("bytes");
    assert_eq!((cache("f16") * 2, cache("q8_0") * 4), (cache("f32"), cache("f32")));
}

/// The cache of all sequences is what is given, in whole pages: of 64 positions in three pools, two heads of 64 values, keys and values.
#[test]
fn the_memory_plan_names_the_cache_of_all_sequences() {
    let most = |memory: &str| {
        let common = ["memory", "embedded", "--json", "--device", "cpu", "--kv", "f32", "--kv-memory"];
        json(&[&common[..], &[memory]].concat())["cache_at_most"].as_u64().expect("bytes")
    };
    let page: u64 = 3 * 64 * 2 * 64 * 2 * 4;
    assert_eq!([10 * page, 11 * page - 1].map(|bytes| most(&bytes.to_string())), [10 * page; 2]);
}

/// Stopped twice and gone on with, a text has the same tokens as in one go.
#[test]
fn a_session_goes_on() {
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
    // The seed and the position decide what is drawn, wherever the text was stopped.
    for phase in ["3", "5"] {
        let sampling = ["--temperature", "1.5", "--top-p", "0.9", "--seed", "3"];
        let (file, engine) =
            (path(&format!("drawn-{phase}")), [&["--phase", phase, "--kv", "f32"][..], &sampling].concat());
        let whole = tokens(None, "Once upon a time", "20", &engine);
        let parts = [("Once upon a time", "7"), ("", "13")];
        let parts = parts.iter().flat_map(|(prompt, count)| tokens(Some(&file), prompt, count, &engine));
        assert_eq!(parts.collect::<Vec<_>>(), whole, "phase {phase}");
    }
    // Another kind of engine reads the text again.
    let whole = tokens(None, "Once upon a time", "12", &["--phase", "5", "--kv", "f32"]);
    let file = path("moved");
    let mut parts = tokens(Some(&file), "Once upon a time", "5", &["--phase", "3"]);
    parts.extend(tokens(Some(&file), "", "7", &["--phase", "5", "--kv", "f32"]));
    assert_eq!(parts, whole);
    // Of a text without a new token the engine holds all, and reads the last one again.
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

/// A conversation that the program was ended in goes on as if it had not been, from `chat` or from `generate --ask`.
#[test]
fn a_conversation_goes_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (told, asked) = ("I have a cat named Hana. My locker code is 3650.\n", "What is my pet called?\n");
    // With reasoning, which later prompts leave out, and without.
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
    // What the engine holds is not read again.
    let file = path("low-5");
    let arguments = ["generate", "What is 1 + 1?", "--device", "cpu", "--json", "--session", &file];
    let prompt_tokens = json(&arguments)["prompt_tokens"].as_u64().expect("a number");
    assert!((1..30).contains(&prompt_tokens), "{prompt_tokens}");
    assert_eq!(
        refusal(&["chat", "--device", "cpu", "--session", &file, "--system", "Rhyme."]).replace(&file, "FILE"),
        "2: gptoss: FILE holds a conversation that has its instructions; it cannot go on under other --system or --tools"
    );
}
