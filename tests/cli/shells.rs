//! Completions, manual pages and the list of commands.

use crate::program::{refusal, stdout};

#[test]
fn completions_and_man_pages_list_every_command() {
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
fn help_lists_frequent_commands_first() {
    let help = stdout(&["--help"]);
    let places = ["chat", "generate", "serve", "doctor", "inspect", "memory", "bench", "gates", "man"];
    let places = places.map(|command| help.find(&format!("\n  {command} ")).expect(command));
    assert!(places.is_sorted(), "{help}");
}
