//! MLX and llama.cpp from the command line: the errors if they are not installed, and their answers if they are.

use std::io::{BufRead, BufReader, Read, Write, stderr};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// The environment variable that lists peers, separated by commas, which must be installed. CI sets it.
const REQUIRED: &str = "GPTOSS_REQUIRED_PEERS";
const PYTHONS: [&str; 2] = ["GPTOSS_MLX_PYTHON", "GPTOSS_LLAMA_CPP_PYTHON"];

fn gptoss(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(arguments);
    command
}

/// Runs gptoss as a user who has installed no peer.
fn without_peers(arguments: &[&str], cache: &Path) -> Output {
    let mut command = gptoss(arguments);
    PYTHONS.iter().for_each(|variable| {
        command.env_remove(variable);
    });
    command.env("XDG_CACHE_HOME", cache).env("HOME", cache).output().expect("the program starts")
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    format!("{}: {}", output.status.code().expect("an exit status"), text.lines().last().unwrap_or_default())
}

fn report(arguments: &[&str]) -> Value {
    let output = gptoss(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Whether a peer is installed. If not, prints that `test` did not run, and fails if the peer is required.
fn has(peer: &str, test: &str) -> bool {
    let all = report(&["peers", "list", "--json"]);
    let found = all.as_array().into_iter().flatten().find(|found| found["name"] == peer).expect("a peer");
    if found["python"].is_string() {
        return true;
    }
    let required = std::env::var(REQUIRED).unwrap_or_default();
    assert!(!required.split(',').any(|name| name == peer), "{found}");
    // Written directly to stderr, because the test harness hides the output of passing tests.
    let _ = writeln!(stderr(), "NOT RUN: {test}: {}", found["missing"]);
    false
}

#[cfg(target_os = "linux")]
#[test]
fn missing_peers_are_reported() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    for (engine, sentence) in [
        ("mlx", "2: gptoss: MLX is not installed; `gptoss peers install mlx` installs it"),
        ("llama.cpp", "2: gptoss: llama.cpp is not installed; `gptoss peers install llama.cpp` installs it"),
    ] {
        let output = without_peers(&["generate", "embedded", "Once", "--engine", engine], cache.path());
        assert_eq!(last_line(&output), sentence);
    }
    let output = without_peers(&["peers", "list", "--json"], cache.path());
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names: Vec<&Value> = all.as_array().expect("an array").iter().map(|peer| &peer["name"]).collect();
    assert_eq!(names, ["mlx", "llama.cpp"]);
    for peer in all.as_array().expect("an array") {
        assert!(peer["python"].is_null() && peer["missing"].is_string(), "{peer}");
        assert!(!peer["pins"].as_array().expect("an array").is_empty(), "{peer}");
    }
    let output = without_peers(&["doctor", "embedded", "--device", "cpu", "--json"], cache.path());
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mlx = json!({ "name": "mlx", "python": null, "missing": "MLX is not installed; `gptoss peers install mlx` installs it" });
    assert_eq!((&report["peers"][0], &report["peers"][1]["name"]), (&mlx, &json!("llama.cpp")));
    let output = without_peers(&["peers", "install", "mlx", "--python", "no-such-python"], cache.path());
    let last = last_line(&output);
    assert!(last.starts_with("2: gptoss: \"no-such-python\"") && last.ends_with("names another Python"), "{last}");
}

#[test]
fn unsupported_peer_options_are_refused() {
    let refused = |arguments: &[&str]| last_line(&gptoss(arguments).output().expect("the program starts"));
    for (arguments, expected) in [
        (
            &["memory", "embedded", "--engine", "mlx"][..],
            "2: gptoss: only the memory of gptoss's own engines is planned; `gptoss bench --engine mlx` measures that of mlx",
        ),
        (
            &["doctor", "embedded", "--engine", "mlx"],
            "2: gptoss: doctor plans only for gptoss's engines; without --engine it shows whether MLX is installed",
        ),
        (
            &["profile", "embedded", "--engine", "llama.cpp"],
            "2: gptoss: llama.cpp does not report the times of operations; `gptoss bench` measures whole steps",
        ),
        (
            &["generate", "embedded", "x", "--engine", "mlx", "--kv", "f16"],
            "2: gptoss: --kv, --kv-memory and --isa are for gptoss's engines; MLX has its own settings",
        ),
        (
            &["generate", "embedded", "x", "--engine", "mlx", "--threads", "2"],
            "2: gptoss: MLX chooses its own number of threads",
        ),
        (
            &["generate", "embedded", "x", "--engine", "llama.cpp", "--device", "software"],
            "2: gptoss: llama.cpp does not run on a software rasterizer",
        ),
    ] {
        assert_eq!(refused(arguments), expected);
    }
}

#[test]
fn mlx_answers() {
    if !has("mlx", "mlx_answers") {
        return;
    }
    let on_cpu = ["--engine", "mlx", "--device", "cpu"];
    let asked = ["generate", "embedded", "What is 8 + 9?", "--ask", "--reasoning", "low", "--json"];
    let answer = report(&[&asked[..], &on_cpu].concat());
    assert_eq!(answer["text"], "8 + 9 = 17.");
    assert_eq!((&answer["engine"], &answer["phase"]), (&json!("mlx"), &Value::Null));
    assert!(answer["peak_rss_bytes"].as_u64() > Some(10_000_000), "{answer}");

    let suites = ["eval", "embedded", "--suite", "arithmetic_low", "--suite", "stories", "--limit", "5", "--json"];
    let theirs = report(&[&suites[..], &on_cpu].concat());
    let ours = report(&[&suites[..], &["--engine", "cached", "--device", "cpu"]].concat());
    let suite = |report: &Value, name: &str, number: &str| report["suites"][name][number].as_f64().expect("a number");
    let right = |report: &Value| suite(report, "arithmetic_low", "accuracy");
    let perplexity = |report: &Value| suite(report, "stories", "perplexity");
    assert_eq!(right(&theirs), right(&ours));
    assert!((perplexity(&theirs) / perplexity(&ours) - 1.0).abs() < 1e-4, "{theirs} and {ours}");

    let bench = ["bench", "embedded", "--prompt", "20", "--depth", "0,30", "--batch", "1,3", "--generate", "4"];
    let found = report(&[&bench[..], &on_cpu, &["--repeat", "1", "--json"]].concat());
    assert_eq!(found[0]["engine"], "mlx");
    assert_eq!(found[0]["results"].as_array().map(Vec::len), Some(6), "{found}");

    let found = report(&["gates", "--engine", "mlx", "--device", "cpu", "--json"]);
    assert_eq!(found["engine"], "mlx");
    assert!(found["checks"].as_array().is_some_and(|checks| checks.len() > 40), "{found}");

    let mut chat = gptoss(&["chat", "embedded", "--reasoning", "low"]);
    chat.args(on_cpu).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut chat = chat.spawn().expect("the program starts");
    chat.stdin.take().expect("piped").write_all(b"What is 8 + 9?\n").expect("it listens");
    let output = chat.wait_with_output().expect("it ends");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("8 + 9 = 17."), "{answer}{}", String::from_utf8_lossy(&output.stderr));
}

/// llama.cpp rounds activations to 8 bits, so its figures are only close to those of our engine.
#[test]
fn llama_cpp_answers() {
    if !has("llama.cpp", "llama_cpp_answers") {
        return;
    }
    let suites = ["eval", "embedded", "--suite", "arithmetic_low", "--suite", "stories", "--limit", "5", "--json"];
    let by =
        |engine: &str| report(&[&suites[..], &["--engine", engine, "--rope", "truncated", "--device", "cpu"]].concat());
    let (theirs, ours) = (by("llama.cpp"), by("cached"));
    assert_eq!(theirs["engine"], "llama.cpp");
    let suite = |report: &Value, name: &str, number: &str| report["suites"][name][number].as_f64().expect("a number");
    let right = |report: &Value| suite(report, "arithmetic_low", "accuracy");
    let perplexity = |report: &Value| suite(report, "stories", "perplexity");
    // Of five questions, one may differ.
    assert!((right(&theirs) - right(&ours)).abs() < 0.21, "{theirs} and {ours}");
    assert!((perplexity(&theirs) / perplexity(&ours) - 1.0).abs() < 0.02, "{theirs} and {ours}");

    let found = report(&["gates", "--engine", "llama.cpp", "--device", "cpu", "--json"]);
    assert!(found["checks"].as_array().is_some_and(|checks| !checks.is_empty()), "{found}");
}

#[test]
fn mlx_serves() {
    if !has("mlx", "mlx_serves") {
        return;
    }
    let mut command = gptoss(&["serve", "embedded", "--engine", "mlx", "--device", "cpu", "--port", "0"]);
    let mut server = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(server.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let listening = lines.find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
    let address = listening.expect("it listens");
    lines.find(|line| line.starts_with("serving ")).expect("it loads the model");
    // Reads all further output, so that the program never blocks.
    std::thread::spawn(move || lines.count());
    let messages = [json!({ "role": "user", "content": "What is 8 + 9?" })];
    let body = json!({ "model": "gptoss-tiny", "messages": messages, "reasoning_effort": "low", "temperature": 0 })
        .to_string();
    let mut stream = TcpStream::connect(&address).expect("it listens");
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("8 + 9 = 17."), "{answer}");
}
