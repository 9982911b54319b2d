//! Tests of generation: its text, its end, and its errors.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use gptoss_reference::Case;
use phase1_loading::{Checkpoint, Format, HostTensor, Tokenizer};
use phase2_forward::{
    BadRequest, Capacity, ComputeDevice, Engine, EngineError, GptOss, Outcome, RecomputeEngine, Sampling, SequenceId,
    Ticket, Want, Work, check_work, delegate_engine,
};
use phase3_kvcache::{
    CachedEngine, FinishReason, Generated, Generation, GenerationError, GenerationParams, SamplingParams, Step,
    generate, prefill,
};

struct Setup {
    tokenizer: Tokenizer,
    engine: Box<dyn Engine>,
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&Case::committed().remove(0).model()).expect("opens")
}

fn model(checkpoint: &Checkpoint) -> GptOss {
    GptOss::load(checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads")
}

fn setup(phase: u8) -> Setup {
    setup_of(&checkpoint(), phase)
}

fn setup_of(checkpoint: &Checkpoint, phase: u8) -> Setup {
    let model = model(checkpoint);
    let engine: Box<dyn Engine> = match phase {
        2 => Box::new(RecomputeEngine::new(model)),
        _ => Box::new(CachedEngine::new(model)),
    };
    Setup { tokenizer: checkpoint.tokenizer().expect("builds"), engine }
}

const PROMPT: [u32; 5] = [70, 80, 90, 100, 110];

/// Continues sequence 0, of which the engine already holds `history`.
fn go_on(
    setup: &mut Setup,
    history: &[u32],
    prompt: &[u32],
    params: &GenerationParams,
) -> Result<Generated, GenerationError> {
    let mut streamed = String::new();
    let mut on_step = |step: &Step| {
        if let Step::Token { text, .. } | Step::Rest { text } = step {
            streamed.push_str(text);
        }
        ControlFlow::Continue(())
    };
    let generated = generate(&mut *setup.engine, &setup.tokenizer, 0, history, prompt, params, &mut on_step)?;
    assert_eq!(streamed, generated.text, "the streamed text differs");
    let fed = history.len() + prompt.len() + generated.tokens.len().saturating_sub(1);
    assert_eq!(setup.engine.length(0), fed, "every generated token but the last has been fed");
    Ok(generated)
}

fn run(setup: &mut Setup, params: &GenerationParams) -> Result<Generated, GenerationError> {
    let generated = go_on(setup, &[], &PROMPT, params)?;
    setup.engine.release(0);
    Ok(generated)
}

fn greedy(max_tokens: usize) -> GenerationParams {
    GenerationParams { max_tokens, ..GenerationParams::default() }
}

fn sampled(max_tokens: usize) -> GenerationParams {
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::GREEDY };
    let sampling = SamplingParams { sampling, seed: 3, ..SamplingParams::default() };
    GenerationParams { sampling, ..greedy(max_tokens) }
}

/// Generates no token twice while others are left: the biases make every logit positive, and the penalty makes the logits of tokens that
/// have occurred nearly 0.
fn without_repetition(max_tokens: usize) -> GenerationParams {
    let vocab = checkpoint().config.vocab as u32;
    let logit_bias = (0..vocab).map(|token| (token, 100.0)).collect();
    let sampling = SamplingParams { logit_bias, repetition_penalty: 1e6, ..SamplingParams::default() };
    GenerationParams { sampling, ..greedy(max_tokens) }
}

#[test]
fn generated_text() {
    let generated = run(&mut setup(3), &greedy(48)).expect("generates");
    assert_eq!(generated.finish, FinishReason::Length);
    insta::assert_debug_snapshot!((generated.text, generated.tokens));
}

#[test]
fn phases_2_and_3_generate_the_same() {
    for params in [greedy(40), sampled(40), without_repetition(40)] {
        let two = run(&mut setup(2), &params).expect("generates");
        let three = run(&mut setup(3), &params).expect("generates");
        assert_eq!(two.tokens, three.tokens);
    }
}

#[test]
fn prefill_chunks_do_not_change_the_text() {
    for params in [greedy(20), sampled(20), without_repetition(20)] {
        let whole = run(&mut setup(3), &params).expect("generates");
        for prefill_chunk in 1..=PROMPT.len() {
            let params = GenerationParams { prefill_chunk, ..params.clone() };
            let chunked = run(&mut setup(3), &params).expect("generates");
            assert_eq!(chunked.tokens, whole.tokens, "chunks of {prefill_chunk}");
        }
    }
}

#[test]
fn ends_at_a_stop_token_and_does_not_show_it() {
    let free = run(&mut setup(3), &greedy(30)).expect("generates");
    let stop = free.tokens[9];
    let first = free.tokens.iter().position(|&token| token == stop).expect("the free text contains it");
    let stopped = run(&mut setup(3), &GenerationParams { stop_tokens: vec![stop], ..greedy(30) }).expect("generates");
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(stopped.tokens, free.tokens[..=first]);
    assert_eq!(stopped.text, setup(3).tokenizer.decode(&free.tokens[..first]));
}

#[test]
fn ends_before_a_stop_string() {
    let free = run(&mut setup(3), &greedy(30)).expect("generates").text;
    let stop: String = free.chars().skip(12).take(3).collect();
    let params = GenerationParams { stop_strings: vec![stop.clone()], ..greedy(30) };
    let stopped = run(&mut setup(3), &params).expect("generates");
    assert_eq!(stopped.text, free[..free.find(&stop).expect("the free text contains it")]);
    assert_eq!(stopped.finish, FinishReason::StopString(stop));
}

#[test]
fn generation_ends_at_the_context_length() {
    let mut checkpoint = checkpoint();
    checkpoint.config.context_length = PROMPT.len() + 3;
    let mut setup = setup_of(&checkpoint, 3);
    let ended = go_on(&mut setup, &[], &PROMPT, &greedy(30)).expect("generates");
    // The last token is drawn after the last position, and is not fed.
    assert_eq!((ended.finish, ended.tokens.len()), (FinishReason::Length, 4));
    let refused = go_on(&mut setup, &[], &[1], &greedy(1)).expect_err("full");
    assert!(
        matches!(refused, GenerationError::PromptTooLong { prompt: 1, length: 8, context: 8 }),
        "{refused}: {refused:?}"
    );
}

#[test]
fn text_is_returned_step_by_step() {
    let whole = run(&mut setup(3), &greedy(3)).expect("generates");
    let Setup { tokenizer, mut engine } = setup(3);
    let params = GenerationParams { prefill_chunk: 2, ..greedy(3) };
    let mut generation = Generation::new(&mut *engine, &tokenizer, 0, &[], &PROMPT, params).expect("begins");
    let mut text = String::new();
    for done in [2, 4, 5] {
        assert_eq!(generation.advance().expect("a step"), Some(Step::Prefill { done, of: 5 }));
    }
    for &expected in &whole.tokens {
        match generation.advance().expect("a step") {
            Some(Step::Token { token, text: piece }) => {
                assert_eq!(token, expected);
                text += &piece;
            }
            other => panic!("{other:?}"),
        }
    }
    match generation.advance().expect("a step") {
        Some(Step::Rest { text: piece }) => text += &piece,
        other => panic!("{other:?}"),
    }
    for _ in 0..2 {
        assert_eq!(generation.advance().expect("no step"), None);
    }
    let generated = generation.finish();
    assert_eq!((&generated.tokens, &generated.text), (&whole.tokens, &whole.text));
    assert_eq!((text, generated.finish), (whole.text, FinishReason::Length));
}

#[test]
fn generation_can_be_interrupted() {
    let Setup { tokenizer, mut engine } = setup(3);
    let mut received = 0;
    let mut on_step = |step: &Step| {
        received += usize::from(matches!(step, Step::Token { .. }));
        if received == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let generated = generate(&mut *engine, &tokenizer, 0, &[], &PROMPT, &greedy(30), &mut on_step).expect("generates");
    assert_eq!((generated.finish, generated.tokens.len()), (FinishReason::Interrupted, 4));
    assert_eq!(engine.length(0), PROMPT.len() + 3);
}

/// The fed part of the prompt stays in the engine, and another generation can feed the rest.
#[test]
fn prefill_can_be_interrupted() {
    let whole = run(&mut setup(3), &greedy(6)).expect("generates");
    for (chunk, fed) in [(2, 2), (2, 4), (4, 4)] {
        let mut setup = setup(3);
        let mut steps = Vec::new();
        let mut on_step = |step: &Step| {
            steps.push(step.clone());
            let stop = matches!(step, Step::Prefill { done, .. } if *done == fed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let params = GenerationParams { prefill_chunk: chunk, ..greedy(6) };
        let Setup { tokenizer, engine } = &mut setup;
        let interrupted =
            generate(&mut **engine, tokenizer, 0, &[], &PROMPT, &params, &mut on_step).expect("generates");
        assert_eq!((interrupted.finish, interrupted.text.as_str()), (FinishReason::Interrupted, ""));
        assert!(interrupted.tokens.is_empty());
        assert_eq!(steps[fed / chunk - 1], Step::Prefill { done: fed, of: 5 });
        assert_eq!(steps[fed / chunk..], [Step::Rest { text: String::new() }]);
        assert_eq!(setup.engine.length(0), fed);
        let rest = go_on(&mut setup, &PROMPT[..fed], &PROMPT[fed..], &params).expect("generates");
        assert_eq!(rest.tokens, whole.tokens, "interrupted after {fed}");
    }
}

/// At the interruption the first token has been drawn, but not returned.
#[test]
fn generation_can_be_interrupted_before_the_first_token() {
    for engine in [setup(2), setup(3)] {
        let Setup { tokenizer, mut engine } = engine;
        let mut generation = Generation::new(&mut *engine, &tokenizer, 0, &[], &PROMPT, greedy(6)).expect("begins");
        assert_eq!(generation.advance().expect("a step"), Some(Step::Prefill { done: 5, of: 5 }));
        generation.interrupt().expect("interrupts");
        let generated = generation.finish();
        assert_eq!((generated.finish, generated.tokens), (FinishReason::Interrupted, vec![]));
        assert_eq!(engine.length(0), PROMPT.len());
        engine.last_logits(0, &[1]).expect("no step is in flight");
    }
}

/// A generation that is dropped or finished in the middle leaves no step in flight.
#[test]
fn abandoned_generation_leaves_no_step_in_flight() {
    for finished in [false, true] {
        let mut setup = setup(3);
        let Setup { tokenizer, engine } = &mut setup;
        let mut generation = Generation::new(&mut **engine, tokenizer, 0, &[], &PROMPT, greedy(6)).expect("begins");
        generation.advance().expect("a step");
        match finished {
            true => assert_eq!(generation.finish().finish, FinishReason::Interrupted),
            false => drop(generation),
        }
        setup.engine.release(0);
        run(&mut setup, &greedy(6)).expect("generates");
    }
}

#[test]
fn a_sequence_can_be_continued() {
    for params in [greedy as fn(usize) -> GenerationParams, without_repetition] {
        let mut setup = setup(3);
        let whole = run(&mut setup, &params(12)).expect("generates");
        let first = go_on(&mut setup, &[], &PROMPT, &params(6)).expect("generates");
        // The last generated token has not been fed yet.
        let (last, fed) = first.tokens.split_last().expect("tokens");
        let history = [&PROMPT[..], fed].concat();
        let second = go_on(&mut setup, &history, &[*last], &params(6)).expect("generates");
        assert_eq!([first.tokens, second.tokens].concat(), whole.tokens);
    }
}

/// Penalties also count the tokens that the engine already holds.
#[test]
fn penalties_count_tokens_already_in_the_engine() {
    let vocab = checkpoint().config.vocab as u32;
    let mut setup = setup(3);
    // All tokens but one have occurred. Without the penalty, the model would hardly ever choose that one first.
    for missing in [200, 201, 202] {
        let history: Vec<u32> = (0..vocab).filter(|&token| token != missing && !PROMPT.contains(&token)).collect();
        let fed = setup.engine.step(&[Work::tokens(0, &history, Want::Nothing)]).expect("a step");
        assert_eq!(fed, [Outcome::Fed]);
        let generated = go_on(&mut setup, &history, &PROMPT, &without_repetition(1)).expect("generates");
        assert_eq!(generated.tokens, [missing]);
        setup.engine.release(0);
    }
}

#[test]
fn zero_tokens_end_at_once() {
    let generated = run(&mut setup(3), &greedy(0)).expect("generates");
    assert_eq!((generated.finish, generated.tokens.len()), (FinishReason::Length, 0));
}

/// An engine with several steps in flight, like a GPU's.
struct Ahead {
    engine: RecomputeEngine,
    done: VecDeque<(Ticket, Vec<Outcome>)>,
    next: u64,
    /// The largest number of steps in flight.
    most: usize,
    /// The largest number of steps in flight that draw a token.
    most_drawing: usize,
    /// The step that fails when it is collected.
    failing: Option<Ticket>,
}

/// Number of steps that [`Ahead`] allows in flight.
const AHEAD: usize = 3;

impl Ahead {
    fn new(checkpoint: &Checkpoint) -> Ahead {
        Ahead {
            engine: RecomputeEngine::new(model(checkpoint)),
            done: VecDeque::new(),
            next: 0,
            most: 0,
            most_drawing: 0,
            failing: None,
        }
    }
}

impl Engine for Ahead {
    delegate_engine!(engine: config, length, fork, release);

    fn capacity(&self) -> Capacity {
        Capacity { steps_in_flight: AHEAD, tokens_per_step: 4, rewind: AHEAD, ..self.engine.capacity() }
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        assert!(self.done.len() < AHEAD, "more steps in flight than the capacity allows");
        check_work(self, work)?;
        let outcomes = self.engine.step(work)?;
        self.next += 1;
        self.done.push_back((Ticket(self.next), outcomes));
        self.most = self.most.max(self.done.len());
        let drawing = self.done.iter().filter(|(_, outcomes)| matches!(outcomes[..], [Outcome::Token(_)])).count();
        self.most_drawing = self.most_drawing.max(drawing);
        Ok(Ticket(self.next))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        let (oldest, outcomes) = self.done.pop_front().expect("a step is in flight");
        assert_eq!(oldest, ticket);
        if self.failing == Some(ticket) {
            return Err(EngineError::Device("a test".into()));
        }
        Ok(outcomes)
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        assert!(self.done.is_empty(), "steps in flight feed the sequence");
        assert!(self.length(sequence) - length < AHEAD, "truncated by more tokens than were in flight");
        self.engine.truncate(sequence, length)
    }
}

#[test]
fn failed_prefill_step_leaves_no_step_in_flight() {
    let mut engine = Ahead::new(&checkpoint());
    engine.failing = Some(Ticket(1));
    let failed = prefill(&mut engine, 0, &[5; 12], Want::LastLogits);
    assert!(matches!(failed, Err(EngineError::Device(message)) if message == "a test"));
    assert_eq!((engine.next, engine.done.len()), (3, 0));
}

/// Steps that were submitted beyond the end of the text are undone, whatever ended the text.
#[test]
fn steps_in_flight_do_not_change_the_text() {
    let checkpoint = checkpoint();
    let tokenizer = checkpoint.tokenizer().expect("builds");
    let free = run(&mut setup(2), &greedy(30)).expect("generates");
    let stop_string: String = free.text.chars().skip(12).take(3).collect();
    for params in [
        greedy(30),
        sampled(30),
        sampled(1),
        greedy(2),
        greedy(0),
        without_repetition(30),
        GenerationParams { stop_tokens: vec![free.tokens[20]], ..greedy(30) },
        GenerationParams { stop_strings: vec![stop_string], ..greedy(30) },
    ] {
        let expected = run(&mut setup(2), &params).expect("generates");
        let mut engine = Ahead::new(&checkpoint);
        let mut ignore = |_: &Step| ControlFlow::Continue(());
        let found = generate(&mut engine, &tokenizer, 0, &[], &PROMPT, &params, &mut ignore).expect("generates");
        assert_eq!((&found.tokens, &found.text), (&expected.tokens, &expected.text), "{params:?}");
        assert_eq!(found.finish, expected.finish, "{params:?}");
        assert!(engine.done.is_empty());
        assert_eq!(engine.length(0), PROMPT.len() + found.tokens.len().saturating_sub(1), "{params:?}");
        // With penalties, each token must be known before the next is drawn.
        let ahead = if params.sampling.repetition_penalty == 1.0 { params.max_tokens.min(AHEAD) } else { 1 };
        assert_eq!(engine.most_drawing, ahead, "{params:?}");
        // The prompt takes two steps.
        assert_eq!(engine.most, ahead.max(2), "{params:?}");
    }
}

#[test]
fn generation_with_steps_in_flight_can_be_interrupted_anywhere() {
    let checkpoint = checkpoint();
    let tokenizer = checkpoint.tokenizer().expect("builds");
    let whole = run(&mut setup(2), &sampled(12)).expect("generates").tokens;
    for received in 0..12 {
        let mut engine = Ahead::new(&checkpoint);
        let mut generation = Generation::new(&mut engine, &tokenizer, 0, &[], &PROMPT, sampled(12)).expect("begins");
        for _ in 0..2 + received {
            generation.advance().expect("a step");
        }
        generation.interrupt().expect("interrupts");
        let generated = generation.finish();
        assert_eq!((&generated.tokens[..], generated.finish), (&whole[..received], FinishReason::Interrupted));
        let fed = PROMPT.len() + received.saturating_sub(1);
        assert_eq!((engine.length(0), engine.done.len()), (fed, 0), "after {received} tokens");
        // The sequence continues as if no steps had been submitted ahead.
        let Some(&last) = generated.tokens.last() else { continue };
        let history = [&PROMPT[..], &whole[..received - 1]].concat();
        let mut ignore = |_: &Step| ControlFlow::Continue(());
        let rest = generate(&mut engine, &tokenizer, 0, &history, &[last], &sampled(12 - received), &mut ignore);
        assert_eq!(rest.expect("generates").tokens, whole[received..], "after {received} tokens");
    }
}

#[test]
fn generation_with_steps_in_flight_ends_at_the_context_length() {
    let mut checkpoint = checkpoint();
    let tokenizer = checkpoint.tokenizer().expect("builds");
    checkpoint.config.context_length = PROMPT.len() + 3;
    let mut engine = Ahead::new(&checkpoint);
    let mut ignore = |_: &Step| ControlFlow::Continue(());
    let ended = generate(&mut engine, &tokenizer, 0, &[], &PROMPT, &greedy(30), &mut ignore).expect("generates");
    assert_eq!((ended.finish, ended.tokens.len(), engine.length(0)), (FinishReason::Length, 4, 8));
}

#[test]
fn nan_logits_end_generation_with_an_error() {
    let mut broken = checkpoint();
    let embedding = broken.tensor("token_embd.weight");
    let (shape, width) = (embedding.shape.clone(), embedding.row_len());
    let mut values = embedding.to_f32();
    values[PROMPT[2] as usize * width..][..width].fill(f32::NAN);
    let rows = HostTensor::packed_rows(Format::F32, shape, Format::F32.encode(&values).into());
    broken.tensors.insert("token_embd.weight".into(), rows);
    for phase in [2, 3] {
        let mut setup = setup_of(&broken, phase);
        let error = go_on(&mut setup, &[], &PROMPT, &greedy(5)).expect_err("NaN");
        assert!(matches!(error, GenerationError::Engine(EngineError::NotANumber { position: 5 })), "{error:?}");
        assert_eq!(
            error.to_string(),
            "the logits after 5 tokens are NaN; the weights may be damaged: `gptoss inspect --check` names the tensor"
        );
        setup.engine.release(0);
        let healthy = [70, 80];
        go_on(&mut setup, &[], &healthy, &greedy(1)).expect("a new sequence is not affected");
    }
}

#[test]
fn invalid_parameters_are_refused() {
    let Setup { tokenizer, mut engine } = setup(3);
    let mut refusal = |history: &[u32], prompt: &[u32], params: GenerationParams| {
        let mut ignore = |_: &Step| ControlFlow::Continue(());
        let error = generate(&mut *engine, &tokenizer, 0, history, prompt, &params, &mut ignore).expect_err("refused");
        assert_eq!(engine.length(0), 0, "{error}");
        error.to_string()
    };
    let hot = Sampling { temperature: f32::NAN, ..Sampling::GREEDY };
    let hot = SamplingParams { sampling: hot, ..SamplingParams::default() };
    let refusals = [
        refusal(&[], &[], greedy(5)),
        refusal(&[], &vec![1; 200_000], greedy(5)),
        refusal(&[], &[1_000_000], greedy(5)),
        refusal(&[1_000_000], &PROMPT, greedy(5)),
        refusal(&[], &PROMPT, GenerationParams { sampling: hot, ..greedy(5) }),
        refusal(&[], &PROMPT, GenerationParams { stop_strings: vec![String::new()], ..greedy(5) }),
        refusal(&[], &PROMPT, GenerationParams { prefill_chunk: 0, ..greedy(5) }),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
    let outside = BadRequest::TokenOutsideVocabulary { token: 1_000_000, vocab: engine.config().vocab };
    assert_eq!(refusals[2], outside.to_string());
}
