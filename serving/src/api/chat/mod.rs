//! `POST /v1/chat/completions`.

mod answer;
mod messages;
mod request;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use harmony::{Function, Message, ReasoningEffort, ResponseFormat};

use super::app::{App, Model};
use super::body::{block_in_place_if_large, parse, read};
use super::error::ApiError;
use super::fields;
use super::form::{constraint, shown};
use super::json::ok;
use super::record::Record;
use super::runs::Runs;
use super::stream::{Form, Frames, respond};
use super::tools::{Toolbox, effort, response_format};
use super::turn::Turn;
use super::{id, stops};
use crate::request::Request;

pub use answer::{ChatAnswer, Head, finite, logprob};
pub use messages::{Calls, ConversationStart, instructions, text};
pub use request::{ChatRequest, Content, InCall, InFunction, InMessage, InRole};

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
    let runs = Runs::submit(&app, model, &record, runs, "messages")?;
    if !stream {
        let mut answer = answer.begin(model)?;
        runs.gather(&mut answer).await?;
        return Ok(ok(&answer.whole()));
    }
    let app = app.clone();
    Ok(respond(Form::Data, move |sender| async move {
        let begun = app.loaded().and_then(|model| answer.begin(model).ok());
        if let Some(mut answer) = begun {
            runs.write(&mut answer, &mut Frames::new(Form::Data), &sender).await;
        }
    }))
}

/// A request, converted to runs and the parameters of its answer.
struct Plan {
    runs: Vec<Request>,
    answer: AnswerPlan,
    stream: bool,
}

/// The parameters of an answer, before its first token.
struct AnswerPlan {
    head: Head,
    choices: usize,
    functions: Vec<Function>,
    stops: Vec<String>,
    stop_tokens: Vec<u32>,
}

impl AnswerPlan {
    fn begin(self, model: &Model) -> Result<ChatAnswer<'_>, ApiError> {
        let harmony = model.harmony()?;
        let turn = || Turn::new(&harmony, &self.functions, &self.stops, &self.stop_tokens);
        let turns = (0..self.choices).map(|_| turn()).collect();
        Ok(ChatAnswer::new(self.head, &model.tokenizer, turns))
    }
}

impl Plan {
    fn new(model: &Model, asked: ChatRequest, record: &Record) -> Result<Plan, ApiError> {
        let name = model.resolve(asked.model.as_deref())?;
        refuse_unsupported(&asked)?;
        let sampling = asked.sampling_fields().params(model.tokenizer.vocab())?;
        let choices = fields::choices(asked.n)?;
        let max_tokens = match asked.max_completion_tokens {
            Some(tokens) => fields::limit("max_completion_tokens", Some(tokens))?,
            None => fields::limit("max_tokens", asked.max_tokens)?,
        };
        let logprobs = match (asked.logprobs.unwrap_or(false), asked.top_logprobs) {
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::invalid("top_logprobs", "`top_logprobs` is only allowed with `logprobs`."));
            }
            (true, count) => Some(fields::top_logprobs("top_logprobs", count.unwrap_or(0), 20)?),
        };
        let stream = asked.stream.unwrap_or(false);
        let include_usage = match asked.stream_options {
            Some(_) if !stream => {
                return Err(ApiError::invalid("stream_options", "`stream_options` is only allowed with `stream`."));
            }
            options => options.and_then(|options| options.include_usage).unwrap_or(false),
        };
        let stops = fields::stop_strings(asked.stop)?;
        let format = response_format("response_format", asked.response_format.as_ref())?;
        let toolbox = Toolbox::of_chat(asked.tools.as_deref(), asked.tool_choice.as_ref())?;
        let effort = effort("reasoning_effort", asked.reasoning_effort.as_deref())?;
        let prompt = render(model, asked.messages, effort, toolbox.functions.clone(), shown(&format))?;
        let constraint = constraint(model, "response_format", &format, &toolbox)?;
        // With a constraint, `ignore_eos` has no effect: the constraint ends with the turn, and text after the turn would be unconstrained.
        let ignore_eos = asked.ignore_eos.filter(|_| constraint.is_none());
        let stop_tokens = stops::tokens(model, ignore_eos, asked.stop_token_ids.as_deref());
        let prompt_tokens = prompt.len();
        let request = Request {
            max_tokens: model.room(prompt_tokens, max_tokens),
            prompt,
            sampling,
            stop_tokens,
            logprobs,
            deadline: None,
            client: record.client().to_owned(),
            constraint,
        };
        let head = Head {
            id: id::random("chatcmpl-"),
            created: id::now(),
            model: name,
            fingerprint: model.fingerprint.clone(),
            prompt_tokens,
            logprobs: logprobs.is_some(),
            include_reasoning: asked.include_reasoning.unwrap_or(true),
            include_usage,
        };
        let stop_tokens = asked.stop_token_ids.unwrap_or_default();
        let functions = toolbox.functions;
        let answer = AnswerPlan { head, choices, functions, stops, stop_tokens };
        Ok(Plan { runs: stops::with_seeds(request, choices), answer, stream })
    }
}

/// The prompt of a request that is only tokenized. It may be longer than the context.
///
/// # Errors
/// The messages, tools, response format or reasoning effort are invalid, or the vocabulary lacks harmony's control tokens.
pub fn prompt(model: &Model, asked: ChatRequest) -> Result<Vec<u32>, ApiError> {
    let toolbox = Toolbox::of_chat(asked.tools.as_deref(), asked.tool_choice.as_ref())?;
    let format = response_format("response_format", asked.response_format.as_ref())?;
    let effort = effort("reasoning_effort", asked.reasoning_effort.as_deref())?;
    let messages = conversation(model, asked.messages, effort, toolbox.functions, shown(&format))?;
    Ok(model.harmony()?.render_prompt(&messages))
}

/// The prompt of a conversation.
///
/// # Errors
/// The messages are invalid, there are none, they are too long for the context, or the vocabulary lacks harmony's control tokens.
pub fn render(
    model: &Model,
    messages: Option<Vec<InMessage>>,
    effort: ReasoningEffort,
    functions: Vec<Function>,
    format: Option<ResponseFormat>,
) -> Result<Vec<u32>, ApiError> {
    model.prompt(&conversation(model, messages, effort, functions, format)?, "messages")
}

fn conversation(
    model: &Model,
    messages: Option<Vec<InMessage>>,
    effort: ReasoningEffort,
    functions: Vec<Function>,
    format: Option<ResponseFormat>,
) -> Result<Vec<Message>, ApiError> {
    let messages = messages.unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must hold at least one message."));
    }
    let start = ConversationStart { date: model.date(), effort, instructions: None, functions, format };
    messages::conversation(start, messages)
}

fn refuse_unsupported(asked: &ChatRequest) -> Result<(), ApiError> {
    let given = |value: &Option<serde_json::Value>| value.as_ref().is_some_and(|value| !value.is_null());
    if given(&asked.functions) || given(&asked.function_call) {
        let message = "`functions` and `function_call` are not supported; use `tools` and `tool_choice`.";
        return Err(ApiError::unsupported("functions", message));
    }
    if asked.modalities.iter().flatten().any(|modality| modality != "text") {
        return Err(ApiError::unsupported("modalities", "This model answers in text only."));
    }
    Ok(())
}
