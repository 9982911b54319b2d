//! `gptoss generate`: a prompt in, text out.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harmony::{Message, Piece, Role};
use phase1_loading::Tokenizer;
use phase3_kvcache::{FinishReason, Generation, generate};
use phase4_profiling::process;
use serde_json::json;

use crate::answer;
use crate::args::Generate;
use crate::commands::print;
use crate::interrupt;
use crate::saved::Saved;
use crate::session::{self, EMBEDDED, Session};

/// The only sequence.
const SEQUENCE: u64 = 0;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    // The embedded model was trained on conversations alone, so without MODEL the prompt is a question to it.
    let (model, text, ask) = match &args.model_and_prompt[..] {
        [model, prompt] => (model.as_str(), prompt, args.ask),
        only => (EMBEDDED, &only[0], true),
    };
    let checkpoint = session::open(Path::new(model))?;
    let (mut session, tokenizer) = Session::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    let mut prompt = match ask {
        true => {
            let mut messages = answer::opening(args.reply.reasoning, None);
            messages.push(Message::new(Role::User, text));
            answer::prompt(&messages, &tokenizer)?
        }
        false => tokenizer.encode_with_control(text),
    };
    let saved = match &args.session {
        None => None,
        Some(_) if ask => bail!("--session continues text: it needs MODEL and PROMPT"),
        Some(_) if args.reply.engine.phase != Some(3) => {
            bail!("only phase 3 saves what it remembers: --session needs --phase 3")
        }
        Some(file) => {
            let rope = args.reply.engine.rope.into();
            let (saved, unseen) = Saved::open(file, &checkpoint, rope, &mut session, SEQUENCE)?;
            let new = prompt.clone();
            prompt.splice(0..0, unseen);
            Some((file, saved, new))
        }
    };
    let load_time = start.elapsed();
    interrupt::catch()?;
    let generation = reply(args, ask, &mut session, &tokenizer, &prompt)?;
    if let Some((file, saved, mut new)) = saved {
        new.extend(&generation.tokens);
        saved.write(file, &new, &*session.engine, SEQUENCE)?;
    }
    if args.json {
        print(&format!("{:#}\n", to_json(&generation, &prompt, load_time, &session)))?;
    } else {
        print("\n")?;
        report(&generation, &prompt, load_time);
    }
    Ok(ExitCode::SUCCESS)
}

/// Generates, and streams to stdout what is the reply itself: all text of a continuation, the content of an answer.
fn reply(
    args: &Generate,
    ask: bool,
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
) -> Result<Generation> {
    let stops = if args.ignore_stops { &[] } else { tokenizer.stops() };
    let params = args.reply.params(stops);
    let mut write_error = None;
    let mut show = |text: &str| {
        if !args.json
            && let Err(error) = print(text)
        {
            write_error = Some(error);
            return ControlFlow::Break(());
        }
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let engine = &mut *session.engine;
    let generation = if ask {
        let mut on_piece = |piece: &Piece| match piece {
            Piece::Content(text) | Piece::Arguments(text) => show(text),
            Piece::Reasoning(_) => show(""),
        };
        let (turn, generation) = answer::answer(engine, tokenizer, prompt, &params, &mut on_piece)?;
        Generation { text: turn.content, ..generation }
    } else {
        generate(engine, tokenizer, SEQUENCE, prompt, &params, &mut |step| show(step.text))?
    };
    match write_error {
        Some(error) => Err(error.into()),
        None => Ok(generation),
    }
}

fn finish_name(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Interrupted => "interrupted",
    }
}

fn to_json(generation: &Generation, prompt: &[u32], load_time: Duration, session: &Session) -> serde_json::Value {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    json!({
        "text": generation.text,
        "tokens": generation.tokens,
        "prompt_tokens": prompt.len(),
        "finish_reason": finish_name(&generation.finish),
        "load_ms": milliseconds(load_time),
        "ttft_ms": milliseconds(generation.time_to_first_token),
        "prefill_tok_s": generation.prefill_rate(prompt.len()),
        "decode_tok_s": generation.decode_rate(),
        "peak_rss_bytes": process::peak_resident_bytes(),
        "anonymous_bytes": process::anonymous_resident_bytes(),
        "device": session.device.name,
        "phase": session.phase,
    })
}

fn report(generation: &Generation, prompt: &[u32], load_time: Duration) {
    eprintln!(
        "loaded in {:.2} s; {} prompt tokens, first token after {:.2} s ({:.1} tok/s); {} tokens, {} tok/s; ended by {}",
        load_time.as_secs_f64(),
        prompt.len(),
        generation.time_to_first_token.as_secs_f64(),
        generation.prefill_rate(prompt.len()),
        generation.tokens.len(),
        generation.decode_rate().map_or("–".into(), |rate| format!("{rate:.1}")),
        finish_name(&generation.finish),
    );
}
