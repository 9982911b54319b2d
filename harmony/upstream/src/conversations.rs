//! Random conversations: compares what this project's crate `harmony` and OpenAI's `openai-harmony` render and parse.

use harmony::{DeveloperPrompt, Function, Message, ReasoningEffort, ResponseFormat, Role, SystemPrompt};
use openai_harmony::chat::{self, Content, DeveloperContent, SystemContent, ToolDescription};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::schemas;
use crate::text::{line, maybe, name, one_of, text};
use crate::{Pair, turns};

struct Conversation {
    system: Option<SystemPrompt>,
    developer: Option<DeveloperPrompt>,
    messages: Vec<Message>,
}

/// Returns the number of tokens that were compared.
pub fn check(pair: &Pair<'_>, rng: &mut ChaCha8Rng) -> Result<usize, String> {
    let conversation = conversation(rng);
    let (ours, theirs) = (conversation.ours(), conversation.theirs());
    let whole: Vec<u32> = ours.iter().flat_map(|message| pair.ours.render(message)).collect();
    pair.same_tokens("the conversation", &whole, &rendered(pair, theirs.iter(), false)?)?;

    // The two crates have different rules about which earlier reasoning a prompt leaves out: see the README. Where the results differ,
    // OpenAI's crate gets the messages that ours keeps.
    let kept = without_old_reasoning(&ours);
    let mut prompt = match kept == kept_by_openai(&ours) {
        true => rendered(pair, theirs.iter(), true)?,
        false => rendered(pair, kept.iter().map(|&index| &theirs[index]), false)?,
    };
    prompt.extend(pair.ours.generation_prompt());
    pair.same_tokens("the prompt", &pair.ours.render_prompt(&ours), &prompt)?;

    // The rendered conversation must parse back to the messages.
    if !ours.is_empty() {
        let read = pair.ours.parse_conversation(&whole).map_err(|error| error.to_string())?;
        turns::same_messages("our reading", &read, &ours)?;
        if ours.iter().all(is_read_by_openai) {
            let theirs = pair.theirs.parse_messages_from_completion_tokens(whole.iter().copied(), None);
            let theirs =
                theirs.map_err(|error| format!("{error:#}"))?.iter().map(turns::from_openai).collect::<Vec<_>>();
            turns::same_messages("their reading", &theirs, &ours)?;
        }
    }
    Ok(whole.len() + prompt.len())
}

fn rendered<'m>(
    pair: &Pair<'_>,
    messages: impl Iterator<Item = &'m chat::Message>,
    drops: bool,
) -> Result<Vec<u32>, String> {
    // The type of the configuration is not exported. Its default drops reasoning; without a configuration nothing is dropped.
    let config = drops.then(Default::default);
    pair.theirs.render_conversation(messages, config.as_ref()).map_err(|error| format!("{error:#}"))
}

/// Indices of the messages that remain without the reasoning before the last final answer.
fn without_old_reasoning(messages: &[Message]) -> Vec<usize> {
    let last = messages.iter().rposition(is_final);
    kept(messages, |index| last.is_none_or(|last| index > last))
}

/// Indices of the messages that OpenAI's crate keeps: without the reasoning before the first final answer, if the assistant's last message
/// is one.
fn kept_by_openai(messages: &[Message]) -> Vec<usize> {
    let ends = messages.iter().rfind(|message| message.role == Role::Assistant).is_some_and(is_final);
    let first = messages.iter().position(is_final).filter(|_| ends);
    kept(messages, |index| first.is_none_or(|first| index > first))
}

/// Indices of all messages except reasoning for which `is_new` is false.
fn kept(messages: &[Message], is_new: impl Fn(usize) -> bool) -> Vec<usize> {
    let is_kept = |&index: &usize| messages[index].channel.as_deref() != Some("analysis") || is_new(index);
    (0..messages.len()).filter(is_kept).collect()
}

fn is_final(message: &Message) -> bool {
    message.role == Role::Assistant && message.channel.as_deref() == Some("final")
}

/// OpenAI's crate does not parse the name of a person, nor a tool's message without a recipient, and takes a content type without a
/// recipient for a recipient.
fn is_read_by_openai(message: &Message) -> bool {
    let has_recipient = message.recipient.is_some();
    let named = if message.role == Role::Tool { has_recipient } else { message.name.is_none() };
    named && (has_recipient || message.content_type.is_none())
}

impl Conversation {
    fn has_functions(&self) -> bool {
        self.developer.as_ref().is_some_and(|developer| !developer.functions.is_empty())
    }

    fn ours(&self) -> Vec<Message> {
        let system =
            self.system.as_ref().map(|system| SystemPrompt { functions: self.has_functions(), ..system.clone() });
        let system = system.map(|system| system.message());
        let developer = self.developer.as_ref().map(DeveloperPrompt::message);
        system.into_iter().chain(developer).chain(self.messages.iter().cloned()).collect()
    }

    fn theirs(&self) -> Vec<chat::Message> {
        let system = self
            .system
            .as_ref()
            .map(|system| chat::Message::from_role_and_content(chat::Role::System, system_content(system)));
        let developer = self.developer.as_ref().map(|developer| {
            let contents = developer_contents(developer);
            chat::Message::from_role_and_contents(chat::Role::Developer, contents)
        });
        system.into_iter().chain(developer).chain(self.messages.iter().map(turns::to_openai)).collect()
    }
}

fn system_content(system: &SystemPrompt) -> SystemContent {
    let effort = match system.effort {
        ReasoningEffort::Low => chat::ReasoningEffort::Low,
        ReasoningEffort::Medium => chat::ReasoningEffort::Medium,
        ReasoningEffort::High => chat::ReasoningEffort::High,
    };
    SystemContent {
        model_identity: system.identity.clone(),
        knowledge_cutoff: system.knowledge_cutoff.clone(),
        conversation_start_date: system.date.clone(),
        reasoning_effort: Some(effort),
        ..SystemContent::default()
    }
}

/// OpenAI's crate has no response formats. They are assembled here as its documentation of the format shows them.
fn developer_contents(developer: &DeveloperPrompt) -> Vec<Content> {
    let formats = developer.response_formats.iter().map(|format| {
        let description = format.description.iter().flat_map(|text| text.lines()).map(|line| format!("// {line}\n"));
        format!("\n\n## {}\n\n{}{}", format.name, description.collect::<String>(), format.schema)
    });
    let formats = Some(formats.collect::<String>()).filter(|formats| !formats.is_empty());
    let formats = formats.map(|formats| format!("# Response Formats{formats}"));
    let mut content = DeveloperContent { instructions: developer.instructions.clone(), tools: None };
    if !developer.functions.is_empty() {
        let tools = developer.functions.iter().map(|function| {
            let description = function.description.clone().unwrap_or_default();
            ToolDescription::new(&function.name, description, function.parameters.clone())
        });
        content = content.with_function_tools(tools.collect());
    } else if let Some(formats) = formats {
        // A single text, because texts are encoded separately.
        let text = match &content.instructions {
            Some(instructions) => format!("# Instructions\n\n{instructions}\n\n{formats}"),
            None => formats,
        };
        return vec![text.into()];
    }
    let mut contents = vec![content.into()];
    contents.extend(formats.map(|formats| Content::from(format!("\n\n{formats}"))));
    contents
}

fn conversation(rng: &mut ChaCha8Rng) -> Conversation {
    let count = rng.random_range(0..10);
    Conversation {
        system: maybe(rng, 0.7, system),
        developer: maybe(rng, 0.7, developer).filter(|developer| !developer.is_empty()),
        messages: (0..count).map(|_| message(rng)).collect(),
    }
}

fn system(rng: &mut ChaCha8Rng) -> SystemPrompt {
    let default = SystemPrompt::default();
    SystemPrompt {
        identity: if rng.random() { default.identity } else { maybe(rng, 0.8, text) },
        knowledge_cutoff: if rng.random() { default.knowledge_cutoff } else { maybe(rng, 0.8, line) },
        date: maybe(rng, 0.7, |rng| {
            format!("20{:02}-{:02}-{:02}", rng.random_range(0..99), rng.random_range(1..13), rng.random_range(1..32))
        }),
        effort: one_of(rng, &ReasoningEffort::ALL),
        ..SystemPrompt::default()
    }
}

fn developer(rng: &mut ChaCha8Rng) -> DeveloperPrompt {
    let functions = if rng.random_bool(0.7) { rng.random_range(1..5) } else { 0 };
    let formats = if rng.random_bool(0.3) { rng.random_range(1..3) } else { 0 };
    DeveloperPrompt {
        instructions: maybe(rng, 0.7, text),
        functions: (0..functions).map(|_| function(rng)).collect(),
        response_formats: (0..formats).map(|_| response_format(rng)).collect(),
    }
}

fn function(rng: &mut ChaCha8Rng) -> Function {
    Function { name: name(rng), description: maybe(rng, 0.8, text), parameters: maybe(rng, 0.9, schemas::parameters) }
}

fn response_format(rng: &mut ChaCha8Rng) -> ResponseFormat {
    ResponseFormat { name: name(rng), description: maybe(rng, 0.5, text), schema: schemas::parameters(rng) }
}

fn message(rng: &mut ChaCha8Rng) -> Message {
    match rng.random_range(0..10) {
        0..3 => from_outside(rng),
        3..5 => result(rng),
        _ => turns::assistant_message(rng),
    }
}

fn from_outside(rng: &mut ChaCha8Rng) -> Message {
    let role = one_of(rng, &[Role::User, Role::User, Role::User, Role::Developer, Role::System]);
    Message {
        name: maybe(rng, 0.1, name),
        recipient: maybe(rng, 0.1, |_| "assistant".into()),
        ..Message::new(role, text(rng))
    }
}

fn result(rng: &mut ChaCha8Rng) -> Message {
    let mut call = turns::call(rng);
    call.content = String::new();
    let result = Message::result_of(&call, text(rng));
    Message { recipient: result.recipient.filter(|_| rng.random_bool(0.95)), ..result }
}
