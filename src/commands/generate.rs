//! `gptoss generate`: a prompt in, text out.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use phase3_kvcache::{FinishReason, GenerationParams, generate};
use serde_json::json;

use crate::args::Generate;
use crate::commands::print;
use crate::measure;
use crate::session::{self, Session};

pub fn run(args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    let checkpoint = session::open(&args.model)?;
    let tokenizer = checkpoint.tokenizer()?;
    let prompt = tokenizer.encode_with_control(&args.prompt);
    let mut session = Session::start(&checkpoint, &args.engine)?;
    let load_time = start.elapsed();

    let params = GenerationParams {
        sampling: args.sampling.params(),
        max_tokens: args.max_tokens,
        stop_tokens: if args.ignore_stops { Vec::new() } else { tokenizer.stops().to_vec() },
        stop_strings: args.sampling.stop.clone(),
        ..GenerationParams::default()
    };
    let interrupted = interrupt_flag()?;
    let mut write_error = None;
    let mut on_text = |text: &str| {
        if !args.json
            && let Err(error) = print(text)
        {
            write_error = Some(error);
            return ControlFlow::Break(());
        }
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let generation = generate(&mut *session.engine, &tokenizer, 0, &prompt, &params, &mut on_text)?;
    if let Some(error) = write_error {
        return Err(error.into());
    }

    let finish = match &generation.finish {
        FinishReason::Stop | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Interrupted => "interrupted",
    };
    let ttft = generation.time_to_first_token;
    let decode_rate = generation.decode_rate();
    if args.json {
        let object = json!({
            "text": generation.text,
            "tokens": generation.tokens,
            "prompt_tokens": prompt.len(),
            "finish_reason": finish,
            "load_ms": load_time.as_secs_f64() * 1e3,
            "ttft_ms": ttft.as_secs_f64() * 1e3,
            "prefill_tok_s": generation.prefill_rate(prompt.len()),
            "decode_tok_s": decode_rate,
            "peak_rss_bytes": measure::peak_resident_bytes(),
            "anonymous_bytes": measure::anonymous_resident_bytes(),
            "device": session.device.name,
            "phase": session.phase,
        });
        print(&format!("{object:#}\n"))?;
    } else {
        print("\n")?;
        eprintln!(
            "loaded in {:.2} s; {} prompt tokens, first token after {:.2} s ({:.1} tok/s); {} tokens, {} tok/s; ended by {finish}",
            load_time.as_secs_f64(),
            prompt.len(),
            ttft.as_secs_f64(),
            generation.prefill_rate(prompt.len()),
            generation.tokens.len(),
            decode_rate.map_or("–".into(), |rate| format!("{rate:.1}")),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Set by Ctrl-C. A second Ctrl-C ends the process, for whoever does not want to wait for the token under way.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let handler_flag = flag.clone();
    ctrlc::set_handler(move || {
        if handler_flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("Ctrl-C cannot be caught")?;
    Ok(flag)
}
