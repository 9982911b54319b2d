//! Ollama's API, as far as clients need it to find this server and chat.

mod answer;
mod request;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use harmony::{Function, ResponseFormat};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::app::{App, Model};
use super::body::{block_in_place_if_large, parse, read};
use super::chat::{self, Content, InMessage, InRole};
use super::error::ApiError;
use super::fields;
use super::form::{constraint, shown};
use super::json::ok;
use super::record::Record;
use super::runs::Runs;
use super::stops;
use super::stream::{Form, Frames, respond};
use super::tools::{AnswerFormat, Toolbox};
use super::turn::Turn;
use crate::request::{Constraint, Request};

use answer::{Layout, OllamaAnswer, Reader};
use request::{ChatRequest, GenerateRequest, Options, Think, messages, no_images};

/// An error in Ollama's format.
pub struct OllamaError(ApiError);

impl From<ApiError> for OllamaError {
    fn from(error: ApiError) -> OllamaError {
        OllamaError(error)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        self.0.respond_on("/api/")
    }
}

/// The version of Ollama whose API this server implements; clients check it before they use newer endpoints.
pub async fn version() -> Response {
    ok(&json!({ "version": "0.12.0" }))
}

pub async fn tags(State(app): State<Arc<App>>) -> Result<Response, OllamaError> {
    let model = app.model()?;
    let models: Vec<Value> = model.names.iter().map(|name| description(model, name)).collect();
    Ok(ok(&json!({ "models": models })))
}

/// The loaded models: the server's only model, which is always loaded.
pub async fn running(state: State<Arc<App>>) -> Result<Response, OllamaError> {
    tags(state).await
}

fn description(model: &Model, name: &str) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": timestamp(model.created),
        "size": model.bytes,
        "digest": model.fingerprint,
        "details": details(),
        "capabilities": ["completion", "tools", "thinking"],
    })
}

fn details() -> Value {
    json!({ "parent_model": "", "format": "gguf", "family": "gptoss", "families": ["gptoss"], "parameter_size": "",
            "quantization_level": "MXFP4" })
}

/// A Unix time in seconds, in the format of RFC 3339.
fn timestamp(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!("{}T{:02}:{:02}:{:02}Z", time.date(), time.hour(), time.minute(), time.second())
}

#[derive(Deserialize)]
struct Show {
    model: Option<String>,
    /// The older name of the field `model`.
    name: Option<String>,
}

pub async fn show(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Response, OllamaError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let asked: Show = parse(&body)?;
    model.resolve(asked.model.or(asked.name).as_deref())?;
    Ok(ok(&json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": details(),
        "model_info": {
            "general.architecture": "gptoss",
            "gptoss.context_length": model.handle.context(),
            "gptoss.vocab_size": model.handle.vocab(),
        },
        "capabilities": ["completion", "tools", "thinking"],
        "modified_at": timestamp(model.created),
    })))
}

pub async fn chat(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: HttpRequest,
) -> Result<Response, OllamaError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let plan = block_in_place_if_large(body.len(), || Plan::of_chat(model, parse(&body)?, &record))?;
    drop(body);
    answer(&app, model, &record, plan).await
}

pub async fn generate(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: HttpRequest,
) -> Result<Response, OllamaError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let plan = block_in_place_if_large(body.len(), || Plan::of_generate(model, parse(&body)?, &record))?;
    drop(body);
    answer(&app, model, &record, plan).await
}

async fn answer(app: &Arc<App>, model: &Model, record: &Record, plan: Plan) -> Result<Response, OllamaError> {
    let Plan { run, answer, stream } = plan;
    let param = if answer.layout == Layout::Chat { "messages" } else { "prompt" };
    let runs = Runs::submit(app, model, record, vec![run], param)?;
    if !stream {
        let mut answer = answer.begin(model)?;
        runs.gather(&mut answer).await?;
        return Ok(ok(&answer.whole()));
    }
    let app = app.clone();
    Ok(respond(Form::Lines, move |sender| async move {
        let begun = app.loaded().and_then(|model| answer.begin(model).ok());
        if let Some(mut answer) = begun {
            runs.write(&mut answer, &mut Frames::new(Form::Lines), &sender).await;
        }
    }))
}

struct Plan {
    run: Request,
    answer: AnswerPlan,
    stream: bool,
}

/// The parameters of an answer, before its first token.
struct AnswerPlan {
    layout: Layout,
    model: String,
    is_raw: bool,
    shows_thinking: bool,
    prompt_tokens: usize,
    functions: Vec<Function>,
    stops: Vec<String>,
}

impl AnswerPlan {
    fn begin(self, model: &Model) -> Result<OllamaAnswer<'_>, ApiError> {
        let AnswerPlan { layout, model: name, is_raw, shows_thinking, prompt_tokens, functions, stops } = self;
        let reader = match is_raw {
            true => Reader::raw(&model.tokenizer, &stops, &stops::tokens(model, None, None)),
            false => Reader::Turn(Box::new(Turn::new(&model.harmony()?, &functions, &stops, &[]))),
        };
        let created = timestamp(super::id::now());
        Ok(OllamaAnswer::new(layout, name, created, shows_thinking, prompt_tokens, reader))
    }
}

impl Plan {
    fn of_chat(model: &Model, asked: ChatRequest, record: &Record) -> Result<Plan, ApiError> {
        let name = model.resolve(asked.model.as_deref())?;
        let format = form(asked.format.as_ref())?;
        let tools = asked.tools.filter(|tools| !tools.is_empty());
        let toolbox = Toolbox::of_chat(tools.as_deref(), None)?;
        let effort = Think::effort(asked.think.as_ref())?;
        let messages = messages(asked.messages.unwrap_or_default())?;
        let prompt = chat::render(model, Some(messages), effort, toolbox.functions.clone(), shown(&format))?;
        let constraint = constraint(model, "format", &format, &toolbox)?;
        let answer = AnswerPlan {
            layout: Layout::Chat,
            model: name,
            is_raw: false,
            shows_thinking: Think::is_shown(asked.think.as_ref()),
            prompt_tokens: prompt.len(),
            functions: toolbox.functions,
            stops: Vec::new(),
        };
        Plan::new(model, prompt, constraint, asked.options.unwrap_or_default(), asked.stream, answer, record)
    }

    fn of_generate(model: &Model, asked: GenerateRequest, record: &Record) -> Result<Plan, ApiError> {
        let name = model.resolve(asked.model.as_deref())?;
        let format = form(asked.format.as_ref())?;
        no_images("images", asked.images.as_deref())?;
        if asked.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "This model cannot fill in text."));
        }
        let text = asked.prompt.unwrap_or_default();
        let is_raw = asked.raw.unwrap_or(false);
        if is_raw && format != AnswerFormat::Free {
            return Err(ApiError::unsupported("format", "`format` is not supported with `raw`."));
        }
        let effort = Think::effort(asked.think.as_ref())?;
        let prompt = match is_raw {
            true => model.encode(&text, "prompt")?,
            false => {
                let message = |role, text| InMessage::with_content(role, Content::Text(text));
                let system = asked.system.map(|text| message(InRole::System, text));
                let messages = system.into_iter().chain([message(InRole::User, text)]).collect();
                chat::render(model, Some(messages), effort, Vec::new(), shown(&format))?
            }
        };
        let constraint = constraint(model, "format", &format, &Toolbox::default())?;
        let answer = AnswerPlan {
            layout: Layout::Generate,
            model: name,
            is_raw,
            shows_thinking: Think::is_shown(asked.think.as_ref()),
            prompt_tokens: prompt.len(),
            functions: Vec::new(),
            stops: Vec::new(),
        };
        Plan::new(model, prompt, constraint, asked.options.unwrap_or_default(), asked.stream, answer, record)
    }

    fn new(
        model: &Model,
        prompt: Vec<u32>,
        constraint: Option<Box<dyn Constraint>>,
        options: Options,
        stream: Option<bool>,
        mut answer: AnswerPlan,
        record: &Record,
    ) -> Result<Plan, ApiError> {
        let sampling = options.sampling_fields().params(model.tokenizer.vocab())?;
        let max_tokens = model.room(prompt.len(), options.max_tokens());
        answer.stops = fields::stop_strings(options.stop)?;
        let run = Request {
            prompt,
            sampling,
            max_tokens,
            stop_tokens: stops::tokens(model, None, None),
            logprobs: None,
            deadline: None,
            client: record.client().to_owned(),
            constraint,
        };
        Ok(Plan { run, answer, stream: stream.unwrap_or(true) })
    }
}

/// `format` is `json` or a JSON schema. If it is absent, null or an empty string, the answer is free.
fn form(format: Option<&Value>) -> Result<AnswerFormat, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(AnswerFormat::Free),
        Some(Value::String(word)) if word.is_empty() => Ok(AnswerFormat::Free),
        Some(Value::String(word)) if word == "json" => Ok(AnswerFormat::Json(None)),
        Some(schema @ Value::Object(_)) => Ok(AnswerFormat::Json(Some(ResponseFormat {
            name: "response".into(),
            description: None,
            schema: schema.clone(),
        }))),
        Some(_) => Err(ApiError::invalid("format", "`format` must be `json` or a JSON schema.")),
    }
}
