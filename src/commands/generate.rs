//! `gptoss generate`: continues a prompt or answers a question.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harmony::{Delta, Message};
use phase1_loading::{Checkpoint, Tokenizer, is_foreign_name};
use phase2_forward::Engine;
use phase3_kvcache::{FinishReason, Generated, GenerationParams, Step, generate};
use phase4_profiling::process;
use serde_json::json;

use crate::answer::{self, Event};
use crate::args::Generate;
use crate::commands::print;
use crate::conversation::Conversation;
use crate::embedded::EMBEDDED;
use crate::interrupt;
use crate::model::{self, LoadedModel, SEQUENCE};
use crate::prompt_bar::PromptBar;
use crate::saved::Saved;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    let (model, text, ask) = model_and_prompt(args)?;
    let checkpoint = model::open_with(Path::new(model), &args.reply.engine)?;
    let opened = start.elapsed();
    let (mut loaded, tokenizer) = LoadedModel::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    loaded.times.add_first("file", opened);
    let started = start.elapsed();
    let reply = match ask {
        true => answer(args, text, &checkpoint, &tokenizer, &mut loaded, start)?,
        false => continuation(args, text, &checkpoint, &tokenizer, &mut loaded, start)?,
    };
    // The stage `prompt` encodes the prompt, and reads the session file if there is one.
    loaded.times.add("prompt", reply.load_time.saturating_sub(started));
    loaded.times.add("first token", reply.generated.time_to_first_token);
    if args.json {
        print(&format!("{:#}\n", to_json(&reply, &mut loaded)))?;
    } else {
        print("\n")?;
        report(&reply);
    }
    // 130 is the status that shells report for a process that SIGINT ended.
    let is_stopped = reply.generated.finish == FinishReason::Interrupted;
    Ok(if is_stopped { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// The model, the prompt, and whether the prompt is a question. The embedded model was trained only on conversations, so that a prompt
/// without a model is a question to it.
fn model_and_prompt(args: &Generate) -> Result<(&str, &str, bool)> {
    let only = args.model.as_str();
    match &args.prompt {
        // A prompt may begin with a hyphen, so a misspelled flag would be read as a prompt.
        Some(prompt) if is_flag(prompt) => {
            bail!("`generate` has no flag `{prompt}`; put -- before a prompt that looks like one")
        }
        Some(prompt) => Ok((only, prompt.as_str(), args.ask)),
        None if is_model_name(only) => {
            bail!("`{only}` looks like a model; a prompt is missing: gptoss generate MODEL PROMPT")
        }
        None => Ok((EMBEDDED, only, true)),
    }
}

fn is_flag(prompt: &str) -> bool {
    let looks_like_one = prompt.starts_with("--") && prompt.len() > 2 && !prompt.contains(char::is_whitespace);
    looks_like_one && !std::env::args_os().any(|argument| argument == "--")
}

/// Whether a text looks like the name of a model rather than a question: it is a file or folder, or has the form of a path or model name.
fn is_model_name(text: &str) -> bool {
    let lower = text.to_lowercase();
    let has_extension = [".gguf", ".safetensors", ".json"].iter().any(|extension| lower.ends_with(extension));
    let is_path = ["/", "./", "../", "~/"].iter().any(|start| text.starts_with(start));
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/\\@+~".contains(&byte));
    let may_be_one = has_extension || is_path || is_word || is_foreign_name(text) || Path::new(text).exists();
    may_be_one && !text.is_empty()
}

/// The generated text, with the number of prompt tokens.
struct Reply {
    generated: Generated,
    /// Whether the generated tokens contain reasoning, which is not shown.
    has_reasoning: bool,
    prompt_tokens: usize,
    load_time: Duration,
}

/// Asks `text` and streams the visible part of the answer.
fn answer(
    args: &Generate,
    text: &str,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    loaded: &mut LoadedModel,
    start: Instant,
) -> Result<Reply> {
    let (harmony, reply) = (answer::harmony(tokenizer)?, &args.reply);
    let new = Conversation::begin(harmony, reply.reasoning, reply.day(), None, Vec::new());
    let mut conversation = match &args.reply.session {
        Some(file) => Conversation::in_file(file, checkpoint, loaded, new)?,
        None => new,
    };
    let load_time = start.elapsed();
    interrupt::catch()?;
    let mut screen = Screen::new(args.json);
    // Number of visible messages so far, and whether one is open.
    let (mut shown, mut is_visible) = (0, false);
    let mut on_event = |event: Event<'_>| match event {
        Event::Prompt { done, of } => screen.read(done, of),
        Event::Delta(Delta::Begin(header)) => {
            is_visible = header.is_visible();
            shown += usize::from(is_visible);
            screen.show(if is_visible && shown > 1 { "\n" } else { "" })
        }
        Event::Delta(Delta::Text(text)) if is_visible => screen.show(text),
        Event::Delta(_) | Event::Silent => screen.show(""),
    };
    let question = Message::user(text);
    let answer = conversation.send(question, &mut *loaded.engine, &params(args, tokenizer), &mut on_event)?;
    screen.end()?;
    for call in answer.turn.messages.iter().filter(|message| message.is_call()) {
        let name = call.recipient.as_deref().unwrap_or_default();
        eprintln!("the model calls {name}, which was not declared, with {}", call.content);
    }
    let generated = Generated { text: answer.turn.content(), ..answer.generated };
    let has_reasoning = answer.turn.messages.iter().any(|message| !message.is_visible() && !message.is_call());
    Ok(Reply { generated, has_reasoning, prompt_tokens: answer.prompt_tokens, load_time })
}

/// Continues `text` and streams everything.
fn continuation(
    args: &Generate,
    text: &str,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    loaded: &mut LoadedModel,
    start: Instant,
) -> Result<Reply> {
    let (saved, mut tokens) = match &args.reply.session {
        Some(file) => {
            let (saved, tokens) = Saved::open(file, checkpoint, loaded)?;
            (Some(saved), tokens)
        }
        None => (None, Vec::new()),
    };
    tokens.extend(tokenizer.encode_with_control(text));
    let load_time = start.elapsed();
    interrupt::catch()?;
    let mut screen = Screen::new(args.json);
    let engine: &mut dyn Engine = &mut *loaded.engine;
    let (held, prompt) = tokens.split_at(held_tokens(engine, tokens.len()));
    let prompt_tokens = prompt.len();
    let params = params(args, tokenizer);
    let generated = generate(engine, tokenizer, SEQUENCE, held, prompt, &params, &mut |step| match step {
        Step::Prefill { done, of } => screen.read(*done, *of),
        Step::Token { text, .. } | Step::Rest { text } => screen.show(text),
    })?;
    screen.end()?;
    if let Some(saved) = saved {
        tokens.extend(&generated.tokens);
        saved.write(&tokens, engine)?;
    }
    Ok(Reply { generated, has_reasoning: false, prompt_tokens, load_time })
}

/// The number of a text's first tokens that the engine holds. At least one token must be left to feed. A session that was interrupted
/// before its first new token has all tokens in the cache; then the last one is removed from the cache, or all of them if the engine cannot
/// go back.
fn held_tokens(engine: &mut dyn Engine, tokens: usize) -> usize {
    if tokens > 0 && engine.length(SEQUENCE) == tokens && engine.truncate(SEQUENCE, tokens - 1).is_err() {
        engine.release(SEQUENCE);
    }
    engine.length(SEQUENCE)
}

fn params(args: &Generate, tokenizer: &Tokenizer) -> GenerationParams {
    args.reply.params(if args.ignore_stops { &[] } else { tokenizer.stops() })
}

/// The output of the reply.
struct Screen {
    silent: bool,
    prompt: PromptBar,
    error: Option<io::Error>,
}

impl Screen {
    fn new(silent: bool) -> Screen {
        Screen { silent, prompt: PromptBar::default(), error: None }
    }

    /// Shows how much of the prompt has been read; breaks after Ctrl-C, or if text could not be printed.
    fn read(&mut self, done: usize, of: usize) -> ControlFlow<()> {
        self.prompt.show(done, of);
        self.go_on()
    }

    /// Shows text; breaks after Ctrl-C, or if text could not be printed.
    fn show(&mut self, text: &str) -> ControlFlow<()> {
        if !self.silent
            && let Err(error) = print(text)
        {
            self.error = Some(error);
        }
        self.go_on()
    }

    fn go_on(&self) -> ControlFlow<()> {
        match self.error.is_some() || interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn end(mut self) -> io::Result<()> {
        self.prompt.clear();
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

fn to_json(reply: &Reply, loaded: &mut LoadedModel) -> serde_json::Value {
    // A peer runs in another process, which reports its own memory.
    let (peak, anonymous) = match loaded.kind.peer() {
        None => (process::peak_resident_bytes(), process::anonymous_resident_bytes()),
        Some(_) => (loaded.engine.take_peak_resident_bytes(), None),
    };
    let Reply { generated, prompt_tokens, load_time, .. } = reply;
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    json!({
        "text": generated.text,
        "tokens": generated.tokens,
        "prompt_tokens": prompt_tokens,
        "finish_reason": finish_name(&generated.finish),
        "load_ms": milliseconds(*load_time),
        "ttft_ms": milliseconds(generated.time_to_first_token),
        "start": loaded.times.to_json(),
        "prefill_tok_s": generated.prefill_rate(*prompt_tokens),
        "decode_tok_s": generated.decode_rate(),
        "peak_rss_bytes": peak,
        "anonymous_bytes": anonymous,
        "device": loaded.device.name,
        "engine": loaded.kind.name(),
        "phase": loaded.kind.phase(),
    })
}

fn report(reply: &Reply) {
    let Reply { generated, has_reasoning, prompt_tokens, load_time } = reply;
    let counted = if *has_reasoning { " (reasoning included)" } else { "" };
    let end = match &generated.finish {
        FinishReason::Interrupted => "stopped by Ctrl-C".to_owned(),
        finish => format!("ended by {}", finish_name(finish)),
    };
    eprintln!(
        "loaded in {:.2} s; {prompt_tokens} prompt tokens, first token after {:.2} s ({:.1} tok/s); {} tokens{counted}, {} tok/s; {end}",
        load_time.as_secs_f64(),
        generated.time_to_first_token.as_secs_f64(),
        generated.prefill_rate(*prompt_tokens),
        generated.tokens.len(),
        generated.decode_rate().map_or("–".into(), |rate| format!("{rate:.1}")),
    );
}
