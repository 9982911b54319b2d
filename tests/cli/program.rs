//! Runs the program.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub fn gptoss(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(arguments);
    command.output().expect("the program starts")
}

pub fn stdout(arguments: &[&str]) -> String {
    let output = gptoss(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("JSON")
}

/// The output of `chat` on the CPU for lines of input.
pub fn chat(input: &str, rest: &[&str]) -> String {
    chat_bytes(input.as_bytes(), rest)
}

pub fn chat_bytes(input: &[u8], rest: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(["chat", "--device", "cpu"]).args(rest);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(input).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Exit status and message of a refusal, with the possible values that the message lists.
pub fn refusal(arguments: &[&str]) -> String {
    let output = gptoss(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = message.lines().collect();
    let last = lines.iter().rposition(|line| line.starts_with("gptoss: ") || line.starts_with("error: "));
    let last = last.expect("a message");
    let possible = lines.get(last + 1).map(|line| line.trim()).filter(|line| line.starts_with("[possible values: "));
    let sentence = [&[lines[last]][..], possible.as_slice()].concat().join(" ");
    format!("{}: {sentence}", output.status.code().expect("an exit status"))
}
