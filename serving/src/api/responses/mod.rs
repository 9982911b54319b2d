//! `/v1/responses`: items as input and output, and conversations that continue from an id.

mod answer;
mod history;
mod input;
mod page;
mod request;
mod store;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::Uri;
use axum::response::Response;
use harmony::{Function, Role};
use serde_json::{Map, Value, json};

use super::app::{App, Model};
use super::body::{block_in_place_if_large, parse, read};
use super::chat::ConversationStart;
use super::error::{ApiError, shortened};
use super::fields::{self, SamplingFields};
use super::form::{constraint, shown};
use super::json::ok;
use super::record::Record;
use super::runs::Runs;
use super::stream::{Form, Frames, respond};
use super::tools::{Toolbox, effort, response_format};
use super::turn::Turn;
use super::{id, stops};
use crate::request::Request;

use answer::{CompleteResponse, OnComplete};
use history::History;
use input::listed;
use page::Page;
use request::{Input, ResponseRequest, Truncation, functions};
use store::Stored;

pub use answer::ResponseAnswer;
pub use store::Store;

pub async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let owner = owner(&app, &record);
    let plan = block_in_place_if_large(body.len(), || Plan::new(&app, model, parse(&body)?, &record, &owner))?;
    drop(body);
    let Plan { run, answer, stream } = plan;
    let runs = Runs::submit(&app, model, &record, vec![run], "input")?;
    if !stream {
        let mut response = answer.begin(&app, model, owner)?;
        runs.gather(&mut response).await?;
        return Ok(ok(&response.ended()));
    }
    let app = app.clone();
    Ok(respond(Form::Events, move |sender| async move {
        let begun = app.loaded().and_then(|model| answer.begin(&app, model, owner).ok());
        if let Some(mut response) = begun {
            runs.write(&mut response, &mut Frames::new(Form::Events), &sender).await;
        }
    }))
}

/// The number of tokens of a request's input.
pub async fn input_tokens(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let owner = owner(&app, &record);
    let plan = block_in_place_if_large(body.len(), || Plan::new(&app, model, parse(&body)?, &record, &owner))?;
    Ok(ok(&json!({ "object": "response.input_tokens", "input_tokens": plan.run.prompt.len() })))
}

pub async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(ok(&find(&app, &record, &id)?.response))
}

pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match app.store.remove(&id, &owner(&app, &record)) {
        true => Ok(ok(&json!({ "id": id, "object": "response", "deleted": true }))),
        false => Err(no_such_response(&id)),
    }
}

/// Always an error: in OpenAI's API only background responses can be cancelled, and this server does not support them.
pub async fn cancel(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    find(&app, &record, &id)?;
    Err(ApiError::bad_request("Only responses in the background can be cancelled; close the connection of others."))
}

pub async fn input_items(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let page = Page::of(uri.query().unwrap_or_default())?;
    Ok(ok(&page.list(&find(&app, &record, &id)?.input)?))
}

/// The owner of a request's responses: its key; without keys, all requests share one owner.
fn owner(app: &App, record: &Record) -> String {
    if app.settings.keys.is_empty() { String::new() } else { record.client().to_owned() }
}

fn find(app: &App, record: &Record, id: &str) -> Result<Arc<Stored>, ApiError> {
    app.store.get(id, &owner(app, record)).ok_or_else(|| no_such_response(id))
}

fn no_such_response(id: &str) -> ApiError {
    ApiError::not_found("id", format!("Response with id `{}` not found.", shortened(id)))
}

struct Plan {
    run: Request,
    answer: AnswerPlan,
    stream: bool,
}

/// The parameters of an answer, before its first token.
struct AnswerPlan {
    response: Map<String, Value>,
    functions: Vec<Function>,
    prompt_tokens: usize,
    logprobs: bool,
    /// `None` if the request does not want its response stored.
    basis: Option<Basis>,
}

/// Data that is stored in addition to the answer.
struct Basis {
    id: String,
    input: Vec<Value>,
    history: History,
}

impl AnswerPlan {
    fn begin<'a>(self, app: &'a App, model: &'a Model, owner: String) -> Result<ResponseAnswer<'a>, ApiError> {
        let AnswerPlan { response, functions, prompt_tokens, logprobs, basis } = self;
        let turn = Turn::new(&model.harmony()?, &functions, &[], &[]);
        let on_complete =
            basis.map(|basis| -> OnComplete<'a> { Box::new(move |complete| basis.store(&app.store, complete, owner)) });
        Ok(ResponseAnswer::new(response, &model.tokenizer, turn, logprobs, prompt_tokens, on_complete))
    }
}

impl Basis {
    fn store(self, store: &Store, complete: CompleteResponse, owner: String) {
        let Basis { id, input, mut history } = self;
        let CompleteResponse { response, messages, calls } = complete;
        history.messages.extend(messages);
        for (id, function) in calls {
            history.calls.made(id, &function);
        }
        store.insert(Stored { id, owner, response, input, history });
    }
}

impl Plan {
    fn new(app: &App, model: &Model, asked: ResponseRequest, record: &Record, owner: &str) -> Result<Plan, ApiError> {
        let name = model.resolve(asked.model.as_deref())?;
        refuse_unsupported(&asked)?;
        let sampling_fields = SamplingFields {
            temperature: asked.temperature,
            top_p: asked.top_p,
            top_k: asked.top_k,
            min_p: asked.min_p,
            presence_penalty: asked.presence_penalty,
            frequency_penalty: asked.frequency_penalty,
            repetition_penalty: asked.repetition_penalty,
            logit_bias: None,
            seed: asked.seed,
        };
        let sampling = sampling_fields.params(model.tokenizer.vocab())?;
        let max_tokens = fields::limit("max_output_tokens", asked.max_output_tokens)?;
        let wants_logprobs = asked.include.iter().flatten().any(|part| part == "message.output_text.logprobs");
        let top = fields::top_logprobs("top_logprobs", asked.top_logprobs.unwrap_or(0), 20)?;
        let logprobs = (wants_logprobs || top > 0).then_some(top);
        let (declared, tools) = functions(asked.tools.as_deref().unwrap_or_default())?;
        let declared = Some(declared).filter(|declared| !declared.is_empty());
        let strict = tools.iter().filter(|tool| tool["strict"] == true);
        let strict = strict.filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect();
        let toolbox = Toolbox { strict, ..Toolbox::build(declared, asked.tool_choice.as_ref())? };
        let format = asked.text.as_ref().and_then(|text| text.format.as_ref());
        let format = response_format("text.format", format)?;
        let reasoning = asked.reasoning.as_ref();
        let effort = effort("reasoning.effort", reasoning.and_then(|reasoning| reasoning.effort.as_deref()))?;

        let mut history = match asked.previous_response_id.as_deref() {
            None => History::default(),
            Some(previous) => {
                let missing = || {
                    let message = format!("Previous response with id `{}` not found.", shortened(previous));
                    ApiError::not_found("previous_response_id", message)
                };
                app.store.get(previous, owner).ok_or_else(missing)?.history.clone()
            }
        };
        let items = match &asked.input {
            None => return Err(ApiError::invalid("input", "`input` is missing.")),
            Some(Input::Text(text)) => vec![json!({ "role": "user", "content": text })],
            Some(Input::Items(items)) if items.is_empty() && history.messages.is_empty() => {
                return Err(ApiError::invalid("input", "`input` must hold at least one item."));
            }
            Some(Input::Items(items)) => items.clone(),
        };
        history.add(&items, &app.store, owner)?;
        let input = listed(&items);
        let start = |instructions| ConversationStart {
            date: model.date(),
            effort,
            instructions,
            functions: toolbox.functions.clone(),
            format: shown(&format),
        };
        let drops = asked.truncation == Some(Truncation::Auto);
        let prompt = prompt(model, &start, asked.instructions.clone(), &history, drops)?;

        let constraint = constraint(model, "text.format", &format, &toolbox)?;
        let prompt_tokens = prompt.len();
        let run = Request {
            max_tokens: model.room(prompt_tokens, max_tokens),
            prompt,
            sampling,
            stop_tokens: stops::tokens(model, None, None),
            logprobs,
            deadline: None,
            client: record.client().to_owned(),
            constraint,
        };
        let id = id::random("resp_");
        let basis = asked.store.unwrap_or(true).then(|| Basis { id: id.clone(), input, history });
        let stream = asked.stream.unwrap_or(false);
        let response = shell(asked, id, name, effort.name(), tools);
        let answer =
            AnswerPlan { response, functions: toolbox.functions, prompt_tokens, logprobs: logprobs.is_some(), basis };
        Ok(Plan { run, answer, stream })
    }
}

/// The prompt. Instructions at the beginning of the conversation are the developer message, unless the request has instructions. If the
/// conversation does not fit and the request allows truncation, the oldest messages are left out.
fn prompt(
    model: &Model,
    start: &dyn Fn(Option<String>) -> ConversationStart,
    instructions: Option<String>,
    history: &History,
    drops: bool,
) -> Result<Vec<u32>, ApiError> {
    const HEADING: &str = "# Instructions\n\n";
    let first = history.messages.first().filter(|message| message.role == Role::Developer);
    let (instructions, mut messages) = match (instructions, first) {
        (None, Some(first)) => {
            let text = first.content.strip_prefix(HEADING).unwrap_or(&first.content);
            (Some(text.to_owned()), &history.messages[1..])
        }
        (instructions, _) => (instructions, &history.messages[..]),
    };
    let start = start(instructions).messages();
    loop {
        let tokens = model.prompt(&[&start[..], messages].concat(), "input");
        if !drops || tokens.as_ref().is_ok_and(|tokens| tokens.len() < model.handle.context()) {
            return tokens;
        }
        // All messages before the next user message are left out, so that no result remains without its call.
        let next = messages.iter().skip(1).position(|message| message.role == Role::User);
        let Some(next) = next else { return tokens };
        messages = &messages[next + 1..];
    }
}

/// The fields of a response that are known from the start.
fn shell(asked: ResponseRequest, id: String, model: String, effort: &str, tools: Vec<Value>) -> Map<String, Value> {
    let text = asked.text.as_ref();
    let format = text.and_then(|text| text.format.clone()).unwrap_or_else(|| json!({ "type": "text" }));
    let verbosity = text.and_then(|text| text.verbosity.clone()).unwrap_or_else(|| "medium".into());
    let asked_effort = asked.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone());
    let summary = asked.reasoning.as_ref().and_then(|reasoning| reasoning.summary.clone());
    let response = json!({
        "id": id,
        "object": "response",
        "created_at": id::now(),
        "status": "in_progress",
        "background": false,
        "completed_at": null,
        "error": null,
        "incomplete_details": null,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": null,
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": asked.previous_response_id,
        "reasoning": { "effort": asked_effort.unwrap_or_else(|| effort.to_owned()), "summary": summary },
        "service_tier": "default",
        "store": asked.store.unwrap_or(true),
        "temperature": asked.temperature.unwrap_or(1.0),
        "text": { "format": format, "verbosity": verbosity },
        "tool_choice": asked.tool_choice.filter(|choice| !choice.is_null()).unwrap_or_else(|| "auto".into()),
        "tools": tools,
        "top_logprobs": asked.top_logprobs.unwrap_or(0),
        "top_p": asked.top_p.unwrap_or(1.0),
        "truncation": if asked.truncation == Some(Truncation::Auto) { "auto" } else { "disabled" },
        "usage": null,
        "user": asked.user,
        "metadata": asked.metadata.unwrap_or_default(),
    });
    match response {
        Value::Object(response) => response,
        _ => Map::new(),
    }
}

fn refuse_unsupported(asked: &ResponseRequest) -> Result<(), ApiError> {
    if asked.background == Some(true) {
        if asked.store == Some(false) {
            return Err(ApiError::invalid("background", "A response in the background has to be stored."));
        }
        return Err(ApiError::unsupported("background", "Responses in the background are not supported."));
    }
    let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
    if given(&asked.conversation) {
        let message = "`conversation` is not supported; use `previous_response_id` to continue a response.";
        return Err(ApiError::unsupported("conversation", message));
    }
    if given(&asked.prompt) {
        return Err(ApiError::unsupported(
            "prompt",
            "Stored prompts are not supported; send `instructions` and `input`.",
        ));
    }
    Ok(())
}
