//! `gptoss tokenize`: converts text to tokens and back.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use phase1_loading::Tokenizer;
use serde_json::json;

use crate::args::Tokenize;
use crate::commands::print;
use crate::model;

pub fn run(args: &Tokenize) -> Result<ExitCode> {
    let tokenizer = model::open(&args.model)?.tokenizer()?;
    let tokens = match (args.decode, args.plain) {
        (true, _) => parse_tokens(&args.text, &tokenizer)?,
        (false, true) => tokenizer.encode(&args.text),
        (false, false) => tokenizer.encode_with_control(&args.text),
    };
    let piece = |&token: &u32| tokenizer.decode(&[token]);
    let report = if args.json {
        let pieces: Vec<String> = tokens.iter().map(piece).collect();
        let object = json!({ "tokens": tokens, "pieces": pieces, "text": tokenizer.decode(&tokens) });
        format!("{object:#}\n")
    } else if args.decode {
        tokenizer.decode(&tokens) + "\n"
    } else {
        tokens.iter().map(|token| format!("{token:>6} {:?}\n", piece(token))).collect()
    };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn parse_tokens(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let token: u32 = word.parse().with_context(|| format!("`{word}` is not a token id"))?;
            if tokenizer.token_bytes(token).is_none() {
                bail!("token {token} is outside the vocabulary of {}", tokenizer.vocab());
            }
            Ok(token)
        })
        .collect()
}
