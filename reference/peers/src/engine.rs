//! A peer behind the trait `Engine`.
//!
//! Invalid steps are refused here and not sent to the worker. Greedy tokens without mask, adjustments and log probabilities are chosen by
//! the worker; for any other draw the logits are returned and `HostDraw` draws, as for other engines.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::plain::{check_rewind, outcome_of, tokens_of};
use phase2_forward::{
    BadRequest, Capacity, Draw, DrawnToken, Engine, EngineError, HostDraw, Inspect, Outcome, Probe, SequenceId, Ticket,
    Want, Work, check_work,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::frame::Frame;
use crate::peer::{Launch, Peer};
use crate::protocol::{Drawn, Hello, Item, Kind, Load, Request, Stats, Wanted, config_json};
use crate::worker::{Refusal, Worker};

/// The most tokens per step: the logits of all of them are 412 MB with gpt-oss's vocabulary.
const TOKENS_PER_STEP: usize = 512;
/// Factor on the time limit for loading a model, which may include repacking its weights.
const START: u32 = 10;
/// Added to the time limit for each token of a step.
const PER_TOKEN: Duration = Duration::from_secs(2);

/// Options of a peer.
#[derive(Clone, Debug)]
pub struct Options {
    /// `auto`, `cpu` or `gpu`.
    pub device: &'static str,
    /// `float32` or `bfloat16`, for MLX's activations; `float32` also makes llama.cpp's cache f32. `None` is the peer's default.
    pub dtype: Option<&'static str>,
    /// Threads of llama.cpp. MLX chooses its own.
    pub threads: usize,
    /// Tokens for which llama.cpp allocates its cache, over all sequences.
    pub context: usize,
    /// Sequences for which llama.cpp allocates its cache.
    pub sequences: usize,
    /// The time limit of a request, without the time that is added for each token of a step.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Options {
        let patience = Duration::from_secs(120);
        Options { device: "auto", dtype: None, threads: 1, context: 16384, sequences: 32, patience }
    }
}

pub struct PeerEngine {
    peer: Peer,
    config: GptOssConfig,
    hello: Hello,
    worker: Worker,
    sequences: HashMap<SequenceId, Sequence>,
    /// Limits of tokens and sequences; `None` if the peer allocates memory as needed.
    cache_size: Option<CacheSize>,
    patience: Duration,
    next_ticket: u64,
    /// The outcomes of the step that is not collected yet.
    done: Option<(Ticket, Result<Vec<Outcome>, EngineError>)>,
    host: HostDraw,
}

#[derive(Clone, Copy, Default)]
struct Sequence {
    length: usize,
    /// The token drawn last, if the next step may feed it.
    drawn: Option<u32>,
}

#[derive(Clone, Copy)]
struct CacheSize {
    tokens: usize,
    sequences: usize,
}

impl PeerEngine {
    /// Starts a worker, which loads `model`, the file or folder that `checkpoint` was opened from. The configuration and the YaRN ramp
    /// are the checkpoint's, except that the context of llama.cpp is at most [`Options::context`].
    ///
    /// # Errors
    /// The path is not UTF-8, the Python cannot be started, the peer does not support the model or device, or the worker fails or loads a
    /// model with other numbers of layers or tokens.
    pub fn start(
        launch: &Launch,
        checkpoint: &Checkpoint,
        model: &Path,
        options: &Options,
    ) -> Result<PeerEngine, EngineError> {
        let (peer, mut config) = (launch.peer, checkpoint.config.clone());
        let model = model.to_str().ok_or_else(|| {
            EngineError::Unsupported(format!("{}: the path must be UTF-8 to be passed to a worker", model.display()))
        })?;
        let cache_size =
            (peer == Peer::LlamaCpp).then_some(CacheSize { tokens: options.context, sequences: options.sequences });
        if let Some(cache_size) = cache_size {
            config.context_length = config.context_length.min(cache_size.tokens);
        }
        let load = Request::Load(Load {
            model,
            config: config_json(&config),
            rope: config.rope.ramp.name(),
            device: options.device,
            dtype: options.dtype,
            threads: options.threads,
            context: options.context,
            sequences: options.sequences,
        });
        let mut worker = Worker::start(launch).map_err(EngineError::Unsupported)?;
        let frame = worker.ask(&load, 0, options.patience * START).map_err(|refusal| error_of(peer, refusal))?;
        let hello: Hello = body(&mut worker, frame).map_err(|refusal| error_of(peer, refusal))?;
        if (hello.vocab, hello.layers) != (config.vocab, config.layers()) {
            let (vocab, layers) = (hello.vocab, hello.layers);
            let reason = format!("it loaded another model, of {layers} layers and {vocab} tokens");
            return Err(error_of(peer, worker.end(reason)));
        }
        Ok(PeerEngine {
            peer,
            config,
            hello,
            worker,
            sequences: HashMap::new(),
            cache_size,
            patience: options.patience,
            next_ticket: 0,
            done: None,
            host: HostDraw::default(),
        })
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The worker's description of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The worker's memory use.
    ///
    /// # Errors
    /// The worker has ended.
    pub fn stats(&mut self) -> Result<Stats, EngineError> {
        let patience = self.patience;
        let frame = self.worker.ask(&Request::Stats, 0, patience).map_err(|refusal| error_of(self.peer, refusal))?;
        body(&mut self.worker, frame).map_err(|refusal| error_of(self.peer, refusal))
    }

    fn tokens_held(&self) -> usize {
        self.sequences.values().map(|known| known.length).sum()
    }

    /// # Errors
    /// The peer's cache cannot hold `tokens` more tokens, or `sequences` more sequences.
    fn check_room(&self, tokens: usize, sequences: usize) -> Result<(), EngineError> {
        let Some(cache_size) = self.cache_size else { return Ok(()) };
        let free = cache_size.tokens.saturating_sub(self.tokens_held());
        if tokens > free {
            return Err(EngineError::Full { needed: tokens, free });
        }
        match self.sequences.len() + sequences > cache_size.sequences {
            true => Err(EngineError::Full { needed: 1, free: 0 }),
            false => Ok(()),
        }
    }

    /// Sends a checked step to the worker.
    fn compute(&mut self, work: &[Work<'_>], inputs: &[Vec<u32>]) -> Result<Vec<Outcome>, EngineError> {
        let wanted: Vec<Wanted> = work.iter().map(|item| wanted(&item.want)).collect();
        let rows_of = |(item, (input, wanted)): (&Work<'_>, (&Vec<u32>, &Wanted))| match wanted {
            Wanted::Greedy => 0,
            _ => item.want.rows(input.len()),
        };
        let rows: Vec<usize> = work.iter().zip(inputs.iter().zip(&wanted)).map(rows_of).collect();
        let items = work
            .iter()
            .zip(inputs)
            .zip(&wanted)
            .map(|((item, tokens), &want)| Item { sequence: item.sequence, tokens, want })
            .collect();
        let tokens: usize = inputs.iter().map(Vec::len).sum();
        let within = self.patience + PER_TOKEN * tokens as u32;
        let bytes = rows.iter().sum::<usize>() * self.config.vocab * size_of::<f32>();
        let peer = self.peer;
        let failed = |refusal| error_of(peer, refusal);
        let mut frame = self.worker.ask(&Request::Step { items }, bytes as u64, within).map_err(failed)?;
        let payload = std::mem::take(&mut frame.payload);
        let drawn: Drawn = body(&mut self.worker, frame).map_err(failed)?;
        let greedy = wanted.iter().filter(|&&want| want == Wanted::Greedy).count();
        let vocab = self.config.vocab;
        let is_token = |token: &Option<u32>| token.is_none_or(|token| (token as usize) < vocab);
        if drawn.tokens.len() != greedy || !drawn.tokens.iter().all(is_token) {
            let reason =
                format!("it drew {:?}; the request was for {greedy}, from a vocabulary of {vocab}", drawn.tokens);
            return Err(failed(self.worker.end(reason)));
        }
        let mut logits =
            payload.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let mut tokens = drawn.tokens.into_iter();
        let mut outcomes = Vec::new();
        for ((item, rows), wanted) in work.iter().zip(rows).zip(wanted) {
            let position = self.length(item.sequence);
            outcomes.push(match wanted {
                Wanted::Greedy => match tokens.next().flatten() {
                    Some(id) => Outcome::Token(DrawnToken { id, logprobs: None }),
                    None => Outcome::NotANumber { position },
                },
                _ => {
                    let row = logits.by_ref().take(rows * vocab).collect();
                    outcome_of(&item.want, row, position, &mut self.host)
                }
            });
        }
        Ok(outcomes)
    }

    /// Sends a request whose reply has no content.
    fn send(&mut self, request: &Request<'_>) -> Result<(), Refusal> {
        self.worker.ask(request, 0, self.patience).map(|_| ())
    }

    /// Checks that a sequence has at least `length` tokens. Whether it can go back to that length is decided by the worker.
    fn check_length(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let known = self.sequences.get(&sequence).map(|known| known.length);
        check_rewind(sequence, known, length, || true)
    }

    fn rewind_error(&self, sequence: SequenceId, wanted: usize, refusal: Refusal) -> EngineError {
        match refusal {
            Refusal::Declined(Kind::CannotGoBack, _) => {
                BadRequest::CannotGoBack { sequence, length: self.length(sequence), wanted }.into()
            }
            other => error_of(self.peer, other),
        }
    }
}

/// The result to request from a worker. It chooses greedy tokens itself if there are no mask, adjustments and log probabilities.
fn wanted(want: &Want<'_>) -> Wanted {
    let is_plain = |draw: &Draw<'_>| {
        draw.is_greedy() && draw.allowed.is_none() && draw.adjustments.is_empty() && draw.logprobs.is_none()
    };
    match want {
        Want::Nothing => Wanted::Nothing,
        Want::LastLogits => Wanted::Last,
        Want::AllLogits => Wanted::All,
        Want::Token(draw) if is_plain(draw) => Wanted::Greedy,
        Want::Token(_) => Wanted::Last,
    }
}

/// The JSON part of a reply. If it is incomplete, the worker is ended.
fn body<T: DeserializeOwned>(worker: &mut Worker, frame: Frame) -> Result<T, Refusal> {
    let parsed = serde_json::from_value(Value::Object(frame.header.body));
    parsed.map_err(|error| worker.end(format!("its reply is incomplete: {error}")))
}

fn error_of(peer: Peer, refusal: Refusal) -> EngineError {
    match refusal {
        Refusal::Ended(sentence) => EngineError::Device(sentence),
        Refusal::Declined(_, sentence) => EngineError::Unsupported(format!("{}: {sentence}", peer.title())),
    }
}

impl Engine for PeerEngine {
    fn config(&self) -> &GptOssConfig {
        &self.config
    }

    fn capacity(&self) -> Capacity {
        let unbounded = Capacity { tokens_per_step: TOKENS_PER_STEP, ..Capacity::UNBOUNDED };
        self.cache_size.map_or(unbounded, |cache_size| Capacity {
            pages_total: cache_size.tokens,
            pages_free: cache_size.tokens.saturating_sub(self.tokens_held()),
            ..unbounded
        })
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.length)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        if self.done.is_some() {
            return Err(BadRequest::TooManySteps(1).into());
        }
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.sequences.get(&sequence).and_then(|known| known.drawn))?;
        let new = work.iter().filter(|item| !self.sequences.contains_key(&item.sequence)).count();
        self.check_room(inputs.iter().map(Vec::len).sum(), new)?;
        self.worker.check().map_err(EngineError::Device)?;
        for (item, input) in work.iter().zip(&inputs) {
            let known = self.sequences.entry(item.sequence).or_default();
            *known = Sequence { length: known.length + input.len(), drawn: None };
        }
        let outcomes = self.compute(work, &inputs);
        for (item, outcome) in work.iter().zip(outcomes.iter().flatten()) {
            if let Some(known) = self.sequences.get_mut(&item.sequence) {
                known.drawn = outcome.drawn_id();
            }
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.done = Some((ticket, outcomes));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        match self.done.take_if(|(oldest, _)| *oldest == ticket) {
            Some((_, outcomes)) => outcomes,
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        if self.sequences.contains_key(&to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_length(from, length)?;
        self.check_room(length, 1)?;
        let result = self.send(&Request::Fork { from, to, length });
        result.map_err(|refusal| self.rewind_error(from, length, refusal))?;
        self.sequences.insert(to, Sequence { length, drawn: None });
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_length(sequence, length)?;
        let result = self.send(&Request::Truncate { sequence, length });
        result.map_err(|refusal| self.rewind_error(sequence, length, refusal))?;
        self.sequences.insert(sequence, Sequence { length, drawn: None });
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        if self.sequences.remove(&sequence).is_some() {
            // If the worker fails here, the next step reports it.
            let _ = self.send(&Request::Release { sequence });
        }
    }
}

impl Inspect for PeerEngine {
    /// # Errors
    /// Always: workers do not provide intermediate results.
    fn inspect(&mut self, _: &[Work<'_>], _: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        let title = self.peer.title();
        Err(EngineError::Unsupported(format!("{title} shows no intermediate results; --engine reference does")))
    }
}
