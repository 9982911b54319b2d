//! Generation: what comes out, when it ends, what is refused.

use std::ops::ControlFlow;

use gptoss_reference::Case;
use phase1_loading::{Checkpoint, Tokenizer};
use phase2_forward::{ComputeDevice, Engine, GptOss, Recompute};
use phase3_kvcache::{
    Cached, FinishReason, Generation, GenerationError, GenerationParams, SamplingParams, Step, generate,
};

struct Setup {
    tokenizer: Tokenizer,
    engine: Box<dyn Engine>,
}

fn setup(phase: u8) -> Setup {
    let case = Case::committed().remove(0);
    let checkpoint = Checkpoint::open(&case.model()).expect("opens");
    let device = ComputeDevice::cpu("a test");
    let model = GptOss::load(&checkpoint, device, &mut |_, _| ()).expect("loads");
    let engine: Box<dyn Engine> =
        if phase == 2 { Box::new(Recompute::new(model)) } else { Box::new(Cached::new(model)) };
    Setup { tokenizer: checkpoint.tokenizer().expect("builds"), engine }
}

const PROMPT: [u32; 5] = [70, 80, 90, 100, 110];

fn run(setup: &mut Setup, params: &GenerationParams) -> Result<Generation, GenerationError> {
    let mut streamed = String::new();
    let mut on_text = |step: Step<'_>| {
        streamed.push_str(step.text);
        ControlFlow::Continue(())
    };
    let generation = generate(&mut *setup.engine, &setup.tokenizer, 0, &PROMPT, params, &mut on_text)?;
    setup.engine.release(0);
    assert_eq!(streamed, generation.text, "what was streamed is the text");
    Ok(generation)
}

fn greedy(max_tokens: usize) -> GenerationParams {
    GenerationParams { max_tokens, ..GenerationParams::default() }
}

#[test]
fn generated_text() {
    let generation = run(&mut setup(3), &greedy(48)).expect("generates");
    assert_eq!(generation.finish, FinishReason::Length);
    insta::assert_debug_snapshot!((generation.text, generation.tokens));
}

#[test]
fn phases_2_and_3_generate_the_same() {
    let params = GenerationParams {
        sampling: SamplingParams { temperature: 0.7, top_p: 0.9, seed: 3, ..SamplingParams::default() },
        ..greedy(40)
    };
    for params in [greedy(40), params] {
        let two = run(&mut setup(2), &params).expect("generates");
        let three = run(&mut setup(3), &params).expect("generates");
        assert_eq!(two.tokens, three.tokens);
    }
}

#[test]
fn prefill_chunks_change_nothing() {
    let whole = run(&mut setup(3), &greedy(20)).expect("generates");
    for prefill_chunk in 1..=PROMPT.len() {
        let chunked = run(&mut setup(3), &GenerationParams { prefill_chunk, ..greedy(20) }).expect("generates");
        assert_eq!(chunked.tokens, whole.tokens, "chunks of {prefill_chunk}");
    }
}

#[test]
fn ends_at_a_stop_token_and_does_not_show_it() {
    let free = run(&mut setup(3), &greedy(30)).expect("generates");
    let stop = free.tokens[9];
    let first = free.tokens.iter().position(|&token| token == stop).expect("it is there");
    let stopped = run(&mut setup(3), &GenerationParams { stop_tokens: vec![stop], ..greedy(30) }).expect("generates");
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(stopped.tokens, free.tokens[..=first]);
    assert_eq!(stopped.text, setup(3).tokenizer.decode(&free.tokens[..first]));
}

#[test]
fn ends_before_a_stop_string() {
    let free = run(&mut setup(3), &greedy(30)).expect("generates").text;
    let stop: String = free.chars().skip(8).take(3).collect();
    let params = GenerationParams { stop_strings: vec![stop.clone()], ..greedy(30) };
    let stopped = run(&mut setup(3), &params).expect("generates");
    assert_eq!(stopped.text, free[..free.find(&stop).expect("it is there")]);
    assert_eq!(stopped.finish, FinishReason::StopString(stop));
}

#[test]
fn a_caller_may_interrupt() {
    let Setup { tokenizer, mut engine } = setup(3);
    let mut heard = 0;
    let mut on_text = |_: Step<'_>| {
        heard += 1;
        if heard == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let generation = generate(&mut *engine, &tokenizer, 0, &PROMPT, &greedy(30), &mut on_text).expect("generates");
    assert_eq!((generation.finish, generation.tokens.len()), (FinishReason::Interrupted, 4));
}

#[test]
fn a_sequence_can_be_continued() {
    let Setup { tokenizer, mut engine } = setup(3);
    let mut ignore = |_: Step<'_>| ControlFlow::Continue(());
    let first = generate(&mut *engine, &tokenizer, 0, &PROMPT, &greedy(6), &mut ignore).expect("generates");
    // The last token generated has not been through the model yet.
    let rest = [*first.tokens.last().expect("tokens")];
    let second = generate(&mut *engine, &tokenizer, 0, &rest, &greedy(6), &mut ignore).expect("generates");
    let whole = run(&mut setup(3), &greedy(12)).expect("generates");
    assert_eq!([first.tokens, second.tokens].concat(), whole.tokens);
}

#[test]
fn nothing_is_asked_and_nothing_comes() {
    let generation = run(&mut setup(3), &greedy(0)).expect("generates");
    assert_eq!((generation.finish, generation.tokens.len()), (FinishReason::Length, 0));
}

#[test]
fn impossible_wishes_are_refused() {
    let Setup { tokenizer, mut engine } = setup(3);
    let mut refusal = |prompt: &[u32], params: GenerationParams| {
        let mut ignore = |_: Step<'_>| ControlFlow::Continue(());
        generate(&mut *engine, &tokenizer, 0, prompt, &params, &mut ignore).expect_err("refused").to_string()
    };
    let hot = SamplingParams { temperature: f32::NAN, ..SamplingParams::default() };
    let refusals = [
        refusal(&[], greedy(5)),
        refusal(&vec![1; 200_000], greedy(5)),
        refusal(&[1_000_000], greedy(5)),
        refusal(&PROMPT, GenerationParams { sampling: hot, ..greedy(5) }),
        refusal(&PROMPT, GenerationParams { stop_strings: vec![String::new()], ..greedy(5) }),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}
