//! `POST /v1/completions`: continues raw text.

mod answer;
mod forced;
mod request;
mod text;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use phase3_kvcache::SamplingParams;

use super::app::{App, Model};
use super::body::{block_in_place_if_large, parse, read};
use super::error::ApiError;
use super::fields;
use super::json::ok;
use super::record::Record;
use super::runs::{Answer, Runs};
use super::stream::{Form, Frames, respond};
use super::{id, stops};
use crate::request::{Constraint, Event, Finish, Refused, Request};

use answer::{CompletionAnswer, Echo, Head};
use forced::Forced;
use request::CompletionRequest;
pub use text::Text;

/// The largest product of prompts and answers per prompt; each answer copies its prompt.
const MAX_ANSWERS: usize = 1024;

pub async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let plan = block_in_place_if_large(body.len(), || Plan::new(model, parse(&body)?, &record))?;
    drop(body);
    let Plan { runs, answer, stream } = plan;
    // There are no runs if the request wants only the echoed prompt (`max_tokens` is 0) without log probabilities.
    let runs = match runs.is_empty() {
        true => None,
        false => Some(Runs::submit(&app, model, &record, runs, "prompt")?),
    };
    if !stream {
        let mut answer = answer.begin(model);
        match runs {
            Some(runs) => runs.gather(&mut answer).await?,
            None => only_echo(&mut answer, &mut Frames::new(Form::Silent)),
        }
        return Ok(ok(&answer.whole()));
    }
    let app = app.clone();
    Ok(respond(Form::Data, move |sender| async move {
        let Some(model) = app.loaded() else { return };
        let (mut answer, mut frames) = (answer.begin(model), Frames::new(Form::Data));
        match runs {
            Some(runs) => runs.write(&mut answer, &mut frames, &sender).await,
            None => {
                only_echo(&mut answer, &mut frames);
                let _ = sender.flush(&mut frames).await;
            }
        }
    }))
}

/// Writes an answer without generated tokens.
fn only_echo(answer: &mut CompletionAnswer<'_>, frames: &mut Frames) {
    answer.begin(frames);
    for run in 0..answer.choices() {
        answer.take(run, Event::Finished(Finish::Length), frames);
    }
    answer.end(frames);
}

struct Plan {
    runs: Vec<Request>,
    answer: AnswerPlan,
    stream: bool,
}

/// The parameters of an answer, before its first token.
struct AnswerPlan {
    head: Head,
    /// For each choice, the part before its text.
    echoes: Vec<Before>,
    stops: Vec<String>,
    stop_tokens: Vec<u32>,
    shows_control: bool,
}

/// The part before the text of a choice.
#[derive(Clone)]
enum Before {
    Nothing,
    Prompt(String),
    /// The first token of a prompt, and the number of its other tokens.
    Scored(u32, usize),
}

impl AnswerPlan {
    fn begin(self, model: &Model) -> CompletionAnswer<'_> {
        let AnswerPlan { head, echoes, stops, stop_tokens, shows_control } = self;
        let text = || Text::new(&model.tokenizer, &stops, &stop_tokens, shows_control);
        let prompt = || Text::new(&model.tokenizer, &[], &[], shows_control);
        let echo = |before| match before {
            Before::Nothing => None,
            Before::Prompt(prompt) => Some(Echo::Text(prompt)),
            Before::Scored(first, left) => Some(Echo::Scored { first, left, read: prompt() }),
        };
        let texts = echoes.into_iter().map(|before| (text(), echo(before))).collect();
        CompletionAnswer::new(head, &model.tokenizer, texts)
    }
}

impl Plan {
    fn new(model: &Model, asked: CompletionRequest, record: &Record) -> Result<Plan, ApiError> {
        let name = model.resolve(asked.model.as_deref())?;
        if asked.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported: this model cannot fill in text."));
        }
        let sampling = asked.sampling_fields().params(model.tokenizer.vocab())?;
        let per_prompt = fields::choices(asked.n)?;
        match asked.best_of {
            Some(best_of) if best_of < per_prompt as u64 => {
                return Err(ApiError::invalid("best_of", "`best_of` must not be below `n`."));
            }
            Some(best_of) if best_of > per_prompt as u64 => {
                return Err(ApiError::unsupported("best_of", "`best_of` above `n` is not supported."));
            }
            _ => {}
        }
        let (echo, max_tokens) = (asked.echo.unwrap_or(false), asked.max_tokens.unwrap_or(16));
        if max_tokens == 0 && !echo {
            return Err(ApiError::invalid("max_tokens", "`max_tokens` must be at least 1, unless `echo` is set."));
        }
        let logprobs = asked.logprobs.map(|count| fields::top_logprobs("logprobs", count, 20)).transpose()?;
        let scores = echo && logprobs.is_some();
        if scores && sampling_counts_tokens(&sampling) {
            let message = "`logprobs` with `echo` are not supported together with penalties or `logit_bias`.";
            return Err(ApiError::unsupported("echo", message));
        }
        let stream = asked.stream.unwrap_or(false);
        let include_usage = match asked.stream_options {
            Some(_) if !stream => {
                return Err(ApiError::invalid("stream_options", "`stream_options` is only allowed with `stream`."));
            }
            options => options.and_then(|options| options.include_usage).unwrap_or(false),
        };
        let stops = fields::stop_strings(asked.stop)?;
        let prompt = asked.prompt.ok_or_else(|| ApiError::invalid("prompt", "`prompt` is missing."))?;
        let shows_control = asked.skip_special_tokens == Some(false);
        let prompts = prompt.tokens(model)?;
        let stop_tokens = stops::tokens(model, asked.ignore_eos, asked.stop_token_ids.as_deref());
        if prompts.len() * per_prompt > MAX_ANSWERS {
            let message = format!("The number of prompts times `n` may be at most {MAX_ANSWERS}.");
            return Err(ApiError::invalid("n", message));
        }
        let prompt_tokens: Vec<usize> = prompts.iter().map(Vec::len).collect();

        let (mut runs, mut echoes) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let scored = if scores { Some(scored(model, &prompt, max_tokens, &stop_tokens)?) } else { None };
            let before = match (&scored, echo) {
                (Some(_), _) => Before::Scored(prompt[0], prompt.len() - 1),
                (None, true) => Before::Prompt(visible(model, &prompt, shows_control)),
                (None, false) => Before::Nothing,
            };
            echoes.extend((0..per_prompt).map(|_| before.clone()));
            let (prompt, room, constraint) = match scored {
                Some(scored) => scored,
                None if max_tokens == 0 => continue,
                None => {
                    let room = model.room(prompt.len(), usize::try_from(max_tokens).ok());
                    (prompt, room, None)
                }
            };
            let request = Request {
                max_tokens: room,
                prompt,
                sampling: sampling.clone(),
                stop_tokens: stop_tokens.clone(),
                logprobs,
                deadline: None,
                client: record.client().to_owned(),
                constraint,
            };
            runs.extend(stops::with_seeds(request, per_prompt));
        }
        let head = Head {
            id: id::random("cmpl-"),
            created: id::now(),
            model: name,
            fingerprint: model.fingerprint.clone(),
            prompt_tokens,
            per_prompt,
            logprobs: logprobs.is_some(),
            include_usage,
        };
        Ok(Plan { runs, answer: AnswerPlan { head, echoes, stops, stop_tokens, shows_control }, stream })
    }
}

/// Whether there are penalties or biases. A prompt is scored by drawing its tokens, which penalties would then count as generated ones.
fn sampling_counts_tokens(sampling: &SamplingParams) -> bool {
    let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = sampling;
    *repetition_penalty != 1.0 || *presence_penalty != 0.0 || *frequency_penalty != 0.0 || !logit_bias.is_empty()
}

/// A run that scores a prompt and then continues it: the first token of the prompt, the limit of drawn tokens, and the constraint that
/// makes the run draw the other tokens of the prompt.
type Scored = (Vec<u32>, usize, Option<Box<dyn Constraint>>);

/// # Errors
/// The prompt is too long, contains a stop token after its first token, or has only one token while `max_tokens` is 0.
fn scored(model: &Model, prompt: &[u32], max_tokens: u64, stop_tokens: &[u32]) -> Result<Scored, ApiError> {
    let context = model.handle.context();
    if prompt.len() >= context {
        return Err(ApiError::refused(Refused::PromptTooLong { prompt: prompt.len(), context }, "prompt"));
    }
    let rest = &prompt[1..];
    if rest.is_empty() && max_tokens == 0 {
        return Err(ApiError::invalid("prompt", "A prompt of one token has no log probabilities."));
    }
    if let Some(token) = rest.iter().find(|token| stop_tokens.contains(token)) {
        let message =
            format!("`logprobs` of an echoed prompt are not supported if it contains a stop token, such as {token}.");
        return Err(ApiError::unsupported("prompt", message));
    }
    let further = match max_tokens {
        0 => 0,
        tokens => model.room(prompt.len(), usize::try_from(tokens).ok()),
    };
    let forced = Forced::new(rest, model.handle.vocab());
    Ok((vec![prompt[0]], rest.len() + further, Some(Box::new(forced))))
}

/// The text of a prompt.
fn visible(model: &Model, prompt: &[u32], shows_control: bool) -> String {
    let mut text = Text::new(&model.tokenizer, &[], &[], shows_control);
    let shown: String = prompt.iter().map(|&token| text.push(token, None).0).collect();
    shown + &text.finish().0
}
