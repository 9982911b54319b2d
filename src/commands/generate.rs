//! `gptoss generate`: a prompt in, text out.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use harmony::Piece;
use phase1_loading::{Checkpoint, Tokenizer};
use phase3_kvcache::{FinishReason, Generation, GenerationParams, generate};
use phase4_profiling::process;
use serde_json::json;

use crate::args::Generate;
use crate::commands::print;
use crate::conversation::Conversation;
use crate::interrupt;
use crate::saved::Saved;
use crate::session::{self, EMBEDDED, SEQUENCE, Session};

pub fn run(args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    // The embedded model was trained on conversations alone, so without MODEL the prompt is a question to it.
    let (model, text, ask) = match &args.model_and_prompt[..] {
        [model, prompt] => (model.as_str(), prompt, args.ask),
        only => (EMBEDDED, &only[0], true),
    };
    let checkpoint = session::open_with(Path::new(model), &args.reply.engine)?;
    let (mut session, tokenizer) = Session::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    let reply = match ask {
        true => answer(args, text, &checkpoint, &tokenizer, &mut session, start)?,
        false => continuation(args, text, &checkpoint, &tokenizer, &mut session, start)?,
    };
    if args.json {
        print(&format!("{:#}\n", to_json(&reply, &session)))?;
    } else {
        print("\n")?;
        report(&reply);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was generated, after how much.
struct Reply {
    generation: Generation,
    prompt_tokens: usize,
    load_time: Duration,
}

/// Asks `text` and streams the content of the answer.
fn answer(
    args: &Generate,
    text: &str,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    session: &mut Session,
    start: Instant,
) -> Result<Reply> {
    let new = Conversation::begin(tokenizer, args.reply.reasoning, None);
    let mut conversation = match &args.reply.session {
        Some(file) => Conversation::in_file(file, checkpoint, session, new)?,
        None => new,
    };
    let load_time = start.elapsed();
    interrupt::catch()?;
    let mut screen = Screen { silent: args.json, error: None };
    let mut on_piece = |piece: &Piece| match piece {
        Piece::Content(text) | Piece::Arguments(text) => screen.show(text),
        Piece::Reasoning(_) => screen.show(""),
    };
    let answer = conversation.say(text, &mut *session.engine, &params(args, tokenizer), &mut on_piece)?;
    screen.end()?;
    let generation = Generation { text: answer.turn.content, ..answer.generation };
    Ok(Reply { generation, prompt_tokens: answer.prompt_tokens, load_time })
}

/// Goes on after `text` and streams all that comes.
fn continuation(
    args: &Generate,
    text: &str,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    session: &mut Session,
    start: Instant,
) -> Result<Reply> {
    let (saved, mut tokens) = match &args.reply.session {
        Some(file) => {
            let (saved, tokens) = Saved::open(file, checkpoint, session)?;
            (Some(saved), tokens)
        }
        None => (None, Vec::new()),
    };
    tokens.extend(tokenizer.encode_with_control(text));
    let load_time = start.elapsed();
    interrupt::catch()?;
    let mut screen = Screen { silent: args.json, error: None };
    let engine = &mut *session.engine;
    let prompt = &tokens[engine.length(SEQUENCE)..];
    let prompt_tokens = prompt.len();
    let params = params(args, tokenizer);
    let generation = generate(engine, tokenizer, SEQUENCE, prompt, &params, &mut |step| screen.show(step.text))?;
    screen.end()?;
    if let Some(saved) = saved {
        tokens.extend(&generation.tokens);
        saved.write(&tokens, engine)?;
    }
    Ok(Reply { generation, prompt_tokens, load_time })
}

fn params(args: &Generate, tokenizer: &Tokenizer) -> GenerationParams {
    args.reply.params(if args.ignore_stops { &[] } else { tokenizer.stops() })
}

/// Where the reply appears.
struct Screen {
    silent: bool,
    error: Option<io::Error>,
}

impl Screen {
    /// Shows text, and says whether there should be more.
    fn show(&mut self, text: &str) -> ControlFlow<()> {
        if !self.silent
            && let Err(error) = print(text)
        {
            self.error = Some(error);
        }
        match self.error.is_some() || interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn end(self) -> io::Result<()> {
        self.error.map_or(Ok(()), Err)
    }
}

fn finish_name(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Interrupted => "interrupted",
    }
}

fn to_json(reply: &Reply, session: &Session) -> serde_json::Value {
    let Reply { generation, prompt_tokens, load_time } = reply;
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    json!({
        "text": generation.text,
        "tokens": generation.tokens,
        "prompt_tokens": prompt_tokens,
        "finish_reason": finish_name(&generation.finish),
        "load_ms": milliseconds(*load_time),
        "ttft_ms": milliseconds(generation.time_to_first_token),
        "prefill_tok_s": generation.prefill_rate(*prompt_tokens),
        "decode_tok_s": generation.decode_rate(),
        "peak_rss_bytes": process::peak_resident_bytes(),
        "anonymous_bytes": process::anonymous_resident_bytes(),
        "device": session.device.name,
        "phase": session.phase,
    })
}

fn report(reply: &Reply) {
    let Reply { generation, prompt_tokens, load_time } = reply;
    eprintln!(
        "loaded in {:.2} s; {prompt_tokens} prompt tokens, first token after {:.2} s ({:.1} tok/s); {} tokens, {} tok/s; ended by {}",
        load_time.as_secs_f64(),
        generation.time_to_first_token.as_secs_f64(),
        generation.prefill_rate(*prompt_tokens),
        generation.tokens.len(),
        generation.decode_rate().map_or("–".into(), |rate| format!("{rate:.1}")),
        finish_name(&generation.finish),
    );
}
